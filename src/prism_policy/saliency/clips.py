"""Frames of an episode as a policy meets them, with masks of objects and gripper and the phases of the task.

They come from an evaluated episode's states, from a file of demonstrations, or from the scripted expert.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from prism_policy.config.settings import DemoConfig, RunConfig, TaskConfig, single_tasks
from prism_policy.data.episode import Episode
from prism_policy.demos.dataset import libero_files, read_demonstration
from prism_policy.envs.make import kept_env
from prism_policy.envs.workers import WorkerPool
from prism_policy.errors import PrismError
from prism_policy.evaluation.results import EpisodeSet, episode_sets, read_states
from prism_policy.utils.observations import Observation, stack_history
from prism_policy.utils.terminal import shell

Pick = Literal["even", "pairs", "phases"]
"""Which frames of an episode: spread evenly; half as many, each with its successor, for consistency over time; or the
middle one of each phase of the task."""

_ALIKE = 2.0  # [grey levels]: mean difference between a file's frames and ours, above which masks are not for them


@dataclass(frozen=True)
class Source:
    """Where an episode's frames come from."""

    task: TaskConfig
    n_obs_steps: int
    episode: int
    title: str
    states: Path | None = None
    """File of states of an evaluated episode."""
    success: bool | None = None
    run: RunConfig | None = None
    """Of a single task, whose dataset holds the demonstration."""
    demos: DemoConfig | None = None
    """How the scripted expert's demonstration is made."""


@dataclass(frozen=True)
class Clip:
    """F frames of one episode."""

    task: TaskConfig
    title: str
    episode: int
    success: bool | None
    length: int
    """Steps of the whole episode."""
    steps: np.ndarray
    """Which of them these are, int (F,)."""
    phases: list[str]
    """What there is to do at each, F names; "" where the simulator cannot tell."""
    observation: dict[str, Any]
    """{"images": {camera: uint8 (F, To, H, W, 3)}, "state": float32 (F, To, S)}."""
    masks: dict[str, np.ndarray]
    """camera -> uint8 (F, H, W) labels of `envs.masks`; empty where the simulator cannot tell."""

    def __len__(self) -> int:
        return len(self.steps)


def sources(folder: Path, config: RunConfig, episodes: Sequence[int], n_obs_steps: int) -> list[Source]:
    """Episodes of a run: evaluated ones, or else demonstrations of its file, or else of the scripted expert."""
    task = single_tasks(config.task)[0]  # of a suite, the first one
    evaluated = next((s for s in episode_sets(folder) if s.records() and s.task in ("", task.name)), None)
    if evaluated is not None:
        return [evaluated_source(evaluated, task, n_obs_steps, episode) for episode in episodes]
    source = partial(Source, task, n_obs_steps, success=True)
    if config.dataset:
        path = Path(config.dataset)
        if path.is_dir() and task.spec.suite:
            path = libero_files(path, [task])[task.name]
        if not path.exists():
            raise PrismError(
                f"{folder} has no evaluated episode and its demonstrations {path} are not there: no frames to look at; "
                f"run `{shell('prism', 'evaluate', folder)}`"
            )
        run = replace(config, task=task, dataset=str(path))
        return [source(e, f"demonstration {e} of {path.name}", run=run) for e in episodes]
    if bad := [e for e in episodes if e < 0]:
        raise PrismError(f"expected an episode from 0 on, got {bad[0]}")
    return [source(e, f"the expert's demonstration {e}", demos=config.demos) for e in episodes]


def evaluated_source(episodes: EpisodeSet, task: TaskConfig, n_obs_steps: int, episode: int) -> Source:
    """One episode of a set."""
    records = {int(r["episode"]): r for r in episodes.records()}
    path = episodes.states(episode)
    if episode not in records or not path.is_file():
        raise PrismError(
            f"{episodes.run} has no evaluated episode {episode} ({episodes.name}); it has 0 to {max(records)}"
            if episode not in records
            else f"{path} is missing: the frames of episode {episode} cannot be drawn; evaluate the run again"
        )
    success = bool(records[episode]["success"])
    title = f"episode {episode} of {episodes.run.resolve().name}, {'success' if success else 'failure'}"
    return Source(task, n_obs_steps, episode, title, states=path.absolute(), success=success)


