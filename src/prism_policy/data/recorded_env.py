"""What a robomimic file's `env_args` say about the simulation that recorded it, in this library's terms.

robomimic up to v1.4 (robosuite 1.2 to 1.4) has a flat controller, whose actions are in the world frame; v1.5 has one
for each part of the body with a reference frame of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import PurePosixPath
from typing import Any

import h5py
import numpy as np

from prism_policy.config.presets import task_config
from prism_policy.config.settings import ActionMode, ReferenceFrame, TaskConfig
from prism_policy.config.typed_json import conform
from prism_policy.data.hdf5 import json_object, subgroup, text
from prism_policy.data.schema import Part, Schema
from prism_policy.errors import PrismError
from prism_policy.tasks import SPECS
from prism_policy.tasks.any_robosuite import PREFIX
from prism_policy.tasks.libero import find_task
from prism_policy.tasks.spec import CONTROL_HZ, ROBOSUITE
from prism_policy.utils.text import listed, one_line

NEWEST_ROBOSUITE = (1, 5)
_ROBOSUITE_TYPE = 1  # in robomimic's numbering of simulators
GYM_TYPE = 2
"""gymnasium's there."""
ROBOT_TYPE = 4
"""A robot's, by `prism record`; robomimic's own numbers end before."""
_CONTROLLER = {
    "kp": 150,
    "damping_ratio": 1,
    "impedance_mode": "fixed",
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "uncouple_pos_ori": True,
    "interpolation": None,
}
"""What decides how OSC_POSE moves, with the values that robosuite takes where none is recorded."""
LARGEST_DELTA = 3**0.5
"""Norm of the largest rotation that a delta's three numbers in [-1, 1] can be."""


@dataclass(frozen=True)
class RecordedEnv:
    """The environment of a recording."""

    env_name: str  # robosuite's name, "" where not recorded
    task: str | None  # our name of it; none where this library does not have it
    robots: tuple[str, ...]  # such as ("Panda",)
    robosuite: str  # version that recorded it, "" where not recorded
    layout: str
    """Which robomimic wrote files like this: "v0.1", "v1.4", "v1.5", or "" where there is no controller to tell by."""
    controller: str  # type of the arm's controller, such as "OSC_POSE"
    arms: tuple[str, ...]  # type of each arm's, where recorded
    action_mode: ActionMode  # actions are changes of the hand's pose, or poses [m, rad]
    reference_frame: ReferenceFrame  # frame of the actions
    control_hz: float | None  # control steps a second; none where not recorded
    cameras: tuple[str, ...]  # cameras the environment was made with; the file's images may be of others
    env_kwargs: (
        str  # robots, controllers and all else that makes robosuite's environment, as JSON; "" where not recorded
    )
    scene_trouble: str  # why recorded states cannot be drawn or restored here; "" where they can
    control_trouble: str  # why recorded actions cannot be executed here; "" where they can
    on_robot: bool = False  # nothing simulated it

    def action_parts(self, width: int) -> tuple[Part, ...]:
        """What `width` recorded numbers are: of each arm, then its gripper, where the controllers say so."""
        several, parts = len(self.arms) > 1, list[Part]()
        each = width // len(self.arms) if self.arms and width % len(self.arms) == 0 else 0
        for i, controller in enumerate(self.arms):
            prefix = f"robot{i}_" * several
            relative = self.action_mode == "delta"
            axes = ("dx", "dy", "dz"), ("drx", "dry", "drz")
            if not relative:
                axes = ("x", "y", "z"), ("rx", "ry", "rz")
            position = Part(f"{prefix}position", 3, "position", axes[0], relative)
            arm: dict[str, tuple[Part, ...]]
            arm = {"OSC_POSE": (position, Part(f"{prefix}rotation", 3, "rotation", axes[1], relative))}
            arm |= {"OSC_POSITION": (position,)}
            joints = (Part(f"{prefix}joints", each - 1, "joint", (), True),) if "JOINT" in controller else ()
            found = arm.get(controller, joints)
            left = each - sum(part.size for part in found)
            if not found or left not in (0, 1):
                return (Part("actions", width),)
            names = ("gripper",)
            parts += [*found, *([Part(f"{prefix}gripper", 1, "gripper", names, shares=True)] if left else [])]
        return tuple(parts) or (Part("actions", width),)

    def drawn_task(self, source: str) -> TaskConfig:
        """The task whose environment draws recorded states: one of this library's, or robosuite:NAME as recorded."""
        if self.task is not None or not self.env_kwargs:
            return self.task_config(source, actions=False)
        return replace(task_config(f"{PREFIX}{self.env_name}"), env_kwargs=self.env_kwargs)

    def task_config(self, source: str, actions: bool = True) -> TaskConfig:
        """The task as recorded, with its default cameras, for `make_env`, if its `actions` or else states work here."""
        trouble = self.scene_trouble or (self.control_trouble if actions else "")
        if trouble or self.task is None:
            raise PrismError(f"{source}: {trouble}")
        config = task_config(self.task)
        if config.spec.simulator != ROBOSUITE:  # LIBERO's actions are the same in both frames
            return config
        return replace(config, action_mode=self.action_mode, reference_frame=self.reference_frame)


