"""What others sent, in a sentence: on one line, and never longer than a reader needs."""

from __future__ import annotations

from typing import Any

LONGEST_SENTENCE = 480
"""Characters."""


def quoted(value: Any, most: int = 60) -> str:
    """Text or a number as Python writes it, of a long one its beginning; anything else by its type."""
    if isinstance(value, (str, bytes)):
        return repr(value) if len(value) <= most else f"{value[:most]!r}... ({len(value)} in all)"
    if isinstance(value, (bool, int, float)) or value is None:
        return sentence(repr(value), most)
    return type(value).__name__


def sentence(text: object, most: int = LONGEST_SENTENCE) -> str:
    """`text` on one line of at most `most` characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)[: 4 * most]).split())
    return line if len(line) <= most else line[: most - 3] + "..."
