"""Absolute actions as robosuite takes them and as a policy learns them, and the exact way between.

The simulator's action is position, rotation vector and gripper, 7 numbers. A rotation vector jumps where the angle
passes 180 degrees, so the policy learns 10: position, the first two rows of the rotation matrix (Zhou et al., 2019),
and gripper. Delta actions are small and stay as they are.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from prism_policy.errors import PrismError


def to_rotation_6d(matrices: np.ndarray) -> np.ndarray:
    """Rotation matrices (..., 3, 3) to their first two rows, (..., 6)."""
    return matrices[..., :2, :].reshape(*matrices.shape[:-2], 6)


def from_rotation_6d(rows: np.ndarray) -> np.ndarray:
    """Two rows (..., 6), as a network predicts them, to the rotation matrices (..., 3, 3) by Gram-Schmidt."""
    first, second = rows[..., :3], rows[..., 3:]
    x = _unit(first)
    y = _unit(second - (x * second).sum(-1, keepdims=True) * x)
    return np.stack([x, y, np.cross(x, y)], axis=-2)


def encode_absolute(actions: np.ndarray) -> np.ndarray:
    """(..., 7) position [m], rotation vector [rad], gripper to (..., 10) position, rotation 6D, gripper."""
    _check(actions, 7)
    matrices = Rotation.from_rotvec(actions[..., 3:6].reshape(-1, 3)).as_matrix()
    rotation = to_rotation_6d(matrices).reshape(*actions.shape[:-1], 6)
    return np.concatenate([actions[..., :3], rotation, actions[..., 6:]], axis=-1)


def decode_absolute(actions: np.ndarray) -> np.ndarray:
    """(..., 10) position [m], rotation 6D, gripper to (..., 7) position, rotation vector up to pi [rad], gripper."""
    _check(actions, 10)
    matrices = from_rotation_6d(actions[..., 3:9]).reshape(-1, 3, 3)
    rotation = Rotation.from_matrix(matrices).as_rotvec().reshape(*actions.shape[:-1], 3)
    return np.concatenate([actions[..., :3], rotation, actions[..., 9:]], axis=-1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if not (np.isfinite(length) & (length > 1e-6)).all():
        raise PrismError("expected two finite rows that are neither zero nor parallel, to make a rotation; got others")
    return vectors / length


def _check(actions: np.ndarray, columns: int) -> None:
    if actions.shape[-1] != columns:
        raise PrismError(f"expected absolute actions (..., {columns}), got {actions.shape}")
