"""Rollouts in worker processes, one simulator each and no torch: observations out, action chunks in.

A worker draws only the frames that the policy will see: the last `n_obs_steps` of each executed chunk.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from prism_policy.envs.opengl import choose_opengl
from prism_policy.envs.stages import furthest_stage
from prism_policy.errors import PrismError
from prism_policy.tasks.libero import SimTask

PATIENCE = 120.0
"""A worker that owes an answer for longer hangs [s]; a chunk takes it about 0.1 s."""
STARTING = 4
"""Times as long for its first answer: it imports and compiles for about 5 s before, on a busy machine far longer."""
TRIES = 3
"""How often an episode is begun before its workers' deaths are taken to be its own doing."""
_TICK = 1.0  # [s]


@dataclass(frozen=True)
class Request:
    """An episode that waits for its next actions."""

    episode: int
    observation: dict[str, Any]
    """With a leading axis of n_obs_steps."""
    first: bool
    """Whether the episode starts, perhaps anew."""


@dataclass(frozen=True)
class Outcome:
    """How an episode ended."""

    episode: int
    success: bool
    steps: int
    """Control steps until success or the limit."""
    stage: str
    """The furthest stage of the task that was reached, one of `envs.stages.STAGES`; empty where none was."""
    states: np.ndarray
    """Simulator states, float64 (steps + 1, S): enough to draw every frame again."""


Act = Callable[[Sequence[Request]], Sequence[np.ndarray]]
"""Episodes that wait -> actions (Ta, A) of each."""


class Simulators:
    """Worker processes that are started when first needed and kept from one call of `rollouts` to the next.

    A worker that dies or hangs is replaced, and its episode begun again.

    Usage::

        with Simulators(workers=2) as simulators:
            for seed in (0, 1, 2):
                simulators.rollouts(task, range(50), act, on_outcome, split="evaluate", seed=seed, n_obs_steps=2)
    """

    def __init__(self, workers: int, patience: float = PATIENCE) -> None:
        if workers < 1:
            raise PrismError(f"expected at least one worker, got {workers}")
        self.workers, self.patience = workers, patience
        self.peak_rss_mib = 0.0
        """The most memory that one worker has had resident."""
        self._staff: list[_Worker] = []
        self._inbox: queue.SimpleQueue[tuple[Any, str, Any]] = queue.SimpleQueue()

    def rollouts(
        self,
        task: SimTask,
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
        """Run `episodes`, each from its own (split, seed, episode), in parallel; `on_outcome` is called as each ends.

        Args:
            task: what the simulators simulate.
            episodes: their numbers.
            act: called in a thread of this process with at most `batch_size` of the episodes that wait.
            on_outcome: called in this thread, in the order in which episodes end.
            split: stream of the episodes.
            seed: seed of the stream.
            n_obs_steps: frames that the policy sees.
            batch_size: most episodes in one call of `act`.
            threads: most calls of `act` at a time.

        Raises:
            PrismError: the simulator cannot start, or an episode loses its worker three times.
        """
        waiting, left, tries = deque(episodes), len(episodes), Counter[int]()
        requests: deque[tuple[_Worker, Request]] = deque()
        acting: set[Future[Sequence[np.ndarray]]] = set()
        try:
            with ThreadPoolExecutor(threads) as pool:
                while left:
                    self._hire(min(self.workers, left))
                    for worker in self._staff:
                        if worker.episode is None and waiting:
                            worker.episode = waiting.popleft()
                            tries[worker.episode] += 1
                            worker.send((task, n_obs_steps, split, seed, worker.episode))
                    while requests and len(acting) < threads:
                        batch = [requests.popleft() for _ in range(min(batch_size, len(requests)))]
                        future = pool.submit(act, [request for _, request in batch])
                        acting.add(future)
                        future.add_done_callback(
                            lambda done, batch=batch: self._inbox.put((batch, "actions", done))  # type: ignore[misc]
                        )
                    for sender, kind, content in self._messages():
                        if kind == "actions":
                            acting.discard(content)
                            for (worker, request), actions in zip(sender, content.result(), strict=True):
                                if worker.episode == request.episode:
                                    worker.send(actions)
                        elif sender not in self._staff:
                            continue  # last words of a worker that was replaced
                        elif kind == "observation":
                            requests.append((sender, content))
                        elif kind == "outcome":
                            outcome, peak = content
                            sender.episode, left = None, left - 1
                            self.peak_rss_mib = max(self.peak_rss_mib, peak)
                            on_outcome(outcome)
                        elif kind == "error":
                            raise PrismError(content)
                        else:
                            lost = self._dismiss(sender)
                            requests = deque((w, r) for w, r in requests if w is not sender)
                            if lost is not None:
                                waiting.appendleft(lost)
                                if tries[lost] == TRIES:
                                    raise PrismError(
                                        f"the simulator worker of episode {lost} {content} {TRIES} times (exit code "
                                        f"{sender.process.exitcode}); is the machine out of memory?"
                                    )
        except BaseException:
            self.close()  # in the middle of their episodes they are of no use to the next call
            raise

    def _hire(self, count: int) -> None:
        if len(self._staff) < count:
            choose_opengl()  # once here, not in each worker
        while len(self._staff) < count:
            self._staff.append(_Worker(self._inbox))

    def _messages(self) -> Iterator[tuple[Any, str, Any]]:
        """Everything that has arrived, at least a tick's silence; workers that are silent for too long are "hung"."""
        before = time.monotonic()
        with suppress(queue.Empty):
            yield self._inbox.get(timeout=_TICK)
            while True:
                yield self._inbox.get_nowait()
        # Only time that this process has seen pass counts: it may have been stopped, or the machine asleep.
        elapsed = min(time.monotonic() - before, _TICK)
        for worker in list(self._staff):
            worker.silent += elapsed if worker.owes else 0.0
            if worker.silent > self.patience * (1 if worker.started else STARTING):
                yield worker, "hung", "hung"

    def _dismiss(self, worker: _Worker) -> int | None:
        """End a worker; returns the episode that it had."""
        self._staff.remove(worker)
        episode, worker.episode = worker.episode, None
        worker.kill()
        return episode

    def close(self) -> None:
        """End all workers."""
        for worker in list(self._staff):
            self._dismiss(worker)

    def __enter__(self) -> Simulators:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Worker:
    """A process with a simulator, and a thread that puts what it sends into `inbox`.

    The thread takes the blocking: a process that stops in the middle of a message would hold up the reader for ever.
    """

    def __init__(self, inbox: queue.SimpleQueue[tuple[Any, str, Any]]) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would carry torch's threads and an OpenGL context along
        self._connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs,), daemon=True)
        with worker_start():
            self.process.start()
        theirs.close()
        self.episode: int | None = None
        self.owes, self.silent, self.started = False, 0.0, False
        self._inbox = inbox
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        try:
            while True:
                kind, content = self._connection.recv()
                self.owes, self.started = False, True
                self._inbox.put((self, kind, content))
        except (EOFError, OSError):
            self._inbox.put((self, "gone", "died"))

    def send(self, message: Any) -> None:
        """Ask for something: an episode, or the next part of one."""
        self.owes, self.silent = True, 0.0
        with suppress(OSError):  # it has died: the listener says so
            self._connection.send(message)

    def kill(self) -> None:
        """End the process, also one that is stopped."""
        self.process.kill()
        self.process.join()
        self._listener.join()
        self._connection.close()


