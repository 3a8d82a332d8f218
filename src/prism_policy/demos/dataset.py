"""The demonstrations a run learns from: a file's, or the scripted expert's, and which of them are held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from prism_policy.config.settings import DemoConfig, RunConfig, TaskConfig, single_tasks
from prism_policy.data.episode import Episode
from prism_policy.data.frames import Frames, open_frames, resized_schema
from prism_policy.data.recorded_env import read_env_args, recorded_env
from prism_policy.data.robomimic import open_demos, usual_state
from prism_policy.data.schema import STATE, Schema, numbers_of, task_schema
from prism_policy.data.source import RobomimicSource, Source, open_source, split_demos
from prism_policy.data.windows import Windows
from prism_policy.demos.cache import Progress
from prism_policy.demos.collect import collect
from prism_policy.demos.record import check_fits
from prism_policy.demos.render import render_demos
from prism_policy.envs.gym.env import describe
from prism_policy.envs.simulators import robosuite_knows
from prism_policy.envs.workers import WorkerPool
from prism_policy.errors import PrismError
from prism_policy.policies.instructions import task_vectors
from prism_policy.tasks import SPECS
from prism_policy.tasks.adapted import is_adapted
from prism_policy.tasks.any_robosuite import PREFIX
from prism_policy.tasks.recorded import RECORDED
from prism_policy.utils.files import default_cache_dir
from prism_policy.utils.images import Resize
from prism_policy.utils.progress import Bar, Stage, console, untimed
from prism_policy.utils.terminal import shell
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
    recorded: dict[str, tuple[int, int]] | None  # sizes of the recording's images, where they are resized

    @property
    def schema(self) -> Schema:
        """What the policy takes and gives."""
        return self.train.frames.schema

    @property
    def action_range(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Lowest and highest of each number of the actions."""
        actions = self.train.frames.actions
        low, high = (x.values.tolist() for x in (actions.min(0), actions.max(0)))
        return tuple(low), tuple(high)


def task_of(path: Path) -> str:
    """The task of a dataset: one that this library knows, of a folder the suite of its files, or robosuite:NAME where
    the robosuite that is installed has it; else `recorded`.
    """
    files = sorted(path.glob("*.hdf5")) if path.is_dir() else [path]
    names = set[str | None]()
    for file in files:
        if not file.is_file() or not h5py.is_hdf5(file):
            return RECORDED.name
        with open_demos(file) as opened:
            env = recorded_env(read_env_args(opened))
        if path.is_file() and env.task is None and env.env_kwargs and robosuite_knows(env.env_name):
            return f"{PREFIX}{env.env_name}"
        names.add(env.task)
    tasks = {name if path.is_file() or name is None else SPECS[name].suite for name in names}
    return (tasks.pop() if len(tasks) == 1 else None) or RECORDED.name


def fit_to_dataset(config: RunConfig) -> tuple[RunConfig, Schema]:
    """The run with what its demonstrations decide, such as the frame of delta actions; and what its policy sees."""
    sources = _open_sources(config)
    if not config.task.spec.own_robot:
        (source,) = sources.values()
        config = replace(config, task=replace(config.task, cameras=tuple(_chosen(config, source))))
        if is_adapted(config.task.name):
            config = replace(config, task=_as_adapted(config, source))
        elif isinstance(source, RobomimicSource) and config.task.spec.any_robot:
            config = replace(config, task=_as_recorded(config, source))
    elif sources and not single_tasks(config.task)[0].spec.suite:
        (source,) = sources.values()
        if isinstance(source, RobomimicSource):
            frame = source.facts.env.reference_frame
            config = replace(config, task=replace(config.task, reference_frame=frame))
    return config, resized_schema(_selected(config, sources), Resize.parse(config.data.resize, config.data.crop))


def _as_recorded(config: RunConfig, source: RobomimicSource) -> TaskConfig:
    """robosuite:NAME with the robots, controllers and rate of a file, and what its policy observes."""
    env, spec = source.facts.env, config.task.spec
    if env.env_name != spec.env_name or not env.env_kwargs:
        raise PrismError(f"{source.path}: expected demonstrations of robosuite's {spec.env_name}, got {env.env_name!r}")
    state = tuple(part.name for part in _selected(config, {config.task.name: source}).state)
    sizes = {size for camera, size in source.schema.cameras.items() if camera in config.task.cameras}
    render = config.task.render
    if len(sizes) == 1 and len(set(size := next(iter(sizes)))) == 1:
        render = replace(render, **{**(source.facts.render or {}), "resolution": size[0]})
    return replace(config.task, env_kwargs=env.env_kwargs, state=state, render=render)