def read_env_args(file: h5py.File) -> dict[str, Any]:
    """`env_args` of an open file; those of robosuite's own collection script in the same form; {} where none."""
    try:
        data = subgroup(file, "data")
        if data is None:
            return {}
        if (about := json_object(data, "env_args")) is not None:
            return about
        if (info := json_object(data, "env_info")) is not None:
            return {
                "env_name": text(data, "env"),
                "env_version": text(data, "repository_version"),
                "type": _ROBOSUITE_TYPE,
                "env_kwargs": info,
            }
    except PrismError as error:
        raise PrismError(f"{file.filename}: {error}") from error
    return {}


def as_said(schema: Schema, file: h5py.File) -> Schema:
    """A file's schema with the order, kinds and names that the file says itself, as `Recorder` writes them."""
    if (about := json_object(file["data"], "schema")) is None:
        return schema
    try:
        said: Schema = conform(Schema, about, "schema")
    except PrismError as error:
        raise PrismError(f"{file.filename}: attributes of data: {error}") from error
    there = {part.name: part.size for part in schema.state}
    known = {part.name: part for part in said.state if there.get(part.name) == part.size}
    return replace(
        schema,
        cameras={name: schema.cameras[name] for name in [*said.cameras, *schema.cameras] if name in schema.cameras},
        state=(*known.values(), *(part for part in schema.state if part.name not in known)),
        action=said.action if said.action_dim == schema.action_dim else schema.action,
    )


def turned_far(actions: np.ndarray) -> np.ndarray:
    """Which steps (T,) of actions (T, 7) turn by more than a delta can: a hand that points down is turned by pi."""
    return np.asarray(np.linalg.norm(actions[:, 3:6], axis=1) > LARGEST_DELTA)


def looks_absolute(actions: np.ndarray) -> bool:
    """Whether most steps of actions (T, 7) are poses; a single one beyond a delta's range is a delta that overshoots.

    Files with absolute actions made by diffusion_policy keep the `env_args` of delta ones, so these do not tell.
    """
    return bool(np.mean(turned_far(actions)) > 0.5) if len(actions) else False


