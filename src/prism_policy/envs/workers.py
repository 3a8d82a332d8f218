"""Worker processes for jobs that are independent of one another: an episode, a demonstration's frames.

A worker keeps one simulator and knows no torch unless its job does. Of an episode it draws only the frames that the
policy will see: the last `n_obs_steps` of each executed chunk.
"""

from __future__ import annotations

import multiprocessing
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from prism_policy.config.settings import TaskConfig
from prism_policy.envs.episode import furthest_stage
from prism_policy.envs.make import kept_env
from prism_policy.envs.process import Worker, WorkerLostError
from prism_policy.envs.simulators import prepare_opengl
from prism_policy.errors import PrismError
from prism_policy.utils.cores import available_cores
from prism_policy.utils.observations import Observation, stack_history

PATIENCE = 120.0  # a worker that owes an answer for longer hangs [s]; a chunk takes it about 0.1 s
STARTING = 4
"""Times as long for its first answer: it imports and compiles for about 5 s before, on a busy machine far longer."""
TRIES = 3  # how often an episode is begun before its workers' deaths are taken to be its own doing
_TICK = 1.0  # [s]
_kept: list[Worker] | None = None  # idle workers of pools that are closed, within `kept_workers`


@dataclass(frozen=True)
class Request:
    """An episode that waits for its next actions."""

    episode: int
    observation: Observation  # with a leading axis of n_obs_steps
    first: bool  # whether the episode starts, perhaps anew


@dataclass(frozen=True)
class Outcome:
    """How an episode ended."""

    episode: int
    success: bool
    steps: int  # control steps until success or the limit
    stage: str  # the furthest of the task's stages that was reached; empty where none was
    states: np.ndarray  # simulator states, float64 (steps + 1, S): enough to draw every frame again


Act = Callable[[Sequence[Request]], Sequence[np.ndarray]]  # episodes that wait -> actions (Ta, A) of each


@contextmanager
def kept_workers() -> Iterator[None]:
    """Pools that end in peace within leave their workers, with their simulators, to the next: a start takes 5 s."""
    global _kept
    before, _kept = _kept, []
    try:
        yield
    finally:
        for worker in _kept:
            worker.kill("was ended")
            worker.close()
        _kept = before


def _kept_worker() -> Worker | None:
    while _kept:
        worker = _kept.pop()
        if worker.alive:
            return worker
        worker.close()
    return None


