"""Demonstrations from the scripted experts, then their images: in parallel, cached by content, safe against any kill.

Each finished episode is a small file of its own (a part), written whole or not at all; when all are there they become
one HDF5 file. Its folder's name is a digest of everything that decides the content, so a stale file is never used.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import io
import json
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, as_completed, wait
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from prism_policy.config.settings import DemoConfig, TaskConfig
from prism_policy.data.recorded_env import is_absolute, read_env_args, recorded_env
from prism_policy.data.robomimic import bad_demos, demo_names, open_demos, read_masks, write_demo
from prism_policy.demos.cache import cached, sha256
from prism_policy.envs.episode import Split
from prism_policy.envs.pool import WorkerPool, environment
from prism_policy.errors import PrismError
from prism_policy.tasks.libero import LiberoTask, SimTask
from prism_policy.utils.files import atomic

Progress = Callable[[int, int], None]
"""Called with (done, total) when work begins and after each episode."""

STATES_VERSION = {"lift": 1, "can": 1, "square": 1, "tool_hang": 1, "libero": 1}
"""Versions of the demonstrations that `collect` makes. Raise a task's when its simulation, its expert or the
disturbances change what comes out at a fixed seed: users' cached demonstrations are made anew then, and only then."""
SCENES_VERSION = 1
"""As `STATES_VERSION`, of `collect_scenes`."""
IMAGES_VERSION = 1
"""As `STATES_VERSION`, of what `render_demos` draws and computes from states."""


