"""Stack: take the red cube and put it on the green one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from prism_policy.envs.experts.base import OPEN, RESET_YAW, UP, Expert, Pose, down, heading, nearest_quarter, wrap

A, B = "cubeA_main", "cubeB_main"
STACKED = 0.045
"""Of the red cube's middle above the green one's, where it stands on it [m]."""
BESIDE = 0.10
"""Between the middles of cubes that leave no room for a finger between them [m]."""


class Stack(Expert):
    """Carries the cube over the other one, lets go when it touches, withdraws; begins again when it falls."""

    stages = ("approach", "descend", "grasp", "carry", "lower", "release")
    tolerance = {"lower": 0.2, "release": 0.2}  # noqa: RUF012 (declared so by the base)

    def script(self) -> Iterator[np.ndarray]:  # noqa: D102 (inherited)
        rng = self.rng
        hover = rng.uniform(0.05, 0.08)  # [m] above the cube while off to the side
        deep = rng.uniform(-0.004, 0.004)  # [m] of the grasp below the cube's middle
        over = rng.uniform(0.04, 0.06)  # [m] of the cube above its place while carried
        while True:
            cube, base = self.body(A), self.body(B)
            hand, hand_rotation = self.hand()
            aside = float(np.hypot(*(base[0] - cube[0])[:2]))
            above = float(cube[0][2] - base[0][2] - STACKED)
            held = self.grasps(self.env.sim_env.cubeA)
            releasing = self.stage == "release"
            if above > -0.01 and aside < (0.02 if releasing else 0.01) and above < (0.015 if releasing else 0.004):
                self.stage = "release"
                rise = 0.12 if self.opening > 0.06 else 0.0
                yield self.servo((hand + rise * UP, hand_rotation), OPEN)
            elif held:
                arc = over * float(np.clip((aside - 0.006) / 0.02, 0.0, 1.0))
                self.stage = "lower" if arc < over else "carry"
                goal = base[0] + (STACKED - 0.003 + arc) * UP
                yield self.carry((cube[0], hand_rotation), (goal, down(heading(hand_rotation[:, 0]))))
            else:
                rotation = down(self.yaw(cube, base))
                yield self.reach((cube[0] + rotation @ np.array([0.0, 0.0, deep]), rotation), hover, wide=0.06)

    def yaw(self, cube: Pose, base: Pose) -> float:
        """Of the closing axis: along a side of the cube, the one that needs least turning and is free of the other."""
        nearest = nearest_quarter(cube[1])
        apart = base[0] - cube[0]
        if np.linalg.norm(apart[:2]) > BESIDE or abs(wrap(heading(apart) - nearest, np.pi)) > np.pi / 4:
            return nearest
        return nearest - np.copysign(np.pi / 2, nearest - RESET_YAW)
