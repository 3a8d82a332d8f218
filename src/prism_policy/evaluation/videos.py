"""Recorded episodes drawn again from their simulator states: videos with the outcome marked, frames for figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

import numpy as np

from prism_policy.config.settings import TaskConfig
from prism_policy.envs.make import kept_env
from prism_policy.envs.workers import WorkerPool
from prism_policy.evaluation.results import read_states
from prism_policy.tasks.spec import CONTROL_HZ
from prism_policy.utils.observations import Observation
from prism_policy.utils.video import mark_outcome, read_video, tile, write_video

VIDEO_RESOLUTION = 240  # [px]: enough to see the fingers close
GRID_WIDTH = 1280  # [px]


def render_videos(
    task: TaskConfig,
    episodes: Sequence[dict[str, Any]],
    states: Callable[[int], Path],
    folder: Path,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """folder/episode_000.mp4 of every record, all cameras side by side, from its states; those there are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [r for r in episodes if not (folder / f"episode_{r['episode']:03d}.mp4").exists()]
    with WorkerPool(workers) as pool:
        # Whole paths: workers that were kept may have started in another folder.
        place = folder.absolute()
        jobs = [(task, r, states(r["episode"]).absolute(), place / f"episode_{r['episode']:03d}.mp4") for r in missing]
        futures = [pool.submit(_video, *job) for job in jobs]
        for done, future in enumerate(as_completed(futures), start=len(episodes) - len(missing) + 1):
            future.result()
            if progress:
                progress(done, len(episodes))


def grid_video(folder: Path, episodes: Sequence[dict[str, Any]], fps: float = CONTROL_HZ) -> None:
    """folder/grid.mp4: the videos of these episodes at once, at `fps` a second, each standing still when it is over."""
    paths = [folder / f"episode_{r['episode']:03d}.mp4" for r in episodes]
    target = folder / "grid.mp4"
    if target.exists() and all(target.stat().st_mtime_ns >= path.stat().st_mtime_ns for path in paths):
        return
    write_video(target, tile([read_video(path) for path in paths], GRID_WIDTH), fps=max(round(fps), 1))


def _video(task: TaskConfig, record: dict[str, Any], states: Path, path: Path) -> None:
    env = kept_env(task, render_images=True)
    outcome = "success" if record["success"] else "failure"
    text = f"episode {record['episode']}: {outcome} after {record['steps']} steps"
    frames = (
        np.concatenate([env.render(camera, VIDEO_RESOLUTION, state) for camera in task.cameras], axis=1)
        for state in read_states(states)
    )
    write_video(path, mark_outcome(frames, text, record["success"], scale=1), fps=env.metadata["render_fps"])


def observe_all(task: TaskConfig, states: Path) -> list[Observation]:
    """The observation of every state of an episode, drawn in a process of their own."""
    with WorkerPool(1) as pool:
        return pool.submit(_observations, task, states.absolute()).result()


def _observations(task: TaskConfig, states: Path) -> list[Observation]:
    env = kept_env(task, render_images=True)
    return [env.observe(state) for state in read_states(states)]
