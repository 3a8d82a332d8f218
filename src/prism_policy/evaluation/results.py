"""What a run folder's results/ holds: streams of episodes side by side, and their summary.

results/CHECKPOINT/SPLIT-sSEED/ has stream.json, episodes.jsonl and states/; its videos are in
videos/CHECKPOINT/SPLIT-sSEED/. CHECKPOINT is `last`, `best`, or a number of updates.
"""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prism_policy.config.settings import TaskConfig
from prism_policy.errors import PrismError
from prism_policy.evaluation.statistics import mean_and_std, wilson_interval
from prism_policy.tasks import task_spec
from prism_policy.utils.files import read_lines

Records = Sequence[Mapping[str, Any]]
STEPS_A_SECOND = 20
LAST_TEN = 10
"""Kept checkpoints at the end of training whose mean papers report."""


@dataclass(frozen=True)
class Stream:
    """A checkpoint's episodes of one split and seed."""

    run: Path
    checkpoint: str
    split: str
    seed: int
    task: str = ""
    """Of a suite, such as libero_spatial_3."""

    @classmethod
    def of(cls, run: Path, checkpoint: str, split: str, seed: int, task: TaskConfig) -> Stream:
        """That of a task; only those of a suite are told apart."""
        return cls(run, checkpoint, split, seed, task.name if task.spec.suite else "")

    @property
    def name(self) -> str:
        """Such as last/evaluate-s0, or last/evaluate-s0-libero_spatial_3."""
        return f"{self.checkpoint}/{self.split}-s{self.seed}" + f"-{self.task}" * bool(self.task)

    @property
    def folder(self) -> Path:
        """Where its episodes lie."""
        return self.run / "results" / self.name

    @property
    def videos(self) -> Path:
        """Where its videos lie."""
        return self.run / "videos" / self.name

    def records(self) -> list[dict[str, Any]]:
        """Its finished episodes in order; the journal is in the order in which they ended."""
        return sorted(read_lines(self.folder / "episodes.jsonl"), key=lambda r: int(r["episode"]))

    def simulated(self) -> dict[str, Any]:
        """The task that was simulated, with its settings.

        Raises:
            PrismError: its stream.json is missing or damaged.
        """
        path = self.folder / "stream.json"
        try:
            found: dict[str, Any] = json.loads(path.read_text())["task"]
            return found
        except (OSError, ValueError, KeyError) as error:
            raise PrismError(f"{path} is missing or damaged; evaluate the run again") from error


def streams(run: Path, checkpoint: str | None = None, split: str | None = None) -> list[Stream]:
    """The streams that a run folder holds episodes of: `last`, `best`, then by number; seeds in order, then tasks."""
    found = []
    for journal in (run / "results").glob("*/*/episodes.jsonl"):
        match = re.fullmatch(r"(\w+)-s(\d+)(?:-(\w+))?", journal.parent.name)
        if match:
            found.append(Stream(run, journal.parent.parent.name, match[1], int(match[2]), match[3] or ""))
    wanted = [s for s in found if checkpoint in (None, s.checkpoint) and split in (None, s.split)]
    order = {"last": -2, "best": -1}

    def place(stream: Stream) -> tuple[int, str, str, int, int, str]:
        number = int(stream.checkpoint) if stream.checkpoint.isdigit() else order.get(stream.checkpoint, 0)
        return number, stream.checkpoint, stream.split, stream.seed, len(stream.task), stream.task

    return sorted(wanted, key=place)


def summarise(records: Records) -> dict[str, Any]:
    """Success rate with its interval, time to success, and how far the failures came."""
    successes = [r["steps"] for r in records if r["success"]]
    return {
        "success_rate": len(successes) / len(records),
        "n_episodes": len(records),
        "n_success": len(successes),
        "wilson_95": list(wilson_interval(len(successes), len(records))),
        "mean_steps_to_success": statistics.fmean(successes) if successes else None,
        "median_seconds_to_success": statistics.median(successes) / STEPS_A_SECOND if successes else None,
        "failures_by_stage": dict(Counter(r.get("stage", "") for r in records if not r["success"])),
    }


def summarise_seeds(by_seed: Mapping[int, Records]) -> dict[str, Any]:
    """All episodes together, each seed alone, and mean and standard deviation over the seeds' rates."""
    seeds = {str(seed): summarise(records) for seed, records in by_seed.items() if records}
    mean, deviation = mean_and_std([s["success_rate"] for s in seeds.values()])
    together = summarise([r for records in by_seed.values() for r in records])
    return {**together, "mean_over_seeds": mean, "std_over_seeds": deviation, "seeds": seeds}


def summarise_run(run: Path, split: str, checkpoint: str, kept: Sequence[str]) -> dict[str, Any]:
    """Everything measured in a run on a split; the figures of `checkpoint` on top.

    Args:
        run: the run folder.
        split: whose episodes.
        checkpoint: the headline.
        kept: numbers of the kept checkpoints, in order, for the mean of the last ten.

    Raises:
        PrismError: the checkpoint has no episodes there.
    """
    found: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for stream in streams(run, split=split):
        if records := stream.records():
            found.setdefault(stream.checkpoint, {}).setdefault(stream.seed, []).extend(records)
    if checkpoint not in found:
        raise PrismError(
            f"{run} has no episodes of checkpoint '{checkpoint}' on split '{split}'; it has "
            f"{', '.join(found) or 'none'}: run `prism evaluate {run}`"
        )
    checkpoints = {name: summarise_seeds(by_seed) for name, by_seed in found.items()}
    summary = checkpoints[checkpoint] | {"checkpoint": checkpoint, "split": split, "checkpoints": checkpoints}
    by_task: dict[str, list[dict[str, Any]]] = {}
    for stream in streams(run, checkpoint, split):
        if stream.task:
            by_task.setdefault(stream.task, []).extend(stream.records())
    if by_task:
        summary["tasks"] = {task: summarise(records) for task, records in by_task.items() if records}
    ten = list(kept)[-LAST_TEN:]
    if len(ten) == LAST_TEN and all(name in checkpoints for name in ten):
        mean, deviation = mean_and_std([checkpoints[name]["success_rate"] for name in ten])
        summary["mean_of_last_10"] = {"mean": mean, "std": deviation, "checkpoints": ten}
    return summary


def stages_of_failures(task: str, counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Furthest stage reached and number of failures that ended there, those nearest to success first."""
    names = ["", *task_spec(task).stages]
    order = sorted(counts, key=lambda name: names.index(name) if name in names else 0, reverse=True)
    return [(name or "nothing", counts[name]) for name in order]
