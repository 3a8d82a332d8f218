"""What each task is; no torch, no simulator."""
