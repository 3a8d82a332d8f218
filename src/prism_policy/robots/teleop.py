"""Who shows the robot what to do: keys, a SpaceMouse, or in simulation the scripted expert."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from prism_client.robots.robot import Frame
from prism_client.schema import Part, Schema
from prism_policy.data.schema import slices
from prism_policy.errors import PrismError
from prism_policy.robots.operator import ENTER, QUIT, Keys

Ending = Literal["", "keep", "discard", "leave"]
KEY_S = 0.15
"""How long a key press moves the hand [s]; a held key repeats faster than that."""
MOVES = {"w": (0, 1), "s": (0, -1), "a": (1, 1), "d": (1, -1), "r": (2, 1), "f": (2, -1)}
TURNS = {"u": (0, 1), "o": (0, -1), "i": (1, 1), "k": (1, -1), "j": (2, 1), "l": (2, -1)}
HELP = "w s forward and back, a d left and right, r f up and down; u o, i k, j l turn; space gripper"
DELETE = ("\x7f", "\b")


@dataclass(frozen=True)
class Command:
    """What a demonstrator wants now."""

    action: np.ndarray
    """(A,), as the robot takes it."""
    forced: bool = False
    """It is a disturbance, and shall not be learned."""
    ending: Ending = ""
    """How the demonstration ends with this step, if it does."""


class Demonstrator(Protocol):
    """Looks at a frame and says what to do; asked once a control step."""

    def __call__(self, frame: Frame) -> Command:
        """The command that is due."""


class Jog:
    """Turns motions of a hand into a robot's actions: steps, or poses that move on from where the hand is.

    Args:
        speed, turn_speed: of a full deflection [m/s], [rad/s].
        share_m, share_rad: what a full action is where actions are shares of a controller's range.

    Raises:
        PrismError: the robot's actions are neither steps nor poses of a hand with a gripper.
    """

    def __init__(
        self, schema: Schema, speed: float, turn_speed: float, share_m: float = 0.05, share_rad: float = 0.5
    ) -> None:
        self.schema, self.speed, self.turn_speed = schema, speed, turn_speed
        self.share_m, self.share_rad = share_m, share_rad
        kinds = [(part.kind, part.size) for part in schema.action]
        if kinds[:2] != [("position", 3), ("rotation", 3)] or [size for _, size in kinds[2:]] != [1]:
            parts = ", ".join(map(str, schema.action))
            raise PrismError(f"expected actions of a hand's position (3), rotation (3) and gripper (1), got {parts}")
        self.period_s = 1 / (schema.fps or 20.0)
        self.closed = False
        self._goal: tuple[np.ndarray, np.ndarray] | None = None

    def reset(self) -> None:
        """Another episode begins, with the gripper open."""
        self.closed, self._goal = False, None

    def follow(self, sent: np.ndarray) -> None:
        """Go on from the action (A,) that was executed, which a guard may have kept in its limits."""
        if self._goal is not None:
            self._goal = np.array(sent[:3], float), np.array(sent[3:6], float)

    def __call__(self, move: np.ndarray, turn: np.ndarray, frame: Frame) -> np.ndarray:
        """The action (A,) that moves and turns by these shares (3,) of the speeds, in the robot's base frame."""
        position, rotation, gripper = self.schema.action
        step, angle = move * self.speed * self.period_s, turn * self.turn_speed * self.period_s
        moved = np.clip(step / self.share_m, -1, 1) if position.shares else self._moved(step, frame)
        turned = np.clip(angle / self.share_rad, -1, 1) if rotation.shares else self._turned(angle, frame)
        return np.concatenate([moved, turned, [self._grip(gripper)]])

    def _grip(self, gripper: Part) -> float:
        if gripper.kind == "gripper":
            return 1.0 if self.closed else -1.0
        return 0.0 if self.closed else 0.08  # a width [m]

    def _here(self, kind: str, frame: Frame) -> np.ndarray:
        for part in self.schema.state:
            if (part.kind, part.size) == (kind, 3):
                return np.array(frame["state"][slices(self.schema.state)[part.name]], float)
        raise PrismError(f"the robot's state has no {kind} of three numbers to go on from")

    def _moved(self, step: np.ndarray, frame: Frame) -> np.ndarray:
        self._begin(frame)
        assert self._goal is not None
        self._goal = (self._goal[0] + step, self._goal[1])
        return self._goal[0]

    def _turned(self, angle: np.ndarray, frame: Frame) -> np.ndarray:
        from scipy.spatial.transform import Rotation

        self._begin(frame)
        assert self._goal is not None
        turned = (Rotation.from_rotvec(angle) * Rotation.from_rotvec(self._goal[1])).as_rotvec()
        self._goal = (self._goal[0], turned)
        return np.asarray(turned)

    def _begin(self, frame: Frame) -> None:
        if self._goal is None:
            self._goal = self._here("position", frame), self._here("rotation", frame)