def _as_adapted(config: RunConfig, source: Source) -> TaskConfig:
    """A gymnasium environment's task with what its policy observes, having tried that it shows what was recorded."""
    if config.data.resize or config.data.crop or config.data.action:
        raise PrismError(
            f"data.resize, data.crop and data.action: expected none, as rollouts of {config.task.name} show images at "
            "its adapter's size and need the whole action; give the adapter's cameras another size, or choose "
            f"--task {RECORDED.name}"
        )
    schema = _selected(config, {config.task.name: source})
    with WorkerPool(1) as pool:
        shown = pool.submit(describe, config.task).result()
    check_fits(schema, shown, str(source.path), config.task.name)
    return replace(config.task, state=tuple(part.name for part in schema.state))


def _chosen(config: RunConfig, source: Source) -> list[str]:
    """Cameras of a recording that the policy sees."""
    cameras = list(_select(source, cameras=config.data.cameras).cameras)
    if not cameras:
        raise PrismError(
            f"{source.path}: expected images, got none of any camera; a policy here sees. Of a simulator's states "
            f"{shell('prism', 'render', source.path)} draws them"
        )
    return cameras


def _selected(config: RunConfig, sources: Mapping[str, Source]) -> Schema:
    """Cameras and parts that the policy gets, at the recording's sizes."""
    if config.task.spec.own_robot:
        if config.data.state or config.data.action:
            raise PrismError(
                f"data.state and data.action: expected none, as {config.task.name!r} is simulated and its simulator "
                f"says what they are; without it, choose --task {RECORDED.name}"
            )
        schema, rates = task_schema(config.task), {source.schema.fps for source in sources.values()}
        if sources:
            schema = replace(schema, fps=rates.pop() if len(rates) == 1 else None)
        sizes = next((source.schema.cameras for source in sources.values()), {})
        return replace(schema, cameras={c: sizes.get(c, size) for c, size in schema.cameras.items()})
    (source,) = sources.values()
    state = config.data.state or tuple(usual_state(source.schema))
    return _select(source, config.task.cameras, state, config.data.action)


def _select(source: Source, *names: Sequence[str], **more: Sequence[str]) -> Schema:
    try:
        return source.schema.select(*names, **more)
    except PrismError as error:
        raise PrismError(f"{source.path}: {error}") from error


def _open_sources(config: RunConfig) -> dict[str, Source]:
    """The run's datasets by the task's name, if they are of its images and actions; of scripted ones none."""
    if not config.dataset:
        if not config.task.spec.own_robot:
            raise PrismError(f"task {config.task.name!r}: expected a dataset (--dataset PATH), got none")
        return {}
    path = Path(config.dataset)
    tasks = single_tasks(config.task)
    if tasks[0].spec.suite:
        return {name: _check_file(config, file, name) for name, file in libero_files(path, tasks).items()}
    if config.task.spec.own_robot:
        if path.is_dir():
            raise PrismError(f"{path}: expected a file of demonstrations of {config.task.name}, got a folder")
        return {config.task.name: _check_file(config, path, config.task.name)}
    source = open_source(path, episodes=config.data.episodes)
    for name, reason in getattr(source, "bad", {}).items():
        raise PrismError(f"{path}, {name}: {reason}")
    split_demos(source, config.data.mask, hold_out=True)
    return {config.task.name: source}


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


def _check_file(config: RunConfig, path: Path, task: str) -> RobomimicSource:
    """A file whose images and actions are those of the run."""
    source = RobomimicSource(path, config.task.action_mode)
    facts = source.facts
    if facts.env.task not in (None, task):
        raise PrismError(f"{path} holds demonstrations of task '{facts.env.task}'; expected '{task}'")
    size = config.task.render.resolution
    for camera in config.task.cameras:
        if camera not in facts.images:
            others = listed(list(facts.images), 6) if facts.images else "no images (run `prism render` on it first)"
            raise PrismError(f"{path} lacks camera '{camera}'; it has {others}")
        resize = Resize.parse(config.data.resize, config.data.crop)
        held = facts.images[camera]
        if (resize.output(*held, camera=camera) if resize else held) != (size, size):
            expected = f"expected images of {size}x{size} px from camera '{camera}', got {held}"
            raise PrismError(f"{path}: {expected}; {_size_hint(held)}")
    for name, reason in facts.bad.items():
        raise PrismError(f"{path}, {name}: {reason}")
    if config.task.action_mode == "delta" and facts.env.action_mode == "absolute":
        raise PrismError(f"{path}: its actions are absolute poses; choose --task.action-mode absolute")
    if (width := facts.schema.action_dim) != (wanted := task_schema(config.task).action_dim):
        raise PrismError(f"{path}, {source.names[0]}: expected actions of {wanted} numbers for {task}, got {width}")
    missing = [part.name for part in STATE if facts.low_dim.get(part.name) != part.size]
    if missing:
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
    split_demos(source, config.data.mask)
    return source


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
    sources: dict[str, Source] = _open_sources(config)
    if not sources:
        files = scripted_demos(tasks, config.demos, stage)
        sources = {name: RobomimicSource(path, config.task.action_mode) for name, path in files.items()}
    else:
        _tell(config, sources)
    parts: tuple[list[str], list[str]] = ([], [])  # to learn from, and held out
    for name, source in sources.items():
        train, valid, how = split_demos(source, config.data.mask, hold_out=not config.task.spec.own_robot)
        if config.dataset and how != "mask 'train'":
            console.print(f"{source.path.name}: learning from {how}: {len(train)}, held out {len(valid)}")
        for part, demos in zip(parts, (train, valid), strict=True):
            part += [f"{name}/{demo}" if suite else demo for demo in demos]
    schema, resize = _selected(config, sources), Resize.parse(config.data.resize, config.data.crop)
    total = sum(len(source.names) for source in sources.values())
    with Bar("Frames", total) as bar:
        of = sources if suite else sources[tasks[0].name]
        frames = open_frames(of, schema, default_cache_dir(), resize, bar.count)
    frames = clipped(frames, config.data.clip_quantile)
    shape, vectors = config.policy, task_vectors(config)
    learned, held_out = (
        Windows(frames, shape.horizon, shape.n_obs_steps, shape.n_action_steps, frames.indices(part), vectors)
        if part
        else None
        for part in parts
    )
    assert learned is not None  # `split_demos` sees to it
    return Dataset(
        train=learned,
        valid=held_out,
        names=parts,
        content=frames.content,
        files=_prints(sources),
        train_only=_train_only(config, sources),
        recorded=dict(schema.cameras) if resize else None,
    )


