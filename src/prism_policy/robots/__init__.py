"""What people do with a robot: demonstrations recorded on it, trials of policies on it."""
