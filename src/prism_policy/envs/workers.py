"""Rollouts in worker processes, one simulator each and no torch: observations out, action chunks in.

A worker draws only the frames that the policy will see: the last `n_obs_steps` of each executed chunk.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np

from prism_policy.config import TaskConfig
from prism_policy.errors import PrismError

Act = Callable[[int, dict[str, Any], bool], np.ndarray]
"""(episode, observation with a leading axis of n_obs_steps, whether the episode starts) -> actions (Ta, A)."""


@dataclass(frozen=True)
class Outcome:
    """How an episode ended."""

    episode: int
    success: bool
    steps: int
    """Control steps until success or the limit."""
    states: np.ndarray
    """Simulator states, float64 (steps + 1, S): enough to draw every frame again."""


def rollouts(
    task: TaskConfig,
    episodes: Sequence[int],
    act: Act,
    on_outcome: Callable[[Outcome], None],
    *,
    split: str,
    seed: int,
    n_obs_steps: int,
    workers: int,
) -> None:
    """Run `episodes`, each from its own (split, seed, episode), in parallel; `on_outcome` is called as each one ends.

    `act` is called in this process for one episode at a time, so an outcome does not depend on the number of workers. A
    worker that dies is replaced and its episode run again, three times at most.

    Raises:
        PrismError: the simulator cannot start, or an episode kills its worker again and again.
    """
    waiting = list(reversed(episodes))
    tries: dict[int, int] = {}
    running: dict[Connection, tuple[BaseProcess, int]] = {}
    idle: list[tuple[BaseProcess, Connection]] = []

    def start_next() -> None:
        episode = waiting.pop()
        tries[episode] = tries.get(episode, 0) + 1
        process, connection = idle.pop() if idle else _start_worker(task, n_obs_steps)
        running[connection] = (process, episode)
        connection.send((split, seed, episode))

    try:
        for _ in range(min(workers, len(waiting))):
            start_next()
        while running:
            for connection in wait(list(running)):
                assert isinstance(connection, Connection)
                process, episode = running[connection]
                try:
                    kind, content = connection.recv()
                except (EOFError, ConnectionResetError) as error:
                    process.join()
                    del running[connection]
                    if tries[episode] == 3:
                        raise PrismError(
                            f"the simulator worker of episode {episode} died three times (exit code "
                            f"{process.exitcode}); is the machine out of memory?"
                        ) from error
                    waiting.append(episode)
                    start_next()
                    continue
                if kind == "observation":
                    first, observation = content
                    connection.send(act(episode, observation, first))
                elif kind == "outcome":
                    idle.append((process, connection))
                    del running[connection]
                    on_outcome(content)
                    if waiting:
                        start_next()
                else:
                    raise PrismError(content)
    finally:
        for process, connection in [(p, c) for c, (p, _) in running.items()] + idle:
            connection.close()
            process.terminate()
            process.join()


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


def _start_worker(task: TaskConfig, n_obs_steps: int) -> tuple[BaseProcess, Connection]:
    context = multiprocessing.get_context("spawn")  # a fork would carry torch's threads and an OpenGL context along
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, task, n_obs_steps), daemon=True)
    with worker_start():
        process.start()
    theirs.close()
    return process, ours


def _work(connection: Connection, task: TaskConfig, n_obs_steps: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    try:
        from prism_policy.envs.robosuite import RobosuiteEnv

        env = RobosuiteEnv(task)
        while True:
            split, seed, episode = connection.recv()
            connection.send(("outcome", _episode(env, connection, n_obs_steps, split, seed, episode)))
    except PrismError as error:
        connection.send(("error", str(error)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent is gone or done


def _episode(env: Any, connection: Connection, n_obs_steps: int, split: str, seed: int, episode: int) -> Outcome:
    observation, _ = env.reset(seed=seed, options={"split": split, "episode": episode})
    history = [observation] * n_obs_steps  # the policy has seen nothing before: the first frame stands for the past
    success, steps = False, 0
    while not success and steps < env.task.max_steps:
        connection.send(("observation", (steps == 0, _stack(history))))
        latest, success, done = env.step_chunk(connection.recv(), n_obs_steps)
        history = (history + latest)[-n_obs_steps:]
        steps += done
    return Outcome(episode, success, steps, np.stack(env.states))


def _stack(history: list[dict[str, Any]]) -> dict[str, Any]:
    images = {camera: np.stack([o["images"][camera] for o in history]) for camera in history[0]["images"]}
    return {"images": images, "proprio": np.stack([o["proprio"] for o in history])}
