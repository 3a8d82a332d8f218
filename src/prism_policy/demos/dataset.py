"""The demonstrations a run learns from: a file's, or the scripted expert's, and which of them are held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prism_policy.config.settings import DemoConfig, RunConfig, TaskConfig, single_tasks
from prism_policy.data.facts import DatasetFacts, read_facts, split_demos
from prism_policy.data.frames import fingerprint, open_frames
from prism_policy.data.recorded_env import read_env_args, recorded_env
from prism_policy.data.robomimic import open_demos
from prism_policy.data.windows import Windows
from prism_policy.demos.cache import Progress
from prism_policy.demos.collect import collect
from prism_policy.demos.render import render_demos
from prism_policy.errors import PrismError
from prism_policy.policies.instructions import task_vectors
from prism_policy.tasks import SPECS
from prism_policy.tasks.spec import CONTROL_HZ
from prism_policy.utils.files import default_cache_dir
from prism_policy.utils.progress import Bar, Stage, console, untimed
from prism_policy.utils.text import listed, one_line


@dataclass(frozen=True)
class Dataset:
    """The demonstrations of a run."""

    train: Windows
    valid: Windows | None  # held out
    names: tuple[list[str], list[str]]  # of the demonstrations in each
    content: str  # checksum of what was learned from, wherever it lies
    files: dict[str, dict[str, Any]]  # by the task's name ("" without a suite): what tells a file from others
    train_only: str  # why no simulation can measure what learned from it; "" where one can
    control_hz: float | None  # none where not recorded


def fit_to_dataset(config: RunConfig) -> RunConfig:
    """The run with what its file decides: the frame of delta actions. Without a file it is the same."""
    if not config.dataset:
        return config
    facts = _all_facts(config)
    if single_tasks(config.task)[0].spec.suite:
        return config
    (only,) = facts.values()
    return replace(config, task=replace(config.task, reference_frame=only.env.reference_frame))


def _all_facts(config: RunConfig) -> dict[str, DatasetFacts]:
    """Facts of the run's file, or its files, by the task's name, if they are of its images and actions."""
    path = Path(config.dataset)
    tasks = single_tasks(config.task)
    if tasks[0].spec.suite:
        return {name: _check_file(config, file, name) for name, file in libero_files(path, tasks).items()}
    if path.is_dir():
        raise PrismError(f"{path}: expected a file of demonstrations of {config.task.name}, got a folder")
    return {config.task.name: _check_file(config, path, config.task.name)}


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


def _check_file(config: RunConfig, path: Path, task: str) -> DatasetFacts:
    """The facts of a file whose images and actions are those of the run."""
    facts = read_facts(path, config.task.action_mode)
    if facts.env.task not in (None, task):
        raise PrismError(f"{path} holds demonstrations of task '{facts.env.task}'; expected '{task}'")
    size = config.task.render.resolution
    for camera in config.task.cameras:
        if camera not in facts.images:
            others = listed(list(facts.images), 6) if facts.images else "no images (run `prism render` on it first)"
            raise PrismError(f"{path} lacks camera '{camera}'; it has {others}")
        if (held := facts.images[camera]) != (size, size):
            expected = f"expected images of {size}x{size} px from camera '{camera}', got {held}"
            raise PrismError(f"{path}: {expected}; {_size_hint(held)}")
    for name, reason in facts.bad.items():
        raise PrismError(f"{path}, {name}: {reason}")
    if config.task.action_mode == "delta" and facts.env.action_mode == "absolute":
        raise PrismError(f"{path}: its actions are absolute poses; choose --task.action-mode absolute")
    if not facts.has_state:
        raise PrismError(
            f"{path}, {facts.names[0]}: expected obs/robot0_eef_pos, robot0_eef_quat and robot0_gripper_qpos, got "
            f"{listed(list(facts.low_dim))}; `prism render` adds them to a file with states"
        )
    for setting, value in (facts.render or {}).items():
        ours = getattr(config.task.render, setting, value)
        if setting != "resolution" and ours != value:
            name, drawn_with = one_line(setting, 20), one_line(value, 20)
            flag = f"--task.render.{name.replace('_', '-')} {drawn_with}"
            drawn = f"its images are drawn with {name} {drawn_with}, the run's would be with {ours}"
            raise PrismError(f"{path}: {drawn}; draw others with `prism render`, or choose {flag}")
    split_demos(facts, str(path), config.train_mask)
    return facts


def _size_hint(held: tuple[int, int]) -> str:
    height, width = held
    if height == width and 8 <= height <= 2048:
        return f"draw others with `prism render`, or choose --task.render.resolution {height}"
    return "policies here see square images of 8 to 2048 px: draw such with `prism render`, or crop or pad these"


def open_dataset(config: RunConfig, stage: Stage = untimed) -> Dataset:
    """The demonstrations that a run learns from, checked, unpacked and split as `split_demos` says.

    Scripted ones are made and drawn first where they are not in the cache yet, in the stages "demos" and "render".
    """
    tasks = single_tasks(config.task)
    suite = tasks[0].spec.suite
    if not config.dataset:
        files = scripted_demos(tasks, config.demos, stage)
        facts = {name: read_facts(path, config.task.action_mode) for name, path in files.items()}
    else:
        facts = _all_facts(config)
        path = Path(config.dataset)
        files = libero_files(path, tasks) if suite else {tasks[0].name: path}
        for name, one in facts.items():
            for finding in one.findings:
                console.print(f"{files[name].name}: {finding}")
            if one.train_only:
                console.print(f"{files[name].name}: to train only, no rollouts: {one.train_only}")
            elif one.render is None:
                unknown = "how its images were drawn is not recorded; rollouts are drawn as task.render says"
                console.print(f"{files[name].name}: {unknown}")
    parts: tuple[list[str], list[str]] = ([], [])  # to learn from, and held out
    for name, path in files.items():
        train, valid, how = split_demos(facts[name], str(path), config.train_mask)
        if config.dataset and how != "mask 'train'":
            console.print(f"{path.name}: learning from {how}: {len(train)}, held out {len(valid)}")
        for part, demos in zip(parts, (train, valid), strict=True):
            part += [f"{name}/{demo}" if suite else demo for demo in demos]
    source = files if suite else files[tasks[0].name]
    frames = open_frames(source, config.task.cameras, default_cache_dir(), config.task.action_mode)
    shape, vectors = config.policy, task_vectors(config)
    learned, held_out = (
        Windows(frames, shape.horizon, shape.n_obs_steps, shape.n_action_steps, frames.indices(part), vectors)
        if part
        else None
        for part in parts
    )
    assert learned is not None  # `split_demos` sees to it
    rates = {one.env.control_hz for one in facts.values()} if config.dataset else {float(CONTROL_HZ)}
    return Dataset(
        train=learned,
        valid=held_out,
        names=parts,
        content=frames.content,
        files=_prints(files),
        train_only=next((one.train_only for one in facts.values() if one.train_only), "") if config.dataset else "",
        control_hz=rates.pop() if len(rates) == 1 else None,
    )


def file_prints(config: RunConfig) -> dict[str, dict[str, Any]] | None:
    """As `Dataset.files`, of the run's files as they are now; none for scripted demonstrations."""
    if not config.dataset:
        return None
    tasks, path = single_tasks(config.task), Path(config.dataset)
    files = libero_files(path, tasks) if tasks[0].spec.suite else {tasks[0].name: path}
    return _prints(files)


def _prints(files: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Size and sample of each file: when it was written says nothing of what is in it."""
    prints = {name: fingerprint(path) for name, path in files.items()}
    return {name: {key: one[key] for key in ("bytes", "sample")} for name, one in prints.items()}


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
