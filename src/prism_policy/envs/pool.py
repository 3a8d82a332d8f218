"""Worker processes that hold one simulator each, for work that comes in independent pieces (episodes, frames)."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from prism_policy.envs.opengl import choose_opengl
from prism_policy.envs.workers import worker_start
from prism_policy.errors import PrismError
from prism_policy.tasks.libero import LiberoTask, SimTask

_env: Any = None


def environment(task: SimTask, render_images: bool) -> Any:
    """This worker process's simulator, made at the first call and kept: that takes seconds, an episode less."""
    global _env
    if _env is None or (_env.task, _env.render_images) != (task, render_images):
        if _env is not None:
            _env.close()
            _env = None
            gc.collect()  # before another one takes as much memory: LIBERO's scenes hold a gigabyte, and cycles
        _env = make_env(task, render_images)
    return _env


def make_env(task: SimTask, render_images: bool = True) -> Any:
    """The task's environment: `RobosuiteEnv` or `LiberoEnv`.

    Raises:
        PrismError: its simulator is not installed; see each.
    """
    if isinstance(task, LiberoTask):
        from prism_policy.envs.libero import LiberoEnv

        return LiberoEnv(task, render_images)
    from prism_policy.envs.robosuite import RobosuiteEnv

    return RobosuiteEnv(task, render_images)


class WorkerPool:
    """Processes that start with the first piece of work and end with the block, whatever ends it.

    Usage::

        with WorkerPool(workers=2) as pool:
            futures = [pool.submit(draw, task, episode) for episode in range(10)]  # `draw` calls `environment`

    Raises:
        PrismError: a process died; a script without `if __name__ == "__main__":` is run again by its own workers.
    """

    def __init__(self, workers: int | None) -> None:
        # A script without the usual guard starts again in each worker, which would wait for its own parent for ever.
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            raise PrismError(
                "a worker process ran the script that started it: put what the script does under "
                "`if __name__ == '__main__':`"
            )
        self.workers = workers or os.cpu_count() or 1
        self._executor: ProcessPoolExecutor | None = None
        self._others = set(multiprocessing.active_children())

    def __enter__(self) -> WorkerPool:
        return self

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Have a worker call `function`, which must be importable by name."""
        if self._executor is None:
            choose_opengl()  # once here, not in each worker
            context = multiprocessing.get_context("spawn")  # a fork would carry torch's threads and OpenGL along
            self._executor = ProcessPoolExecutor(
                self.workers, context, initializer=_start_worker, initargs=(os.getpid(),)
            )
        with worker_start():  # submitting is what starts the processes
            return self._executor.submit(function, *arguments)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if self._executor is None:
            return
        if error is None:
            self._executor.shutdown()
            return
        children = set(multiprocessing.active_children()) - self._others
        self._executor.shutdown(wait=False, cancel_futures=True)
        for child in children:
            child.terminate()
        for child in children:
            child.join()
        if isinstance(error, BrokenProcessPool):
            raise PrismError(
                "a simulator process died (killed, or out of memory); finished episodes are kept: run again to go on, "
                "with fewer workers if memory is short"
            ) from error


def _start_worker(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: int) -> None:
    """A parent killed with -9 cannot end its workers; nobody should find them working on afterwards."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
