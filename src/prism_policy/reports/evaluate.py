"""A trained run measured: checkpoints and seeds side by side, videos, figures, summary and report."""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.table import Table

from prism_policy.config import config_json
from prism_policy.config.presets import encoder_name
from prism_policy.config.settings import EvalConfig, RunConfig, check
from prism_policy.envs.workers import Simulators
from prism_policy.errors import PrismError
from prism_policy.evaluation.results import LAST_TEN, Stream, stages_of_failures, summarise_run
from prism_policy.evaluation.rollouts import evaluate, states_path
from prism_policy.evaluation.statistics import mean_and_std, wilson_interval
from prism_policy.evaluation.videos import grid_video, observe_moments, render_videos
from prism_policy.policies import Policy
from prism_policy.reports.report import write_report
from prism_policy.reports.rerun import check_rerun, record
from prism_policy.run_folder import kept_checkpoints, load_policy
from prism_policy.saliency.heatmaps import draw_keypoints, draw_saliency
from prism_policy.saliency.run import film_failure
from prism_policy.tasks.libero import SimTask, single_tasks, task_named
from prism_policy.utils.cores import available_cores
from prism_policy.utils.files import folder_lock, write_text
from prism_policy.utils.memory import PeakMemory
from prism_policy.utils.progress import Bar, console

MOST_VIDEOS = 20
"""Of a stream, unless told otherwise: every k-th episode, whatever its outcome."""
MOST_RECORDINGS = 5


@dataclass(frozen=True)
class Asked:
    """What to measure of a run, and how. What the run's config decides unless told is None here."""

    n_episodes: int | None = None
    checkpoints: tuple[str, ...] = ("last",)
    """The first one is the headline; `last10` is the last ten that were kept."""
    seeds: tuple[int, ...] | None = None
    split: Literal["evaluate", "validate"] | None = None
    video_every: int | None = None
    """Every k-th episode of the first checkpoint; 0 is none, None such that there are at most 20 a stream."""
    rerun: bool = False


@dataclass
class Ledger:
    """Seconds a stage and peak memory, kept in the run folder so that a resumed run counts what was spent before."""

    path: Path
    wall_s: dict[str, float] = field(default_factory=dict)
    peak_rss_mib: float = 0.0
    worker_peak_rss_mib: float = 0.0

    def __post_init__(self) -> None:
        if self.path.exists():
            found = json.loads(self.path.read_text())
            self.wall_s, self.peak_rss_mib = found["wall_s"], found["peak_rss_mib"]
            self.worker_peak_rss_mib = found.get("worker_peak_rss_mib", 0.0)

    @contextmanager
    def stage(self, name: str, memory: PeakMemory) -> Iterator[None]:
        """Count the time of the block under `name`, also when it is interrupted."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.wall_s[name] = round(self.wall_s.get(name, 0.0) + time.perf_counter() - started, 2)
            self.peak_rss_mib = round(max(self.peak_rss_mib, memory.peak_mib), 1)
            self.save()

    def save(self) -> None:
        """Write it to its file."""
        known = {"wall_s": self.wall_s, "peak_rss_mib": self.peak_rss_mib}
        write_text(self.path, json.dumps(known | {"worker_peak_rss_mib": self.worker_peak_rss_mib}))


@dataclass(frozen=True)
class Plan:
    """What is measured of one run."""

    folder: Path
    config: RunConfig
    checkpoints: tuple[str, ...]
    seeds: tuple[int, ...]
    preset: str

    @property
    def tasks(self) -> tuple[SimTask, ...]:
        """What is simulated, one after the other."""
        return single_tasks(self.config.task)

    @property
    def streams(self) -> list[tuple[Stream, EvalConfig, SimTask]]:
        """Every checkpoint with every task and seed; seeds last, as another task's simulator takes seconds to make."""
        settings = self.config.evaluate
        return [
            (Stream.of(self.folder, checkpoint, settings.split, seed, task), replace(settings, seed=seed), task)
            for checkpoint in self.checkpoints
            for task in self.tasks
            for seed in self.seeds
        ]


