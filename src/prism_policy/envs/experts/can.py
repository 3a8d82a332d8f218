"""Can: take the can out of its bin and put it into its compartment of the other one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from prism_policy.envs.experts.base import OPEN, RESET_YAW, UP, Expert, Pose, down, heading, wrap

CAN = "Can_main"


class Can(Expert):
    """Takes the can, standing or lying, carries it over the bins' walls, lets go low above its place and withdraws."""

    stages = ("approach", "descend", "grasp", "carry", "lower", "release")

    def script(self) -> Iterator[np.ndarray]:  # noqa: D102 (inherited)
        rng, env = self.rng, self.env.sim_env
        can = env.objects[env.object_id]
        hover = rng.uniform(0.05, 0.09)  # [m] above the can while off to the side
        yaw = RESET_YAW + rng.uniform(-0.5, 0.5)  # [rad] a standing can is the same from all sides
        above = rng.uniform(0.005, 0.02)  # [m] grasp above the can's centre
        # The near corner of the compartment: in its middle the stretched arm would no longer point down.
        place = env.target_bin_placements[env.object_id] - np.append(rng.uniform((0.02, 0.02), (0.055, 0.065)), 0)
        over = rng.uniform(0.17, 0.20)  # [m] of the can above the bin (the walls are 0.10 high) when carried
        drop = rng.uniform(0.072, 0.092)  # [m] the same when let go; at 0.06 it stands
        while True:
            held = self.body(CAN)
            hand, hand_rotation = self.hand()
            aside = float(np.hypot(*(place - held[0])[:2]))
            height = held[0][2] - place[2]
            low = height < drop + (0.01 if self.stage == "release" else 0.0)
            if low and not env.not_in_bin(held[0], env.object_id):
                self.stage = "release"
                rise = 0.15 if self.opening > 0.06 else 0.0
                yield self.servo((hand + rise * UP, hand_rotation), OPEN)
            elif self.grasps(can):
                arc = (over - drop) * np.clip((aside - 0.02) / 0.06, 0.0, 1.0)
                self.stage = "lower" if arc < over - drop else "carry"
                goal = place + (drop - 0.01 + arc) * UP
                # Where the can is and how the hand is turned; which way the can faces does not matter.
                yield self.carry((held[0], hand_rotation), (goal, down(RESET_YAW)))
            else:
                yield self.reach(self.grasp(held, yaw, above), hover, wide=0.07)

    def grasp(self, can: Pose, yaw: float, above: float) -> Pose:
        """Pose of the hand at the can: across its axis where it lies, and then at its middle."""
        position, rotation = can
        axis = rotation[:, 2]
        if abs(axis[2]) > 0.7:
            return position + above * UP, down(yaw)
        return position, down(RESET_YAW + wrap(heading(axis) + np.pi / 2 - RESET_YAW, np.pi))
