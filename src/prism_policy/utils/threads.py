"""How many threads to compute with on a machine that others use, too.

OpenMP's threads wait for one another at the end of every loop. Where all have a core of their own, two are nearly twice
as fast as one; where one of them has to share its core, the others wait for it, and an update takes ten times as long
(benchmarks/RESULTS.md). What helps depends on what else runs, so it is tried, and tried again when that changes.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Self

import psutil
import torch

from prism_policy.utils.cores import available_cores

FIRST_LOOK_S, LOOK_S = 0.2, 1.0
"""How long it is looked at first what others leave, and how often later [s]."""
CLEAR = 0.25
"""Cores more or less than threads, for another number of threads to be tried."""
REJECTED_S = 60.0
"""How long another number that was not faster is not tried again, unless others leave more or less [s]."""
CHANGED = 0.3
"""Cores that others leave more or less, for that to be a change."""
PIECES, ENOUGH_S = 3, 2.0
"""Pieces of work that are timed with each number of threads, fewer where they take this long together [s]."""
GAIN = 0.95
"""Share of the time that a piece has to take at most, for another number to be chosen."""


class FreeCores:
    """Cores' worth of time that other processes left since the last call.

    What a process of less priority (`nice`) took is not left: beside one, two threads were up to sixty times slower
    than one, as they wait for one another again and again for its turn to end.
    """

    def __init__(self) -> None:
        affinity = getattr(os, "sched_getaffinity", None)  # Linux's
        self.cores = sorted(affinity(0)) if affinity else list(range(os.cpu_count() or 1))
        self.before = self._now()

    def _now(self) -> tuple[float, float, float]:
        times = psutil.cpu_times(percpu=True)
        of_cores = [times[core] for core in self.cores if core < len(times)]
        idle = sum(each.idle + getattr(each, "iowait", 0.0) for each in of_cores)
        return time.perf_counter(), idle, time.process_time()

    def __call__(self) -> float:
        """What was idle or this process's own, from 0 to the number of cores."""
        now = self._now()
        seconds, idle, own = (after - before for after, before in zip(now, self.before, strict=True))
        self.before = now
        return (idle + own) / seconds if seconds > 0 else 0.0


class Threads:
    """A number of threads that is chosen again when what other processes leave free changes.

    With OMP_NUM_THREADS set, or after `torch.set_num_threads(1)`, it is that number and stays it.

    Usage::

        with Threads() as threads:
            for piece in work:
                with threads.work():
                    compute(piece)

    Args:
        useful: with False one thread is enough, however many are free.
        fixed: leave the number as it is; so it is by one that was given, see above.
        free: cores' worth of time that others left since its last call; `seconds` is the time [s].
    """

    def __init__(
        self,
        useful: bool = True,
        fixed: bool = False,
        free: Callable[[], float] | None = None,
        seconds: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.before = torch.get_num_threads()
        given = fixed or "OMP_NUM_THREADS" in os.environ
        enough = available_cores() if useful else 1
        self.most = self.count = self.before if given else min(self.before, enough)
        self.fixed = given or self.most == 1
        self._free, self._seconds = free or FreeCores(), seconds
        self._looked = -math.inf
        self._trial: Trial | None = None  # the one that goes on, or the last one without success

    def __enter__(self) -> Self:
        """Look what others leave, which takes a moment."""
        torch.set_num_threads(self.count)
        if not self.fixed:
            time.sleep(FIRST_LOOK_S)
        return self

    def __exit__(self, *exception: object) -> None:
        """Have as many threads as before."""
        torch.set_num_threads(self.before)

    @contextmanager
    def work(self) -> Iterator[None]:
        """A piece of work, of about the same size as the others. It is done in this thread."""
        if self.fixed:
            yield
            return
        if self._trial is None or self._trial.over:
            self._look()
        trial = self._trial if self._trial and not self._trial.over else None
        number = trial.next() if trial else self.count
        torch.set_num_threads(number)
        started = self._seconds()
        try:
            yield
        finally:
            torch.set_num_threads(self.count)
        if trial:
            trial.times[number].append(self._seconds() - started)
            if trial.over and trial.faster:
                self.count, self._trial = trial.wanted, None

    def _look(self) -> None:
        """Begin a trial where others leave free more or fewer cores than are used."""
        now = self._seconds()
        if now - self._looked < LOOK_S:
            return
        first, self._looked = self._looked == -math.inf, now
        room = min(max(self._free(), 1), self.most)
        if first:  # nothing is known yet, and with too many threads a trial may take minutes
            self.count = round(room)
        elif abs(room - self.count) > CLEAR:
            wanted = math.ceil(room) if room > self.count else math.floor(room)
            if not (self._trial and self._trial.says_no(wanted, room, now)):
                self._trial = Trial(self.count, wanted, room, now)


class Trial:
    """Pieces of work with the present number of threads, then with the wanted one, of which the first does not count:
    OpenMP's threads start, and what the cores remember is elsewhere.

    `room` and `when` are what others left and the time when it began.
    """

    def __init__(self, present: int, wanted: int, room: float, when: float) -> None:
        self.present, self.wanted, self.room, self.when = present, wanted, room, when
        self.times: dict[int, list[float]] = {present: [], wanted: []}

    def next(self) -> int:
        """Threads of the next piece."""
        return self.wanted if _enough(self.times[self.present]) else self.present

    @property
    def over(self) -> bool:
        """Whether both were timed."""
        return _enough(self.times[self.wanted][1:])

    @property
    def faster(self) -> bool:
        """Whether the wanted number was."""
        return median(self.times[self.wanted][1:]) < GAIN * median(self.times[self.present])

    def says_no(self, wanted: int, room: float, now: float) -> bool:
        """Whether it is still known that this number is not faster."""
        return wanted == self.wanted and abs(room - self.room) < CHANGED and now - self.when < REJECTED_S


def _enough(times: list[float]) -> bool:
    return len(times) >= PIECES or sum(times) > ENOUGH_S
