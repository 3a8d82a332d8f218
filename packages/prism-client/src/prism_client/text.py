"""Values that others wrote, in a sentence: on one line, and no longer than a reader needs."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

MOST_DIGITS = 300
"""Of a whole number in JSON: a float ends at 1.8e308."""


def one_line(value: object, most: int = 80) -> str:
    """`value` as text, on one line of at most `most` characters."""
    try:
        text = str(value)
    except Exception:  # of a type that cannot be printed
        text = type(value).__name__
    line = "".join(c if c.isprintable() else "?" for c in " ".join(text[: 4 * most].split()))
    return line if len(line) <= most else f"{line[: most - 3]}..."


def quoted(value: Any, most: int = 60) -> str:
    """Text or a number as Python writes it, of a long one its beginning; anything else by its type."""
    if isinstance(value, (str, bytes)):
        return repr(value) if len(value) <= most else f"{value[:most]!r}... ({len(value)} in all)"
    if isinstance(value, int) and abs(value) > 10**most:
        return f"a number of more than {most} digits"
    if isinstance(value, (bool, int, float)) or value is None:
        return one_line(repr(value), most)
    return type(value).__name__


def shown(value: Any, most: int = 80) -> str:
    """As `quoted`, but short lists and maps as Python writes them."""
    if isinstance(value, int) and abs(value) > 10**most:
        return f"a number of more than {most} digits"
    if isinstance(value, (list, dict)) and len(value) >= most:
        return f"{len(value)} values"
    return one_line(repr(value), most)


def parsed_json(text: str) -> Any:
    """What JSON says; of whole numbers those that also float has room for.

    Raises:
        ValueError: it is none, in the words of Python's parser.
        RecursionError: it is nested too deeply.
    """
    return json.loads(text, parse_int=_whole_number)


def _whole_number(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError("a number has too many digits")
    return int(text)


def file_name(name: str) -> str:
    """A name as part of a file's: what is no letter, digit, dot or dash becomes a dash."""
    return re.sub(r"[^\w.-]+", "-", name)


def listed(names: Sequence[str], most: int = 4) -> str:
    """The first few of some names, and how many more there are."""
    some = ", ".join(one_line(name, 30) for name in names[:most]) or "nothing"
    return f"{some} and {len(names) - most} more" if len(names) > most else some
