"""LeRobot's robots, through their own `Robot` class: settings are its config's, with `type` and `id`."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from prism_client.control.clock import Clock
from prism_client.errors import PrismError
from prism_client.robots.polled import Polled
from prism_client.robots.robot import Frame
from prism_client.robots.robot_file import RobotFile
from prism_client.schema import Part, Schema
from prism_client.text import quoted


class LeRobotRobot:
    """One of LeRobot's robots. A thread reads it all the time, as its `get_observation` waits for the cameras.

    Args:
        file: with `settings` such as `{type = "so101_follower", id = "left"}`, `address` its port, and cameras by
            serial number (`serial`), which are opened as LeRobot's RealSense cameras, or OpenCV's by number.
        robot: one of LeRobot's that is made already.
    """

    def __init__(self, file: RobotFile, robot: Any = None) -> None:
        self.clock, self.robot = Clock(), _made(file) if robot is None else robot
        observed, taken = self.robot.observation_features, self.robot.action_features
        self._felt = [name for name, kind in observed.items() if not isinstance(kind, tuple)]
        self._moved = list(taken)
        cameras = {name: (size[0], size[1]) for name, size in observed.items() if isinstance(size, tuple)}
        state, action = (_parts("state", self._felt), _parts("action", self._moved))
        self._schema = Schema(cameras, state, action, file.rate_hz)
        self._polled: Polled[dict[str, Any]] | None = None

    @property
    def schema(self) -> Schema:
        """Of LeRobot's features: joints, and cameras."""
        return self._schema

    def connect(self) -> None:
        """Connect, which may ask to calibrate."""
        self.robot.connect()
        self._polled = Polled(self.robot.get_observation, "LeRobot's robot", self.clock)
        self._polled.wait(10.0)

    def observe(self) -> Frame:
        """The latest that was read."""
        if self._polled is None:
            raise PrismError("the robot is not connected")
        observation, when = self._polled.latest()
        images = {camera: np.asarray(observation[camera], np.uint8) for camera in self.schema.cameras}
        state = np.array([float(observation[name]) for name in self._felt], np.float32)
        return Frame(images=images, state=state, time=dict.fromkeys(("state", *images), when))

    def act(self, action: np.ndarray) -> None:
        """Send goals of its joints, by name."""
        self.robot.send_action({name: float(value) for name, value in zip(self._moved, action)})

    def hold(self) -> None:
        """Take where the joints are as their goals."""
        if self._polled is None:
            return
        observation, _ = self._polled.latest()
        self.robot.send_action({name: float(observation[name]) for name in self._moved if name in observation})

    def home(self) -> None:
        """Stay: LeRobot's robots have no home; move it by hand."""
        self.hold()

    def close(self) -> None:
        """Disconnect."""
        if self._polled is not None:
            self._polled.close()
            self._polled = None
        self.robot.disconnect()


def _parts(name: str, numbers: list[str]) -> tuple[Part, ...]:
    joints = all(number.endswith(".pos") for number in numbers)
    return (Part(name, len(numbers), "joint" if joints else "other", tuple(numbers)),) if numbers else ()


def _made(file: RobotFile) -> Any:
    try:
        robots = importlib.import_module("lerobot.robots")
        make = importlib.import_module("lerobot.robots.utils").make_robot_from_config
    except ImportError as error:
        raise PrismError("LeRobot is not installed here; run `pip install lerobot` with the robot's extra") from error
    settings = dict(file.settings)
    kind = settings.pop("type", None)
    if not isinstance(kind, str):
        raise PrismError(f"settings.type: expected one of LeRobot's robots, such as so101_follower, got {quoted(kind)}")
    try:
        importlib.import_module(f"lerobot.robots.{kind}")
    except ImportError as error:
        raise PrismError(f"settings.type: LeRobot has no robot {quoted(kind)}, or its packages are missing") from error
    if file.address:
        settings["port"] = file.address
    if file.cameras:
        settings["cameras"] = {name: _camera(one) for name, one in file.cameras.items()}
    return make(robots.RobotConfig.get_choice_class(kind)(**settings))


def _camera(one: Any) -> Any:
    size = {"width": one.width, "height": one.height, "fps": int(one.rate_hz)}
    if one.serial.isdigit() and len(one.serial) < 3:
        opencv = importlib.import_module("lerobot.cameras.opencv")
        return opencv.OpenCVCameraConfig(index_or_path=int(one.serial), **size)
    realsense = importlib.import_module("lerobot.cameras.realsense")
    return realsense.RealSenseCameraConfig(serial_number_or_name=one.serial, **size)
