"""The images of demonstrations, drawn from their states: in parallel, cached by content, safe against any kill."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from prism_policy.config.settings import TaskConfig
from prism_policy.data.hdf5 import array, attribute, read_errors
from prism_policy.data.recorded_env import read_env_args, recorded_env
from prism_policy.data.robomimic import (
    GUESSED,
    action_kind,
    bad_demos,
    demo_names,
    masks_of,
    odd_names,
    open_demos,
    recorded_schema,
)
from prism_policy.demos.cache import Progress, cached, instruction_attribute, make_missing, versions, write_part
from prism_policy.envs.make import kept_env
from prism_policy.envs.workers import WorkerPool
from prism_policy.errors import PrismError
from prism_policy.utils.files import sha256
from prism_policy.utils.progress import console
from prism_policy.utils.text import listed

IMAGES_VERSION = 1
"""Of what `render_demos` draws and computes from states, as `TaskSpec.expert_version` of what `collect` makes."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A file of states whose images can be drawn."""

    task: TaskConfig  # as it was recorded
    names: list[str]
    masks: dict[str, list[str]]
    settings: dict[str, Any]  # `env_args`
    absolute: bool  # whether `actions` are poses
    executable: bool  # whether the controller that they are for is known here
    notes: list[str]  # what is not copied, and what was guessed


def check_source(states: Path, task: TaskConfig) -> Source:
    """What is to be drawn; raises as `render_demos`."""
    with open_demos(states) as file:
        names, (masks, flaws) = demo_names(file), masks_of(file)
        settings = read_env_args(file)
        kind = action_kind(file, names)
        translated = recorded_env(settings, kind != "delta")
        recorded = translated.drawn_task(str(states))
        task = dataclasses.replace(task, action_mode="delta", reference_frame=recorded.reference_frame)
        task = dataclasses.replace(task, env_kwargs=recorded.env_kwargs)
        if recorded.name != task.name:
            raise PrismError(f"{states}: expected demonstrations of task {task.name!r}, got {recorded.name!r}")
        unseen = dataclasses.replace(recorded_schema(file, names, kind), cameras={}, state=())
        for name, reason in bad_demos(file, names, unseen, kind, states=True).items():
            raise PrismError(f"{states}, {name}: {reason}")
        notes = [f"left out {listed(odd)}: expected names demo_0, demo_1, ..."] if (odd := odd_names(file)) else []
        if others := _datasets(file["data"][names[0]])[1]:
            notes.append(f"left out {listed(others)}, which hold no numbers for each step")
    notes += [*flaws.values(), *[GUESSED] * (kind == "guessed")]
    absolute = kind in ("absolute", "guessed")
    return Source(task, names, masks, settings, absolute, not translated.control_trouble, notes)


def render_demos(
    states: Path,
    task: TaskConfig,
    cache_dir: Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    out: Path | None = None,
) -> Path:
    """The demonstrations of `states` with images of `task.cameras` and robomimic's low-dimensional observations added.

    `actions_abs` is added too: what each delta action asks for, as an absolute one (see `RobosuiteEnv.absolute`),
    unless the actions were for a controller that is not to be had here.

    Args:
        states: a file with `states`, such as `collect` returns or robomimic publishes.
        task: the cameras and the render settings.
        out: where a copy is wanted, which is returned then.

    Returns:
        An HDF5 file in robomimic's layout with the same demos and masks; the attribute `render` of its `data` group is
        the render settings as JSON.

    Raises:
        PrismError: as `collect`; also an unreadable file, a demo without states or of another task, an unknown camera,
            no OpenGL.
    """
    source = check_source(states, task)
    task, names, settings = source.task, source.names, source.settings
    for sentence in source.notes:
        console.print(f"{states.name}: {sentence}")
    size = {f"camera_{side}": task.render.resolution for side in ("heights", "widths")}
    # robomimic makes its environment for rollouts from these.
    kwargs = settings.get("env_kwargs")
    settings["env_kwargs"] = dict(kwargs if isinstance(kwargs, dict) else {}, camera_names=list(task.cameras), **size)
    render = dataclasses.asdict(task.render)
    key: dict[str, Any] = {"kind": "images", "states": sha256(states), "cameras": list(task.cameras), "render": render}
    key |= {"version": IMAGES_VERSION, "versions": versions(task)}

    def build(folder: Path, pool: WorkerPool) -> tuple[list[Path], str, dict[str, Any]]:
        parts = [folder / f"part_{i:06d}.hdf5" for i in range(len(names))]
        absolute = source.executable and "absolute" in task.spec.action_modes
        work = [
            (_render_part, task, states.absolute(), name, part, absolute, source.absolute)
            for name, part in zip(names, parts, strict=True)
        ]
        make_missing(pool, parts, work, progress)
        return parts, json.dumps(settings), {"render": json.dumps(render)} | instruction_attribute(task)

    return cached(f"images-{task.name}", key, cache_dir, workers, build, out, names=names, masks=source.masks)


