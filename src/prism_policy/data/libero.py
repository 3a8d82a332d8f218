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

from prism_policy.data.robomimic import Episode, demo_names, open_demos, write_demo, write_masks
from prism_policy.errors import PrismError
from prism_policy.tasks.libero import find_task
from prism_policy.tasks.spec import TaskSpec
from prism_policy.utils.files import atomic

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
        data = file["data"]
        names = demo_names(file)
        observations = data[names[0]].get("obs", {})
        cameras = tuple(camera for camera, key in IMAGE_KEYS.items() if key in observations)
        if "problem_info" not in data.attrs or not cameras:
            raise PrismError(
                f"{path}: expected LIBERO's layout (`problem_info`, `obs/agentview_rgb`), found "
                f"{', '.join([*data.attrs, *observations]) or 'nothing'}; robomimic's needs no import"
            )
        try:
            spoken = str(json.loads(data.attrs["problem_info"])["language_instruction"]).strip('"')
        except (ValueError, KeyError, TypeError) as error:
            raise PrismError(f"{path}: expected `problem_info` to be JSON with an instruction ({error})") from error
        title = Path(str(data.attrs.get("bddl_file_name", ""))).stem or path.stem.removesuffix("_demo")
        env_args = str(data.attrs.get("env_args", "{}"))
    try:
        task = find_task(title, suite)
    except PrismError as error:
        raise PrismError(f"{path}: {error}") from error
    if spoken not in task.wordings:
        expected = f"the instruction {task.wordings[-1]!r} of the task it names"
        raise PrismError(f"{path}: expected {expected}, got {spoken!r}; one of the two is wrong")
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
                yield _read(file["data"][name], name, wanted)
            except (OSError, KeyError, RuntimeError) as error:
                raise PrismError(f"{path}, {name}: cannot be read ({error}); get the file again") from error
            except PrismError as error:
                raise PrismError(f"{path}, {name}: {error}") from error


def import_libero(
    source: Path, target: Path, suite: str | None = None, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Write `target`, in robomimic's layout with masks, upright, actions beside their cause, from a file of LIBERO's.

    Its `data` group bears `libero_task` and `instruction`.
    """
    described = describe_libero(source, suite)
    with atomic(target) as temporary:
        with h5py.File(temporary, "w", libver="latest") as out, open_demos(source) as file:
            data = out.create_group("data")
            total = 0
            for i, episode in enumerate(libero_episodes(source)):
                demo = file["data"][episode.name]
                arrays: dict[str, np.ndarray] = {
                    # in full precision: a replay of them should give the states
                    "actions": np.asarray(demo["actions"][-len(episode) :], np.float64),
                    "states": episode.states,
                    **episode.extras,
                    "obs/robot0_eef_pos": episode.proprio[:, :3],
                    "obs/robot0_eef_quat": episode.proprio[:, 3:7],
                    "obs/robot0_gripper_qpos": episode.proprio[:, 7:],
                    **{f"obs/{camera}_image": frames for camera, frames in episode.images.items()},
                }
                write_demo(data.create_group(episode.name), arrays, {"model_file": demo.attrs.get("model_file", "")})
                total += len(episode)
                if progress:
                    progress(i + 1, len(described.demos))
            task = described.task
            bddl = f"{task.suite}/{task.env_name}.bddl"  # tells the task from others of its kind
            env_args = json.dumps(json.loads(described.env_args) | {"bddl_file": bddl})
            data.attrs.update({"total": total, "env_args": env_args})
            data.attrs.update({"libero_task": task.env_name, "instruction": task.instruction})
        write_masks(temporary)
    return target


def _read(demo: h5py.Group, name: str, cameras: Sequence[str]) -> Episode:
    actions = np.asarray(demo["actions"][:], np.float32)
    steps = len(actions)
    if actions.ndim != 2 or actions.shape[1] != 7 or steps < 2:
        raise PrismError(f"expected actions of shape (T, 7) with T > 1, got {actions.shape}")
    if not np.isfinite(actions).all():
        raise PrismError("actions are not finite; repair or remove this demo")
    first = demo.get(FIRST)
    kept = slice(0 if first is not None else 1, None)

    def before(path: str, key: str) -> np.ndarray:
        """What was seen before each kept action."""
        recorded = demo[path][:]
        if len(recorded) != steps:
            raise PrismError(f"expected {steps} steps everywhere, got {path} of shape {recorded.shape}")
        return np.asarray(recorded[:-1] if first is None else np.concatenate([first[key][:][None], recorded[:-1]]))

    images = {}
    for camera in cameras:
        frames = before(f"obs/{IMAGE_KEYS[camera]}", IMAGE_KEYS[camera])
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise PrismError(f"expected images of {camera!r} as uint8 (T, H, W, 3), got {frames.dtype} {frames.shape}")
        images[camera] = np.ascontiguousarray(frames[:, ::-1])
    robot = before("robot_states", "robot_states")  # (T, 9): fingers, position, quaternion
    proprio = np.hstack([robot[:, 2:], robot[:, :2]]).astype(np.float32)
    states = np.asarray(demo["states"][:][kept], np.float64)
    if len(states) != len(actions[kept]):
        raise PrismError(f"expected {steps} steps everywhere, got states of shape {demo['states'].shape}")
    extras = {key: np.asarray(demo[key][:][kept], kind) for key, kind in _EXTRAS.items() if key in demo}
    return Episode(name, images, proprio, actions[kept], np.zeros(len(states), bool), states, extras)


_EXTRAS: dict[str, Any] = {"rewards": np.float64, "dones": np.int64}
