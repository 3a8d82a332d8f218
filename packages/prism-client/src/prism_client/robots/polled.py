"""A thread that reads what takes time, such as a camera, so that the control loop never waits for it."""

from __future__ import annotations

import threading
from typing import Callable, Generic, TypeVar

from prism_client.control.clock import Clock
from prism_client.errors import PrismError
from prism_client.text import one_line

T = TypeVar("T")


class Polled(Generic[T]):
    """The latest of what `read` returns, and when it was returned.

    Args:
        read: blocks until there is something new; what it raises, `latest` raises until the next success.
        name: what is read, for errors.
    """

    def __init__(self, read: Callable[[], T], name: str, clock: Clock) -> None:
        self._read, self._name, self._clock = read, name, clock
        # Replaced as a whole, so that no lock is needed, for which a thread that never rests would have others wait.
        self._last: tuple[T | None, float, Exception | None] = (None, 0.0, None)
        self._there, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._closing.is_set():
            try:
                value = self._read()
            except Exception as error:
                self._last = (*self._last[:2], error)
                self._closing.wait(0.05)  # a driver may fail at once, again and again
            else:
                self._last = (value, self._clock.now(), None)
                self._there.set()
                self._closing.wait(0.001)  # or return at once, though it should block

    def latest(self) -> tuple[T, float]:
        """The value and its time [s].

        Raises:
            PrismError: the last reading failed, or there was none yet.
        """
        value, time, error = self._last
        if error is not None:
            raise PrismError(f"{self._name}: {one_line(error, 200)}") from error
        if value is None:
            raise PrismError(f"{self._name}: nothing was read yet")
        return value, time

    def wait(self, seconds: float) -> None:
        """Return when there is something, or raise as `latest` after this time [s]."""
        self._there.wait(seconds)
        self.latest()

    def close(self) -> None:
        """End the thread after its present reading, for which nobody waits longer than a second."""
        self._closing.set()
        self._thread.join(1.0)
