"""The one exception for bad input: what was expected, what was found, what to do."""

LONGEST_SENTENCE = 480
"""Characters of a message."""


class PrismError(Exception):
    """Bad input or a missing prerequisite. The command line prints the message and exits with code 2.

    Of a message that foreign values make too long, the middle is left out: what it is about and what to do remain.
    """

    def __init__(self, message: str) -> None:
        if len(message) > LONGEST_SENTENCE:
            message = f"{message[:300]} ... {message[-(LONGEST_SENTENCE - 305) :]}"
        super().__init__(message)

    @property
    def problem(self) -> str:
        """The message without what to do, which stands behind its last semicolon."""
        return str(self).rpartition("; ")[0] or str(self)
