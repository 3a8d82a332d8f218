"""Lift: take the cube and raise it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from prism_policy.envs.experts.base import CLOSE, Expert, down, nearest_quarter


class Lift(Expert):
    """Comes down through a funnel, raises what it holds, begins again whenever the cube is not where it should be."""

    stages = ("approach", "descend", "grasp", "lift")
    max_steps = 250

    def script(self) -> Iterator[np.ndarray]:  # noqa: D102 (inherited)
        rng = self.rng
        hover = rng.uniform(0.04, 0.07)  # [m] above the cube while off to the side
        offset = np.array([0.0, rng.uniform(-0.004, 0.004), rng.uniform(-0.002, 0.006)])  # [m] in the hand's frame
        height = rng.uniform(0.92, 0.96)  # [m] to raise the cube to; the table is at 0.80
        while True:
            cube, cube_rotation = self.body("cube_main")
            rotation = down(nearest_quarter(cube_rotation))
            if self.opening < 0.046 and self.grasps(self.env.sim_env.cube):
                self.stage = "lift"
                hand = self.hand()[0]
                yield self.servo((np.array([hand[0], hand[1], height]), rotation), CLOSE)
            else:
                yield self.reach((cube + rotation @ offset, rotation), hover, wide=0.06)
