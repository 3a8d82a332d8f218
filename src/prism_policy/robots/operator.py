"""The person beside the robot: keys, from a terminal or line by line from a pipe, and what is asked with them."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TextIO

from prism_policy.utils.terminal import console

ENTER, QUIT = "\n", "q"


class Keys:
    """Reads single keys from a terminal; without one, the first character of each line is a key, the rest its text.

    Usage::

        with Keys() as keys:
            key = keys.read(0.3)  # "" where none was pressed within 0.3 s
            note = keys.line("Note: ")
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdin
        self.terminal = self._stream.isatty()
        self._settings: Any = None
        self._rest = ""  # of a line from a pipe
        self._buffer = b""

    def __enter__(self) -> Self:
        self._raw(True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._raw(False)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within, somebody else reads the keys."""
        self._raw(False)
        try:
            yield
        finally:
            self._raw(True)

    def _raw(self, on: bool) -> None:
        if not self.terminal:
            return
        import termios
        import tty

        number = self._stream.fileno()
        if on:
            self._settings = termios.tcgetattr(number)
            tty.setcbreak(number)
        elif self._settings is not None:
            termios.tcsetattr(number, termios.TCSADRAIN, self._settings)

    def read(self, timeout_s: float | None = None) -> str:
        """The next key, Enter as a line's end; "" after the timeout; "q" where the input has ended."""
        number = self._stream.fileno()
        if not self._buffer:
            if not select.select([number], [], [], timeout_s)[0]:
                return ""
            self._buffer = os.read(number, 1 if self.terminal else 4096)
            if not self._buffer:
                return QUIT
        if self.terminal:
            key, self._buffer = self._buffer[:1], b""
            return key.decode(errors="replace")
        while b"\n" not in self._buffer and (more := os.read(number, 4096)):
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        text = line.decode(errors="replace")
        self._rest = text[1:].strip()
        return text[:1] or ENTER

    def line(self, prompt: str) -> str:
        """A line of text, for which the terminal echoes what is typed."""
        if not self.terminal:
            return self._rest
        with self.paused():
            console.file.write(prompt)
            console.file.flush()
            return self._stream.readline().strip()

    def choose(self, question: str, choices: Mapping[str, str]) -> str:
        """One of these keys, after saying what each is for; or "q", which leaves, whatever is asked."""
        keys = ", ".join(f"{key.replace(ENTER, 'Enter')} {what}" for key, what in choices.items())
        console.print(f"{question}  {keys}".strip())
        while (key := self.read()) not in choices and key != QUIT:
            pass
        return key


@dataclass(frozen=True)
class Verdict:
    """How a trial went."""

    success: bool = False
    stage: str = ""
    """The furthest that was reached."""
    note: str = ""
    void: str = ""
    """Why it counts for nothing, where it does not."""
    left: bool = False
    """The operator wants to leave."""


LEFT = Verdict(void="the operator left before saying how it went", left=True)
"""So nobody drops a trial unseen whose end they did not like: it is in the journal."""


def judge(keys: Keys, stages: Sequence[str]) -> Verdict:
    """Ask how a trial went, by keys: s success, f failure and how far it came, n a note, v it counts for nothing.

    Args:
        stages: of the task, in order; the last one is success.
    """
    try:
        return _judge(keys, stages)
    except KeyboardInterrupt:
        return LEFT


def _judge(keys: Keys, stages: Sequence[str]) -> Verdict:
    note = ""
    while True:
        key = keys.choose("How did it go?", {"s": "success", "f": "failure", "n": "note", "v": "void"})
        if key == "n":
            note = " ".join(filter(None, (note, keys.line("Note: "))))
        elif key == "v":
            return Verdict(void=keys.line("Why: ") or "the operator says so", note=note)
        elif key == "s":
            return Verdict(True, stages[-1] if stages else "", note)
        elif key == QUIT or (stage := _furthest(keys, stages[:-1])) is None:
            return LEFT
        else:
            return Verdict(False, stage, note)


def _furthest(keys: Keys, stages: Sequence[str]) -> str | None:
    """The furthest stage of a failure; None where the operator leaves."""
    if not stages:
        return ""
    names = {str(i): name for i, name in enumerate(("nothing", *stages))}
    said = keys.line("") if not keys.terminal else ""  # "f 2" of a pipe
    key = said[:1] if said[:1] in names else keys.choose("How far did it come?", names)
    return None if key == QUIT else "" if key == "0" else names[key]
