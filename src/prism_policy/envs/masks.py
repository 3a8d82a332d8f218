"""Where a task's objects and the gripper are in an image, by the simulator's own account."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

REST, GRIPPER, OBJECT = 0, 1, 2  # labels of a mask's pixels
GRIPPER_BODY = "gripper0_right_right_gripper"


def task_mask(env: Any, camera: str, state: np.ndarray) -> np.ndarray:
    """Labels of a camera's image of `state` (S,): uint8 (H, W), pixel by pixel that of `env.observe`."""
    labels = np.full(env.model.ngeom + 1, REST, np.uint8)  # the last one stands for no geom, -1
    labels[:-1][_belongs(env.model, [GRIPPER_BODY])] = GRIPPER
    labels[:-1][_belongs(env.model, env.mask_bodies)] = OBJECT
    return labels[env.segment(camera, state)]  # (H, W)


def _belongs(model: Any, roots: Sequence[str]) -> np.ndarray:
    """Which geoms belong to these bodies or to what hangs on them: bool (ngeom,)."""
    inside = np.zeros(model.nbody, bool)
    inside[[model.body(root).id for root in roots]] = True
    for body in range(1, model.nbody):  # parents come before their children
        inside[body] |= inside[model.body_parentid[body]]
    return np.asarray(inside[model.geom_bodyid])
