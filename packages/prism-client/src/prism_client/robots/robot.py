"""What a robot is to the control loop."""

from __future__ import annotations

from typing import Protocol, TypedDict

import numpy as np

from prism_client.control.clock import Clock
from prism_client.schema import Schema


class Frame(TypedDict):
    """What a robot sees and feels now, and since when."""

    images: dict[str, np.ndarray]
    """Of each camera, uint8 (H, W, 3), row 0 at the top."""
    state: np.ndarray
    """Float32 (S,)."""
    time: dict[str, float]
    """When each camera's image, and the `state`, was taken, by the robot's clock [s]."""


class Robot(Protocol):
    """An arm with cameras. Every call but `connect`, `home` and `close` returns at once.

    A robot whose actions are poses with a rotation also has `where(state)`, (S,) to (A,): the action that stays where
    the state says that the arm is, from which the first step is measured (`guard.rotation_vector` helps).

    A camera that needs time is read by a thread of its own (`Polled`), and `observe` gives its latest image, however
    old. `hold` may be called from another thread than the rest, and more than once. Whatever a call raises makes the
    loop hold the arm.

    Usage::

        robot.connect()
        frame = robot.observe()
        robot.act(action)  # (A,), in the units of `schema.action`; holds until the next one
        robot.hold()
        robot.close()
    """

    clock: Clock
    """Of `Frame.time`."""

    @property
    def schema(self) -> Schema:
        """Cameras with their sizes, parts of state and action, and the rate of control (`fps`)."""

    def connect(self) -> None:
        """Reach the robot and its cameras; it does not move."""

    def observe(self) -> Frame:
        """The latest of each camera and of the state."""

    def act(self, action: np.ndarray) -> None:
        """Begin to execute an action (A,)."""

    def hold(self) -> None:
        """Stay where it is, with the gripper as it is."""

    def home(self) -> None:
        """Move to the pose in which episodes begin, and return when it is there."""

    def close(self) -> None:
        """Leave the robot, holding."""
