"""The one place where text meets the terminal: shown as it is, whatever names and messages it is made of."""

from __future__ import annotations

import re
import shlex
import sys
import time
from typing import Any

from rich.console import Console
from rich.text import Text


def plain(text: str) -> str:
    """Text as a terminal can show it: what would move the cursor, change colours or break the line is spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shell(*words: object) -> str:
    """A command line that can be pasted into a shell, whatever characters its words hold."""
    return " ".join(_quoted(str(word)) for word in words)


def _quoted(word: str) -> str:
    if word.isprintable():
        return shlex.quote(word)
    # bash's and zsh's $'...', byte by byte, as a name need not be text in any encoding.
    parts = re.split(r"([ -~])", word)
    escaped = (f"\\{p}" if p in "'\\" else p if p.isascii() and p.isprintable() else _octal(p) for p in parts if p)
    return f"$'{''.join(escaped)}'"


def _octal(text: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in text.encode("utf-8", "surrogateescape"))


class Terminal(Console):
    """Prints each string as one line, and strings in tables as they are: no markup, no emoji codes, no escapes.

    Looks are arguments: `console.print("a line", "another", style="bold")`.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, soft_wrap=True, stderr=stderr)
        if not self.is_terminal:
            self.width = 140  # a file or a pipe has no width of its own; 80 would break tables
        self.last_line = time.monotonic()
        """When something was last printed [s]."""

    def render_str(self, text: str, **options: Any) -> Text:
        """All strings go through here, those in a table's cells, too."""
        shown = plain(text).encode(self.encoding, "backslashreplace").decode(self.encoding)
        return super().render_str(shown, **{**options, "markup": False, "emoji": False, "highlight": False})

    def print(self, *lines: Any, **options: Any) -> None:
        """Print strings, each on its own line, and tables."""
        self.last_line = time.monotonic()
        super().print(*lines, **{"sep": "\n", **options})

    def data(self, text: str) -> None:
        """Write JSON or another format for programs to standard output, as it is."""
        self.last_line = time.monotonic()
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


console, errors = Terminal(), Terminal(stderr=True)
