"""A Franka arm with hand and RealSense cameras, by franky-control and pyrealsense2 (prism-policy's extra `franka`).

Poses go to franky's Cartesian impedance tracker, which follows them with a spring: what the arm touches, it presses
with no more than the stiffness times the distance.
"""

from __future__ import annotations

import importlib
import threading
import time
from typing import Any, Callable

import numpy as np

from prism_client.control.clock import Clock
from prism_client.errors import PrismError
from prism_client.robots.polled import Polled
from prism_client.robots.robot import Frame
from prism_client.robots.robot_file import CameraFile, RobotFile
from prism_client.schema import Part, Schema
from prism_client.text import one_line, quoted

STREAM_S = 0.005
"""How often the tracker gets a pose, on the straight way from one goal to the next [s]."""
GRIPPER_STEP = 0.002
"""Change of the wanted width from which the gripper moves [m]."""
READY = [0.0, -0.785398, 0.0, -2.356194, 0.0, 1.570796, 0.785398]
"""Joints of Franka's ready pose [rad]."""
DOWN = np.array([1.0, 0.0, 0.0, 0.0])
"""Quaternion x y z w of a hand that points straight down, its fingers in a line with the base's y axis."""
POSE = (
    Part("position", 3, "position", ("x", "y", "z")),
    Part("rotation", 3, "rotation", ("rx", "ry", "rz")),
    Part("width", 1, "joint", ("width",)),
)
"""Of state and action: the hand's place in the base's frame [m]; its turn from pointing straight down as a rotation
vector about the base's axes [rad], which so is small and never jumps; what is between the fingers [m]."""


