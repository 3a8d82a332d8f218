"""The last look at an action before the arm executes it, whatever the policy said."""

from __future__ import annotations

from typing import Callable

import numpy as np

from prism_client.control.limits import Limits, Workspace
from prism_client.errors import PrismError
from prism_client.schema import Part, Schema
from prism_client.text import one_line


class Guard:
    """Keeps every action finite, the hand's goal in its box, and each step within the limits of length and speed.

    A step is measured from the goal before; after a hold, from where the state says that the arm is. That are the parts
    of the state of the same kind and size as the action's, or what `where` makes of a state (S,): the action (A,) that
    stays there, as of a robot whose actions turn another frame than its state's.

    Usage::

        guard = Guard(schema, limits, workspace)
        action, changes = guard.safe(action, state)  # (A,), (S,)
    """

    def __init__(
        self,
        schema: Schema,
        limits: Limits,
        workspace: Workspace,
        where: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        if not schema.fps:
            raise PrismError("the robot states no rate, so its speed cannot be limited; give `rate_hz` in its file")
        self.schema, self.limits, self.period_s = schema, limits, 1 / schema.fps
        self._box = np.array([workspace.low, workspace.high], float) if workspace.low else None
        self._actions, self._states = _places(schema.action), _places(schema.state)
        self._goals: dict[str, np.ndarray] = {}
        self._where = where
        for part, _ in self._actions:
            turns = (
                part.kind == "rotation" and part.size == 3 and not part.shares and (limits.turn or limits.turn_speed)
            )
            if turns and self._here(part, np.zeros(schema.state_dim)) is None:
                hint = "give the robot's class `where`, or set turn and turn_speed 0"
                raise PrismError(f"limits.turn: the robot does not say where '{part.name}' is; {hint}")
            if part.kind == "position" and part.size == 3:
                zeros = np.zeros(schema.state_dim)
                if self._box is not None and part.shares and self._position(zeros) is None:
                    raise PrismError("workspace: steps of a hand need its position in the state; leave the box out")
                if not part.shares and limits.step and self._here(part, zeros) is None:
                    raise PrismError(f"limits.step: the state has no position to measure '{part.name}' from; set it 0")

    def reset(self) -> None:
        """The arm holds, or has been moved."""
        self._goals = {}

    def safe(self, action: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """The action to execute, float32 (A,), and what of it was changed.

        Raises:
            PrismError: it is not finite or of another shape; nothing of it may be executed.
        """
        action = np.array(action, float)
        if action.shape != (self.schema.action_dim,) or not np.isfinite(action).all():
            got = one_line(action, 200)
            raise PrismError(f"expected an action of {self.schema.action_dim} finite numbers, got {got}")
        changes: list[str] = []
        for part, place in self._actions:
            wanted = action[place]
            if part.shares:
                wanted = np.clip(wanted, -1.0, 1.0)
            if part.kind == "position" and part.size == 3:
                wanted = self._moved(part, wanted, state, changes)
            elif part.kind == "rotation" and part.size == 3:
                wanted = self._turned(part, wanted, state, changes)
            elif part.kind == "joint" and not part.shares:
                wanted = self._bent(part, wanted, state, changes)
            action[place] = wanted
        return action.astype(np.float32), changes

    def _here(self, part: Part, state: np.ndarray) -> np.ndarray | None:
        """Where the arm is, in the numbers of a part of the action; None if the state does not say."""
        if self._where is not None:
            place = next(place for one, place in self._actions if one == part)
            return np.asarray(self._where(state), float)[place]
        for other, place in self._states:
            if other.kind == part.kind and other.size == part.size:
                return state[place].astype(float)
        return None

    def _position(self, state: np.ndarray) -> np.ndarray | None:
        """Where the hand is, of a robot that is sent its steps."""
        parts = [place for part, place in self._states if part.kind == "position" and part.size == 3]
        return state[parts[0]].astype(float) if parts else None

    def _from(self, part: Part, state: np.ndarray) -> np.ndarray | None:
        return self._goals[part.name] if part.name in self._goals else self._here(part, state)

    def _most(self, step: float, speed: float) -> float:
        """The shorter of a step and of what a speed allows within one; infinite where neither limits it."""
        return min(step or np.inf, speed * self.period_s or np.inf)

    def _moved(self, part: Part, wanted: np.ndarray, state: np.ndarray, changes: list[str]) -> np.ndarray:
        here = self._position(state) if part.shares else self._from(part, state)
        origin = np.zeros(3) if here is None else here
        goal = origin + wanted * self.limits.share_m if part.shares else wanted
        if self._box is not None:
            inside = np.clip(goal, *self._box)
            if (inside != goal).any():
                changes.append("workspace")
            goal = inside
        if here is not None or part.shares:
            goal = origin + _limited(goal - origin, self._most(self.limits.step, self.limits.speed), "step", changes)
        self._goals[part.name] = goal
        return np.clip((goal - origin) / self.limits.share_m, -1.0, 1.0) if part.shares else goal

    def _turned(self, part: Part, wanted: np.ndarray, state: np.ndarray, changes: list[str]) -> np.ndarray:
        most = self._most(self.limits.turn, self.limits.turn_speed)
        if part.shares:
            return _limited(wanted * self.limits.share_rad, most, "turn", changes) / self.limits.share_rad
        before = self._from(part, state)
        if before is not None:
            start = _exp(before)
            turn = _log(start.T @ _exp(wanted))
            kept = _limited(turn, most, "turn", changes)
            if kept is not turn:
                wanted = _log(start @ _exp(kept))
        self._goals[part.name] = wanted
        return wanted

    def _bent(self, part: Part, wanted: np.ndarray, state: np.ndarray, changes: list[str]) -> np.ndarray:
        before, most = self._from(part, state), self.limits.joint_speed * self.period_s
        if before is not None and most:
            kept = np.clip(wanted, before - most, before + most)
            if (kept != wanted).any():
                changes.append("joint")
            wanted = kept
        self._goals[part.name] = wanted
        return wanted


def _places(parts: tuple[Part, ...]) -> list[tuple[Part, slice]]:
    ends = np.cumsum([part.size for part in parts], dtype=int).tolist()
    return [(part, slice(end - part.size, end)) for part, end in zip(parts, ends)]


def _limited(vector: np.ndarray, most: float, what: str, changes: list[str]) -> np.ndarray:
    """The vector at no more than this length, in the same direction."""
    length = float(np.linalg.norm(vector))
    if length <= most * (1 + 1e-6):
        return vector
    changes.append(what)
    return vector * (most / length)


def _exp(vector: np.ndarray) -> np.ndarray:
    """Rotation (3, 3) of a rotation vector (3,) [rad] (Rodrigues)."""
    angle = float(np.linalg.norm(vector))
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = vector / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    rotation: np.ndarray = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return rotation


def _log(rotation: np.ndarray) -> np.ndarray:
    """Rotation vector (3,) [rad], of up to half a turn, of a rotation (3, 3), by way of its quaternion."""
    # Of the four ways to a quaternion the one that divides by its largest number (Shepperd, 1978).
    trace, diagonal = float(np.trace(rotation)), np.diag(rotation)
    i = int(np.argmax([*diagonal, trace]))
    skew = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    if i == 3:
        quaternion = np.array([*skew, 1 + trace])
    else:
        quaternion = np.array([*(rotation[i] + rotation[:, i]), skew[i]])
        quaternion[i] = 1 + 2 * diagonal[i] - trace
    quaternion *= np.copysign(1.0, quaternion[3]) / np.linalg.norm(quaternion)
    sine = float(np.linalg.norm(quaternion[:3]))
    return quaternion[:3] * (2 * np.arctan2(sine, quaternion[3]) / sine if sine > 1e-12 else 2.0)


def rotation_vector(quaternion: np.ndarray) -> np.ndarray:
    """Rotation vector (3,) [rad] of a quaternion x y z w."""
    return _log(_from_quaternion(np.asarray(quaternion, float)))


def _from_quaternion(quaternion: np.ndarray) -> np.ndarray:
    """Rotation (3, 3) of a quaternion x y z w, of any length but zero."""
    length = float(np.linalg.norm(quaternion))
    if length < 1e-6:
        return np.eye(3)
    x, y, z, w = quaternion / length
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
