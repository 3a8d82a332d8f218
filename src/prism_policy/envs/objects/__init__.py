"""Scenes with objects that robosuite lacks."""