class FrankyRobot:
    """A Franka: absolute poses and the gripper's width as actions, the measured ones as state.

    Args:
        file: `address` is the arm's; a camera's `serial` its RealSense's. `settings` may have `stiffness` (1500 N/m),
            `turn_stiffness` (60 Nm/rad), `realtime` (true: this computer has a real-time kernel), `home` (seven joints
            [rad]), `home_speed` (0.15 of the arm's limits), `gripper_speed` (0.1 m/s), `grasp_force` (20 N).
    """

    def __init__(self, file: RobotFile) -> None:
        allowed = {
            "stiffness": 1500.0, "turn_stiffness": 60.0, "realtime": True, "home": READY, "home_speed": 0.15,
            "gripper_speed": 0.1, "grasp_force": 20.0,
        }  # fmt: skip
        for name, value in file.settings.items():
            if name not in allowed:
                raise PrismError(f"unknown field 'settings.{one_line(name, 40)}'; Franka has {', '.join(allowed)}")
            self._check(name, value)
        if not file.address:
            raise PrismError("address: expected the arm's name or IP address, such as 172.16.0.2")
        if not file.cameras:
            raise PrismError("cameras: expected a table for each camera, with its serial number")
        self.file, self._settings = file, {**allowed, **file.settings}
        sizes = {name: (camera.height, camera.width) for name, camera in file.cameras.items()}
        self._schema = Schema(sizes, POSE, POSE, file.rate_hz)
        self.clock = Clock()
        self._franky = _package("franky", "franky-control")
        self._robot: Any = None
        self._gripper: Any = None
        self._tracker: Any = None
        self._cameras: dict[str, Polled[np.ndarray]] = {}
        self._width: Polled[float] | None = None
        self._lock = threading.Lock()
        self._from, self._to, self._since = _NOWHERE, _NOWHERE, 0.0  # the goal before, the goal, and since when
        self._held = False
        self._wanted_width, self._sent_width = 0.08, 0.08
        self._threads: list[threading.Thread] = []
        self._closing = threading.Event()
        self._problem = ""

    @staticmethod
    def _check(name: str, value: Any) -> None:
        def number(x: Any) -> bool:
            return isinstance(x, (int, float)) and not isinstance(x, bool) and abs(x) < 1e6

        joints = isinstance(value, (list, tuple)) and len(value) == 7 and all(number(x) for x in value)
        fine = isinstance(value, bool) if name == "realtime" else joints if name == "home" else number(value)
        if not fine or (name not in ("realtime", "home") and value <= 0):
            expected = {"realtime": "true or false", "home": "seven joints [rad]"}.get(name, "a number above 0")
            raise PrismError(f"settings.{name}: expected {expected}, got {quoted(value)}")

    @property
    def schema(self) -> Schema:
        """Of the file's cameras and `POSE`."""
        return self._schema

    def open_camera(self, name: str, camera: CameraFile) -> Callable[[], np.ndarray]:
        """A function that waits for the next image of a camera, uint8 (H, W, 3); a subclass may have other cameras."""
        return _realsense(name, camera)

    def connect(self) -> None:
        """Reach the arm, its hand and the cameras, and let the tracker hold the arm where it is.

        Raises:
            PrismError: something does not answer, or the arm is not ready (its brakes, its emergency stop).
        """
        franky, settings = self._franky, self._settings
        realtime = franky.RealtimeConfig.Enforce if settings["realtime"] else franky.RealtimeConfig.Ignore
        try:
            self._robot = franky.Robot(self.file.address, realtime_config=realtime)
            self._robot.relative_dynamics_factor = settings["home_speed"]
            self._robot.recover_from_errors()
            self._gripper = franky.Gripper(self.file.address)
        except Exception as error:  # whatever libfranka says
            raise PrismError(
                f"the Franka at {self.file.address} does not answer ({one_line(error, 200)}); unlock its brakes and "
                "activate FCI in Desk"
            ) from error
        self._width = Polled(lambda: float(self._gripper.state.width), "gripper", self.clock)
        for name, camera in self.file.cameras.items():
            self._cameras[name] = Polled(self.open_camera(name, camera), f"camera {quoted(name)}", self.clock)
        self._width.wait(10.0)
        for polled in self._cameras.values():
            polled.wait(10.0)
        self._wanted_width = self._sent_width = self._width.latest()[0]
        self._closing.clear()
        self._track()
        for work in (self._stream, self._grip):
            thread = threading.Thread(target=work, name="franka", daemon=True)
            thread.start()
            self._threads.append(thread)

    def observe(self) -> Frame:
        """The arm's pose now, and the latest of each camera and of the gripper."""
        if self._robot is None or self._width is None:
            raise PrismError("the robot is not connected")
        position, quaternion = self._pose()
        now = self.clock.now()
        turn = _log(_times(quaternion, _inverse(DOWN)))
        state = np.array([*position, *turn, self._width.latest()[0]], np.float32)
        latest = {name: polled.latest() for name, polled in self._cameras.items()}
        images = {name: image for name, (image, _) in latest.items()}
        return Frame(
            images=images, state=state, time={"state": now, **{name: when for name, (_, when) in latest.items()}}
        )

    def where(self, state: np.ndarray) -> np.ndarray:
        """The action (7,) that stays where a state (7,) is: the same numbers."""
        return np.array(state, float)

    def act(self, action: np.ndarray) -> None:
        """Go to a pose and a width (7,), on a straight line within a control step.

        Raises:
            PrismError: the arm has stopped by itself, such as after a collision.
        """
        if self._tracker is None or not self._tracker.is_running:
            raise PrismError(f"the arm has stopped by itself{self._problem and f' ({self._problem})'}; see Desk")
        goal = np.array(action[:3], float), _times(_exp(np.array(action[3:6], float)), DOWN)
        with self._lock:
            self._from, self._to, self._since = self._now(), goal, time.monotonic()
            self._held = False
            self._wanted_width = float(np.clip(action[6], 0.0, 0.08))

    def hold(self) -> None:
        """Stay where the arm is now; of several calls the first says where."""
        if self._tracker is None or not self._tracker.is_running or self._held:
            return
        here = self._pose()
        with self._lock:
            self._from = self._to = here
            self._held = True

    def home(self) -> None:
        """Open the hand and move to `settings.home`, recovering from an arm that has stopped by itself."""
        franky = self._franky
        try:
            self._untrack()
            self._robot.recover_from_errors()
            self._wanted_width = 0.08
            self._robot.move(franky.JointMotion(list(self._settings["home"])))
            self._track()
        except Exception as error:
            raise PrismError(f"the arm cannot move home ({one_line(error, 200)}); see Desk") from error

    def close(self) -> None:
        """Stop the tracker, which leaves the arm at rest, and let go of gripper and cameras."""
        self._closing.set()
        for thread in self._threads:
            thread.join(2.0)
        self._threads = []
        try:
            self._untrack()
        finally:
            if self._width is not None:
                self._width.close()
            for polled in self._cameras.values():
                polled.close()
            self._cameras, self._width, self._robot, self._gripper = {}, None, None, None

    def _pose(self) -> tuple[np.ndarray, np.ndarray]:
        """Place and quaternion of the hand."""
        pose = self._robot.current_pose.end_effector_pose
        return np.array(pose.translation, float), np.array(pose.quaternion, float)

    def _track(self) -> None:
        here = self._pose()
        with self._lock:
            self._from = self._to = here
            self._held = True
        stiffness = {"translational": self._settings["stiffness"], "rotational": self._settings["turn_stiffness"]}
        self._tracker = self._franky.CartesianImpedanceTracker(
            self._robot, **{f"{kind}_stiffness": value for kind, value in stiffness.items()}
        )

    def _untrack(self) -> None:
        tracker, self._tracker = self._tracker, None
        if tracker is not None:
            try:
                tracker.stop()
            except Exception as error:  # what had stopped the arm before
                self._problem = one_line(error, 200)

    def _now(self) -> tuple[np.ndarray, np.ndarray]:
        """The pose that is due, on the way to the goal."""
        period = 1 / self.file.rate_hz
        share = min((time.monotonic() - self._since) / period, 1.0)
        (place, turn), (goal, goal_turn) = self._from, self._to
        step = _log(_times(goal_turn, _inverse(turn)))
        return place + share * (goal - place), _times(_exp(share * step), turn)

    def _stream(self) -> None:
        """Give the tracker the pose that is due, again and again."""
        while not self._closing.wait(STREAM_S):
            tracker = self._tracker
            if tracker is None:
                continue
            with self._lock:
                place, turn = self._now()
            try:
                if tracker.is_running:
                    tracker.set_target(self._franky.Affine(place, turn))
            except Exception as error:
                self._problem = one_line(error, 200)

    def _grip(self) -> None:
        """Move the gripper, which takes its time, to where it shall be: closing, it grasps what is between."""
        while not self._closing.wait(STREAM_S):
            wanted, before = self._wanted_width, self._sent_width
            if abs(wanted - before) < GRIPPER_STEP:
                continue
            self._sent_width, speed = wanted, self._settings["gripper_speed"]
            try:
                if wanted > before:
                    self._gripper.move(wanted, speed)
                else:
                    self._gripper.grasp(wanted, speed, self._settings["grasp_force"], 0.08, 0.08)
            except Exception as error:  # it tries again when another width is wanted
                self._problem = one_line(error, 200)


