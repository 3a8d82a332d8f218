"""The one exception for bad input: what was expected, what was found, what to do."""


class PrismError(Exception):
    """Bad input or a missing prerequisite. The command line prints the message and exits with code 2."""
