"""An episode: its random generators, which (split, seed, episode) alone decide, and how far it came.

The stages of its task are read from the simulator's true state.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np

from prism_policy.errors import PrismError
from prism_policy.tasks.checks import body_pose

Split = Literal["collect", "validate", "evaluate"]
"""Disjoint families of episodes: demonstrations, choosing settings, the reported result."""


def episode_rng(split: str, seed: int, episode: int, rng_stream: int = 0) -> np.random.Generator:
    """The generator of one episode; `rng_stream` is 0 for its start, 1 policy noise, 2 the expert, 3 a still scene."""
    if split not in get_args(Split):
        raise PrismError(f"unknown split {split!r}; there are {', '.join(get_args(Split))}")
    if seed < 0 or episode < 0:
        raise PrismError(f"expected seed and episode >= 0, got seed {seed}, episode {episode}")
    key = (get_args(Split).index(split), episode, rng_stream)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def furthest_stage(env: Any, states: np.ndarray, success: bool) -> str:
    """The furthest stage that held at any of the states (T, S) of an episode; "" where none did.

    The states are put into the simulation one after the other, which leaves it at the last one.
    """
    stages = env.task.spec.stages
    return stages[-1] if success else ("", *stages)[_reached(env, states)[-1]]


def phases(env: Any, states: np.ndarray) -> list[str]:
    """What there is to do at each of the states (T, S) of an episode, given how far it has come.

    A phase may be skipped, and does not come back: who drops the cube is still lifting it.
    """
    return [env.task.spec.phases[reached] for reached in _reached(env, states)]


def _reached(env: Any, states: np.ndarray) -> list[int]:
    """How many stages the furthest one is, up to each of the states; the last stage, success, is not checked."""
    spec = env.task.spec
    held = [False] * (len(spec.stages) - 1)
    heights: list[float] = []
    reached = []
    for i, state in enumerate(states):
        env.set_state(state)
        if i == 0:
            heights = [body_pose(env, name)[0][2] for name in env.lift_bodies]
        held = [before or now for before, now in zip(held, spec.check(env, heights), strict=True)]
        reached.append(max((n for n, stage in enumerate(held, start=1) if stage), default=0))
    return reached
