"""The time that a control loop and its robot share."""

from __future__ import annotations

import threading
import time


class Clock:
    """This computer's monotonic time, which no one sets. A simulation may have a clock of its own."""

    real = True
    """Whether it goes on by itself."""

    def now(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()

    def wait(self, until: float, stop: threading.Event) -> None:
        """Return at the time `until`, or as soon as `stop` is set."""
        stop.wait(max(until - self.now(), 0.0))
