"""Scripted experts: generators that yield clean actions from live poses, and their demonstrations under disturbance.

An expert sees the simulator's ground truth and closes its loop on it: what it does next follows (nearly) from the
state, not from elapsed time, so that a policy can learn it and every disturbance shows how to recover.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from prism_policy.config import DemoConfig
from prism_policy.envs.episode import episode_rng
from prism_policy.envs.robosuite import RobosuiteEnv
from prism_policy.errors import PrismError

OPEN, CLOSE = -1.0, 1.0
POSITION_SCALE, ROTATION_SCALE = 0.05, 0.5  # [m], [rad] of a full-scale action
MAX_STEPS = 250
"""A demonstration that takes longer is a failure [steps]."""


class Expert:
    """What every task's script needs: poses, a servo for the hand, and the name of the current stage."""

    stages: tuple[str, ...] = ()
    """Names of the stages, in order; `stage` is one of them."""

    def __init__(self, env: RobosuiteEnv, rng: np.random.Generator) -> None:
        self.env = env
        self.sim = env.sim_env.sim
        self.rng = rng
        self.stage = self.stages[0]
        self.speed = rng.uniform(0.6, 0.9)  # share of the full action range; people differ

    def script(self) -> Iterator[np.ndarray]:
        """Clean actions (7,) in [-1, 1]; reads the state anew after each yield and never ends by itself."""
        raise NotImplementedError

    def hand(self) -> tuple[np.ndarray, np.ndarray]:
        """Position (3,) [m] and rotation (3, 3) of the grip site; z is the approach direction, x the closing axis."""
        data, site = self.sim.data, self.env.eef_site
        return data.site_xpos[site].copy(), data.site_xmat[site].reshape(3, 3).copy()

    def body(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Position (3,) [m] and rotation (3, 3) of a body."""
        data, index = self.sim.data, self.sim.model.body_name2id(name)
        return data.body_xpos[index].copy(), data.body_xmat[index].reshape(3, 3).copy()

    @property
    def opening(self) -> float:
        """Distance between the finger pads [m]; 0 is closed, 0.08 wide open."""
        left, right = self.sim.data.qpos[self.env.fingers]
        return float(left - right)

    def servo(self, position: np.ndarray, rotation: np.ndarray, grip: float, gain: float = 1.0) -> np.ndarray:
        """Action (7,) that takes the hand towards a pose in proportion to its error, at most at this expert's speed."""
        p, r = self.hand()
        move = gain * (position - p) / POSITION_SCALE
        turn = gain * Rotation.from_matrix(rotation @ r.T).as_rotvec() / ROTATION_SCALE
        return np.concatenate([_limit(move, self.speed), _limit(turn, self.speed), [grip]])


class Lift(Expert):
    """Take the cube and raise it.

    The hand comes down through a funnel: the farther it is off to the side, the higher it stays. It closes where the
    cube is between the fingers, raises what it holds, and begins again whenever the cube is not where it should be.
    """

    stages = ("approach", "descend", "grasp", "lift")
    REACHED, LOST = 0.008, 0.02
    """Distance to the grasp at which the fingers start to close, and at which a closing hand gives up [m]."""

    def script(self) -> Iterator[np.ndarray]:  # noqa: D102 (inherited)
        rng = self.rng
        hover = rng.uniform(0.04, 0.07)  # [m] above the cube while off to the side
        offset = np.array([0.0, rng.uniform(-0.004, 0.004), rng.uniform(-0.002, 0.006)])  # [m] in the hand's frame
        height = rng.uniform(0.92, 0.96)  # [m] to raise the cube to; the table is at 0.80
        closing = False
        while True:
            cube, cube_rotation = self.body("cube_main")
            rotation = down(nearest_quarter(cube_rotation))
            hand, hand_rotation = self.hand()
            goal = cube + rotation @ offset
            error = goal - hand
            aside = float(np.hypot(error[0], error[1]))
            turned = float(np.linalg.norm(Rotation.from_matrix(rotation @ hand_rotation.T).as_rotvec()))
            distance = float(np.linalg.norm(error))
            closing = distance < (self.LOST if closing else self.REACHED)
            if self.holding():
                self.stage = "lift"
                yield self.servo(np.array([hand[0], hand[1], height]), rotation, CLOSE)
            elif closing:
                self.stage = "grasp"
                yield self.servo(goal, rotation, CLOSE)
            else:
                # Fingers that are not open would land on the cube, so they open up there, too.
                off = max(aside - 0.008, 0.0) + 0.05 * max(turned - 0.15, 0.0) + max(0.06 - self.opening, 0.0)
                funnel = hover * min(off / 0.02, 1.0)
                self.stage = "approach" if funnel > 0.5 * hover else "descend"
                yield self.servo(goal + np.array([0, 0, funnel]), rotation, OPEN)

    def holding(self) -> bool:
        """Both finger pads touch the cube and the fingers have stopped on it."""
        env = self.env.sim_env
        return self.opening < 0.046 and bool(env._check_grasp(gripper=env.robots[0].gripper, object_geoms=env.cube))


EXPERTS: dict[str, type[Expert]] = {"lift": Lift}


class Disturbance:
    """Pushes that take over from the expert for a few steps: the hand drifts off, turns, and may open or shut.

    What the expert does afterwards demonstrates recovery. The pushed steps themselves are marked, for nobody should
    learn to push: an action noise on every step would leave no action chunk that shows what the expert meant.
    """

    RATE = 0.07
    """Chance that a push begins at an undisturbed step; it is five times as likely at the first one."""

    def __init__(self, strength: float, rng: np.random.Generator) -> None:
        self.strength = strength
        self.rng = rng
        self.rate = 5 * self.RATE
        self.push, self.flip, self.left = np.zeros(6), False, 0

    def __call__(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        """The action to execute (7,), in [-1, 1], and whether it is a push."""
        rng = self.rng
        if self.left == 0 and self.strength > 0 and rng.random() < self.rate:
            direction = rng.standard_normal(6) * (1, 1, 1, 0.3, 0.3, 0.6)
            self.push = direction / np.linalg.norm(direction[:3]) * rng.uniform(0.4, 2.0) * self.strength
            self.flip = rng.random() < 0.2
            self.left = int(rng.integers(1, 6))
        self.rate = self.RATE
        if self.left == 0:
            return action, False
        self.left -= 1
        grip = -action[6] if self.flip else action[6]
        return np.clip(np.append(self.push, grip), -1.0, 1.0), True


@dataclass(frozen=True)
class Demonstration:
    """One episode of an expert; T steps, everything at the start of its step."""

    states: np.ndarray
    """Simulator states, float64 (T, S)."""
    actions: np.ndarray
    """What was executed, float64 (T, 7): replaying it gives the same states."""
    disturbed: np.ndarray
    """Where that was a push and not the expert's choice, bool (T,)."""
    rewards: np.ndarray
    """1 where the step ended in success, float64 (T,)."""
    stages: np.ndarray
    """Index into the expert's `stages`, uint8 (T,)."""
    success: bool
    """The task was done, and stayed done to the last step."""


def demonstrate(env: RobosuiteEnv, demos: DemoConfig, episode: int) -> Demonstration:
    """One episode of the task's expert, which goes on for a few steps after the success: a policy should see that.

    Args:
        env: the task, without images.
        demos: strength of the disturbances and the seed.
        episode: number of the episode, >= 0; it and the seed decide everything.

    Raises:
        PrismError: the task has no expert.
    """
    if env.task.name not in EXPERTS:
        raise PrismError(f"task '{env.task.name}' has no scripted expert; these have one: {', '.join(EXPERTS)}")
    rng = episode_rng("collect", demos.seed, episode, stream=2)
    expert = EXPERTS[env.task.name](env, rng)
    disturbance = Disturbance(demos.noise, rng)
    env.reset(seed=demos.seed, options={"split": "collect", "episode": episode})
    linger = int(rng.integers(5, 11))
    executed, disturbed, rewards, stages = [], [], [], []
    for wanted in expert.script():
        action, pushed = disturbance(wanted)
        executed.append(action)
        disturbed.append(pushed)
        stages.append(expert.stages.index(expert.stage))
        success = env.advance(action)
        rewards.append(float(success))
        if sum(rewards) >= linger or len(executed) == MAX_STEPS:
            break
    return Demonstration(
        states=np.stack(env.states[:-1]),
        actions=np.stack(executed),
        disturbed=np.array(disturbed),
        rewards=np.array(rewards),
        stages=np.array(stages, np.uint8),
        success=success,
    )


def down(yaw: float) -> np.ndarray:
    """Rotation (3, 3) of a hand that points down, its closing axis at `yaw` [rad]."""
    return np.array([[np.cos(yaw), np.sin(yaw), 0], [np.sin(yaw), -np.cos(yaw), 0], [0, 0, -1.0]])


def nearest_quarter(rotation: np.ndarray, reference: float = np.pi / 2) -> float:
    """Yaw [rad] of a box's sides that is nearest to `reference`, the hand's at the start: the least turning."""
    vertical = np.abs(rotation[2]).argmax()  # a box may lie on any side
    x = rotation[:, (vertical + 1) % 3]
    yaw = float(np.arctan2(x[1], x[0]))
    return reference + (yaw - reference + np.pi / 4) % (np.pi / 2) - np.pi / 4


def _limit(values: np.ndarray, most: float) -> np.ndarray:
    """Scale a vector down so that no component exceeds `most`; the direction stays."""
    limited: np.ndarray = values * min(1.0, most / max(np.abs(values).max(), 1e-9))
    return limited
