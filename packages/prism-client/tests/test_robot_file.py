"""Robot files: what they say is what is made; what they should not say is named."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import Point

from prism_client.control.check import check_robot
from prism_client.control.clock import Clock
from prism_client.control.limits import Limits
from prism_client.control.words import about_checkup
from prism_client.errors import PrismError
from prism_client.robots.lerobot import LeRobotRobot
from prism_client.robots.polled import Polled
from prism_client.robots.robot_file import RobotFile, make_robot, read_robot_file

SAID: dict[str, Any] = {
    "robot": "sim",
    "address": "172.16.0.2",
    "rate_hz": 15,
    "cameras": {"front": {"serial": "140122071234", "width": 320, "height": 240}},
    "workspace": {"low": [-0.3, -0.3, 0.0], "high": [0.3, 0.3, 0.4]},
    "limits": {"speed": 0.25, "frozen_frames": 0},
    "settings": {"task": "stack"},
}
TOML = """
robot = "sim"
address = "172.16.0.2"
rate_hz = 15
workspace = {low = [-0.3, -0.3, 0.0], high = [0.3, 0.3, 0.4]}
limits = {speed = 0.25, frozen_frames = 0}
settings = {task = "stack"}
[cameras.front]
serial = "140122071234"
width = 320
height = 240
"""


def write(folder: Path, said: Any) -> Path:
    path = folder / "robot.json"
    path.write_text(said if isinstance(said, str) else json.dumps(said))
    return path


def test_json_and_toml_say_the_same(tmp_path: Path) -> None:
    file = read_robot_file(write(tmp_path, SAID))
    assert (file.cameras["front"].width, file.limits.speed, file.limits.turn) == (320, 0.25, Limits().turn)
    assert json.loads(json.dumps(file.as_json()))["workspace"] == SAID["workspace"]
    (tmp_path / "robot.toml").write_text(TOML)
    if sys.version_info >= (3, 11) or importlib.util.find_spec("tomli"):
        assert read_robot_file(tmp_path / "robot.toml") == file
    else:
        with pytest.raises(PrismError, match="pip install tomli, or write the file as JSON"):
            read_robot_file(tmp_path / "robot.toml")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"robot": 3}, "robot: expected text, got 3"),
        ({"speed": 3}, "unknown field 'speed'; there are robot, address"),
        ({"rate_hz": "20"}, "rate_hz: expected a number, 0 or more, got '20'"),
        ({"rate_hz": 0}, "rate_hz: expected 0.1 to 1000, got 0"),
        ({"rate_hz": float("nan")}, "rate_hz: expected a number, 0 or more, got nan"),
        ({"limits": {"speed": -1}}, "limits.speed: expected a number, 0 or more, got -1"),
        ({"limits": {"frozen_frames": 1.5}}, "limits.frozen_frames: expected a whole number"),
        ({"limits": [1]}, "limits: expected a table, got list"),
        ({"workspace": {"low": [0, 0, 0]}}, "workspace: expected low and high of three numbers each"),
        ({"workspace": {"low": [0, 0, 1], "high": [1, 1, 1]}}, "low below high"),
        ({"workspace": {"low": "x"}}, "workspace.low: expected a list"),
        ({"cameras": {"front": {"serial": 140122}}}, "cameras.front.serial: expected text, got 140122"),
        ({"cameras": []}, "cameras: expected a table for each camera"),
        ({"settings": 3}, "settings: expected a table"),
    ],
)
def test_what_a_file_should_not_say_is_named(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PrismError) as refused:
        read_robot_file(write(tmp_path, {**SAID, **change}))
    assert sentence in str(refused.value)
    assert "robot.json" in str(refused.value)


@pytest.mark.parametrize("text", ["", "[1]", "{", "\0", "[" * 5000, "{}"])
def test_what_is_no_robot_file_is_one_sentence(tmp_path: Path, text: str) -> None:
    with pytest.raises(PrismError, match=r"robot\.json: "):
        read_robot_file(write(tmp_path, text))
    with pytest.raises(PrismError, match="cannot read the robot file"):
        read_robot_file(tmp_path / "none.json")


@pytest.mark.parametrize("robot", ["nothing", "no_such_module:Arm", "json:Nothing", "json:loads"])
def test_a_robot_that_cannot_be_made_is_one_sentence(robot: str) -> None:
    with pytest.raises(PrismError, match=r"^robot"):
        make_robot(RobotFile(robot))


class Follower:
    """As LeRobot's robots are."""

    observation_features = {"lift.pos": float, "grip.pos": float, "front": (16, 16, 3)}  # noqa: RUF012
    action_features = {"lift.pos": float, "grip.pos": float}  # noqa: RUF012

    def __init__(self) -> None:
        self.at, self.connected = {"lift.pos": 1.0, "grip.pos": 2.0}, False

    def connect(self) -> None:
        self.connected = True

    def disconnect(self) -> None:
        self.connected = False

    def get_observation(self) -> dict[str, Any]:
        return {**self.at, "front": np.full((16, 16, 3), 7, np.uint8)}

    def send_action(self, action: dict[str, float]) -> None:
        self.at = dict(action)


def test_lerobots_robots_are_robots() -> None:
    follower = Follower()
    robot = LeRobotRobot(RobotFile("lerobot", rate_hz=30), follower)
    robot.connect()
    assert (robot.schema.cameras, robot.schema.state_dim, robot.schema.action_dim) == ({"front": (16, 16)}, 2, 2)
    frame = robot.observe()
    assert (frame["state"].tolist(), int(frame["images"]["front"][0, 0, 0])) == ([1.0, 2.0], 7)
    robot.act(np.array([3.0, 4.0]))
    assert follower.at == {"lift.pos": 3.0, "grip.pos": 4.0}
    robot.hold()
    robot.close()
    assert not follower.connected
    with pytest.raises(PrismError, match=r"LeRobot is not installed here|settings\.type"):
        LeRobotRobot(RobotFile("lerobot"))


def test_what_a_driver_raises_is_raised_until_it_works_again() -> None:
    values: list[Any] = [1, OSError("No device connected"), 2]

    def read() -> Any:
        value = values[0] if len(values) == 1 else values.pop(0)
        if isinstance(value, Exception):
            raise value
        return value

    polled = Polled(read, "camera 'front'", Clock())
    polled.wait(2.0)
    seen: list[Any] = []
    for _ in range(2000):
        with contextlib.suppress(PrismError):
            seen.append(polled.latest()[0])
        if seen[-1:] == [2]:
            break
        time.sleep(0.001)
    polled.close()
    assert seen[-1] == 2
    broken = Polled(lambda: 1 / 0, "camera 'front'", Clock())
    with pytest.raises(PrismError, match="camera 'front': "):
        broken.wait(0.2)
    broken.close()


@pytest.mark.parametrize("fault", ["", "frozen", "ahead"])
def test_a_check_says_what_is_wrong(fault: str) -> None:
    robot = Point()
    robot.observe()
    robot.fault = fault
    checkup = check_robot(robot, Limits(frame_age_s=0.2), seconds=0.6)
    lines = "\n".join(about_checkup(checkup))
    assert checkup.wanted_hz == 50
    assert "front" in lines
    if fault == "frozen":
        assert any(re.match(r"front: [01]\.\d new ones", p) for p in checkup.problems)
        assert any(p.startswith("front: up to 0.") for p in checkup.problems)
    elif not fault:
        assert 30 < checkup.rate_hz <= 51
        assert checkup.observe_s[0] < 0.01
