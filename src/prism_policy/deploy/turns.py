"""Whose turn it is to have the policy compute."""

from __future__ import annotations

import concurrent.futures
import itertools
import queue
import time
from collections.abc import Callable


class Turn:
    """A question that waits to be answered, since the virtual time `start`."""

    def __init__(self, compute: Callable[[], bytes], start: float, finished: Callable[[float], None]) -> None:
        self.compute: Callable[[], bytes] | None = compute
        self.start, self.finished = start, finished
        self.answer: concurrent.futures.Future[bytes] = concurrent.futures.Future()

    def take(self) -> None:
        """Answer it, unless nobody waits any more."""
        compute, started = self.compute, time.perf_counter()
        if compute is None or not self.answer.set_running_or_notify_cancel():
            return
        try:
            answer = compute()
        except Exception as error:
            self.finished(time.perf_counter() - started)
            self.answer.set_exception(error)
        else:
            self.finished(time.perf_counter() - started)
            self.answer.set_result(answer)

    def drop(self) -> None:
        """Leave it unanswered, and forget what was asked and by whom: it stays in the queue for a while."""
        self.compute, self.finished = None, lambda seconds: None
        self.answer.cancel()


class Turns:
    """Questions from all connections, in the order of start-time fair queueing (Goyal et al., 1996).

    Each connection has a clock, that its answers move on by the time they took. The question goes first whose clock is
    least; one that has been idle catches up with the clock of the question that is being answered. So who asks now and
    then waits for one answer at most, however many others ask all the time. New connections begin an answer later, for
    to come anew must be no advantage.
    """

    def __init__(self) -> None:
        self._now = self._last = 0.0  # the clock of the question that is being answered, what the last one took
        self._clocks: dict[object, float] = {}
        self._waiting: queue.PriorityQueue[tuple[float, int, Turn]] = queue.PriorityQueue()
        self._numbers = itertools.count()

    def open(self, connection: object) -> None:
        """Admit a connection."""
        self._clocks[connection] = self._now + self._last

    def close(self, connection: object) -> None:
        """Forget a connection."""
        self._clocks.pop(connection, None)

    def ask(self, connection: object, compute: Callable[[], bytes]) -> Turn:
        """Have a connection's question computed when it is its turn; it has one at a time."""
        start = max(self._now, self._clocks[connection])

        def finished(seconds: float) -> None:
            self._last = seconds
            if connection in self._clocks:
                self._clocks[connection] = start + seconds

        turn = Turn(compute, start, finished)
        self._waiting.put((start, next(self._numbers), turn))
        return turn

    def next(self, timeout: float) -> Turn | None:
        """The next question, or None after `timeout` seconds without one."""
        try:
            start, _, turn = self._waiting.get(timeout=timeout)
        except queue.Empty:
            return None
        self._now = max(self._now, start)
        return turn