def read_demonstration(config: RunConfig, number: int) -> Episode:
    """One demonstration of a run's dataset, as its policy sees it."""
    ((task, source),) = _open_sources(config).items()
    if not 0 <= number < len(source.names):
        raise PrismError(f"{source.path} has no demonstration {number}; it has 0 to {len(source.names) - 1}")
    (episode,) = source.episodes([source.names[number]], _selected(config, {task: source}))
    resize = Resize.parse(config.data.resize, config.data.crop)
    return replace(episode, images={c: resize(x) for c, x in episode.images.items()}) if resize else episode


def _tell(config: RunConfig, sources: Mapping[str, Source]) -> None:
    """Print what is to be known of the datasets before learning from them."""
    for source in sources.values():
        for finding in source.findings:
            console.print(f"{source.path.name}: {finding}")
        if not isinstance(source, RobomimicSource):
            continue
        if train_only := _train_only(config, {"": source}):
            console.print(f"{source.path.name}: to train only, no rollouts: {train_only}")
        elif source.facts.render is None and not is_adapted(config.task.name):
            unknown = "how its images were drawn is not recorded; rollouts are drawn as task.render says"
            console.print(f"{source.path.name}: {unknown}")


def _train_only(config: RunConfig, sources: Mapping[str, Source]) -> str:
    """Why nothing that learned from these can be simulated; "" where it can."""
    if not config.dataset:
        return ""
    if is_adapted(config.task.name):
        return ""
    if config.task.spec.any_robot:
        return _any_trouble(config)
    troubles = [source.facts.train_only for source in sources.values() if isinstance(source, RobomimicSource)]
    if not config.task.spec.simulated:
        return next((trouble for trouble in troubles if trouble), "it was recorded elsewhere, and nothing simulates it")
    return next((trouble for trouble in troubles if trouble), "")


def _any_trouble(config: RunConfig) -> str:
    """Why robosuite:NAME cannot measure what learns from these images and parts; "" where it can."""
    sizes = set(_selected(config, _open_sources(config)).cameras.values())
    if sizes != {(config.task.render.resolution,) * 2} or config.data.resize or config.data.crop:
        return "rollouts draw square images of one size, and these are others; draw them with `prism render`"
    if config.data.action:
        return "rollouts need the whole action, and only parts of it are learned"
    return ""


def clipped(frames: Frames, quantile: float) -> Frames:
    """The frames with each number of the actions within its quantiles; rotations and grippers stay as they are."""
    if not quantile:
        return frames
    actions = frames.actions.numpy()
    low, high = np.quantile(actions, (quantile, 1 - quantile), axis=0).astype(np.float32)
    kept = numbers_of(frames.schema.action, "rotation", "gripper")
    low[kept], high[kept] = -np.inf, np.inf
    return replace(frames, actions=torch.from_numpy(np.clip(actions, low, high)))


def file_prints(config: RunConfig) -> dict[str, dict[str, Any]] | None:
    """As `Dataset.files`, of the run's files as they are now; none for scripted demonstrations."""
    return _prints(_open_sources(config)) if config.dataset else None


def _prints(sources: Mapping[str, Source]) -> dict[str, dict[str, Any]]:
    """What tells each dataset from others: of a file its size and sample, as when it was written says nothing."""
    prints = {name: source.fingerprint() for name, source in sources.items()}
    return {name: {k: x for k, x in one.items() if k not in ("changed_ns", "actions")} for name, one in prints.items()}


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
