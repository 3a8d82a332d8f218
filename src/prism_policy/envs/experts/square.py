"""Square: put the nut with the square hole on the square peg."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from prism_policy.envs.experts.base import OPEN, RESET_YAW, UP, Expert, down, heading, rotation_vector, wrap

NUT, PEG = "SquareNut_main", "peg1"
HANDLE = 0.054  # [m] of the handle's middle from the hole's, along the nut's x
PEG_HEIGHT = 0.1  # [m] of the peg's top above its middle
WRIST_MIDDLE, WRIST_RANGE = RESET_YAW + 0.83, 2.5
"""Yaw of the hand in the middle of what the wrist can do, and how far it may be from it either way [rad]."""


class Plan(NamedTuple):
    """How the nut is taken and turned."""

    side: float  # yaw of the hand's closing axis relative to the nut's x [rad]
    target: float  # yaw of the nut's x on the peg [rad]


class Square(Expert):
    """Takes the nut by its handle, turns it to one of the peg's sides above the peg, lowers it and lets go."""

    stages = ("approach", "descend", "grasp", "carry", "align", "insert", "release")
    tolerance = {"align": 0.3, "insert": 0.2, "release": 0.2}  # noqa: RUF012 (declared so by Expert)

    def script(self) -> Iterator[np.ndarray]:  # noqa: D102 (inherited)
        rng, env = self.rng, self.env.sim_env
        hover = rng.uniform(0.05, 0.09)  # [m] above the handle while off to the side
        along = HANDLE + rng.uniform(0.002, 0.013)  # [m] where the handle is taken
        above = rng.uniform(0.0, 0.006)  # [m] grasp above the nut's middle
        clear = PEG_HEIGHT + rng.uniform(0.022, 0.035)  # [m] carried above the peg's middle
        drop = rng.uniform(-0.015, 0.005)  # [m] above the peg's middle when let go; at -0.02 it lies, at 0.02 success
        taste = rng.uniform(0.0, (1.5, 0.7, 1.5), (2, 3))  # [rad] of turning that people accept to have it their way
        plan = self.plan(taste)
        while True:
            nut, rotation = self.body(NUT)
            peg = self.body(PEG)[0]
            hand, hand_rotation = self.hand()
            aside, height = float(np.hypot(*(nut - peg)[:2])), nut[2] - peg[2]
            threaded = aside < 0.012 and height < PEG_HEIGHT
            if threaded and height < drop + (0.01 if self.stage == "release" else 0.0):
                self.stage = "release"
                rise = 0.15 if self.opening > 0.06 else 0.0
                yield self.servo((hand + rise * UP, hand_rotation), OPEN)
            elif self.opening < 0.045 and self.grasps(env.nuts[env.nut_id]):
                left = self.left_to_turn(plan)
                turned = float(np.linalg.norm(rotation_vector(level(rotation, plan.target) @ rotation.T)))
                ready = aside < 0.005 and turned < 0.06
                if threaded or ready or (self.stage == "insert" and aside < 0.008 and turned < 0.12):
                    self.stage, goal = "insert", peg + (drop - 0.005) * UP
                else:
                    self.stage, goal = "align" if aside < 0.05 else "carry", peg + clear * UP
                now = heading(rotation[:, 0])
                yield self.carry((nut, rotation), (goal, level(rotation, now + float(np.clip(left, -1.0, 1.0)))))
            else:
                plan = plan if self.closing else self.plan(taste)
                wrist = self.wrist()
                left = wrap(heading(rotation[:, 0]) + plan.side - WRIST_MIDDLE) - wrist
                # In part turns, or the servo would take the shorter way round, which the wrist cannot do.
                yaw = WRIST_MIDDLE + wrist + float(np.clip(left, -1.5, 1.5))
                grasp = nut + along * rotation[:, 0] + above * UP
                yield self.reach((grasp, down(yaw)), hover, wide=0.06)

    def plan(self, taste: np.ndarray) -> Plan:
        """The plan that needs least turning, of those that the wrist can do; `taste` (2, 3) is added to it [rad]."""
        x = heading(self.body(NUT)[1][:, 0])
        wrist = self.wrist()
        plans = {}
        for i, side in enumerate((-np.pi / 2, np.pi / 2)):
            for j, target in enumerate((np.pi / 2, np.pi, -np.pi / 2)):  # the arm does not reach behind the peg
                start, end = wrap(x + side - WRIST_MIDDLE), wrap(target + side - WRIST_MIDDLE)
                if max(abs(start), abs(end)) < WRIST_RANGE:
                    plans[Plan(side, target)] = abs(start - wrist) + abs(end - start) + taste[i, j]
        return min(plans, key=plans.__getitem__)

    def wrist(self) -> float:
        """Yaw of the hand from the middle of what the wrist can do [rad]."""
        return wrap(heading(self.hand()[1][:, 0]) - WRIST_MIDDLE)

    def left_to_turn(self, plan: Plan) -> float:
        """Angle [rad] that the nut still has to turn, by the way round that the wrist can do."""
        end = wrap(plan.target + plan.side - WRIST_MIDDLE)
        left = wrap(plan.target - heading(self.body(NUT)[1][:, 0]))
        return left + 2 * np.pi * round((end - self.wrist() - left) / (2 * np.pi))

    def done(self) -> bool:  # noqa: D102 (inherited)
        away = self.hand()[0][2] - self.body(NUT)[0][2]
        return super().done() and self.stage == "release" and away > 0.06


def level(rotation: np.ndarray, yaw: float) -> np.ndarray:
    """Rotation (3, 3) of a nut that lies flat, on the side it is on now, with its x at `yaw` [rad]."""
    x, z = np.array([np.cos(yaw), np.sin(yaw), 0.0]), np.array([0.0, 0.0, np.copysign(1.0, rotation[2, 2])])
    return np.stack([x, np.cross(z, x), z], axis=1)
