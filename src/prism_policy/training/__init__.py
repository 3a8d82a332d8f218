"""The training of one run folder, in one process or several."""
