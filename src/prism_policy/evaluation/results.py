"""What a run folder's results/ holds: sets of episodes side by side, and their summary.

results/CHECKPOINT/SPLIT-sSEED/ has settings.json, episodes.jsonl and states/; its videos are in
videos/CHECKPOINT/SPLIT-sSEED/. CHECKPOINT is `last`, `best`, or a number of updates.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from prism_policy.config.ranges import Count, Fraction, Natural, NonNegative, Number
from prism_policy.config.settings import TaskConfig
from prism_policy.config.typed_json import Journal, open_file, read_journal, read_json
from prism_policy.errors import PrismError
from prism_policy.evaluation.statistics import mean_and_std, wilson_interval
from prism_policy.tasks import task_spec
from prism_policy.tasks.spec import CONTROL_HZ
from prism_policy.utils.terminal import shell
from prism_policy.utils.text import shown

Records = Sequence[Mapping[str, Any]]
"""One record an episode: its number, success, steps and the furthest stage reached."""


class Record(TypedDict):
    """A line of episodes.jsonl."""

    episode: Natural
    success: bool
    steps: Natural
    stage: NotRequired[str]


class SimulatedTask(TypedDict):
    """What settings.json says of the task that was simulated, as far as a comparison needs it."""

    name: str
    max_steps: Number


class Settings(TypedDict):
    """settings.json of a set of episodes."""

    task: SimulatedTask
    starts: NotRequired[str]
    """Of trials on a robot: which placements of the objects these were."""


class Success(TypedDict):
    """A rate alone."""

    success_rate: Fraction


class Rate(Success):
    """Success of some episodes."""

    n_episodes: Count
    wilson_95: tuple[Fraction, Fraction]


class TaskRow(Rate):
    """Success in a task."""

    n_success: Natural


class OverSeeds(TaskRow):
    """Success of a checkpoint."""

    mean_over_seeds: Fraction
    std_over_seeds: NonNegative | None
    seeds: dict[str, Success]


class LastTen(TypedDict):
    """Success over the checkpoints at the end of a training."""

    mean: Fraction
    std: NonNegative | None


class Summary(Rate, total=False):
    """results/summary.json, as far as a report needs it."""

    n_success: Natural
    task: str
    policy: str
    encoder: str
    preset: str
    checkpoint: str
    split: str
    seed: int
    median_seconds_to_success: NonNegative | None
    failures_by_stage: dict[str, Natural]
    checkpoints: dict[str, OverSeeds]
    seeds: dict[str, Success]
    tasks: dict[str, TaskRow]
    mean_of_last_10: LastTen
    wall_s: dict[str, Any] | None
    peak_rss_mib: NonNegative | None
    worker_peak_rss_mib: NonNegative | None
    trials: str
    """Of `prism trials`: on what robot, and judged by whom."""


LAST_TEN = 10
"""Kept checkpoints at the end of training whose mean papers report."""


@dataclass(frozen=True)
class EpisodeSet:
    """A checkpoint's episodes of one split and seed, and of one task where the run has several."""

    run: Path
    checkpoint: str
    split: str
    seed: int
    task: str = ""
    """Of a suite, such as libero_spatial_3."""

    @classmethod
    def of(cls, run: Path, checkpoint: str, split: str, seed: int, task: TaskConfig) -> EpisodeSet:
        """The set of a run's task; its name holds the task only where the task is one of a suite."""
        return cls(run, checkpoint, split, seed, task.name if task.spec.suite else "")

    @property
    def name(self) -> str:
        """Such as last/evaluate-s0, or last/evaluate-s0-libero_spatial_3."""
        return f"{self.checkpoint}/{self.split}-s{self.seed}" + f"-{self.task}" * bool(self.task)

    @property
    def folder(self) -> Path:
        """Folder of settings.json, episodes.jsonl and states/."""
        return self.run / "results" / self.name

    @property
    def videos(self) -> Path:
        """Folder of the videos."""
        return self.run / "videos" / self.name

    def journal(self) -> Journal:
        """The finished episodes, in the order in which they ended."""
        return read_records(self.folder)

    def records(self) -> list[dict[str, Any]]:
        """The finished episodes by number; refused where some of the lines are damaged."""
        options = ("--checkpoints", self.checkpoint, "--split", self.split, "--seeds", self.seed)
        again = shell("prism", "evaluate", self.run, *options)
        sound = self.journal().sound(f"`{again}` plays the episodes that are missing again")
        return sorted(sound, key=lambda r: int(r["episode"]))

    def states(self, episode: int) -> Path:
        """File of an episode's simulator states, float64 (steps + 1, S)."""
        return states_path(self.folder, episode)

    def settings(self) -> dict[str, Any]:
        """What was done, as settings.json says; `task` is that of the episodes."""
        return read_json(self.folder / "settings.json", Settings, f"move {self.folder} away and measure the run again")


def read_records(folder: Path) -> Journal:
    """The records of a folder of episodes; two of one episode that differ are damage."""
    return read_journal(folder / "episodes.jsonl", Record, key=lambda r: r["episode"])