class Keyboard:
    """Keys of a terminal, which says when a key is pressed and not how long: each press moves for `KEY_S`."""

    def __init__(self, keys: Keys, jog: Jog, now: Callable[[], float] = time.monotonic) -> None:
        self.keys, self.jog, self._now = keys, jog, now
        self._until: dict[str, float] = {}

    def __call__(self, frame: Frame) -> Command:
        """All keys since the last step."""
        ending: Ending = ""
        while key := self.keys.read(0):
            if key in MOVES or key in TURNS:
                self._until[key] = self._now() + KEY_S
            elif key == " ":
                self.jog.closed = not self.jog.closed
            elif key == ENTER:
                ending = "keep"
            elif key in DELETE:
                ending = "discard"
            elif key == QUIT:
                ending = "leave"
            if ending:
                break
        move, turn, now = np.zeros(3), np.zeros(3), self._now()
        for key, until in self._until.items():
            if until >= now:
                axes, vector = (MOVES, move) if key in MOVES else (TURNS, turn)
                vector[axes[key][0]] += axes[key][1]
        return Command(self.jog(move, turn, frame), ending=ending)


class SpaceMouse:
    """A SpaceMouse moves, its left button is the gripper; Enter, Delete and q on the keyboard end the demonstration.

    Args:
        read: gives its deflections (6,) in [-1, 1], right-handed with x forward, and whether the button is down.
    """

    DEAD = 0.1
    """Deflection that is none."""

    def __init__(self, read: Callable[[], tuple[np.ndarray, bool]], keys: Keys, jog: Jog) -> None:
        self.read, self.keyboard, self.jog = read, Keyboard(keys, jog), jog
        self._down = False

    def __call__(self, frame: Frame) -> Command:
        """Its present deflection."""
        ending = self.keyboard(frame).ending
        deflection, down = self.read()
        if down and not self._down:
            self.jog.closed = not self.jog.closed
        self._down = down
        live = np.where(np.abs(deflection) < self.DEAD, 0.0, deflection)
        return Command(self.jog(live[:3], live[3:], frame), ending=ending)


class Expert:
    """The scripted expert of a simulated robot's task; keeps what succeeded and discards the rest."""

    def __init__(self, robot: Any, noise: float, max_steps: int) -> None:
        if not hasattr(robot, "demonstrator"):
            raise PrismError("--by expert: only a simulated robot (robot = 'sim') has one; use keyboard or spacemouse")
        self.robot, self.noise, self.max_steps = robot, noise, max_steps
        self.reset()

    def reset(self) -> None:
        """Another episode has begun."""
        self._act = self.robot.demonstrator(self.noise)
        self._steps = 0

    def __call__(self, frame: Frame) -> Command:
        """What it would do in the simulation's true state."""
        action, forced, done = self._act()
        self._steps += 1
        ending: Ending = ""
        if done or self._steps >= self.max_steps:
            ending = "keep" if done and self.robot.success else "discard"
        return Command(action, forced, ending)
