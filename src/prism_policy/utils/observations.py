"""Observations `{"images": {camera: uint8 (H, W, 3)}, "state": float32 (S,)}` and their history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Observation = dict[str, Any]
STATE = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
"""What makes up `state`, in this order, by robomimic's names, and its widths: [m], x y z w, [m]."""


def stack_history(frames: Sequence[Observation]) -> Observation:
    """Stack consecutive observations, oldest first, along a new first axis To: images, state and all other arrays."""
    return {
        name: {part: np.stack([frame[name][part] for frame in frames]) for part in value}
        if isinstance(value, dict)
        else np.stack([frame[name] for frame in frames])
        for name, value in frames[0].items()
    }
