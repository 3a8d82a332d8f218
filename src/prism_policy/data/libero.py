"""LIBERO's HDF5 layout, read: the one place that knows its shift, its upside-down images and its names.

`data` (`bddl_file_name`, `env_args`, `problem_info` with the instruction) / `demo_i` (`model_file`, `init_state`):
`states` and `actions` (T, ...) belong together, but `obs/*` and `robot_states` were recorded after each action, as
LIBERO's `create_dataset.py` steps first. What the demonstrator saw before `actions[t]` is therefore `obs[t - 1]`, and
nothing was recorded before the first. Images are stored as OpenGL gives them, bottom row first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from prism_policy.data.episode import Episode, check_length
from prism_policy.data.hdf5 import array, child, dataset, finite, json_object, read_errors, subgroup, text
from prism_policy.data.recorded_env import read_env_args
from prism_policy.data.robomimic import demo_names, open_demos, split_masks, write_demo
from prism_policy.errors import PrismError
from prism_policy.tasks.libero import find_task
from prism_policy.tasks.spec import TaskSpec
from prism_policy.utils.files import atomic
from prism_policy.utils.text import listed, one_line

IMAGE_KEYS = {"agentview": "agentview_rgb", "robot0_eye_in_hand": "eye_in_hand_rgb"}
"""The simulator's name of a camera -> LIBERO's name of its images."""
FIRST = "first_obs"  # an optional group with the observation before the first action, which LIBERO leaves out


@dataclass(frozen=True)
class LiberoFile:
    """What a file of demonstrations holds."""

    task: TaskSpec
    instruction: str  # as the file has it; for libero_spatial that differs a little from the task's name
    demos: tuple[str, ...]
    cameras: tuple[str, ...]
    env_args: str  # JSON


def describe_libero(path: Path, suite: str | None = None) -> LiberoFile:
    """What a file of LIBERO's HDF5 holds, of a task of `suite` if given; its images are not read."""
    with open_demos(path) as file:
        try:
            data, names = file["data"], demo_names(file)
            observations = None if (first := subgroup(data, names[0])) is None else subgroup(first, "obs")
            with read_errors("obs"):
                held = [*observations] if observations is not None else []
            cameras = tuple(camera for camera, key in IMAGE_KEYS.items() if key in held)
            problem = json_object(data, "problem_info")
            if problem is None or not cameras:
                with read_errors("attributes of data"):
                    found = listed([*data.attrs, *held], 8)
                raise PrismError(
                    "expected LIBERO's layout (`problem_info`, `obs/agentview_rgb`), found "
                    f"{found}; robomimic's needs no import"
                )
            if not isinstance(problem.get("language_instruction"), str):
                got = one_line(problem.get("language_instruction"))
                raise PrismError(f"expected `problem_info` to be JSON with an instruction, got {got}")
            spoken = problem["language_instruction"].strip('"')
            title = Path(text(data, "bddl_file_name")).stem or path.stem.removesuffix("_demo")
            env_args = json.dumps(read_env_args(file))
        except PrismError as error:
            raise error if str(path) in str(error) else PrismError(f"{path}: {error}") from error
    try:
        task = find_task(title, suite)
    except PrismError as error:
        raise PrismError(f"{path}: {error}") from error
    if spoken not in task.wordings:
        expected = f"the instruction {task.wordings[-1]!r} of the task it names"
        raise PrismError(f"{path}: expected {expected}, got {one_line(spoken)!r}; one of the two is wrong")
    return LiberoFile(task, spoken, tuple(names), cameras, env_args)


def libero_episodes(path: Path, cameras: Sequence[str] | None = None) -> Iterator[Episode]:
    """Demonstrations with each action beside what was seen before it, images upright; by default of all cameras.

    A demonstration of T recorded steps gives T - 1: nothing was seen before the first action, unless the file has
    `first_obs`.
    """
    described = describe_libero(path)
    wanted = described.cameras if cameras is None else tuple(cameras)
    if absent := [camera for camera in wanted if camera not in described.cameras]:
        raise PrismError(f"unknown camera {absent[0]!r}; {path} has {', '.join(map(repr, described.cameras))}")
    with open_demos(path) as file:
        for name in described.demos:
            try:
                if (demo := subgroup(file["data"], name)) is None:
                    raise PrismError("expected a group, got nothing")
                yield _read(demo, name, wanted)
            except PrismError as error:
                raise PrismError(f"{path}, {name}: {error}") from error