def read_states(path: Path) -> np.ndarray:
    """Simulator states of an episode, float64 (steps + 1, S).

    Raises:
        PrismError: the file is missing or damaged.
    """
    again = "evaluate the run again, which plays the episode anew"
    try:
        open_file(path, 2**30).close()
        states = np.load(path, allow_pickle=False)
        if states.ndim != 2 or states.dtype != np.float64 or not len(states) or not np.isfinite(states).all():
            raise ValueError(f"numbers of shape {states.shape} and type {states.dtype}, or not finite")
    except FileNotFoundError as error:
        raise PrismError(f"{path} is missing; {again}") from error
    except PrismError:
        raise
    except Exception as error:  # numpy reads the header as Python, and raises whatever its bytes lead to
        raise PrismError(f"{path} is damaged ({shown(str(error))}); {again}") from error
    return states


def states_path(folder: Path, episode: int) -> Path:
    """Where a folder of episodes keeps the simulator states of one."""
    return folder / "states" / f"episode_{episode:03d}.npy"


def episode_sets(run: Path, checkpoint: str | None = None, split: str | None = None) -> list[EpisodeSet]:
    """Every set that a run folder holds: checkpoints `last`, `best`, then by number; within each by seed, then task."""
    sets = []
    for journal in (run / "results").glob("*/*/episodes.jsonl"):
        if match := re.fullmatch(r"(\w+)-s(\d+)(?:-(\w+))?", journal.parent.name):
            sets.append(EpisodeSet(run, journal.parent.parent.name, match[1], int(match[2]), match[3] or ""))
    wanted = [s for s in sets if checkpoint in (None, s.checkpoint) and split in (None, s.split)]

    def order(s: EpisodeSet) -> tuple[int, str, str, int, int, str]:
        number = int(s.checkpoint) if s.checkpoint.isdecimal() else {"last": -2, "best": -1}.get(s.checkpoint, 0)
        return number, s.checkpoint, s.split, s.seed, len(s.task), s.task

    return sorted(wanted, key=order)


def summarise(records: Records, fps: float = CONTROL_HZ) -> dict[str, Any]:
    """Success rate with its interval, time to success at `fps` steps a second, and how far the failures came."""
    successes = [r["steps"] for r in records if r["success"]]
    return {
        "success_rate": len(successes) / len(records),
        "n_episodes": len(records),
        "n_success": len(successes),
        "wilson_95": list(wilson_interval(len(successes), len(records))),
        "mean_steps_to_success": statistics.fmean(successes) if successes else None,
        "median_seconds_to_success": statistics.median(successes) / fps if successes else None,
        "failures_by_stage": dict(Counter(r.get("stage", "") for r in records if not r["success"])),
    }


def summarise_seeds(by_seed: Mapping[int, Records], fps: float = CONTROL_HZ) -> dict[str, Any]:
    """All episodes together, each seed alone, and mean and standard deviation over the seeds' rates."""
    seeds = {str(seed): summarise(records, fps) for seed, records in by_seed.items() if records}
    mean, deviation = mean_and_std([s["success_rate"] for s in seeds.values()])
    together = summarise([r for records in by_seed.values() for r in records], fps)
    return {**together, "mean_over_seeds": mean, "std_over_seeds": deviation, "seeds": seeds}


def summarise_run(
    run: Path, split: str, checkpoint: str, kept: Sequence[str], fps: float = CONTROL_HZ
) -> dict[str, Any]:
    """Summarise a run's episodes of a split: headline `checkpoint`, all others, and the mean of the last ten `kept`."""
    records: dict[str, dict[int, list[dict[str, Any]]]] = {}
    by_task: dict[str, list[dict[str, Any]]] = {}
    for episodes in episode_sets(run, split=split):
        journal = episodes.journal()
        finished = journal.repaired("these episodes are left out; evaluate this checkpoint and seed again")
        if finished and not journal.flaw:
            records.setdefault(episodes.checkpoint, {}).setdefault(episodes.seed, []).extend(finished)
            if episodes.task and episodes.checkpoint == checkpoint:
                by_task.setdefault(episodes.task, []).extend(finished)
    if checkpoint not in records:
        there = ", ".join(records) or "none"
        missing = f"{run} has no episodes of checkpoint '{checkpoint}' on split '{split}'"
        raise PrismError(f"{missing}; it has {there}: run `{shell('prism', 'evaluate', run)}`")
    checkpoints = {name: summarise_seeds(by_seed, fps) for name, by_seed in records.items()}
    summary = checkpoints[checkpoint] | {"checkpoint": checkpoint, "split": split, "checkpoints": checkpoints}
    if by_task:
        summary["tasks"] = {task: summarise(finished, fps) for task, finished in by_task.items()}
    ten = list(kept)[-LAST_TEN:]
    if len(ten) == LAST_TEN and all(name in checkpoints for name in ten):
        mean, deviation = mean_and_std([checkpoints[name]["success_rate"] for name in ten])
        summary["mean_of_last_10"] = {"mean": mean, "std": deviation, "checkpoints": ten}
    return summary


def stages_of_failures(task: str, counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """(furthest stage reached, number of failures), the stage nearest to success first."""
    names = ["", *task_spec(task).stages]
    order = sorted(counts, key=lambda name: names.index(name) if name in names else 0, reverse=True)
    return [(name or "nothing", counts[name]) for name in order]
