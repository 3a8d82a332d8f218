"""What every task's script needs: poses, a servo, a grasp that recovers, and the name of the current stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
from scipy.spatial.transform import Rotation

from prism_policy.envs.robosuite import RobosuiteEnv

OPEN, CLOSE = -1.0, 1.0
POSITION_SCALE, ROTATION_SCALE = 0.05, 0.5  # [m], [rad] of a full-scale action
UP = np.array([0.0, 0.0, 1.0])
RESET_YAW = np.pi / 2  # [rad] of the closing axis when an episode starts

Pose = tuple[np.ndarray, np.ndarray]  # position (3,) [m] and rotation (3, 3) in the world's frame


class Expert:
    """A script for one task, in the hand of one person: speed, hover height and grasp differ between episodes."""

    stages: ClassVar[tuple[str, ...]] = ()  # names of the stages, in order; `stage` is one of them
    tolerance: ClassVar[dict[str, float]] = {}
    """Share of a disturbance that a delicate stage takes; below 1 the grip is left alone. Others take all of it."""
    max_steps: ClassVar[int] = 400  # a demonstration that takes longer is a failure [steps]
    REACHED, LOST = 0.008, 0.02
    """Distance to the grasp at which the fingers start to close, and at which a closing hand gives up [m]."""

    def __init__(self, env: RobosuiteEnv, rng: np.random.Generator) -> None:
        self.env = env
        self.sim = env.sim_env.sim
        self.rng = rng
        self.stage = self.stages[0]
        self.speed = rng.uniform(0.6, 0.9)  # share of the full action range; people differ
        self.closing = False

    def script(self) -> Iterator[np.ndarray]:
        """Clean actions (7,) in [-1, 1]; reads the state anew after each yield and never ends by itself."""
        raise NotImplementedError

    def done(self) -> bool:
        """Whether nothing is left to do; the task's success alone may come while the hand still has to let go."""
        return self.env.success

    def hand(self) -> Pose:
        """Pose of the grip site; z is the approach direction, x the closing axis."""
        data, site = self.sim.data, self.env.eef_site
        return data.site_xpos[site].copy(), data.site_xmat[site].reshape(3, 3).copy()

    def body(self, name: str, point: Sequence[float] | None = None) -> Pose:
        """Pose of a body, or of a point (3,) [m] in its frame."""
        data, index = self.sim.data, self.sim.model.body_name2id(name)
        position, rotation = data.body_xpos[index].copy(), data.body_xmat[index].reshape(3, 3).copy()
        return (position if point is None else position + rotation @ point), rotation

    @property
    def opening(self) -> float:
        """Distance between the finger pads [m]; 0 is closed, 0.08 wide open."""
        left, right = self.sim.data.qpos[self.env.fingers]
        return float(left - right)

    def grasps(self, thing: object) -> bool:
        """Whether both finger pads touch one of robosuite's objects."""
        env = self.env.sim_env
        return bool(env._check_grasp(gripper=env.robots[0].gripper, object_geoms=thing))

    def servo(self, goal: Pose, grip: float, held: Pose | None = None) -> np.ndarray:
        """Action (7,) in proportion to the error of the hand, or of what it holds, at most at this expert's speed."""
        hand = self.hand()
        position, rotation = held or hand
        turn = limit(rotation_vector(goal[1] @ rotation.T) / ROTATION_SCALE, self.speed)
        lever = np.cross(turn * ROTATION_SCALE, hand[0] - position)
        move = limit((goal[0] - position + lever) / POSITION_SCALE, self.speed)
        return np.concatenate([move, turn, [grip]])

    def reach(
        self, grasp: Pose, hover: float, wide: float, stages: tuple[str, str, str] = ("approach", "descend", "grasp")
    ) -> np.ndarray:
        """Action (7,) that takes the open hand through a funnel to a grasp and closes it there.

        The farther the hand is off to the side, the farther back it stays: pushed off, it comes again from there.

        Args:
            hover: how far back along the approach the hand stays while off to the side [m].
            wide: opening at which the fingers no longer touch what is to be grasped from above [m].
        """
        goal, rotation = grasp
        hand, hand_rotation = self.hand()
        error, approach = goal - hand, rotation[:, 2]
        aside = float(np.linalg.norm(error - approach * (approach @ error)))
        turned = float(np.linalg.norm(rotation_vector(rotation @ hand_rotation.T)))
        self.closing = float(np.linalg.norm(error)) < (self.LOST if self.closing else self.REACHED)
        if self.closing:
            self.stage = stages[2]
            return self.servo(grasp, CLOSE)
        # Fingers that are not open would land on the object, so they open up there, too.
        off = max(aside - 0.008, 0.0) + 0.05 * max(turned - 0.15, 0.0) + max(wide - self.opening, 0.0)
        funnel = hover * min(off / 0.02, 1.0)
        self.stage = stages[0] if funnel > 0.5 * hover else stages[1]
        return self.servo((goal - approach * funnel, rotation), OPEN)

    def carry(self, held: Pose, goal: Pose) -> np.ndarray:
        """Action (7,) that takes what is held up to the goal's height, then across: an arc over what stands between."""
        error = goal[0] - held[0]
        across = limit(error * (1 - UP), POSITION_SCALE) * np.clip(1.0 - error[2] / 0.03, 0.0, 1.0)
        return self.servo((held[0] + across + error * UP, goal[1]), CLOSE, held)


def down(yaw: float) -> np.ndarray:
    """Rotation (3, 3) of a hand that points down, its closing axis at `yaw` [rad]."""
    return np.array([[np.cos(yaw), np.sin(yaw), 0], [np.sin(yaw), -np.cos(yaw), 0], [0, 0, -1.0]])


def nearest_quarter(rotation: np.ndarray, reference: float = RESET_YAW) -> float:
    """Yaw [rad] of a box's sides that is nearest to `reference`, the hand's at the start: the least turning."""
    vertical = np.abs(rotation[2]).argmax()  # a box may lie on any side
    x = rotation[:, (vertical + 1) % 3]
    return reference + wrap(heading(x) - reference, np.pi / 2)


def heading(axis: np.ndarray) -> float:
    """Angle [rad] of an axis (3,) about the vertical."""
    return float(np.arctan2(axis[1], axis[0]))


def wrap(angle: float, period: float = 2 * np.pi) -> float:
    """The same angle [rad] within half a period of zero."""
    return (angle + period / 2) % period - period / 2


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """Axis times angle (3,) [rad] of a rotation (3, 3)."""
    vector: np.ndarray = Rotation.from_matrix(rotation).as_rotvec()
    return vector


def limit(values: np.ndarray, most: float) -> np.ndarray:
    """Scale a vector down so that no component exceeds `most`; the direction stays."""
    limited: np.ndarray = values * min(1.0, most / max(np.abs(values).max(), 1e-9))
    return limited
