"""Holds the arm when the control loop itself hangs in a driver."""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from typing import Iterator

from prism_client.control.clock import Clock
from prism_client.robots.robot import Robot


class Watchdog:
    """Calls `robot.hold()` from its own thread when a control step takes longer than its time, once a step."""

    def __init__(self, robot: Robot, period_s: float, clock: Clock) -> None:
        self._robot, self._period, self._clock = robot, period_s, clock
        self._end: float | None = None
        self._fired = False
        self._changed, self._closing = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="watchdog", daemon=True)

    @contextmanager
    def step(self) -> Iterator[None]:
        """A control step."""
        with self._changed:
            self._end = self._clock.now() + self._period
            self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._end = None

    def fired(self) -> bool:
        """Whether it had to hold the arm since this was last asked."""
        with self._changed:
            fired, self._fired = self._fired, False
        return fired

    def _work(self) -> None:
        with self._changed:
            while not self._closing:
                left = None if self._end is None else self._end - self._clock.now()
                if left is not None and left <= 0:
                    self._end, self._fired = None, True
                    with suppress(Exception):  # the loop holds again, and says what is wrong
                        self._robot.hold()
                    continue
                self._changed.wait(left)

    def __enter__(self) -> Watchdog:
        if self._clock.real:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(1.0)
