"""The images of demonstrations, drawn from their states: in parallel, cached by content, safe against any kill."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from prism_policy.config.settings import TaskConfig
from prism_policy.data.recorded_env import is_absolute, read_env_args, recorded_env
from prism_policy.data.robomimic import bad_demos, demo_names, open_demos, read_masks
from prism_policy.demos.cache import Progress, cached, instruction_attribute, make_missing, sha256, versions, write_part
from prism_policy.envs.make import kept_env
from prism_policy.envs.workers import WorkerPool
from prism_policy.errors import PrismError
from prism_policy.utils.observations import PROPRIO

IMAGES_VERSION = 1
"""Of what `render_demos` draws and computes from states, as `TaskSpec.expert_version` of what `collect` makes."""


def render_demos(
    states: Path,
    task: TaskConfig,
    cache_dir: Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """The demonstrations of `states` with images of `task.cameras` and robomimic's low-dimensional observations added.

    `actions_abs` is added too: what each delta action asks for, as an absolute one (see `RobosuiteEnv.absolute`),
    unless the actions were for a controller that is not to be had here.

    Args:
        states: a file with `states`, such as `collect` returns or robomimic publishes.
        task: the cameras and the render settings.

    Returns:
        An HDF5 file in robomimic's layout with the same demos and masks; the attribute `render` of its `data` group is
        the render settings as JSON.

    Raises:
        PrismError: as `collect`; also an unreadable file, a demo without states or of another task, an unknown camera,
            no OpenGL.
    """
    with open_demos(states) as file:
        names, masks = demo_names(file), read_masks(file)
        settings = read_env_args(file)
        translated = recorded_env(settings)
        recorded = translated.task_config(str(states), actions=False)
        task = dataclasses.replace(task, action_mode="delta", reference_frame=recorded.reference_frame)
        if recorded.name != task.name:
            raise PrismError(f"{states}: expected demonstrations of task {task.name!r}, got {recorded.name!r}")
        for name, reason in bad_demos(file, names, states=True).items():
            raise PrismError(f"{states}, {name}: {reason}")
    size = {f"camera_{side}": task.render.resolution for side in ("heights", "widths")}
    # robomimic makes its environment for rollouts from these.
    settings.setdefault("env_kwargs", {}).update(camera_names=list(task.cameras), **size)
    render = dataclasses.asdict(task.render)
    key: dict[str, Any] = {"kind": "images", "states": sha256(states), "cameras": list(task.cameras), "render": render}
    key |= {"version": IMAGES_VERSION, "versions": versions(task)}

    def build(folder: Path, pool: WorkerPool) -> tuple[list[Path], str, dict[str, Any]]:
        parts = [folder / f"part_{i:06d}.hdf5" for i in range(len(names))]
        absolute = not translated.control_trouble and "absolute" in task.spec.action_modes
        work = [(_render_part, task, states, name, part, absolute) for name, part in zip(names, parts, strict=True)]
        make_missing(pool, parts, work, progress)
        return parts, json.dumps(settings), {"render": json.dumps(render)} | instruction_attribute(task)

    return cached(f"images-{task.name}", key, cache_dir, workers, build, names=names, masks=masks)


def _render_part(task: TaskConfig, states: Path, name: str, path: Path, with_absolute: bool) -> None:
    env = kept_env(task, render_images=True)
    with open_demos(states) as file:
        demo = file["data"][name]
        arrays, attributes = _datasets(demo), dict(demo.attrs)
    recorded_absolute = is_absolute(arrays["actions"])
    arrays["states"] = env.whole_states(arrays["states"], str(attributes.get("model_file", "")), f"{states}, {name}")
    attributes |= {"fixtures": list(env.fixtures)} if env.fixtures else {}
    observations, absolute = [], []
    for state, action in zip(arrays["states"], arrays["actions"], strict=True):
        observations.append(env.observe(state))
        if with_absolute:
            env.set_state(state)
            absolute.append(action if recorded_absolute else env.absolute(action))
    if with_absolute:
        arrays["actions_abs"] = np.stack(absolute)
    for camera in task.cameras:
        arrays[f"obs/{camera}_image"] = np.stack([o["images"][camera] for o in observations])
    proprio = np.stack([o["proprio"] for o in observations])  # (T, 9)
    columns = np.split(proprio, np.cumsum(list(PROPRIO.values()))[:-1], axis=1)
    arrays.update({f"obs/{key}": values for key, values in zip(PROPRIO, columns, strict=True)})
    write_part(path, arrays, attributes, True, env.metadata_json())


def _datasets(group: h5py.Group) -> dict[str, np.ndarray]:
    """Everything in a group and the groups within, by path."""
    arrays: dict[str, np.ndarray] = {}
    group.visititems(lambda path, item: arrays.update({path: item[:]}) if isinstance(item, h5py.Dataset) else None)
    return arrays
