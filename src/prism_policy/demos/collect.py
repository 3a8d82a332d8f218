"""Demonstrations from the scripted experts: in parallel, cached by content, safe against any kill.

Each finished episode is a small file of its own (a part), written whole or not at all; when all are there they become
one HDF5 file. Its folder's name is a digest of everything that decides the content, so a stale file is never used.
"""

from __future__ import annotations

import dataclasses
import hashlib
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from prism_policy.config.settings import DemoConfig, TaskConfig
from prism_policy.demos.cache import (
    Progress,
    cached,
    instruction_attribute,
    make_missing,
    part_success,
    versions,
    write_part,
)
from prism_policy.demos.record import attributes_of, record_expert
from prism_policy.envs.episode import Split
from prism_policy.envs.make import kept_env
from prism_policy.envs.workers import WorkerPool
from prism_policy.errors import PrismError
from prism_policy.tasks.adapted import is_adapted
from prism_policy.utils.text import file_name

SCENES_VERSION = 1  # of what `collect_scenes` makes, as `TaskSpec.expert_version` of what `collect` makes


def collect(
    task: TaskConfig,
    demos: DemoConfig,
    cache_dir: Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    out: Path | None = None,
) -> Path:
    """Demonstrations of the task's expert as states: the first `num_demos` successes in the order of episodes.

    The result depends on the configuration alone, not on the number of workers. Killed at any moment and called again,
    it goes on with the episodes that are missing.

    Args:
        task: the task; its cameras, actions and render settings play no part yet.
        demos: how many, how disturbed, and from which seed.
        cache_dir: where results are kept; None is `default_cache_dir()`.
        workers: processes; None is one for each core.
        out: where a copy is wanted, which is returned then.

    Returns:
        An HDF5 file in robomimic's layout. Its `data` group's attribute `tried` is the number of episodes it took.

    Raises:
        PrismError: the simulator is missing, the disk is full, a worker died, the expert fails too often, or `out` is
            another file.
    """
    if not task.spec.expert and not is_adapted(task.name):  # whose adapter may have one
        raise PrismError(
            f"task {task.name!r} has no scripted expert; train on demonstrations of a file (--dataset PATH)"
        )
    # The expert's actions are its own, whatever the policy's will say.
    task = dataclasses.replace(task, action_mode="delta", reference_frame="base")
    key: dict[str, Any] = {"kind": "states", "task": task.name, "demos": dataclasses.asdict(demos)}
    key |= {"version": task.spec.expert_version, "versions": versions(task)}
    if is_adapted(task.name):  # whose adapter and environment are the user's, and may change any time
        with WorkerPool(1) as pool:
            key |= {"first": pool.submit(_first_episode, task, demos).result()}

    def build(folder: Path, pool: WorkerPool) -> tuple[list[Path], str, dict[str, Any]]:
        return _collect_parts(folder, pool, task, demos, progress or (lambda done, total: None))

    return cached(f"states-{file_name(task.name)}", key, cache_dir, workers, build, out)


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

    Returns:
        An HDF5 file in robomimic's layout, for `render_demos`. `poses/<thing>` is (x, y, z, angle), float64 (T, 4) [m,
        rad]; nothing is done in a still scene, so all actions are zero.
    """
    groups = [range(start, min(start + 50, num_scenes)) for start in range(0, num_scenes, 50)]
    key: dict[str, Any] = {"kind": "scenes", "task": task.name, "scenes": [num_scenes, split, seed]}
    key |= {"version": SCENES_VERSION, "versions": versions(task)}

    def build(folder: Path, pool: WorkerPool) -> tuple[list[Path], str, dict[str, Any]]:
        parts = [folder / f"part_{i:06d}.hdf5" for i in range(len(groups))]
        work = [(_scenes_part, task, split, seed, group, part) for group, part in zip(groups, parts, strict=True)]
        make_missing(pool, parts, work, progress)
        with h5py.File(parts[0]) as first:
            return parts, str(first.attrs["env_args"]), {"split": split, "seed": seed}

    return cached(f"scenes-{task.name}", key, cache_dir, workers, build)


def _collect_parts(
    folder: Path, pool: WorkerPool, task: TaskConfig, demos: DemoConfig, progress: Progress
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
            if (kept := part_success(part(episode))) is None:
                pending[pool.submit(_collect_part, task, demos, episode, part(episode))] = episode
            else:
                outcomes[episode] = kept
            episode += 1
        progress(sum(outcomes.values()), demos.num_demos)
        if not pending:
            break
        for future in wait(pending, return_when=FIRST_COMPLETED).done:
            outcomes[pending.pop(future)] = future.result()
    chosen = [part(i) for i in sorted(outcomes) if outcomes[i]]
    with h5py.File(chosen[0]) as first:
        env_args = str(first.attrs["env_args"])
        said = {"schema": str(first.attrs["schema"])} if "schema" in first.attrs else {}
    made = {"tried": episode, "noise": demos.noise, "seed": demos.seed}
    return chosen, env_args, made | said | instruction_attribute(task)


def _collect_part(task: TaskConfig, demos: DemoConfig, episode: int, path: Path) -> bool:
    if is_adapted(task.name):
        return _record_part(task, demos, episode, path)
    from prism_policy.envs.experts import demonstrate, expert_type

    env = kept_env(task, render_images=False)
    demo = demonstrate(env, demos, episode)
    dones = np.zeros(len(demo.actions), np.int64)
    dones[-1] = 1
    arrays = {"states": demo.states, "actions": demo.actions, "disturbed": demo.disturbed, "rewards": demo.rewards}
    arrays |= {"dones": dones, "stages": demo.stages}
    attributes = {"model_file": env.model_xml, "episode": episode, "stage_names": list(expert_type(task.spec).stages)}
    attributes |= {"fixtures": list(env.fixtures)} if env.fixtures else {}
    write_part(path, arrays, attributes, demo.success, env.metadata_json())
    return demo.success


def _record_part(task: TaskConfig, demos: DemoConfig, episode: int, path: Path) -> bool:
    """As `_collect_part`, of a gymnasium environment, with its images."""
    arrays, schema, success = record_expert(kept_env(task, render_images=True), demos, episode)
    about = attributes_of(schema, task.name)
    write_part(path, arrays, {"episode": episode}, success, about["env_args"], about["schema"])
    return success


def _first_episode(task: TaskConfig, demos: DemoConfig) -> str:
    """Checksum of what comes out of the first episode."""
    arrays, schema, _ = record_expert(kept_env(task, render_images=True), demos, 0)
    digest = hashlib.sha256(str(schema).encode())
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


def _scenes_part(task: TaskConfig, split: Split, seed: int, indices: range, path: Path) -> None:
    from prism_policy.envs.scenes import scene

    env = kept_env(task, render_images=False)
    scenes = [scene(env, split, seed, index) for index in indices]
    arrays = {"states": np.stack([state for state, _ in scenes]), "actions": np.zeros((len(scenes), 7))}
    for name in scenes[0][1]:
        arrays[f"poses/{name}"] = np.stack([poses[name] for _, poses in scenes])
    write_part(path, arrays, {"model_file": env.model_xml}, True, env.metadata_json())
