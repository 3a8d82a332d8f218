"""What a robot shows and takes: cameras with a size each, parts of state and action, rate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from prism_client.errors import PrismError
from prism_client.text import listed, quoted

PartKind = Literal["position", "rotation", "gripper", "joint", "other"]
"""`position` [m], `joint` (of arms and fingers) and `other` are scaled to [-1, 1] by their range; `rotation`
(quaternion, rotation 6D, or a share of the controller's range) and `gripper` (a command) pass as they are."""


@dataclass(frozen=True)
class Part:
    """Consecutive numbers of state or action that mean one thing."""

    name: str
    size: int
    kind: PartKind = "other"
    names: tuple[str, ...] = ()
    """What each number is, such as a joint's name; empty where not recorded."""
    shares: bool = False
    """Shares of a controller's range, in [-1, 1], which clips what lies beyond."""

    @property
    def number_names(self) -> tuple[str, ...]:
        """`names`, or made-up ones where none are recorded."""
        if len(self.names) == self.size:
            return self.names
        return (self.name,) if self.size == 1 else tuple(f"{self.name}[{i}]" for i in range(self.size))

    def __str__(self) -> str:
        about = ", ".join(self.names) if 1 < len(self.names) < 13 else str(self.size)
        return f"{self.name} ({about})"


@dataclass(frozen=True)
class Schema:
    """What every episode of a dataset holds, and what a policy takes and gives."""

    cameras: dict[str, tuple[int, int]]
    """Height and width of each one's images [px]."""
    state: tuple[Part, ...]
    action: tuple[Part, ...]
    fps: float | None = None
    """Frames and control steps a second; none where not recorded."""

    @property
    def state_dim(self) -> int:
        """Numbers of the state."""
        return sum(part.size for part in self.state)

    @property
    def action_dim(self) -> int:
        """Numbers of an action."""
        return sum(part.size for part in self.action)

    def select(self, cameras: Sequence[str] = (), state: Sequence[str] = (), action: Sequence[str] = ()) -> Schema:
        """The schema with these cameras and parts alone, in this order; none named is all of them.

        Raises:
            PrismError: there is none of a name, or it is named twice.
        """
        sizes = {name: self.cameras[name] for name in _chosen("camera", cameras, self.cameras)}
        parts = [
            tuple(next(part for part in held if part.name == name) for name in _chosen(what, names, _names(held)))
            for what, names, held in (
                ("part of the state", state, self.state),
                ("part of the action", action, self.action),
            )
        ]
        return replace(self, cameras=sizes, state=parts[0], action=parts[1])


def _names(parts: Iterable[Part]) -> list[str]:
    return [part.name for part in parts]


def _chosen(what: str, names: Sequence[str], held: Iterable[str]) -> list[str]:
    there = list(held)
    for i, name in enumerate(names):
        if name not in there:
            raise PrismError(f"unknown {what} {quoted(name)}; there are {listed(there, 12)}")
        if name in names[:i]:
            raise PrismError(f"{what} {quoted(name)}: expected it once, got it twice")
    return list(names) or there
