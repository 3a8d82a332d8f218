"""The one exception for bad input: what was expected, what was found, what to do."""


class PrismError(Exception):
    """Bad input or a missing prerequisite. The command line prints the message and exits with code 2."""

    @property
    def problem(self) -> str:
        """The message without what to do, which stands behind its last semicolon."""
        return str(self).rpartition("; ")[0] or str(self)
