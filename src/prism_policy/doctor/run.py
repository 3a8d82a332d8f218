"""Checks with a run."""
