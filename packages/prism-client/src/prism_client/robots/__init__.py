"""Robots: what one is to the control loop, the file that describes it, adapters."""
