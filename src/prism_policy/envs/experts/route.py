"""A route of poses that is followed at a given speed, waiting wherever what follows it falls behind."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy.spatial.transform import Rotation

from prism_policy.envs.experts.base import Pose, rotation_vector


class Route:
    """Straight lines from pose to pose at a speed [m/s], turning evenly [rad/s] on the way; the slower one decides."""

    def __init__(self, poses: Sequence[Pose], speed: float, turn: float) -> None:
        self.positions = np.stack([position for position, _ in poses])  # (n, 3)
        self.rotations = np.stack([rotation for _, rotation in poses])  # (n, 3, 3)
        self.moves = np.diff(self.positions, axis=0)
        self.turns = np.stack([rotation_vector(b @ a.T) for a, b in pairwise(self.rotations)])
        lengths = np.maximum(np.linalg.norm(self.moves, axis=1) / speed, np.linalg.norm(self.turns, axis=1) / turn)
        self.times = np.concatenate([[0.0], np.cumsum(np.maximum(lengths, 1e-6))])

    @property
    def duration(self) -> float:
        """Without waiting [s]."""
        return float(self.times[-1])

    def at(self, time: float, base: Pose) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Position (3,) [m], rotation (3, 3), velocity (3,) [m/s] and angular velocity (3,) [rad/s] at a time [s].

        `base` is where the frame is now that the poses were given in.
        """
        i = min(int(np.searchsorted(self.times, time, "right")), len(self.times) - 1) - 1
        span = self.times[i + 1] - self.times[i]
        share = min((time - self.times[i]) / span, 1.0)
        position = self.positions[i] + share * self.moves[i]
        rotation = Rotation.from_rotvec(share * self.turns[i]).as_matrix() @ self.rotations[i]
        return *absolute((position, rotation), base), base[1] @ self.moves[i] / span, base[1] @ self.turns[i] / span


def absolute(pose: Pose, base: Pose) -> Pose:
    """The pose in the world of what is given relative to a base."""
    return base[0] + base[1] @ pose[0], base[1] @ pose[1]


def relative(pose: Pose, base: Pose) -> Pose:
    """The pose relative to a base of what is given in the world."""
    return base[1].T @ (pose[0] - base[0]), base[1].T @ pose[1]