def draw_clips(
    wanted: Sequence[tuple[Source, int, Pick]], workers: int = 2, progress: Callable[[int, int], None] | None = None
) -> list[Clip]:
    """Draw at most so many frames of each episode, in worker processes; `progress` is called with (done, total)."""
    clips = []
    with WorkerPool(min(workers, len(wanted))) as pool:
        for future in [pool.submit(_draw, *one) for one in wanted]:
            clips.append(future.result())
            if progress:
                progress(len(clips), len(wanted))
    return clips


def choose_steps(length: int, frames: int, pick: Pick, phases: Sequence[str] = ()) -> np.ndarray:
    """Which of `length` steps are looked at, in order, given the phase of each where it is known."""
    if pick == "phases" and any(phases):
        held = [np.flatnonzero(np.array(phases) == name) for name in dict.fromkeys(phases)]
        return np.array([places[len(places) // 2] for places in held])
    if pick == "pairs" and length > 1:
        firsts = np.unique(np.linspace(0, length - 2, max(frames // 2, 1)).astype(int))
        return np.unique(np.concatenate([firsts, firsts + 1]))
    return np.unique(np.linspace(0, length - 1, min(frames, length)).astype(int))


def _draw(source: Source, frames: int, pick: Pick) -> Clip:
    if source.run is not None:
        return _from_file(source, frames, pick)
    env = kept_env(source.task, render_images=True)
    if source.states is not None:
        states = read_states(source.states)
    else:
        from prism_policy.envs.experts import demonstrate

        assert source.demos is not None
        states = demonstrate(env, source.demos, source.episode).states
    phases = _phases(env, states)
    steps = choose_steps(len(states), frames, pick, phases)
    frames_at = {step: env.observe(states[step]) for step in np.unique(_history(steps, source.n_obs_steps))}
    return _clip(source, steps, phases, frames_at, _masks(env, source.task, states[steps]))


def _phases(env: Any, states: np.ndarray) -> list[str]:
    """What there is to do at each of the states."""
    from prism_policy.envs import episode  # needs the simulator

    return episode.phases(env, states)


def _masks(env: Any, task: TaskConfig, states: np.ndarray) -> dict[str, np.ndarray]:
    if not hasattr(env, "segment"):
        return {}
    from prism_policy.envs import masks

    return {c: np.stack([masks.task_mask(env, c, state) for state in states]) for c in task.cameras}


def _from_file(source: Source, frames: int, pick: Pick) -> Clip:
    assert source.run is not None
    demo = read_demonstration(source.run, source.episode)
    env = _its_simulator(source, demo) if source.task.spec.simulated else None
    phases = [""] * len(demo) if env is None else _phases(env, demo.sim_states)
    steps = choose_steps(len(demo), frames, pick, phases)
    masks = {} if env is None else _masks(env, source.task, demo.sim_states[steps])
    frames_at = {
        step: {"images": {c: x[step] for c, x in demo.images.items()}, "state": demo.state[step]}
        for step in np.unique(_history(steps, source.n_obs_steps))
    }
    return _clip(source, steps, phases, frames_at, masks)


def _its_simulator(source: Source, demo: Episode) -> Any:
    """The simulator, if it is here and draws what the file shows: only then are masks and stages about its frames."""
    try:
        env = kept_env(source.task, render_images=True)
        env.whole_states(demo.sim_states, "", demo.name)
        shown = env.observe(demo.sim_states[0])["images"]
    except PrismError:
        return None
    alike = all(np.abs(shown[c].astype(float) - demo.images[c][0]).mean() < _ALIKE for c in source.task.cameras)
    return env if alike else None


def _history(steps: np.ndarray, n_obs_steps: int) -> np.ndarray:
    """The steps that a policy sees at each of `steps`, oldest first, (F, To); before the start it is the start."""
    return np.maximum(steps[:, None] + np.arange(1 - n_obs_steps, 1), 0)


def _clip(
    source: Source,
    steps: np.ndarray,
    phases: Sequence[str],
    frames_at: Mapping[int, Observation],
    masks: dict[str, np.ndarray],
) -> Clip:
    histories = [stack_history([frames_at[s] for s in row]) for row in _history(steps, source.n_obs_steps)]
    names, observation = [phases[s] for s in steps], stack_history(histories)
    about = source.task, source.title, source.episode, source.success
    return Clip(*about, len(phases), steps, names, observation, masks)
