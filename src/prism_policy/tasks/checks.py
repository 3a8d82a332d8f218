"""What the stage checks of several tasks need: poses and grasps, read from the simulator's true state.

The arrays come from the environment; numpy itself is not imported, as the command line should start without it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

NEAR = 0.03  # [m] from the grip site to what shall be grasped
HIGH = 0.03  # [m] above where it lay
ASIDE, TURNED = 0.01, 0.15  # [m], [rad] from where it fits


def body_pose(env: Any, name: str, offset: Sequence[float] = (0.0, 0.0, 0.0)) -> tuple[Any, Any]:
    """Position (3,) [m] of a body, or of a point in its frame, and its rotation (3, 3): arrays."""
    data, index = env.sim_env.sim.data, env.sim_env.sim.model.body_name2id(name)
    rotation = data.body_xmat[index].reshape(3, 3)
    return data.body_xpos[index] + rotation @ offset, rotation


def near(env: Any, point: Sequence[float]) -> bool:
    """Whether the grip site is near a point (3,)."""
    return math.dist(env.sim_env.sim.data.site_xpos[env.eef_site], point) < NEAR


def grasps(env: Any, thing: Any) -> bool:
    """Whether the gripper holds one of robosuite's objects."""
    return bool(env.sim_env._check_grasp(gripper=env.sim_env.robots[0].gripper, object_geoms=thing))