def recorded_env(env_args: dict[str, Any], absolute: bool = False) -> RecordedEnv:
    """Translate `env_args`; with `absolute`, as most actions of the file say, they are that whatever is recorded."""
    kwargs = _object(env_args.get("env_kwargs"))
    env_name = str(env_args.get("env_name") or "")
    task = _libero_task(env_args)
    if task is None:
        task = next((s.name for s in SPECS.values() if s.simulator == ROBOSUITE and s.env_name == env_name), None)
    robots = _names(kwargs.get("robots"))
    version = str(env_args.get("env_version") or "")
    config, trouble = _controller(kwargs.get("controller_configs"))
    composite = "body_parts" in config
    arm = _arm(config) if composite else config
    layout = "v1.5" if composite else "" if not arm else "v1.4" if _numbers(version) >= (1, 4) else "v0.1"
    # robosuite 1.5 dropped `control_delta` for `input_type`, but robomimic goes on writing the former.
    mode = arm.get("input_type") or ("delta" if arm.get("control_delta", True) else "absolute")
    frame: ReferenceFrame = "base" if composite and arm.get("input_ref_frame", "base") == "base" else "world"
    rate = kwargs.get("control_freq", CONTROL_HZ) if env_args else None
    known = isinstance(rate, int | float) and not isinstance(rate, bool) and 0 < rate < 1e4
    return RecordedEnv(
        env_name=one_line(env_name),
        task=task,
        robots=robots,
        robosuite=one_line(version, 20),
        layout=layout,
        controller=one_line(str(arm.get("type") or "")),
        env_kwargs=_kwargs_json(env_args, kwargs, version),
        arms=_arms(kwargs.get("controller_configs"), robots),
        action_mode="absolute" if absolute or mode == "absolute" else "delta",
        reference_frame=frame,
        control_hz=float(rate) if known and rate else None,
        cameras=_names(kwargs.get("camera_names")),
        scene_trouble=_scene_trouble(env_args, task, robots, version),
        on_robot=env_args.get("type") == ROBOT_TYPE,
        control_trouble=trouble or _control_trouble(kwargs, config, arm, mode == "absolute" and frame == "base"),
    )


def _object(value: Any) -> dict[str, Any]:
    """A JSON object; {} for anything else, which then says nothing."""
    return value if isinstance(value, dict) else {}


def _controller(value: Any) -> tuple[dict[str, Any], str]:
    """The recorded controller, and why it cannot be one that is known here."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, list):
        return {}, f"expected the controller of one arm, got a list of {len(value)}"
    if isinstance(value, str):
        return {}, f"expected the controller's settings, got the name {one_line(value)!r}, whose file is not here"
    if value is not None and not isinstance(value, dict):
        return {}, f"expected the controller's settings, got {one_line(value)}"
    return value or {}, ""


def _kwargs_json(env_args: dict[str, Any], kwargs: dict[str, Any], version: str) -> str:
    name = env_args.get("env_name")
    robosuites = env_args.get("type", _ROBOSUITE_TYPE) == _ROBOSUITE_TYPE and _numbers(version) <= NEWEST_ROBOSUITE
    named = isinstance(name, str) and name.isidentifier() and kwargs.get("robots")
    return json.dumps(kwargs, sort_keys=True) if robosuites and named else ""


_TWO_ARMED = ("Baxter", "Tiago", "GR1", "Yumi", "Aloha")
"""How the names of robots with two arms begin; robosuite 1.5 lists controllers of two for any other robot, too."""


def _arms(value: Any, robots: Sequence[str]) -> tuple[str, ...]:
    """Types of the controllers of all arms; one that is recorded for several robots is each one's."""
    several = value if isinstance(value, list) else [value] * max(len(robots), 1)
    found = []
    for one, robot in zip_longest(map(_object, several[:4]), robots[:4], fillvalue=""):
        if not isinstance(one, dict):
            continue
        parts = _object(one.get("body_parts"))
        sides = [_object(parts.get(s)) or _object(_object(parts.get("arms")).get(s)) for s in ("right", "left")]
        there = [side for side in sides if side]
        found += (there if str(robot).startswith(_TWO_ARMED) else there[:1]) if parts else [one]
    return tuple(one_line(str(one.get("type")), 20) for one in found if one.get("type"))


def _names(value: Any) -> tuple[str, ...]:
    names = value if isinstance(value, list | tuple) else () if value is None else (value,)
    return tuple(one_line(str(name), 30) for name in names)


