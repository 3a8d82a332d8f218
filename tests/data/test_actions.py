"""Absolute actions and rotations, there and back."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from prism_policy.data.actions import decode_absolute, encode_absolute, from_rotation_6d, to_rotation_6d
from prism_policy.errors import PrismError


def rotation_vectors(angles: np.ndarray, seed: int = 0) -> np.ndarray:
    axes = np.random.default_rng(seed).normal(size=(len(angles), 3))
    return axes / np.linalg.norm(axes, axis=1, keepdims=True) * angles[:, None]


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, 1.0, np.pi - 1e-3, np.pi - 1e-7])
def test_actions_come_back(angle: float) -> None:
    actions = np.random.default_rng(1).normal(size=(50, 7))
    actions[:, 3:6] = rotation_vectors(np.full(50, angle))
    encoded = encode_absolute(actions)
    assert encoded.shape == (50, 10)
    np.testing.assert_allclose(decode_absolute(encoded), actions, atol=1e-6, rtol=0)
    np.testing.assert_allclose(encode_absolute(decode_absolute(encoded)), encoded, atol=1e-6, rtol=0)


def test_at_half_a_turn_the_rotation_comes_back_though_its_vector_may_flip() -> None:
    actions = np.zeros((50, 7))
    actions[:, 3:6] = rotation_vectors(np.full(50, np.pi))
    back = decode_absolute(encode_absolute(actions))
    turn = Rotation.from_rotvec(actions[:, 3:6]).inv() * Rotation.from_rotvec(back[:, 3:6])
    assert turn.magnitude().max() < 1e-6


def test_rotation_6d_is_the_first_two_rows() -> None:
    matrix = Rotation.from_euler("z", 90, degrees=True).as_matrix()
    np.testing.assert_allclose(to_rotation_6d(matrix), [0, -1, 0, 1, 0, 0], atol=1e-12)


def test_single_precision_comes_back_to_1e_6() -> None:
    matrices = Rotation.random(200, random_state=0).as_matrix()
    back = from_rotation_6d(to_rotation_6d(matrices).astype(np.float32))
    assert (Rotation.from_matrix(matrices).inv() * Rotation.from_matrix(back)).magnitude().max() < 1e-6


def test_what_a_network_predicts_becomes_a_rotation_and_scale_does_not_matter() -> None:
    rows = np.random.default_rng(2).normal(size=(4, 5, 6))
    matrices = from_rotation_6d(rows)
    np.testing.assert_allclose(
        matrices @ matrices.swapaxes(-1, -2), np.broadcast_to(np.eye(3), (4, 5, 3, 3)), atol=1e-9
    )
    np.testing.assert_allclose(np.linalg.det(matrices), 1)
    np.testing.assert_allclose(from_rotation_6d(3 * rows), matrices, atol=1e-9)


@pytest.mark.parametrize("rows", [np.zeros(6), np.array([1.0, 0, 0, 2, 0, 0]), np.full(6, np.nan)])
def test_rows_without_a_rotation_are_refused(rows: np.ndarray) -> None:
    with pytest.raises(PrismError, match="two finite rows that are neither zero nor parallel"):
        from_rotation_6d(rows)


def test_other_columns_are_refused() -> None:
    with pytest.raises(PrismError, match=r"expected absolute actions \(\.\.\., 7\), got \(4, 10\)"):
        encode_absolute(np.zeros((4, 10)))
    with pytest.raises(PrismError, match=r"expected absolute actions \(\.\.\., 10\), got \(7,\)"):
        decode_absolute(np.zeros(7))
