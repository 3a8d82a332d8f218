"""A route of poses that is followed at a given speed, waiting wherever what follows it falls behind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial.transform import Rotation

from prism_policy.envs.experts.base import Pose, rotation_vector


class Route:
    """Straight lines from pose to pose, turning evenly on the way.

    Args:
        poses: where it leads, the start included.
        speed: [m/s].
        turn: [rad/s]; the slower of the two decides.
    """

    def __init__(self, poses: Sequence[Pose], speed: float, turn: float) -> None:
        self.positions = np.stack([position for position, _ in poses])  # (n, 3)
        self.rotations = np.stack([rotation for _, rotation in poses])  # (n, 3, 3)
        self.moves = np.diff(self.positions, axis=0)
        self.turns = np.stack([rotation_vector(b @ a.T) for a, b in zip(self.rotations, self.rotations[1:])])
        lengths = np.maximum(np.linalg.norm(self.moves, axis=1) / speed, np.linalg.norm(self.turns, axis=1) / turn)
        self.times = np.concatenate([[0.0], np.cumsum(np.maximum(lengths, 1e-6))])

    @property
    def duration(self) -> float:
        """Without waiting [s]."""
        return float(self.times[-1])

    def __call__(self, time: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Position (3,) [m], rotation (3, 3), velocity (3,) [m/s] and angular velocity (3,) [rad/s]."""
        i = min(int(np.searchsorted(self.times, time, "right")), len(self.times) - 1) - 1
        span = self.times[i + 1] - self.times[i]
        share = min((time - self.times[i]) / span, 1.0)
        rotation = Rotation.from_rotvec(share * self.turns[i]).as_matrix() @ self.rotations[i]
        return self.positions[i] + share * self.moves[i], rotation, self.moves[i] / span, self.turns[i] / span