def import_libero(
    source: Path, target: Path, suite: str | None = None, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Write `target`, in robomimic's layout with masks, upright, actions beside their cause, from a file of LIBERO's.

    Its `data` group bears `libero_task` and `instruction`.
    """
    described = describe_libero(source, suite)
    with atomic(target) as temporary, h5py.File(temporary, "w", libver="latest") as out, open_demos(source) as file:
        data = out.create_group("data")
        total = 0
        for i, episode in enumerate(libero_episodes(source)):
            demo = file["data"][episode.name]
            arrays: dict[str, np.ndarray] = {
                # in full precision: a replay of them should give the states
                "actions": np.asarray(demo["actions"][-len(episode) :], np.float64),
                "states": episode.sim_states,
                **episode.extras,
                "obs/robot0_eef_pos": episode.state[:, :3],
                "obs/robot0_eef_quat": episode.state[:, 3:7],
                "obs/robot0_gripper_qpos": episode.state[:, 7:],
                **{f"obs/{camera}_image": frames for camera, frames in episode.images.items()},
            }
            write_demo(data.create_group(episode.name), arrays, {"model_file": text(demo, "model_file")})
            total += len(episode)
            if progress:
                progress(i + 1, len(described.demos))
        task = described.task
        bddl = f"{task.suite}/{task.env_name}.bddl"  # tells the task from others of its kind
        env_args = json.dumps(json.loads(described.env_args) | {"bddl_file": bddl})
        data.attrs.update({"total": total, "env_args": env_args})
        data.attrs.update({"libero_task": task.env_name, "instruction": task.instruction})
        split_masks(out)
    return target


def _read(demo: h5py.Group, name: str, cameras: Sequence[str]) -> Episode:
    actions = finite(demo, "actions", (None, 7)).astype(np.float32)
    steps = len(actions)
    if steps < 2:
        raise PrismError(f"expected actions of shape (T, 7) with T > 1, got {actions.shape}")
    first = subgroup(demo, FIRST)
    kept = slice(0 if first is not None else 1, None)

    def before(values: np.ndarray, key: str) -> np.ndarray:
        """What was seen before each kept action."""
        if first is None:
            return np.asarray(values[:-1])
        seen = array(first, key, "uint8" if values.dtype == np.uint8 else "number", values.shape[1:])
        return np.concatenate([seen[None], values[:-1]])

    images = {}
    for camera in cameras:
        key, called = IMAGE_KEYS[camera], f"images of {camera!r}"
        frames = dataset(demo, f"obs/{key}", "uint8", (None, None, None, 3), called)
        check_length(f"obs/{key}", frames.shape, steps)
        with read_errors(f"obs/{key}"):
            images[camera] = np.ascontiguousarray(before(frames[()], key)[:, ::-1])
    robot = finite(demo, "robot_states", (None, 9))  # fingers, position, quaternion
    check_length("robot_states", robot.shape, steps)
    robot = before(robot, "robot_states")
    state = np.hstack([robot[:, 2:], robot[:, :2]]).astype(np.float32)
    states = np.asarray(finite(demo, "states", (None, None)), np.float64)
    check_length("states", states.shape, steps)
    extras = {}
    for key, kind in _EXTRAS.items():
        if child(demo, key) is not None:
            values = array(demo, key, "number", (None,))
            check_length(key, values.shape, steps)
            extras[key] = np.asarray(values[kept], kind)
    return Episode(name, images, state, actions[kept], np.zeros(len(actions[kept]), bool), states[kept], extras)


_EXTRAS: dict[str, Any] = {"rewards": np.float64, "dones": np.int64}
