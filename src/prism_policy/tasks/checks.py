"""What the stage checks of several tasks need: poses and grasps, read from the simulator's true state."""

from __future__ import annotations

from typing import Any

import numpy as np

NEAR = 0.03  # [m] from the grip site to what shall be grasped
HIGH = 0.03  # [m] above where it lay
ASIDE, TURNED = 0.01, 0.15  # [m], [rad] from where it fits


def body_pose(env: Any, name: str, offset: np.ndarray | float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Position (3,) [m] of a body, or of a point in its frame, and its rotation (3, 3)."""
    data, index = env.sim_env.sim.data, env.sim_env.sim.model.body_name2id(name)
    rotation = data.body_xmat[index].reshape(3, 3)
    return data.body_xpos[index] + rotation @ np.broadcast_to(offset, 3), rotation


def near(env: Any, point: np.ndarray) -> bool:
    """Whether the grip site is near a point (3,)."""
    return bool(np.linalg.norm(env.sim_env.sim.data.site_xpos[env.eef_site] - point) < NEAR)


def grasps(env: Any, thing: Any) -> bool:
    """Whether the gripper holds one of robosuite's objects."""
    return bool(env.sim_env._check_grasp(gripper=env.sim_env.robots[0].gripper, object_geoms=thing))
