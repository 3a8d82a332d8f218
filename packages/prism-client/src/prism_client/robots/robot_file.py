"""The file that describes a robot, in JSON or TOML."""

from __future__ import annotations

import dataclasses
import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prism_client.control.limits import Limits, Workspace
from prism_client.errors import PrismError
from prism_client.robots.robot import Robot
from prism_client.text import one_line, parsed_json, quoted

KINDS = {
    "sim": "prism_policy.deploy.sim_robot:SimRobot",
    "franka": "prism_client.robots.franky:FrankyRobot",
    "lerobot": "prism_client.robots.lerobot:LeRobotRobot",
}
"""Robots that come with prism: their class, whose only argument is a `RobotFile`."""


@dataclass(frozen=True)
class CameraFile:
    """A camera of a robot file."""

    serial: str = ""
    """Number by which the driver tells it from others of its kind."""
    width: int = 640
    """Of the images that the policy is sent [px], as the demonstrations were recorded."""
    height: int = 480
    rate_hz: float = 30.0
    """Images a second."""


@dataclass(frozen=True)
class RobotFile:
    """What stands in a robot file.

    ```
    robot = "sim"                       # or franka, lerobot, or MODULE:CLASS of your own
    rate_hz = 20
    workspace = {low = [-0.3, -0.3, 0.8], high = [0.3, 0.3, 1.2]}
    limits = {speed = 0.5, step = 0.05}
    settings = {task = "stack"}         # the robot's own
    [cameras.front]
    serial = "140122071234"
    width = 640
    height = 480
    ```
    """

    robot: str
    """sim, franka, lerobot, or a class as MODULE:CLASS."""
    address: str = ""
    """Where the robot is: a name, an IP address, or a serial port."""
    rate_hz: float = 20.0
    """Control steps a second."""
    cameras: dict[str, CameraFile] = field(default_factory=dict)
    workspace: Workspace = field(default_factory=Workspace)
    limits: Limits = field(default_factory=Limits)
    settings: dict[str, Any] = field(default_factory=dict)
    """What the robot's own class needs."""

    def as_json(self) -> dict[str, Any]:
        """As it stands in a JSON file."""
        return dataclasses.asdict(self)


def read_robot_file(path: Path) -> RobotFile:
    """The robot file at a path that ends in .json or .toml.

    Raises:
        PrismError: it is missing, damaged, or does not say what a robot file has to; the sentence names the place.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PrismError(
            f"cannot read the robot file {path} ({one_line(error, 100)}); docs/robot.md has one"
        ) from error
    try:
        said = _toml(text) if path.suffix == ".toml" else parsed_json(text)
        return _file(said)
    except PrismError as error:
        raise PrismError(f"{path}: {error}") from error
    except (ValueError, RecursionError) as error:
        kind = "TOML" if path.suffix == ".toml" else "JSON"
        raise PrismError(f"{path}: expected {kind}, got what is none ({one_line(error, 200)})") from error


def make_robot(file: RobotFile) -> Robot:
    """The robot that a file describes, not connected yet."""
    place = KINDS.get(file.robot, file.robot)
    module, _, name = place.partition(":")
    if not name:
        raise PrismError(f"robot: expected {', '.join(KINDS)} or MODULE:CLASS, got {quoted(file.robot)}")
    try:
        made: Robot = getattr(importlib.import_module(module), name)(file)
    except PrismError:
        raise
    except Exception as error:  # whatever a driver's package raises
        raise PrismError(f"robot {quoted(file.robot)}: {one_line(f'{type(error).__name__}: {error}', 300)}") from error
    return made


def _toml(text: str) -> Any:
    try:
        toml = importlib.import_module("tomllib")  # Python 3.11 and later
    except ImportError:
        try:
            toml = importlib.import_module("tomli")
        except ImportError as error:
            hint = "pip install tomli, or write the file as JSON"
            raise PrismError(f"this Python cannot read TOML; {hint}") from error
    return toml.loads(text)


def _file(said: Any) -> RobotFile:
    fields = _fields(RobotFile, said, "")
    if "robot" not in fields:
        raise PrismError("'robot' is missing; it says which robot this is")
    cameras = fields.get("cameras", {})
    if not isinstance(cameras, dict):
        raise PrismError(f"cameras: expected a table for each camera, got {quoted(cameras)}")
    fields["cameras"] = {
        name: CameraFile(**_fields(CameraFile, one, f"cameras.{name}")) for name, one in cameras.items()
    }
    fields["workspace"] = _workspace(Workspace(**_fields(Workspace, fields.get("workspace", {}), "workspace")))
    fields["limits"] = Limits(**_fields(Limits, fields.get("limits", {}), "limits"))
    file = RobotFile(**fields)
    if file.rate_hz < 0.1 or file.rate_hz > 1000:
        raise PrismError(f"rate_hz: expected 0.1 to 1000, got {file.rate_hz:g}")
    return file


def _workspace(box: Workspace) -> Workspace:
    numbers = [*box.low, *box.high]
    if not all(isinstance(n, (int, float)) and not isinstance(n, bool) and abs(n) < 1e6 for n in numbers):
        raise PrismError(f"workspace: expected numbers [m], got {one_line(numbers, 100)}")
    if (len(box.low), len(box.high)) not in ((0, 0), (3, 3)) or any(a >= b for a, b in zip(box.low, box.high)):
        got = one_line((box.low, box.high), 100)
        raise PrismError(f"workspace: expected low and high of three numbers each, low below high, got {got}")
    return box


def _fields(kind: Any, said: Any, path: str) -> dict[str, Any]:
    """The fields of a dataclass that are there, with the types of their defaults."""
    prefix = f"{path}." if path else ""
    if not isinstance(said, dict):
        raise PrismError(f"{path or 'robot file'}: expected a table, got {quoted(said)}")
    known: dict[str, Any] = {one.name: one for one in dataclasses.fields(kind)}
    for name, value in said.items():
        if name not in known:
            raise PrismError(f"unknown field {quoted(prefix + str(name))}; there are {', '.join(known)}")
        wanted = str(known[name].type)
        numbers = isinstance(value, (int, float)) and not isinstance(value, bool)
        if wanted == "float" and not (numbers and 0 <= value < 1e9):
            raise PrismError(f"{prefix}{name}: expected a number, 0 or more, got {quoted(value)}")
        if wanted == "int" and not (type(value) is int and 0 <= value < 10**9):
            raise PrismError(f"{prefix}{name}: expected a whole number, 0 or more, got {quoted(value)}")
        if wanted == "str" and not isinstance(value, str):
            raise PrismError(f"{prefix}{name}: expected text, got {quoted(value)}")
        if wanted.startswith("list") and not isinstance(value, list):
            raise PrismError(f"{prefix}{name}: expected a list, got {quoted(value)}")
        if name == "settings" and not isinstance(value, dict):
            raise PrismError(f"{prefix}{name}: expected a table, got {quoted(value)}")
    return dict(said)
