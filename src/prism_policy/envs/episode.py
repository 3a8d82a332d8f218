"""Random generators of an episode: (split, seed, episode) alone decides, whatever runs beside it or came before."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from prism_policy.errors import PrismError

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
