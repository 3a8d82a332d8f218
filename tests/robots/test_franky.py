"""`FrankyRobot` with drivers that are fakes: what it tells them, and what it makes of what they say."""

from __future__ import annotations

import sys
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from prism_client.control.check import check_robot
from prism_client.control.limits import Limits
from prism_client.errors import PrismError
from prism_client.robots import franky
from prism_client.robots.franky import FrankyRobot
from prism_client.robots.robot_file import CameraFile, RobotFile, make_robot

CAMERA = {"front": CameraFile("140122071234", 64, 48, 30.0)}
FILE = RobotFile("franka", "172.16.0.2", 20.0, CAMERA)


class Affine:
    def __init__(self, translation: Any, quaternion: Any) -> None:
        self.translation, self.quaternion = np.array(translation), np.array(quaternion)


class Arm:
    """An arm that is where its tracker's last target was."""

    def __init__(self) -> None:
        self.pose, self.targets, self.moves = Affine((0.5, 0.1, 0.4), (1, 0, 0, 0)), list[Affine](), list[Any]()
        self.grips, self.width, self.running, self.silent = list[tuple[Any, ...]](), 0.08, True, False

    @property
    def driver(self) -> Any:
        arm = self

        class Robot:
            relative_dynamics_factor = 1.0

            def __init__(self, address: str, realtime_config: str) -> None:
                if arm.silent:
                    raise RuntimeError("libfranka: Connection timed out")
                arm.moves.append(("connect", address, realtime_config))

            @property
            def current_pose(self) -> Any:
                return types.SimpleNamespace(end_effector_pose=arm.pose)

            def recover_from_errors(self) -> None:
                arm.running = True

            def move(self, motion: Any) -> None:
                arm.moves.append(motion)

        class Gripper:
            def __init__(self, address: str) -> None:
                pass

            @property
            def state(self) -> Any:
                time.sleep(0.002)
                return types.SimpleNamespace(width=arm.width)

            def move(self, width: float, speed: float) -> None:
                arm.grips.append(("move", width))
                arm.width = width

            def grasp(self, width: float, *rest: float) -> None:
                arm.grips.append(("grasp", width, *rest))
                arm.width = width

        class Tracker:
            def __init__(self, robot: Any, translational_stiffness: float, rotational_stiffness: float) -> None:
                arm.moves.append(("track", translational_stiffness, rotational_stiffness))

            @property
            def is_running(self) -> bool:
                return arm.running

            def set_target(self, pose: Affine) -> None:
                arm.pose = pose
                arm.targets.append(pose)

            def stop(self) -> None:
                arm.moves.append("stop")

        return types.SimpleNamespace(
            Robot=Robot,
            Gripper=Gripper,
            Affine=Affine,
            CartesianImpedanceTracker=Tracker,
            JointMotion=lambda joints: ("joints", joints),
            RealtimeConfig=types.SimpleNamespace(Enforce="enforce", Ignore="ignore"),
        )


@pytest.fixture
def arm(monkeypatch: pytest.MonkeyPatch) -> Arm:
    made = Arm()
    monkeypatch.setitem(sys.modules, "franky", made.driver)
    monkeypatch.setitem(sys.modules, "pyrealsense2", realsense({}))
    return made


def realsense(asked: dict[str, Any]) -> Any:
    class Pipeline:
        def start(self, config: Any) -> None:
            if asked.get("absent"):
                raise RuntimeError("No device connected")

        def wait_for_frames(self, milliseconds: int) -> Any:
            time.sleep(0.002)
            frame = types.SimpleNamespace(get_data=lambda: np.full((48, 64, 3), 7, np.uint8))
            return types.SimpleNamespace(get_color_frame=lambda: frame)

    config = types.SimpleNamespace(
        enable_device=lambda serial: asked.update(serial=serial),
        enable_stream=lambda *stream: asked.update(stream=stream),
    )
    return types.SimpleNamespace(
        pipeline=Pipeline,
        config=lambda: config,
        stream=types.SimpleNamespace(color="color"),
        format=types.SimpleNamespace(rgb8="rgb8"),
    )


@pytest.fixture
def robot(arm: Arm) -> Iterator[FrankyRobot]:
    made = FrankyRobot(FILE)
    made.connect()
    yield made
    made.close()


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_the_state_is_the_pose_away_from_pointing_down(robot: FrankyRobot, arm: Arm) -> None:
    turn = Rotation.from_rotvec([0.1, -0.2, 0.5])
    frame = robot.observe()
    np.testing.assert_allclose(frame["state"], [0.5, 0.1, 0.4, 0, 0, 0, 0.08], atol=1e-6)
    assert (frame["images"]["front"] == 7).all()
    arm.running = False  # so that nothing moves it
    arm.pose = Affine((0.3, 0.0, 0.2), (turn * Rotation.from_quat([1, 0, 0, 0])).as_quat())
    np.testing.assert_allclose(robot.observe()["state"][3:6], turn.as_rotvec(), atol=1e-6)


