"""Which policy is tried when, and from where: drawn from a seed; a longer schedule begins with a shorter one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_ORDER, _MARKS = 0, 1  # streams of random numbers


@dataclass(frozen=True)
class Trial:
    """An episode to execute."""

    number: int
    start: int
    """Where the objects lie: each start is met by every policy, one after the other."""
    policy: str


def schedule(policies: Sequence[str], starts: int, seed: int) -> list[Trial]:
    """All trials in their order: start by start, within each the policies in an order of its own.

    A policy that the afternoon's light or a worn finger treats worse is treated so as often as the others.
    """
    trials: list[Trial] = []
    for start in range(starts):
        order = np.random.default_rng([seed, start, _ORDER]).permutation(len(policies))
        trials += [Trial(len(trials) + i, start, policies[place]) for i, place in enumerate(order)]
    return trials


@dataclass(frozen=True)
class Mark:
    """Where an object shall lie in a camera's image."""

    x: float
    """Share of the image's width."""
    y: float
    """Of its height, from the top."""
    angle: float
    """In which it points [rad], counterclockwise from the right."""


def marks(objects: int, region: Sequence[float], seed: int, start: int) -> list[Mark]:
    """Random places of some objects in a start, within a region (left, top, right, bottom) of the image, apart.

    Each lies at least a quarter of the region's shorter side from the others, where a hundred draws find such a place.
    """
    rng = np.random.default_rng([seed, start, _MARKS])
    low, high = np.array(region[:2]), np.array(region[2:])
    apart = 0.25 * float(min(high - low))
    placed: list[np.ndarray] = []
    for _ in range(objects):
        draws = rng.uniform(low, high, (100, 2))
        free = [draw for draw in draws if all(np.linalg.norm(draw - other) >= apart for other in placed)]
        placed.append(free[0] if free else draws[0])
    return [Mark(float(x), float(y), float(rng.uniform(-math.pi, math.pi))) for x, y in placed]