class WorkerPool:
    """Processes that start with the first jobs, are kept for the next ones, and end with the block, whatever ends it.

    There are `workers`, by default one for each core; one that is silent in a rollout for `patience` [s] is replaced.

    Usage::

        with WorkerPool(workers=2) as pool:
            futures = [pool.submit(draw, task, episode) for episode in range(10)]  # `draw` calls `kept_env`
            pool.rollouts(task, range(50), act, on_outcome, split="evaluate", seed=0, n_obs_steps=2)
    """

    def __init__(self, workers: int | None = None, patience: float = PATIENCE) -> None:
        # A script without the usual guard starts again in each worker, which would wait for its own parent for ever.
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            raise PrismError(
                "a worker ran the script that started it: put what the script does under `if __name__ == '__main__':`"
            )
        self.workers, self.patience = available_cores() if workers is None else workers, patience
        if self.workers < 1:
            raise PrismError(f"expected at least one worker, got {workers}")
        self.peak_rss_mib = 0.0  # the most memory that one worker has had resident
        self._workers: list[Worker] = []
        self._idle: queue.SimpleQueue[Worker | None] = queue.SimpleQueue()
        self._threads: ThreadPoolExecutor | None = None

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Have a worker call `function`, importable by name; the future raises PrismError where the worker died."""
        self._start(len(self._workers) + 1)

        def job() -> Any:
            try:
                return self._run(function, arguments)
            except WorkerLostError as lost:
                self._idle.put(None)  # no other job shall wait for the lost worker
                hint = "what is finished is kept: run again to go on, with fewer workers if memory is short"
                raise PrismError(f"a simulator process died ({lost.how}); {hint}") from lost

        return self._in_thread(job)

    def rollouts(
        self,
        task: TaskConfig,
        episodes: Sequence[int],
        act: Act,
        on_outcome: Callable[[Outcome], None],
        *,
        split: str,
        seed: int,
        n_obs_steps: int,
        batch_size: int = 1,
        threads: int = 1,
    ) -> None:
        """Run `episodes`, each from its own (split, seed, episode), in parallel.

        A worker that dies or hangs is replaced, and its episode begun again.

        Args:
            act: called in up to `threads` threads of this process with at most `batch_size` of the episodes that wait.
            on_outcome: called in this thread, in the order in which episodes end.
            n_obs_steps: frames that the policy sees.
        """
        tries, pending = Counter[int](), {}
        batches = _Batches(act, batch_size, threads)

        def begin(episode: int) -> None:
            tries[episode] += 1
            arguments = (task, n_obs_steps, split, seed, episode)
            pending[self._in_thread(self._run, _episode, arguments, batches)] = episode

        try:
            self._start(len(episodes))
            for episode in episodes:
                begin(episode)
            while pending:
                for future in self._wait(pending):
                    episode = pending.pop(future)
                    try:
                        outcome = future.result()
                    except WorkerLostError as lost:
                        if tries[episode] == TRIES:
                            died = f"{lost} {TRIES} times (the last one {lost.how}); fewer --workers need less memory"
                            raise PrismError(f"the simulator worker of episode {episode} {died}") from None
                        self._start(len(pending) + 1)
                        begin(episode)
                    else:
                        on_outcome(outcome)
        except BaseException:
            batches.close()
            self.close()  # in the middle of their episodes they are of no use to the next call
            raise
        batches.close()

    def close(self) -> None:
        """End all workers, whatever they do."""
        threads, self._threads = self._threads, None
        if threads is None:
            return
        threads.shutdown(wait=False, cancel_futures=True)
        for worker in list(self._workers):
            worker.kill("was ended")
        for _ in range(self.workers):
            self._idle.put(None)  # to threads that wait for a worker
        threads.shutdown()
        for worker in self._workers:
            worker.close()
        self._workers, self._idle = [], queue.SimpleQueue()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is None and self._threads is not None:
            self._threads.shutdown()  # once the jobs are done
            if _kept is not None:
                _kept.extend(self._workers)
                self._workers = []
        self.close()

    def _start(self, count: int) -> None:
        """Start workers until there are `count`, or as many as there may be; in the main thread, see `worker_start`."""
        count = min(count, self.workers)
        if len(self._workers) < count:
            prepare_opengl()  # once here, not in each worker
        while len(self._workers) < count:
            self._workers.append(_kept_worker() or Worker())
            self._idle.put(self._workers[-1])

    def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        self._threads = self._threads or ThreadPoolExecutor(self.workers)
        return self._threads.submit(function, *arguments)

    def _run(self, function: Callable[..., Any], arguments: tuple[Any, ...], answer: Any = None) -> Any:
        """Have an idle worker do a job, in a thread that waits for it."""
        worker = self._idle.get()
        if worker is None:
            raise WorkerLostError("was ended", None)
        try:
            result, peak = worker.run(function, arguments, answer)
        except WorkerLostError:
            self._workers.remove(worker)
            worker.close()
            raise
        except BaseException:
            self._idle.put(worker)
            raise
        self._idle.put(worker)
        self.peak_rss_mib = max(self.peak_rss_mib, peak)
        return result

    def _wait(self, pending: dict[Future[Any], int]) -> set[Future[Any]]:
        """Jobs that are done, perhaps none within a tick; workers that are silent for too long are killed."""
        before = time.monotonic()
        done = wait(pending, _TICK, FIRST_COMPLETED).done
        # Only time that this process has seen pass counts: it may have been stopped, or the machine asleep.
        elapsed = min(time.monotonic() - before, _TICK)
        for worker in list(self._workers):
            worker.silent_s += elapsed if worker.owes else 0.0
            if worker.silent_s > self.patience * (1 if worker.started else STARTING):
                worker.kill("hung")
        return done


class _Batches:
    """Answers requests one by one, of which `act` gets those that wait together."""

    def __init__(self, act: Act, batch_size: int, threads: int) -> None:
        self._act, self._batch_size = act, batch_size
        self._threads = ThreadPoolExecutor(threads)
        self._waiting: deque[tuple[Request, Future[np.ndarray]]] = deque()
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> np.ndarray:
        actions: Future[np.ndarray] = Future()
        with self._lock:
            self._waiting.append((request, actions))
        self._threads.submit(self._act_on_some)
        return actions.result()

    def _act_on_some(self) -> None:
        with self._lock:
            batch = [self._waiting.popleft() for _ in range(min(self._batch_size, len(self._waiting)))]
        if not batch:
            return  # they went with others
        try:
            for (_, future), actions in zip(batch, self._act([request for request, _ in batch]), strict=True):
                future.set_result(actions)
        except BaseException as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)

    def close(self) -> None:
        """Wait for the calls of `act` that are under way, and make no more."""
        self._threads.shutdown(cancel_futures=True)
        for _, actions in self._waiting:
            actions.cancel()


def _episode(
    task: TaskConfig, n_obs_steps: int, split: str, seed: int, episode: int
) -> Generator[Request, np.ndarray, Outcome]:
    env = kept_env(task, render_images=True)
    observation, _ = env.reset(seed=seed, options={"split": split, "episode": episode})
    history = [observation] * n_obs_steps  # the policy has seen nothing before: the first frame stands for the past
    success, steps = False, 0
    while not success and not env.over and steps < env.task.max_steps:
        actions = yield Request(episode, stack_history(history), steps == 0)
        latest, success, done = env.step_chunk(actions, n_obs_steps)
        history = (history + latest)[-n_obs_steps:]
        steps += done
    states = np.stack(env.states)
    return Outcome(episode, success, steps, furthest_stage(env, states, success), states)
