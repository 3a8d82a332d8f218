"""Guards against a brute-force reading of their limits, and rotations against scipy's where it is installed."""

from __future__ import annotations

import numpy as np
import pytest

from prism_client.control.guard import Guard, _exp, _from_quaternion, _log, rotation_vector
from prism_client.control.limits import Limits, Workspace
from prism_client.errors import PrismError
from prism_client.schema import Part, Schema

BOX = Workspace([-0.2, -0.2, 0.0], [0.2, 0.2, 0.3])
POSE = Schema(
    {},
    (Part("p", 3, "position"), Part("q", 4, "rotation"), Part("f", 2, "joint")),
    (Part("p", 3, "position"), Part("r", 3, "rotation"), Part("g", 1, "gripper", shares=True)),
    20.0,
)
STEPS = Schema(
    {},
    POSE.state,
    (
        Part("p", 3, "position", shares=True),
        Part("r", 3, "rotation", shares=True),
        Part("g", 1, "gripper", shares=True),
    ),
    20.0,
)
LIMITS = Limits(speed=0.4, step=0.05, turn_speed=2.0, turn=0.3)  # of which 20 mm and 0.1 rad a step count


def where(state: np.ndarray) -> np.ndarray:
    return np.array([*state[:3], *rotation_vector(state[3:7]), 0.0])


def state(position: np.ndarray, quaternion: tuple[float, ...] = (0, 0, 0, 1)) -> np.ndarray:
    return np.array([*position, *quaternion, 0.04, -0.04])


def angle(a: np.ndarray, b: np.ndarray) -> float:
    """Between two rotation vectors, by the trace."""
    return float(np.arccos(np.clip((np.trace(_exp(a).T @ _exp(b)) - 1) / 2, -1, 1)))


def test_poses_stay_in_the_box_and_near_the_pose_before_whatever_is_asked() -> None:
    rng = np.random.default_rng(0)
    guard, hand, turn = Guard(POSE, LIMITS, BOX, where), np.array([0.0, 0.0, 0.1]), np.zeros(3)
    changed = set()
    for _ in range(500):
        wanted = np.array([*rng.normal(0, 0.3, 3), *rng.normal(0, 2, 3), rng.normal(0, 3)])
        sent, changes = guard.safe(wanted, state(hand))
        changed |= set(changes)
        assert (sent[:3] >= np.array(BOX.low) - 1e-6).all()
        assert (sent[:3] <= np.array(BOX.high) + 1e-6).all()
        assert np.linalg.norm(sent[:3] - hand) <= 0.02 + 1e-6
        assert angle(turn, sent[3:6]) <= 0.1 + 1e-3
        assert abs(sent[6]) <= 1
        hand, turn = sent[:3].astype(float), sent[3:6].astype(float)
    assert changed == {"workspace", "step", "turn"}


def test_steps_of_a_hand_stay_in_the_box_and_in_their_limits() -> None:
    rng = np.random.default_rng(1)
    guard, hand = Guard(STEPS, LIMITS, BOX), np.array([0.19, 0.0, 0.02])
    for _ in range(500):
        sent, _ = guard.safe(rng.normal(0, 2, 7), state(hand))
        moved = sent[:3] * LIMITS.share_m
        hand = hand + moved
        assert np.linalg.norm(moved) <= 0.02 + 1e-6
        assert np.linalg.norm(sent[3:6]) * LIMITS.share_rad <= 0.1 + 1e-6
        assert (hand >= np.array(BOX.low) - 1e-6).all()
        assert (hand <= np.array(BOX.high) + 1e-6).all()


def test_what_is_within_all_limits_is_sent_as_it_is() -> None:
    wanted = np.array([0.01, 0.0, 0.1, 0.05, 0.0, 0.0, -1.0], np.float32)
    sent, changes = Guard(POSE, LIMITS, BOX, where).safe(wanted, state(np.array([0.0, 0.0, 0.1])))
    assert (sent.tolist(), changes) == (wanted.tolist(), [])