FARTHEST = 0.2
"""Median distance from the hand to where its absolute actions send it, beyond which they are something else [m]."""


def _render_part(
    task: TaskConfig, states: Path, name: str, path: Path, with_absolute: bool, recorded_absolute: bool
) -> None:
    env = kept_env(task, render_images=True)
    with open_demos(states) as file:
        demo = file["data"][name]
        arrays = {path: array(demo, path) for path in _datasets(demo)[0]}
        with read_errors(f"{states}, {name}"):
            attributes = {key: value for key in demo.attrs if (value := attribute(demo, key)) is not None}
    model_file = _model_of(states, str(attributes.get("model_file", "")))
    arrays["states"] = env.whole_states(arrays["states"], model_file, f"{states}, {name}")
    attributes |= {"fixtures": list(env.fixtures)} if env.fixtures else {}
    observations, absolute = [], []
    for state, action in zip(arrays["states"], arrays["actions"], strict=True):
        observations.append(env.observe(state))
        if with_absolute:
            env.set_state(state)
            absolute.append(action if recorded_absolute else env.absolute(action))
    if with_absolute:
        arrays["actions_abs"] = np.stack(absolute)
        hands = np.stack([o["state"][:3] for o in observations])
        away = float(np.median(np.linalg.norm(arrays["actions_abs"][:, :3] - hands, axis=1)))
        if away > FARTHEST:
            got = f"half of its absolute actions are more than {1000 * away:.0f} mm from the hand"
            raise PrismError(
                f"{states}, {name}: {got}, at most {1000 * FARTHEST:.0f} are usual; its `actions` are others"
            )
    for camera in task.cameras:
        arrays[f"obs/{camera}_image"] = np.stack([o["images"][camera] for o in observations])
    state = np.stack([o["state"] for o in observations])  # (T, S)
    columns = np.split(state, np.cumsum(list(env.part_sizes.values()))[:-1], axis=1)
    arrays.update({f"obs/{key}": values for key, values in zip(env.part_sizes, columns, strict=True)})
    write_part(path, arrays, attributes, True, env.metadata_json())


def _model_of(states: Path, model_file: str) -> str:
    """The XML of a recording's model: in the file, or as robosuite's first collections have it, in a folder beside."""
    beside = states.parent / "models" / model_file
    if model_file.endswith(".xml") and Path(model_file).name == model_file and beside.is_file():
        return beside.read_text()
    return model_file if "<" in model_file else ""


def _datasets(demo: h5py.Group) -> tuple[list[str], list[str]]:
    """Paths of the arrays of numbers (T, ...) in a demo, and of what else is there."""
    arrays, others = list[str](), list[str]()
    with read_errors("its arrays"):
        steps = len(demo["actions"])

        def sort(path: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                fits = item.shape and item.shape[0] == steps and item.dtype.kind in "fiub"
                (arrays if fits else others).append(path)

        demo.visititems(sort)
    return arrays, others
