"""The number of threads beside other processes: on a made-up machine of real measurements; beside a real process."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import torch

from prism_policy.utils import threads as threads_module
from prism_policy.utils.threads import FreeCores, Threads

PIECE_S = {False: {1: 0.87, 2: 0.48}, True: {1: 0.85, 2: 1.83}}
"""Of 64 windows at nano size on two Zen 3 cores, alone and beside a busy process: issue 19's measurements."""
USED = {False: {1: 0.05, 2: 0.05}, True: {1: 1.0, 2: 0.67}}


class Machine:
    """Two cores; somebody else is `busy` or not."""

    def __init__(self, piece_s: dict[bool, dict[int, float]] = PIECE_S) -> None:
        self.piece_s, self.busy, self.now, self.done = piece_s, False, 0.0, 0

    def work(self, threads: Threads, until: float) -> None:
        while self.now < until:
            with threads.work():
                self.now += self.piece_s[self.busy][torch.get_num_threads()]
            self.done += 1

    def free(self) -> float:
        return 2 - USED[self.busy][torch.get_num_threads()]


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads_module, "available_cores", lambda: 2)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("slower", [1, 0.3])
@pytest.mark.parametrize("first", [False, True])
def test_the_better_number_is_found_within_ten_seconds_of_a_change(first: bool, slower: float) -> None:
    piece_s = {busy: {n: s * slower for n, s in each.items()} for busy, each in PIECE_S.items()}
    machine = Machine(piece_s)
    machine.busy = first
    with Threads(free=machine.free, seconds=lambda: machine.now) as threads:
        for period in range(6):
            start = 100.0 * period
            machine.work(threads, start + 10)
            best = min(piece_s[machine.busy], key=piece_s[machine.busy].__getitem__)
            assert threads.count == best, (period, machine.busy)
            before = machine.done
            machine.work(threads, start + 100)
            share = (machine.done - before) * piece_s[machine.busy][best] / (machine.now - start - 10)
            assert share > 0.9
            machine.busy = not machine.busy
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_what_is_not_faster_is_given_up_and_seldom_tried_again() -> None:
    machine = Machine({False: {1: 0.2, 2: 0.2}, True: {1: 0.3, 2: 0.2}})  # the other one waits for a disk
    machine.busy = True
    with Threads(free=lambda: 1.4, seconds=lambda: machine.now) as threads:
        machine.work(threads, 300)
    assert machine.done > 0.9 * 300 / 0.2


@pytest.mark.usefixtures("two_threads")
def test_a_number_that_was_given_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    machine.busy = True
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with Threads(free=machine.free, seconds=lambda: machine.now) as threads:
        machine.work(threads, 60)
    assert threads.count == 2
    monkeypatch.delenv("OMP_NUM_THREADS")
    with Threads(fixed=True, free=machine.free, seconds=lambda: machine.now) as threads:
        machine.work(threads, 120)
    assert threads.count == 2
    torch.set_num_threads(1)
    machine.busy = False
    with Threads(free=machine.free, seconds=lambda: machine.now) as threads:
        machine.work(threads, 180)
    assert threads.count == 1


def test_a_busy_process_is_seen_and_ones_own_work_is_not() -> None:
    free = FreeCores()
    cores = len(free.cores)
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        time.sleep(1.5)
        beside = free()
        busy.kill()
    assert beside < cores - 0.5 * min(1, cores / 2)
    started, own = time.perf_counter(), time.process_time()
    while time.perf_counter() < started + 1.5:
        pass
    share = (time.process_time() - own) / (time.perf_counter() - started)
    assert free() > share - 0.15
