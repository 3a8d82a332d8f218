"""The worker pool, with jobs of the standard library: no simulator needed. Rollouts: tests/evaluation/test_rollouts."""

import math
import multiprocessing
import os
import signal
import time

import pytest

from prism_policy.envs.workers import WorkerPool
from prism_policy.errors import PrismError

pytestmark = pytest.mark.usefixtures("own_simulators")


def test_jobs_run_in_workers_that_start_when_first_needed_and_are_kept() -> None:
    before = set(multiprocessing.active_children())
    with WorkerPool(2) as pool:
        assert set(multiprocessing.active_children()) == before
        pids = {future.result() for future in [pool.submit(os.getpid) for _ in range(8)]}
        assert os.getpid() not in pids
        assert len(pids) <= 2
        assert len(set(multiprocessing.active_children()) - before) == 2
        assert pool.peak_rss_mib > 5
    assert set(multiprocessing.active_children()) == before


def test_an_exception_comes_back_with_its_traceback_and_leaves_the_worker_at_work() -> None:
    with WorkerPool(1) as pool:
        pid = pool.submit(os.getpid).result()
        with pytest.raises(ValueError, match="math domain error") as caught:
            pool.submit(math.sqrt, -1.0).result()
        assert "In a worker process" in caught.value.__notes__[0]
        assert pool.submit(os.getpid).result() == pid


def test_workers_use_one_thread_and_ignore_ctrl_c() -> None:
    threads = os.environ.get("OMP_NUM_THREADS")
    with WorkerPool(1) as pool:
        assert pool.submit(os.getenv, "OMP_NUM_THREADS").result() == "1"
        assert pool.submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_IGN
    assert os.environ.get("OMP_NUM_THREADS") == threads


def test_jobs_of_a_worker_that_died_and_those_behind_it_are_one_sentence() -> None:
    with WorkerPool(1) as pool:
        for future in [pool.submit(os._exit, 3), pool.submit(time.sleep, 0), pool.submit(time.sleep, 0)]:
            with pytest.raises(PrismError, match=r"a simulator process died .* run again to go on"):
                future.result(timeout=60)


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (signal.SIGKILL, r"killed by SIGKILL \(as the kernel does where memory runs short\)"),
        (signal.SIGSEGV, "killed by SIGSEGV; a crash there is mostly OpenGL's: try MUJOCO_GL=osmesa"),
        (signal.SIGTERM, "killed by SIGTERM\\)"),
    ],
)
def test_the_signal_that_ended_a_worker_is_named(number: int, cause: str) -> None:
    with WorkerPool(1) as pool, pytest.raises(PrismError, match=f"a simulator process died .{cause}"):
        pool.submit(signal.raise_signal, number).result(timeout=60)


class OddError(Exception):
    """Cannot be sent: its arguments are not those that make it."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def fail_oddly() -> None:
    raise OddError(1, 2)


def test_an_error_that_cannot_be_sent_comes_back_in_words() -> None:
    with WorkerPool(1) as pool:
        with pytest.raises(RuntimeError, match="OddError: 1 and 2"):
            pool.submit(fail_oddly).result(timeout=60)
        assert pool.submit(math.sqrt, 4.0).result() == 2


def test_an_error_in_the_block_ends_what_is_under_way() -> None:
    before = set(multiprocessing.active_children())
    started = time.monotonic()
    futures = []

    def stumble() -> None:
        with WorkerPool(1) as pool:
            futures.extend(pool.submit(time.sleep, 600) for _ in range(3))
            raise KeyError

    with pytest.raises(KeyError):
        stumble()
    assert time.monotonic() - started < 60
    assert set(multiprocessing.active_children()) == before
    assert not any(future.running() for future in futures)


def test_a_pool_has_at_least_one_worker() -> None:
    with pytest.raises(PrismError, match="at least one worker, got 0"):
        WorkerPool(0)