def test_outside_of_the_box_the_hand_may_only_come_back() -> None:
    outside = np.array([0.0, 0.0, 0.5])
    sent, changes = Guard(STEPS, LIMITS, BOX).safe(np.array([1.0, 0, 1.0, 0, 0, 0, 0]), state(outside))
    assert changes == ["workspace", "step"]
    assert sent[2] < 0


def test_the_first_step_after_a_hold_is_measured_from_the_state() -> None:
    guard = Guard(POSE, LIMITS, BOX, where)
    wanted = np.array([0.1, 0.0, 0.1, 0, 0, 0, 0])
    for expected in (0.02, 0.04):  # the goal runs ahead of a hand that does not follow
        assert guard.safe(wanted, state(np.array([0.0, 0.0, 0.1])))[0][0] == pytest.approx(expected, abs=1e-6)
    guard.reset()
    assert guard.safe(wanted, state(np.array([0.0, 0.0, 0.1])))[0][0] == pytest.approx(0.02, abs=1e-6)
    turned = (np.sin(0.5), 0.0, 0.0, np.cos(0.5))  # by 1 rad about x
    guard.reset()
    sent, _ = guard.safe(np.array([0.0, 0.0, 0.1, 3.0, 0, 0, 0]), state(np.array([0.0, 0.0, 0.1]), turned))
    assert sent[3:6] == pytest.approx([1.1, 0, 0], abs=1e-5)


def test_joints_are_limited_by_their_speed() -> None:
    joints = (Part("j", 3, "joint"),)
    guard = Guard(Schema({}, joints, joints, 10.0), Limits(joint_speed=0.5), Workspace())
    assert guard.safe(np.array([1.0, 0.01, -1.0]), np.zeros(3))[0] == pytest.approx([0.05, 0.01, -0.05])
    assert guard.safe(np.array([1.0, 0.01, -1.0]), np.zeros(3))[0] == pytest.approx([0.1, 0.01, -0.1])


@pytest.mark.parametrize("bad", [np.full(7, np.nan), np.full(7, np.inf), np.zeros(6), np.zeros((1, 7))])
def test_what_is_not_finite_or_of_another_shape_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(PrismError, match="expected an action of 7 finite numbers"):
        Guard(POSE, LIMITS, BOX, where).safe(bad, state(np.zeros(3)))


def test_limits_that_cannot_be_kept_are_named() -> None:
    blind = Schema({}, (Part("x", 2, "other"),), POSE.action, 20.0)
    with pytest.raises(PrismError, match=r"limits.step: the state has no position"):
        Guard(blind, Limits(turn=0, turn_speed=0), Workspace())
    with pytest.raises(PrismError, match=r"limits.turn: the robot does not say where 'r' is; give .* `where`"):
        Guard(POSE, LIMITS, BOX)
    with pytest.raises(PrismError, match="states no rate"):
        Guard(Schema({}, POSE.state, POSE.action), LIMITS, BOX)
    with pytest.raises(PrismError, match="need its position in the state"):
        Guard(Schema({}, blind.state, STEPS.action, 20.0), LIMITS, BOX)


def test_rotations_are_scipys() -> None:
    rotation = pytest.importorskip("scipy.spatial.transform").Rotation
    rng = np.random.default_rng(2)
    for scale in (1e-9, 1e-3, 1.0, 3.14159265):
        for axis in rng.normal(size=(20, 3)):
            vector = scale * axis / np.linalg.norm(axis)
            wanted = rotation.from_rotvec(vector)
            np.testing.assert_allclose(_exp(vector), wanted.as_matrix(), atol=1e-12)
            np.testing.assert_allclose(_from_quaternion(wanted.as_quat()), wanted.as_matrix(), atol=1e-12)
            back = _log(wanted.as_matrix())
            np.testing.assert_allclose(rotation.from_rotvec(back).as_matrix(), wanted.as_matrix(), atol=1e-7)
            assert np.linalg.norm(back) <= np.pi + 1e-9
