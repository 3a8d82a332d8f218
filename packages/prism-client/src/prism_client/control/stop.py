"""The operator's stop: a key, or Ctrl-C."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from contextlib import contextmanager
from types import FrameType
from typing import Any, Iterator

KEYS = b" q\x1b\r\n"
"""Space, q, Escape, Enter."""


class Stop(threading.Event):
    """Set when the operator wants the arm to hold, and why."""

    reason = ""
    voids = False
    """Whether the episode counts for nothing."""

    def request(self, reason: str, voids: bool = False) -> None:
        """Have the loop hold and end the episode; the first reason counts."""
        if not self.is_set():
            self.reason, self.voids = reason, voids
            self.set()


@contextmanager
def operator(stop: Stop) -> Iterator[None]:
    """Within, a key (space, q, Escape, Enter) ends the episode, and Ctrl-C or SIGTERM ends it as void."""

    def interrupted(number: int, frame: FrameType | None) -> None:
        if stop.is_set():  # the second time, and the loop does not end
            raise KeyboardInterrupt
        stop.request("Ctrl-C" if number == signal.SIGINT else "SIGTERM", voids=True)

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, interrupted) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with _keys(stop):
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _keys(stop: Stop) -> Iterator[None]:
    """Watch for the stop key where there is a terminal."""
    try:
        import termios
        import tty

        terminal = sys.stdin.fileno()
        settings: Any = termios.tcgetattr(terminal)
    except Exception:  # no terminal, or no Unix
        yield
        return
    closing = threading.Event()

    def watch() -> None:
        while not closing.is_set():
            if select.select([terminal], [], [], 0.1)[0] and os.read(terminal, 1) in [bytes([key]) for key in KEYS]:
                stop.request("the stop key")

    thread = threading.Thread(target=watch, daemon=True)
    tty.setcbreak(terminal)
    thread.start()
    try:
        yield
    finally:
        closing.set()
        thread.join()
        termios.tcsetattr(terminal, termios.TCSADRAIN, settings)
