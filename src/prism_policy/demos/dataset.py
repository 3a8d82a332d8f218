"""The demonstrations a run learns from: a file's, or the scripted expert's, and which of them are held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from prism_policy.config.settings import DemoConfig, RunConfig
from prism_policy.data.frames import open_frames
from prism_policy.data.recorded_env import RecordedEnv, read_env_args, recorded_env
from prism_policy.data.robomimic import bad_demos, cameras_of, demo_names, open_demos, read_masks
from prism_policy.data.windows import Windows
from prism_policy.demos.cache import default_cache_dir
from prism_policy.demos.collect import Progress, collect, render_demos
from prism_policy.errors import PrismError
from prism_policy.policies.instructions import task_vectors
from prism_policy.tasks.libero import LiberoTask, SimTask, single_tasks
from prism_policy.utils.progress import Bar, Stage, untimed


def fit_to_dataset(config: RunConfig) -> RunConfig:
    """The run with what its file decides: the frame of delta actions.

    Raises:
        PrismError: the file is of another task, lacks a camera, or holds images of another size or other actions; a
            folder lacks a task's file.
    """
    path = Path(config.dataset)
    tasks = [task for task in single_tasks(config.task) if isinstance(task, LiberoTask)]
    if tasks:
        for task, file in zip(tasks, libero_files(path, tasks).values(), strict=True):
            _fit_to_file(config, file, task)
        return config
    if path.is_dir():
        raise PrismError(f"{path}: expected a file of demonstrations of {config.task.name}, got a folder")
    return replace(config, task=replace(config.task, reference_frame=_fit_to_file(config, path, None).reference_frame))


def libero_files(path: Path, tasks: Sequence[LiberoTask]) -> dict[str, Path]:
    """The file of each task, by the task's name: those in a folder, or `path` itself where there is one task.

    Raises:
        PrismError: there is none, or there are two.
    """
    files = sorted(path.glob("*.hdf5")) if path.is_dir() else [path]
    found: dict[str, list[Path]] = {}
    for candidate in files:
        with open_demos(candidate) as file:
            task = recorded_env(read_env_args(file)).libero
        if task is None:
            raise PrismError(
                f"{candidate}: expected demonstrations of a LIBERO task, got others; LIBERO's own files need "
                "`prism import` first"
            )
        found.setdefault(task.name, []).append(candidate)
    for task in tasks:
        there = found.get(task.name, [])
        if len(there) != 1:
            raise PrismError(
                f"{path}: expected one file of {task.name} ({task.instruction!r}), got "
                f"{', '.join(map(str, there)) or 'none'}; there are {', '.join(found) or 'no HDF5 files'}"
            )
    return {task.name: found[task.name][0] for task in tasks}


def _fit_to_file(config: RunConfig, path: Path, task: LiberoTask | None) -> RecordedEnv:
    with open_demos(path) as file:
        recorded = recorded_env(read_env_args(file))
        names = demo_names(file)[:1]  # what all have wrong; the others are looked at when they are unpacked
        first = file["data"][names[0]]
        flaws = bad_demos(file, names, action_mode=config.task.action_mode)
        held = {camera: first[f"obs/{camera}_image"].shape[1:3] for camera in cameras_of(first)}
    if task is None and recorded.task is not None and recorded.task != config.task.name:
        raise PrismError(f"{path} holds demonstrations of task '{recorded.task}'; expected '{config.task.name}'")
    size = config.task.render.resolution
    for camera in config.task.cameras:
        if camera not in held:
            found = ", ".join(held) or "no images (run `prism render` on it first)"
            raise PrismError(f"{path} lacks camera '{camera}'; it has {found}")
        if held[camera] != (size, size):
            raise PrismError(
                f"{path}: expected images of {size}x{size} px from camera '{camera}', got {held[camera]}; draw others "
                f"with `prism render`, or choose --task.render.resolution {held[camera][0]}"
            )
    for name, reason in flaws.items():
        raise PrismError(f"{path}, {name}: {reason}")
    return recorded


def training_windows(config: RunConfig, stage: Stage = untimed) -> tuple[Windows, Windows | None]:
    """Windows to learn from and held-out ones: those of the file's masks `train` and `valid`, else all and none.

    Scripted demonstrations are made and drawn first where they are not in the cache yet, in the stages "demos" and
    "render".

    Raises:
        PrismError: as `collect`, `render_demos` and `open_frames`.
    """
    tasks = single_tasks(config.task)
    several = isinstance(tasks[0], LiberoTask)
    if not config.dataset:
        files = scripted_demos(tasks, config.demos, stage)
    elif several:
        files = libero_files(Path(config.dataset), [task for task in tasks if isinstance(task, LiberoTask)])
    else:
        files = {tasks[0].name: Path(config.dataset)}
    source = files if several else files[tasks[0].name]
    frames = open_frames(source, config.task.cameras, default_cache_dir(), config.task.action_mode)
    parts: tuple[list[str], list[str]] = ([], [])  # to learn from, and held out
    for name, path in files.items():
        with open_demos(path) as file:
            masks, before = read_masks(file), f"{name}/" if several else ""
            split = [masks.get("train"), masks.get("valid")]
            for part, demos in zip(parts, [demo_names(file), []] if None in split else split, strict=True):
                part += [before + demo for demo in demos or ()]
    if not parts[0]:
        raise PrismError(
            f"{', '.join(map(str, files.values()))}: expected demonstrations in the mask 'train', got none; see "
            "`write_masks`"
        )
    shape, vectors = config.policy, task_vectors(config)
    train, valid = (
        Windows(frames, shape.horizon, shape.n_obs_steps, shape.n_action_steps, frames.indices(part), vectors)
        if part
        else None
        for part in parts
    )
    assert train is not None
    return train, valid


def scripted_demos(tasks: Sequence[SimTask], demos: DemoConfig, stage: Stage = untimed) -> dict[str, Path]:
    """The scripted expert's demonstrations of each task with images, by the task's name; made where they are missing.

    Raises:
        PrismError: as `collect` and `render_demos`.
    """
    files, total = {}, len(tasks) * demos.num_demos
    with stage("demos"), Bar("Demonstrations", total) as bar:
        states = [
            collect(task, demos, progress=_counted(bar, i * demos.num_demos, total)) for i, task in enumerate(tasks)
        ]
    with stage("render"), Bar("Rendering", total) as bar:
        for i, (task, path) in enumerate(zip(tasks, states, strict=True)):
            files[task.name] = render_demos(path, task, progress=_counted(bar, i * demos.num_demos, total))
    return files


def _counted(bar: Bar, before: int, total: int) -> Progress:
    return lambda done, _: bar.count(before + done, total)