def test_an_action_is_reached_in_a_straight_line_within_a_control_step(robot: FrankyRobot, arm: Arm) -> None:
    goal = np.array([0.52, 0.1, 0.38, 0.0, 0.0, 0.2, 0.08])
    arm.targets.clear()
    robot.act(goal)
    wait_for(lambda: bool(arm.targets) and np.allclose(arm.targets[-1].translation, goal[:3]))
    places = np.array([target.translation for target in arm.targets])
    assert (np.diff(places[:, 0]) >= -1e-12).all()
    line = (places - places[0]) @ np.array([0.02, 0, -0.02]) / 0.0008
    np.testing.assert_allclose(places, places[0] + np.outer(line, [0.02, 0, -0.02]), atol=1e-9)
    expected = Rotation.from_rotvec([0, 0, 0.2]) * Rotation.from_quat([1, 0, 0, 0])
    last = Rotation.from_quat(arm.targets[-1].quaternion)
    np.testing.assert_allclose(last.as_matrix(), expected.as_matrix(), atol=1e-9)


def test_a_check_moves_a_centimetre_up_and_back(robot: FrankyRobot, arm: Arm) -> None:
    arm.targets.clear()
    checkup = check_robot(robot, Limits(frame_age_s=0), 0.2, move=True)
    assert 0 <= (checkup.moved_after_s or -1) < 0.5
    wait_for(lambda: abs(arm.targets[-1].translation[2] - 0.4) < 1e-3)
    heights = [target.translation[2] for target in arm.targets]
    assert 0.4 < max(heights) <= 0.41 + 1e-9
    assert min(heights) > 0.4 - 1e-6


def test_closing_grasps_and_opening_moves(robot: FrankyRobot, arm: Arm) -> None:
    for width, count in ((0.02, 1), (0.0205, 1), (0.07, 2)):
        robot.act(np.array([0.5, 0.1, 0.4, 0, 0, 0, width]))
        wait_for(lambda count=count: len(arm.grips) >= count)  # type: ignore[misc]
        time.sleep(0.02)
    assert arm.grips == [("grasp", 0.02, 0.1, 20.0, 0.08, 0.08), ("move", 0.07)]


def test_holding_stays_where_the_arm_was_at_the_first_call(robot: FrankyRobot, arm: Arm) -> None:
    robot.act(np.array([0.6, 0.1, 0.4, 0, 0, 0, 0.08]))
    time.sleep(0.02)
    robot.hold()
    time.sleep(0.02)
    stopped = arm.targets[-1].translation
    arm.pose = Affine((0.55, 0.3, 0.4), (1, 0, 0, 0))  # pushed away; holding on does not follow
    robot.hold()
    time.sleep(0.03)
    np.testing.assert_allclose(arm.targets[-1].translation, stopped)
    assert 0.5 <= stopped[0] < 0.6


def test_an_arm_that_stopped_by_itself_is_a_fault_until_it_goes_home(robot: FrankyRobot, arm: Arm) -> None:
    arm.running = False
    with pytest.raises(PrismError, match="the arm has stopped by itself"):
        robot.act(np.zeros(7))
    robot.hold()
    robot.home()
    assert ("joints", franky.READY) in arm.moves
    robot.act(np.array([0.5, 0.1, 0.4, 0, 0, 0, 0.08]))


def test_the_file_reaches_the_drivers(monkeypatch: pytest.MonkeyPatch, arm: Arm) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setitem(sys.modules, "pyrealsense2", realsense(asked))
    said = {"realtime": False, "stiffness": 900.0}
    made: Any = make_robot(RobotFile("franka", "172.16.0.2", 20.0, CAMERA, settings=said))
    made.connect()
    made.close()
    assert arm.moves[:2] == [("connect", "172.16.0.2", "ignore"), ("track", 900.0, 60.0)]
    assert arm.moves[-1] == "stop"
    assert asked == {"serial": "140122071234", "stream": ("color", 64, 48, "rgb8", 30)}


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        (RobotFile("franka", "", 20.0, CAMERA), "address: expected the arm's name or IP address"),
        (RobotFile("franka", "x"), "cameras: expected a table for each camera"),
        (RobotFile("franka", "x", 20.0, CAMERA, settings={"gain": 1}), "unknown field 'settings.gain'; Franka has"),
        (RobotFile("franka", "x", 20.0, CAMERA, settings={"stiffness": -1}), "expected a number above 0, got -1"),
        (RobotFile("franka", "x", 20.0, CAMERA, settings={"home": [0, 1]}), "expected seven joints"),
        (RobotFile("franka", "x", 20.0, CAMERA, settings={"realtime": 1}), "expected true or false, got 1"),
    ],
)
def test_bad_settings_are_one_sentence(file: RobotFile, sentence: str, arm: Arm) -> None:
    with pytest.raises(PrismError, match=sentence):
        make_robot(file)


def test_what_does_not_answer_is_one_sentence(monkeypatch: pytest.MonkeyPatch, arm: Arm) -> None:
    arm.silent = True
    with pytest.raises(PrismError, match=r"the Franka at 172\.16\.0\.2 does not answer .*unlock its brakes"):
        FrankyRobot(FILE).connect()
    arm.silent = False
    monkeypatch.setitem(sys.modules, "pyrealsense2", realsense({"absent": True}))
    made = FrankyRobot(FILE)
    with pytest.raises(PrismError, match=r"camera 'front' \(140122071234\): No device connected"):
        made.connect()
    made.close()
    monkeypatch.setitem(sys.modules, "franky", None)
    with pytest.raises(PrismError, match="franky-control is not installed here"):
        FrankyRobot(FILE)