def evaluate_runs(folders: Sequence[Path], asked: Asked, workers: int | None = None) -> list[dict[str, Any]]:
    """Measure trained runs and write their videos and reports; returns their summaries.

    Args:
        folders: run folders with weights.
        asked: checkpoints, seeds and episodes.
        workers: simulator processes, kept from one run to the next; None is one for each core.

    Raises:
        PrismError: no run folder, or no weights in it; an unknown checkpoint; another process measures one of them;
            see `evaluate`.
    """
    if not folders:
        raise PrismError("expected at least one run folder, got none; see `prism evaluate --help`")
    if asked.video_every is not None and asked.video_every < 0:
        raise PrismError(f"video_every: expected 0 or more, got {asked.video_every}")
    once = {folder.resolve(): folder for folder in folders}.values()
    plans = [_plan(folder, asked) for folder in once]  # bad input comes before the work
    if asked.rerun:
        check_rerun()
    return measure(plans, asked, workers)


def measure(plans: Sequence[Plan], asked: Asked, workers: int | None = None) -> list[dict[str, Any]]:
    """Rollouts of all runs, then videos, figures, summary and report of each; returns the summaries."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    simulators = Simulators(available_cores() if workers is None else workers)
    with PeakMemory() as memory, ExitStack() as claims:
        for plan in plans:
            claims.enter_context(folder_lock(plan.folder / "results", "writing"))
        with simulators:
            for plan in plans:
                ledger = Ledger(plan.folder / "results" / "ledger.json")
                with ledger.stage("evaluate", memory):
                    _roll_out(plan, simulators, device, title="Evaluation" if len(plans) == 1 else str(plan.folder))
                    peak = max(ledger.worker_peak_rss_mib, simulators.peak_rss_mib)
                    ledger.worker_peak_rss_mib = round(peak, 1)
        # The simulators are gone: those that draw the videos take their place in memory.
        return [_present(plan, asked, memory, device) for plan in plans]


def _roll_out(plan: Plan, simulators: Simulators, device: torch.device, title: str) -> None:
    loaded, policy = "", None
    for stream, settings, task in plan.streams:
        if policy is None or loaded != stream.checkpoint:
            loaded, policy = stream.checkpoint, load_policy(plan.folder, stream.checkpoint).to(device)
        name = title if len(plan.streams) == 1 else f"{title} {stream.name}"
        with Bar(name, settings.n_episodes) as bar:
            evaluate(stream.folder, plan.config, policy, settings, simulators, _show_episodes(bar), task=task)
            found = stream.records()
            bar.update(len(found), f"{sum(r['success'] for r in found)} of {len(found)} succeeded")


def _present(plan: Plan, asked: Asked, memory: PeakMemory, device: torch.device) -> dict[str, Any]:
    """Videos, figures, summary and report of a run whose rollouts are done."""
    folder, config, first = plan.folder, plan.config, plan.checkpoints[0]
    ledger = Ledger(folder / "results" / "ledger.json")
    with ledger.stage("report", memory):
        for stream, settings, task in plan.streams:
            if stream.checkpoint == first:
                _film(stream, task, settings, asked, math.ceil(MOST_VIDEOS / len(plan.tasks)))
            if asked.rerun:
                policy = load_policy(folder, stream.checkpoint).to(device)
                _record(stream, task, policy, settings, math.ceil(MOST_RECORDINGS / len(plan.tasks)))
        policy = load_policy(folder, first)
        _draw_figures(plan, policy)
        film_failure(config, policy.to(device), plan.streams[0][0], plan.tasks[0])
    summary = summarise_run(folder, config.evaluate.split, first, list(kept_checkpoints(folder)))
    summary |= {"policy": config.policy.kind, "encoder": encoder_name(config.policy.encoder), "preset": plan.preset}
    summary |= {"task": config.task.name, "seed": config.seed, "wall_s": ledger.wall_s}
    summary |= {"peak_rss_mib": ledger.peak_rss_mib, "worker_peak_rss_mib": ledger.worker_peak_rss_mib}
    write_text(folder / "results" / "summary.json", json.dumps(summary, indent=2) + "\n")
    write_report(folder)
    return summary


def _plan(folder: Path, asked: Asked) -> Plan:
    config = config_json.load(RunConfig, folder / "config.json")
    settings = config.evaluate
    seeds = (settings.seed,) if asked.seeds is None else tuple(dict.fromkeys(asked.seeds))
    settings = replace(
        settings, split=asked.split or settings.split, n_episodes=_given(asked.n_episodes, settings.n_episodes)
    )
    config = replace(config, evaluate=settings)
    for seed in seeds:
        check(replace(config, evaluate=replace(settings, seed=seed)))
    checkpoints = _expand(folder, asked.checkpoints)
    if not seeds or not checkpoints:
        raise PrismError(f"expected at least one seed and one checkpoint, got {len(seeds)} and {len(checkpoints)}")
    for checkpoint in checkpoints:
        load_policy(folder, checkpoint)
    before = folder / "results" / "summary.json"
    preset = json.loads(before.read_text()).get("preset", "") if before.exists() else ""
    return Plan(folder, config, checkpoints, seeds, preset)


def _given(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value


def _expand(folder: Path, checkpoints: Sequence[str]) -> tuple[str, ...]:
    """Names of checkpoints with `last10` written out, each once."""
    kept = list(kept_checkpoints(folder))
    names: list[str] = []
    for name in checkpoints:
        if name == "last10" and len(kept) < LAST_TEN:
            raise PrismError(
                f"last10: expected {LAST_TEN} kept checkpoints in {folder / 'checkpoints'}, found {len(kept)}"
                f"{' (' + ', '.join(kept) + ')' if kept else ''}"
            )
        names += kept[-LAST_TEN:] if name == "last10" else [name]
    return tuple(dict.fromkeys(names))


def _every(n_episodes: int, most: int) -> int:
    """Such a k that every k-th of so many episodes makes at most `most`."""
    return math.ceil(n_episodes / most)


def _film(stream: Stream, task: SimTask, settings: EvalConfig, asked: Asked, most: int) -> None:
    """Videos of every k-th episode and the grid of them."""
    every = _given(asked.video_every, _every(settings.n_episodes, most))
    if every < 1:
        return
    records = [r for r in stream.records() if r["episode"] < settings.n_episodes and r["episode"] % every == 0]
    with Bar("Videos", len(records)) as bar:
        render_videos(task, records, lambda i: states_path(stream.folder, i), stream.videos, None, bar.count)
    grid_video(stream.videos, records)


def _record(stream: Stream, task: SimTask, policy: Policy, settings: EvalConfig, most: int) -> None:
    """Rerun recordings of every k-th episode."""
    every = _every(settings.n_episodes, most)
    episodes = range(0, settings.n_episodes, every)
    with Bar("Recordings", len(episodes)) as bar:
        for done, episode in enumerate(episodes, start=1):
            path = stream.run / "recordings" / stream.name / f"episode_{episode:03d}.rrd"
            if not path.exists():
                states = states_path(stream.folder, episode)
                record(path, task, policy, states, stream.split, stream.seed, episode)
            bar.count(done, len(episodes))


def _draw_figures(plan: Plan, policy: Policy) -> None:
    """Saliency and keypoints at a few moments of the first episode (whatever its outcome: no picking)."""
    folder, config, states = plan.folder, plan.config, states_path(plan.streams[0][0].folder, 0)
    task = plan.tasks[0]
    pictures = {"saliency": folder / "figures" / "saliency.png", "keypoints": folder / "figures" / "keypoints.png"}
    has_keypoints = config.policy.encoder.pooling == "spatial_softmax"
    if all(path.exists() for name, path in pictures.items() if name == "saliency" or has_keypoints):
        return
    found = observe_moments(task, states, count=5, n_obs_steps=config.policy.n_obs_steps)
    moments = {
        title: {
            "images": {c: torch.from_numpy(x)[None] for c, x in observation["images"].items()},
            "proprio": torch.from_numpy(observation["proprio"])[None],
            **policy.task_condition(task),
        }
        for title, observation in found.items()
    }
    draw_saliency(policy, moments, pictures["saliency"])
    if has_keypoints:
        draw_keypoints(policy, moments, pictures["keypoints"])


def _show_episodes(bar: Bar) -> Callable[[list[dict[str, Any]]], None]:
    return lambda records: bar.update(len(records), f"{sum(r['success'] for r in records)} of {len(records)} succeeded")


def print_summary(folder: Path, summary: dict[str, Any]) -> None:
    """The closing lines: success with its interval, where the report lies, what to run next."""
    _print_table(summary)
    low, high = summary["wilson_95"]
    seeds = ", ".join(summary["seeds"])
    console.print(
        f"\nSuccess: {summary['n_success']} of {summary['n_episodes']} unseen episodes ({summary['success_rate']:.0%}, "
        f"95% interval {low:.0%} to {high:.0%}), seed {seeds}; "
        f"{sum(summary['wall_s'].values()):.0f} s, peak memory {summary['peak_rss_mib'] / 1024:.1f} GiB"
    )
    console.print(f"Report:  {folder / 'report.html'} (open it in a browser)")
    # `make demo` calls .venv/bin/prism: show the command as it can be typed here.
    program = sys.argv[0] if Path(sys.argv[0]).name == "prism" and not shutil.which("prism") else "prism"
    other = "sspool" if summary["encoder"] == "prism" else "prism"
    task = "" if summary["task"] == "lift" else f" --task {summary['task']}"
    command = "train" if "tasks" in summary else "quickstart"
    console.print(f"Next:    {program} {command}{task} --encoder {other}   (another encoder; --help for more)")


def _print_table(summary: dict[str, Any]) -> None:
    """Checkpoints and seeds where there are several, and how far the failures came."""
    if len(summary["checkpoints"]) > 1 or len(summary["seeds"]) > 1:
        table = Table("checkpoint", "success", "95% interval", "mean over seeds", "seeds")
        for name, row in summary["checkpoints"].items():
            low, high = row["wilson_95"]
            seeds = ", ".join(f"{seed}: {found['success_rate']:.0%}" for seed, found in row["seeds"].items())
            rate = f"{row['n_success']} of {row['n_episodes']} ({row['success_rate']:.1%})"
            table.add_row(name, rate, f"{low:.1%} to {high:.1%}", plus_minus(row), seeds)
        console.print(table)
    if by_task := summary.get("tasks"):
        table = Table("task", "success", "95% interval", "median time")
        for name, row in by_task.items():
            low, high = row["wilson_95"]
            seconds = row["median_seconds_to_success"]
            rate = f"{row['n_success']} of {row['n_episodes']} ({row['success_rate']:.0%})"
            time_to = "" if seconds is None else f"{seconds:.1f} s"
            table.add_row(f"{name} {task_named(name).instruction}", rate, f"{low:.0%} to {high:.0%}", time_to)
        console.print(table)
    if ten := summary.get("mean_of_last_10"):
        console.print(f"Mean of the last 10 checkpoints: {ten['mean']:.1%}, standard deviation {ten['std']:.1%}")
    if failures := stages_of_failures(summary["task"], summary["failures_by_stage"]):
        reached = ", ".join(f"{name} {count}" for name, count in failures)
        console.print(f"Failures by the furthest stage reached: {reached}")


def plus_minus(row: dict[str, Any]) -> str:
    """Mean over seeds with its standard deviation, where there are several."""
    deviation = row["std_over_seeds"]
    return f"{row['mean_over_seeds']:.1%}" + ("" if deviation is None else f" ± {deviation:.1%}")


def print_runs(folders: Sequence[Path], summaries: Sequence[dict[str, Any]]) -> None:
    """Several runs side by side, and mean and standard deviation over them, as papers give them over training seeds."""
    table = Table("run", "success", "95% interval")
    for folder, row in zip(folders, summaries, strict=True):
        low, high = row["wilson_95"]
        rate = f"{row['n_success']} of {row['n_episodes']} ({row['success_rate']:.1%})"
        table.add_row(str(folder), rate, f"{low:.1%} to {high:.1%}")
    console.print(table)
    mean, deviation = mean_and_std([row["success_rate"] for row in summaries])
    successes, n = (sum(row[key] for row in summaries) for key in ("n_success", "n_episodes"))
    low, high = wilson_interval(successes, n)
    console.print(
        f"Over {len(summaries)} runs: mean {mean:.1%}, standard deviation {deviation or 0:.1%}; all {n} episodes "
        f"together {successes / n:.1%}, 95% interval {low:.1%} to {high:.1%}"
    )
    console.print(f"Next:    prism compare {folders[0]} {folders[1]}   (episode by episode)")
