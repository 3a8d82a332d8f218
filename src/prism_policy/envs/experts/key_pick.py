"""KeyPick: take the key by its shaft and raise it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from prism_policy.envs.experts.base import CLOSE, RESET_YAW, Expert, down, heading, wrap


class KeyPick(Expert):
    """Closes across the shaft beside the bow, whichever way the key points; begins again when it slips."""

    stages = ("approach", "descend", "grasp", "lift")
    max_steps = 250

    def script(self) -> Iterator[np.ndarray]:  # noqa: D102 (inherited)
        rng = self.rng
        hover = rng.uniform(0.04, 0.07)  # [m] above the key while off to the side
        along = rng.uniform(0.000, 0.008)  # [m] of the grasp, from the key's middle towards its bit
        above = rng.uniform(0.004, 0.008)  # [m] of the grip site above the key's middle
        height = rng.uniform(0.90, 0.94)  # [m] to raise the hand to; the table is at 0.80
        while True:
            key, key_rotation = self.body("key_root")
            yaw = RESET_YAW + wrap(heading(key_rotation[:, 0]) + np.pi / 2 - RESET_YAW, np.pi)
            rotation = down(yaw)
            if self.opening < 0.03 and self.grasps(self.env.sim_env.cube):
                self.stage = "lift"
                hand, hand_rotation = self.hand()
                yield self.servo((np.array([hand[0], hand[1], height]), hand_rotation), CLOSE)
            else:
                grasp = key + along * key_rotation[:, 0] + np.array([0.0, 0.0, above])
                yield self.reach((grasp, rotation), hover, wide=0.05)