def collect(
    task: SimTask,
    demos: DemoConfig,
    cache_dir: Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Demonstrations of the task's expert as states: the first `num_demos` successes in the order of episodes.

    The result depends on the configuration alone, not on the number of workers. Killed at any moment and called again,
    it goes on with the episodes that are missing.

    Args:
        task: the task; its cameras, actions and render settings play no part yet.
        demos: how many, how disturbed, and from which seed.
        cache_dir: where results are kept; None is `default_cache_dir()`.
        workers: processes; None is one for each core.
        progress: called as the work goes on.

    Returns:
        An HDF5 file in robomimic's layout. Its `data` group's attribute `tried` is the number of episodes it took.

    Raises:
        PrismError: the simulator is missing, the disk is full, a worker died, or the expert fails too often.
    """
    # The expert's actions are its own, whatever the policy's will say.
    if isinstance(task, TaskConfig):
        task = dataclasses.replace(task, action_mode="delta", reference_frame="base")
    key = {
        "kind": "states",
        "task": task.name,
        "demos": dataclasses.asdict(demos),
        "version": STATES_VERSION["libero" if isinstance(task, LiberoTask) else task.name],
        "versions": _versions(task),
    }

    def build(folder: Path, pool: WorkerPool) -> tuple[list[Path], str, dict[str, Any]]:
        parts, env_args, about = _collect_parts(folder, pool, task, demos, progress or _quiet)
        return parts, env_args, about | _libero_attributes(task)

    return cached(f"states-{task.name}", key, cache_dir, workers, build)


def collect_scenes(
    task: TaskConfig,
    num_scenes: int,
    split: Split,
    seed: int = 0,
    cache_dir: Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Random still scenes of a task as states, 50 to a "demo", with the poses of what is in them.

    Args:
        task: the task.
        num_scenes: how many.
        split: stream of scenes.
        seed: of the scenes.
        cache_dir: as in `collect`.
        workers: as in `collect`.
        progress: as in `collect`; counts groups of 50.

    Returns:
        An HDF5 file in robomimic's layout, for `render_demos`. `poses/<thing>` is (x, y, z, angle), float64 (T, 4) [m,
        rad]; nothing is done in a still scene, so all actions are zero.

    Raises:
        PrismError: as `collect`.
    """
    groups = [range(start, min(start + 50, num_scenes)) for start in range(0, num_scenes, 50)]
    key = {
        "kind": "scenes",
        "task": task.name,
        "scenes": [num_scenes, split, seed],
        "version": SCENES_VERSION,
        "versions": _versions(task),
    }

    def build(folder: Path, pool: WorkerPool) -> tuple[list[Path], str, dict[str, Any]]:
        parts = [folder / f"part_{i:06d}.hdf5" for i in range(len(groups))]
        work = [(_scenes_part, task, split, seed, group, part) for group, part in zip(groups, parts, strict=True)]
        _make_missing(pool, parts, work, progress or _quiet)
        with h5py.File(parts[0]) as first:
            return parts, str(first.attrs["env_args"]), {"split": split, "seed": seed}

    return cached(f"scenes-{task.name}", key, cache_dir, workers, build)


def render_demos(
    states: Path,
    task: SimTask,
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
        cache_dir: as in `collect`.
        workers: as in `collect`.
        progress: as in `collect`.

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
        if isinstance(task, TaskConfig):
            task = dataclasses.replace(task, action_mode="delta", reference_frame=recorded.reference_frame)
        if recorded.name != task.name:
            raise PrismError(f"{states}: expected demonstrations of task {task.name!r}, got {recorded.name!r}")
        for name, reason in bad_demos(file, names, states=True).items():
            raise PrismError(f"{states}, {name}: {reason}")
    size = task.render.resolution
    # robomimic makes its environment for rollouts from these.
    settings.setdefault("env_kwargs", {}).update(
        camera_names=list(task.cameras), camera_heights=size, camera_widths=size
    )
    env_args = json.dumps(settings)
    key = {
        "kind": "images",
        "states": sha256(states),
        "cameras": list(task.cameras),
        "render": dataclasses.asdict(task.render),
        "version": IMAGES_VERSION,
        "versions": _versions(task),
    }

    def build(folder: Path, pool: WorkerPool) -> tuple[list[Path], str, dict[str, Any]]:
        parts = [folder / f"part_{i:06d}.hdf5" for i in range(len(names))]
        absolute = not translated.control_trouble and isinstance(task, TaskConfig)
        work = [(_render_part, task, states, name, part, absolute) for name, part in zip(names, parts, strict=True)]
        _make_missing(pool, parts, work, progress or _quiet)
        return parts, env_args, {"render": json.dumps(key["render"])} | _libero_attributes(task)

    return cached(f"images-{task.name}", key, cache_dir, workers, build, names=names, masks=masks)


def _collect_parts(
    folder: Path, pool: WorkerPool, task: SimTask, demos: DemoConfig, progress: Progress
) -> tuple[list[Path], str, dict[str, Any]]:
    def part(episode: int) -> Path:
        return folder / f"part_{episode:06d}.hdf5"

    outcomes: dict[int, bool] = {}
    pending: dict[Future[bool], int] = {}
    episode, most = 0, 20 + 3 * demos.num_demos
    while True:
        # Enough episodes are begun that all of them succeeding would do; so those begun are always the first ones.
        while sum(outcomes.values()) + len(pending) < demos.num_demos:
            if episode >= most:
                raise PrismError(
                    f"expected {demos.num_demos} successes of the expert of task {task.name!r}, got "
                    f"{sum(outcomes.values())} in {episode} episodes with noise {demos.noise}; choose a smaller noise"
                )
            kept = _read_success(part(episode))
            if kept is None:
                pending[pool.submit(_collect_part, task, demos, episode, part(episode))] = episode
            else:
                outcomes[episode] = kept
            episode += 1
        progress(sum(outcomes.values()), demos.num_demos)
        if not pending:
            break
        finished, _ = wait(pending, return_when=FIRST_COMPLETED)
        for future in finished:
            outcomes[pending.pop(future)] = future.result()
    chosen = [part(i) for i in sorted(outcomes) if outcomes[i]]
    with h5py.File(chosen[0]) as first:
        env_args = str(first.attrs["env_args"])
    return chosen, env_args, {"tried": episode, "noise": demos.noise, "seed": demos.seed}


def _collect_part(task: SimTask, demos: DemoConfig, episode: int, path: Path) -> bool:
    from prism_policy.envs.experts import demonstrate, expert_type

    env = environment(task, render_images=False)
    demo = demonstrate(env, demos, episode)
    dones = np.zeros(len(demo.actions), np.int64)
    dones[-1] = 1
    arrays = {
        "states": demo.states,
        "actions": demo.actions,
        "disturbed": demo.disturbed,
        "rewards": demo.rewards,
        "dones": dones,
        "stages": demo.stages,
    }
    attributes = {"model_file": env.model_xml, "episode": episode, "stage_names": list(expert_type(task).stages)}
    attributes |= {"fixtures": list(env.fixtures)} if env.fixtures else {}
    _write_part(path, arrays, attributes, demo.success, env.metadata_json())
    return demo.success


def _make_missing(pool: WorkerPool, parts: list[Path], work: list[tuple[Any, ...]], progress: Progress) -> None:
    """Have the pool do `work`, (function, *arguments) a part, where the part is not there yet."""
    missing = [job for part, job in zip(parts, work, strict=True) if _read_success(part) is None]
    done = len(parts) - len(missing)
    progress(done, len(parts))
    for count, future in enumerate(as_completed([pool.submit(*job) for job in missing]), start=done + 1):
        future.result()
        progress(count, len(parts))


def _scenes_part(task: TaskConfig, split: Split, seed: int, indices: range, path: Path) -> None:
    from prism_policy.envs.scenes import scene

    env = environment(task, render_images=False)
    scenes = [scene(env, split, seed, index) for index in indices]
    arrays = {"states": np.stack([state for state, _ in scenes]), "actions": np.zeros((len(scenes), 7))}
    for name in scenes[0][1]:
        arrays[f"poses/{name}"] = np.stack([poses[name] for _, poses in scenes])
    _write_part(path, arrays, {"model_file": env.model_xml}, True, env.metadata_json())


def _render_part(task: SimTask, states: Path, name: str, path: Path, with_absolute: bool) -> None:
    from prism_policy.envs.robosuite import PROPRIO

    env = environment(task, render_images=True)
    with open_demos(states) as file:
        demo = file["data"][name]
        arrays = _datasets(demo)
        attributes = dict(demo.attrs)
    recorded_absolute = is_absolute(arrays["actions"])
    model_file = str(attributes.get("model_file", ""))
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
    for camera in task.cameras:
        arrays[f"obs/{camera}_image"] = np.stack([o["images"][camera] for o in observations])
    proprio = np.stack([o["proprio"] for o in observations])  # (T, 9)
    columns = np.split(proprio, np.cumsum(list(PROPRIO.values()))[:-1], axis=1)
    arrays.update({f"obs/{key}": values for key, values in zip(PROPRIO, columns, strict=True)})
    _write_part(path, arrays, attributes, True, env.metadata_json())


def _datasets(group: h5py.Group) -> dict[str, np.ndarray]:
    """Everything in a group and the groups within, by path."""
    arrays: dict[str, np.ndarray] = {}
    group.visititems(lambda path, item: arrays.update({path: item[:]}) if isinstance(item, h5py.Dataset) else None)
    return arrays


def _write_part(
    path: Path, arrays: dict[str, np.ndarray], attributes: dict[str, Any], success: bool, env_args: str
) -> None:
    memory = io.BytesIO()
    with h5py.File(memory, "w", libver="latest") as file:
        write_demo(file.create_group("demo"), arrays, attributes)
        file.attrs["success"] = success
        file.attrs["env_args"] = env_args
    with atomic(path) as temporary:
        temporary.write_bytes(memory.getbuffer())


def _read_success(part: Path) -> bool | None:
    """Whether the part's episode succeeded; None where there is no readable part."""
    try:
        with h5py.File(part) as file:
            return bool(file.attrs["success"])
    except (OSError, KeyError):
        return None


def _quiet(done: int, total: int) -> None:
    pass


def _versions(task: SimTask) -> dict[str, str]:
    names = ("robosuite", "mujoco", *["rpent-libero"] * isinstance(task, LiberoTask))
    try:
        return {name: importlib.metadata.version(name) for name in names}
    except importlib.metadata.PackageNotFoundError as error:
        raise PrismError(
            f"the simulator is not installed ({error.name} is missing); run `pip install "
            f"prism-policy[{'libero' if isinstance(task, LiberoTask) else 'sim'}]`"
        ) from error


def _libero_attributes(task: SimTask) -> dict[str, str]:
    """What a file says of its task beside `env_args`."""
    return {"instruction": task.instruction} if isinstance(task, LiberoTask) else {}