def _package(name: str, distribution: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise PrismError(f"{distribution} is not installed here; run `pip install {distribution}`") from error


def _realsense(name: str, camera: CameraFile) -> Callable[[], np.ndarray]:
    """A RealSense's colour images."""
    realsense = _package("pyrealsense2", "pyrealsense2")
    pipeline, config = realsense.pipeline(), realsense.config()
    if not camera.serial:
        raise PrismError(f"cameras.{name}.serial: expected the number on the camera, got none")
    config.enable_device(camera.serial)
    rate = int(camera.rate_hz)
    config.enable_stream(realsense.stream.color, camera.width, camera.height, realsense.format.rgb8, rate)
    try:
        pipeline.start(config)
    except Exception as error:
        said = one_line(error, 150)
        raise PrismError(f"camera {quoted(name)} ({camera.serial}): {said}; is it plugged into USB 3?") from error

    def read() -> np.ndarray:
        frame = pipeline.wait_for_frames(1000).get_color_frame()
        return np.array(frame.get_data(), np.uint8)

    return read


_NOWHERE = (np.zeros(3), DOWN)


def _times(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The rotation b and then a, as quaternions x y z w."""
    vector = a[3] * b[:3] + b[3] * a[:3] + np.cross(a[:3], b[:3])
    return np.array([*vector, a[3] * b[3] - a[:3] @ b[:3]])


def _inverse(a: np.ndarray) -> np.ndarray:
    return a * np.array([-1.0, -1.0, -1.0, 1.0])


def _exp(vector: np.ndarray) -> np.ndarray:
    """Quaternion x y z w of a rotation vector (3,) [rad]."""
    half = float(np.linalg.norm(vector)) / 2
    return np.array([*(vector / 2 * np.sinc(half / np.pi)), np.cos(half)])


def _log(quaternion: np.ndarray) -> np.ndarray:
    """Rotation vector (3,) [rad], of up to half a turn, of a unit quaternion x y z w."""
    quaternion = quaternion * np.copysign(1.0, quaternion[3])
    sine = float(np.linalg.norm(quaternion[:3]))
    return quaternion[:3] * (2 * np.arctan2(sine, quaternion[3]) / sine if sine > 1e-12 else 2.0)
