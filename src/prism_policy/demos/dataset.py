"""The demonstrations a run learns from: a file's, or the scripted expert's, and which of them are held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from prism_policy.config.settings import DemoConfig, RunConfig, TaskConfig, single_tasks
from prism_policy.data.frames import open_frames
from prism_policy.data.recorded_env import RecordedEnv, read_env_args, recorded_env
from prism_policy.data.robomimic import bad_demos, cameras_of, demo_names, open_demos, read_masks
from prism_policy.data.windows import Windows
from prism_policy.demos.cache import Progress
from prism_policy.demos.collect import collect
from prism_policy.demos.render import render_demos
from prism_policy.errors import PrismError
from prism_policy.policies.instructions import task_vectors
from prism_policy.tasks import SPECS
from prism_policy.utils.files import default_cache_dir
from prism_policy.utils.progress import Bar, Stage, untimed


def fit_to_dataset(config: RunConfig) -> RunConfig:
    """The run with what its file decides: the frame of delta actions."""
    path = Path(config.dataset)
    tasks = single_tasks(config.task)
    if tasks[0].spec.suite:
        for name, file in libero_files(path, tasks).items():
            _check_file(config, file, name)
        return config
    if path.is_dir():
        raise PrismError(f"{path}: expected a file of demonstrations of {config.task.name}, got a folder")
    recorded = _check_file(config, path, config.task.name)
    return replace(config, task=replace(config.task, reference_frame=recorded.reference_frame))


def libero_files(path: Path, tasks: Sequence[TaskConfig]) -> dict[str, Path]:
    """The file of each task, by the task's name: those in a folder, or `path` itself where there is one task."""
    files = sorted(path.glob("*.hdf5")) if path.is_dir() else [path]
    by_task: dict[str, list[Path]] = {}
    for candidate in files:
        with open_demos(candidate) as file:
            name = recorded_env(read_env_args(file)).task
        if name is None or not SPECS[name].suite:
            others = "got others; LIBERO's own files need `prism import` first"
            raise PrismError(f"{candidate}: expected demonstrations of a LIBERO task, {others}")
        by_task.setdefault(name, []).append(candidate)
    for task in tasks:
        files = by_task.get(task.name, [])
        if len(files) != 1:
            raise PrismError(
                f"{path}: expected one file of {task.name} ({task.spec.instruction!r}), got "
                f"{', '.join(map(str, files)) or 'none'}; there are {', '.join(by_task) or 'no HDF5 files'}"
            )
    return {task.name: by_task[task.name][0] for task in tasks}


def _check_file(config: RunConfig, path: Path, task: str) -> RecordedEnv:
    """What recorded a file whose images and actions are those of the run."""
    with open_demos(path) as file:
        recorded = recorded_env(read_env_args(file))
        names = demo_names(file)[:1]  # what all have wrong; the others are checked when they are unpacked
        first = file["data"][names[0]]
        flaws = bad_demos(file, names, action_mode=config.task.action_mode)
        held = {camera: first[f"obs/{camera}_image"].shape[1:3] for camera in cameras_of(first)}
    if recorded.task not in (None, task):
        raise PrismError(f"{path} holds demonstrations of task '{recorded.task}'; expected '{task}'")
    size = config.task.render.resolution
    for camera in config.task.cameras:
        if camera not in held:
            others = ", ".join(held) or "no images (run `prism render` on it first)"
            raise PrismError(f"{path} lacks camera '{camera}'; it has {others}")
        if held[camera] != (size, size):
            expected = f"expected images of {size}x{size} px from camera '{camera}', got {held[camera]}"
            hint = f"draw others with `prism render`, or choose --task.render.resolution {held[camera][0]}"
            raise PrismError(f"{path}: {expected}; {hint}")
    for name, reason in flaws.items():
        raise PrismError(f"{path}, {name}: {reason}")
    return recorded


def training_windows(config: RunConfig, stage: Stage = untimed) -> tuple[Windows, Windows | None]:
    """Windows to learn from and held-out ones: those of the file's masks `train` and `valid`, else all and none.

    Scripted demonstrations are made and drawn first where they are not in the cache yet, in the stages "demos" and
    "render".
    """
    tasks = single_tasks(config.task)
    suite = tasks[0].spec.suite
    if not config.dataset:
        files = scripted_demos(tasks, config.demos, stage)
    elif suite:
        files = libero_files(Path(config.dataset), tasks)
    else:
        files = {tasks[0].name: Path(config.dataset)}
    source = files if suite else files[tasks[0].name]
    frames = open_frames(source, config.task.cameras, default_cache_dir(), config.task.action_mode)
    parts: tuple[list[str], list[str]] = ([], [])  # to learn from, and held out
    for name, path in files.items():
        with open_demos(path) as file:
            masks, before = read_masks(file), f"{name}/" if suite else ""
            split = [masks.get("train"), masks.get("valid")]
            for part, demos in zip(parts, [demo_names(file), []] if None in split else split, strict=True):
                part += [before + demo for demo in demos or ()]
    if not parts[0]:
        paths = ", ".join(map(str, files.values()))
        raise PrismError(f"{paths}: expected demonstrations in the mask 'train', got none; see `write_masks`")
    shape, vectors = config.policy, task_vectors(config)
    train, valid = (
        Windows(frames, shape.horizon, shape.n_obs_steps, shape.n_action_steps, frames.indices(part), vectors)
        if part
        else None
        for part in parts
    )
    assert train is not None
    return train, valid


def scripted_demos(tasks: Sequence[TaskConfig], demos: DemoConfig, stage: Stage = untimed) -> dict[str, Path]:
    """The scripted expert's demonstrations with images, by the task's name; made where they are missing."""
    total = len(tasks) * demos.num_demos

    def counted(bar: Bar, number: int) -> Progress:
        return lambda done, _: bar.count(number * demos.num_demos + done, total)

    with stage("demos"), Bar("Demonstrations", total) as bar:
        states = [collect(task, demos, progress=counted(bar, i)) for i, task in enumerate(tasks)]
    with stage("render"), Bar("Rendering", total) as bar:
        images = [
            render_demos(path, task, progress=counted(bar, i))
            for i, (task, path) in enumerate(zip(tasks, states, strict=True))
        ]
    return {task.name: path for task, path in zip(tasks, images, strict=True)}