@contextmanager
def worker_start() -> Iterator[None]:
    """Processes started within use one thread each and never see Ctrl-C, not even while they import.

    A physics step is too small to share among threads and suffers when it is; an interrupt is the parent's affair.
    """
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    main = threading.current_thread() is threading.main_thread()  # only that one may set handlers
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = threads


def _work(connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    try:
        from prism_policy.envs.pool import environment

        while True:
            task, n_obs_steps, split, seed, episode = connection.recv()
            outcome = _episode(environment(task, render_images=True), connection, n_obs_steps, split, seed, episode)
            connection.send(("outcome", (outcome, peak_rss_mib())))
    except PrismError as error:
        connection.send(("error", str(error)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent is gone or done


def _episode(env: Any, connection: Connection, n_obs_steps: int, split: str, seed: int, episode: int) -> Outcome:
    observation, _ = env.reset(seed=seed, options={"split": split, "episode": episode})
    history = [observation] * n_obs_steps  # the policy has seen nothing before: the first frame stands for the past
    success, steps = False, 0
    while not success and steps < env.task.max_steps:
        connection.send(("observation", Request(episode, _stack(history), steps == 0)))
        latest, success, done = env.step_chunk(connection.recv(), n_obs_steps)
        history = (history + latest)[-n_obs_steps:]
        steps += done
    states = np.stack(env.states)
    return Outcome(episode, success, steps, furthest_stage(env, states, success), states)


def _stack(history: list[dict[str, Any]]) -> dict[str, Any]:
    images = {camera: np.stack([o["images"][camera] for o in history]) for camera in history[0]["images"]}
    return {"images": images, "proprio": np.stack([o["proprio"] for o in history])}


def peak_rss_mib() -> float:
    """The most memory that this process has had resident [MiB]; 0 where the system does not tell."""
    status = Path("/proc/self/status")  # getrusage would count what the parent had when it forked
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), 0.0)