def _libero_task(env_args: dict[str, Any]) -> str | None:
    """Our name of the LIBERO task of these `env_args`, which name the file that defines it."""
    kwargs = _object(env_args.get("env_kwargs"))
    bddl = PurePosixPath(str(env_args.get("bddl_file") or kwargs.get("bddl_file_name") or ""))
    with suppress(PrismError):
        return find_task(bddl.stem, bddl.parent.name).name
    return None


def _arm(config: dict[str, Any]) -> dict[str, Any]:
    """The right arm's part; robosuite's own JSON files hold it one level deeper than what it writes into `env_args`."""
    parts = _object(config.get("body_parts"))
    return _object(parts.get("right")) or _object(_object(parts.get("arms")).get("right"))


def _numbers(version: str) -> tuple[int, ...]:
    """The first two parts of a version."""
    return tuple(int(part) for part in re.findall(r"[0-9]{1,9}", version)[:2])


def _scene_trouble(env_args: dict[str, Any], task: str | None, robots: tuple[str, ...], version: str) -> str:
    if not env_args:
        return "the file does not say which environment recorded it (no `env_args`), so its states cannot be replayed"
    env_name = str(env_args.get("env_name") or "")
    if env_args.get("type") == GYM_TYPE and not env_name:  # `Recorder` on a robot
        return "no environment recorded it; success is what trials on the robot count"
    if env_args.get("type") == GYM_TYPE:
        name = one_line(env_name if ":" in env_name else f"gym:{env_name}")
        return f"it was recorded in an environment of gymnasium, which --task {name} would roll out"
    if env_args.get("type") == ROBOT_TYPE:
        return f"it was recorded on a robot ({one_line(env_name)})"
    if env_args.get("type", _ROBOSUITE_TYPE) != _ROBOSUITE_TYPE:
        kind = one_line(env_args["type"], 30)
        return f"expected a robosuite environment (type {_ROBOSUITE_TYPE}), got {one_line(env_name)!r} of type {kind}"
    if _numbers(version) > NEWEST_ROBOSUITE:
        most = ".".join(map(str, NEWEST_ROBOSUITE))
        newer = f"written by robosuite {one_line(version, 20)}; this library runs up to {most}"
        return f"{newer}: record again, or update the library"
    if task is None:
        names = ", ".join(spec.env_name for spec in SPECS.values() if spec.simulator == ROBOSUITE)
        return f"expected one of robosuite's {names}, got {one_line(env_name)!r}, which this library lacks"
    if robots and robots != ("Panda",):
        return f"expected one robot, Panda, got {listed(robots)}"
    gripper = _object(env_args.get("env_kwargs")).get("gripper_types", "default")
    if gripper not in ("default", "PandaGripper", ["default"], ["PandaGripper"]):
        return f"expected the Panda's own gripper, got {one_line(gripper)}"
    return ""


def _control_trouble(
    kwargs: dict[str, Any], config: dict[str, Any], arm: dict[str, Any], absolute_from_base: bool
) -> str:
    if not arm:
        return "the file does not say which controller its actions are for"
    if "body_parts" in config and config.get("type", "BASIC") != "BASIC":
        return f"expected the composite controller BASIC, got {one_line(config['type'])}"
    if arm.get("type") != "OSC_POSE":
        return f"expected actions for the controller OSC_POSE, got {one_line(arm.get('type'))}"
    for key, expected in _CONTROLLER.items():
        if arm.get(key, expected) not in (expected, [expected] * 6):
            return f"expected OSC_POSE with {key} {expected}, got {one_line(arm[key])}"
    if kwargs.get("control_freq", CONTROL_HZ) != CONTROL_HZ:
        return f"expected actions at {CONTROL_HZ} Hz, got {one_line(kwargs['control_freq'])}"
    if arm.get("input_ref_frame", "base") not in ("base", "world"):
        return f"expected actions in the frame of the base or the world, got {one_line(arm['input_ref_frame'])}"
    if absolute_from_base:
        return "expected absolute poses in the world's frame, got them in the base's"
    return ""
