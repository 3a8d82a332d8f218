"""What an arm may do whatever a policy says."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Workspace:
    """A box for the hand, in the frame of the state's position [m]; empty is no box."""

    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Limits:
    """Of actions and of frames. 0 switches a limit off."""

    speed: float = 0.5
    """Of the hand [m/s]."""
    step: float = 0.05
    """By which the hand's goal may move in a control step [m]."""
    turn_speed: float = 2.0
    """Of the hand [rad/s]."""
    turn: float = 0.3
    """By which the hand's goal may turn in a control step [rad]."""
    joint_speed: float = 1.0
    """Of each joint, where actions are joints, in the robot's unit a second (radians; degrees of LeRobot's)."""
    share_m: float = 0.05
    """What an action of 1 is where actions are shares of a controller's range [m]."""
    share_rad: float = 0.5
    """The same of a rotation [rad]."""
    frame_age_s: float = 0.25
    """How old a camera's image or the state may be [s]."""
    frozen_frames: int = 20
    """Images in a row that may be alike to the last bit; a camera has noise."""
    stall_s: float = 1.0
    """How long the loop itself may be kept from running before what it was doing counts for nothing [s]."""
    recover_s: float = 5.0
    """How long the arm holds for a camera, or the loop, to come back before the episode ends [s]."""
