"""`prism evaluate`: rollouts of checkpoints and seeds side by side, videos, figures, summary and report."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NotRequired, TypedDict, get_type_hints

from rich.table import Table

from prism_policy.config.options import EvalOptions
from prism_policy.config.presets import encoder_name
from prism_policy.config.ranges import NonNegative, check_ranges
from prism_policy.config.settings import Device, EvalConfig, RunConfig, TaskConfig, check, single_tasks
from prism_policy.config.typed_json import read_json
from prism_policy.envs.workers import WorkerPool
from prism_policy.errors import PrismError
from prism_policy.evaluation.results import LAST_TEN, EpisodeSet, stages_of_failures, summarise_run
from prism_policy.evaluation.rollouts import evaluate
from prism_policy.evaluation.statistics import mean_and_std, wilson_interval
from prism_policy.evaluation.videos import grid_video, render_videos
from prism_policy.policies import Policy
from prism_policy.reports.report import write_report
from prism_policy.reports.rerun import check_rerun, record
from prism_policy.run_folder import check_rollouts, kept_checkpoints, load_policy, read_run
from prism_policy.saliency.run import draw_moments, film_failure
from prism_policy.tasks import task_spec
from prism_policy.tasks.spec import CONTROL_HZ
from prism_policy.utils.cores import available_cores
from prism_policy.utils.device import pick_device
from prism_policy.utils.files import folder_lock, sweep, write_text
from prism_policy.utils.memory import PeakMemory
from prism_policy.utils.progress import Bar, console
from prism_policy.utils.terminal import shell

MOST_VIDEOS, MOST_RECORDINGS = 20, 5
"""Of the headline's episodes, by default: every k-th, whatever its outcome."""


class TimingsFile(TypedDict):
    """What timings.json holds."""

    wall_s: dict[str, NonNegative]
    peak_rss_mib: NotRequired[NonNegative]
    worker_peak_rss_mib: NotRequired[NonNegative]


def known_timings(path: Path) -> dict[str, Any]:
    """The seconds and memory that a run has taken so far."""
    known = read_json(path, TimingsFile, "remove it")
    return {name: known[name] for name in get_type_hints(TimingsFile) if name in known}


@dataclass
class Timings:
    """Seconds a stage and peak memory, kept in the run folder so that a resumed run counts what was spent before."""

    path: Path
    wall_s: dict[str, float] = field(default_factory=dict)
    peak_rss_mib: float = 0.0
    worker_peak_rss_mib: float = 0.0

    def __post_init__(self) -> None:
        if not self.path.exists():
            return
        try:
            vars(self).update(known_timings(self.path))
        except PrismError as error:
            console.print(f"{error.problem}: times are counted anew")

    @contextmanager
    def stage(self, name: str, memory: PeakMemory) -> Iterator[None]:
        """Count the time of the block under `name`, also when it is interrupted."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.wall_s[name] = round(self.wall_s.get(name, 0.0) + time.perf_counter() - started, 2)
            self.peak_rss_mib = round(max(self.peak_rss_mib, memory.peak_mib), 1)
            write_text(self.path, json.dumps(self.as_dict()))

    def as_dict(self) -> dict[str, Any]:
        """All but the path, for the summary."""
        return {name: value for name, value in vars(self).items() if name != "path"}


@dataclass(frozen=True)
class EvalPlan:
    """The episodes to play of one run."""

    folder: Path
    config: RunConfig
    checkpoints: tuple[str, ...]
    seeds: tuple[int, ...]
    preset: str
    headline: Policy
    """The first checkpoint's policy, which is needed to the end; others are loaded when it is their turn."""

    @property
    def tasks(self) -> tuple[TaskConfig, ...]:
        """What is simulated, one after the other."""
        return single_tasks(self.config.task)

    @property
    def episode_sets(self) -> list[tuple[EpisodeSet, EvalConfig, TaskConfig]]:
        """Every checkpoint with every task and seed; seeds last, as another task's simulator takes seconds to make."""
        settings = self.config.evaluate
        return [
            (EpisodeSet.of(self.folder, checkpoint, settings.split, seed, task), replace(settings, seed=seed), task)
            for checkpoint in self.checkpoints
            for task in self.tasks
            for seed in self.seeds
        ]

    def by_policy(self) -> Iterator[tuple[Policy, list[tuple[EpisodeSet, EvalConfig, TaskConfig]]]]:
        """Each checkpoint's policy with its episodes; one policy beside the headline's is in memory at a time."""
        for checkpoint, group in itertools.groupby(self.episode_sets, lambda one: one[0].checkpoint):
            if checkpoint == self.checkpoints[0]:
                yield self.headline, list(group)
            else:
                yield load_policy(self.folder, checkpoint).to(self.headline.device), list(group)


def evaluate_runs(
    folders: Sequence[Path], options: EvalOptions, workers: int | None = None, device: Device = "auto", preset: str = ""
) -> list[dict[str, Any]]:
    """Evaluate trained runs and write their videos, figures, summaries and reports; returns the summaries.

    `preset` names the sizes in the summary; by default it is that of the summary before.
    """
    if not folders:
        raise PrismError("expected at least one run folder, got none; see `prism evaluate --help`")
    check_ranges(options)
    once = {folder.resolve(): folder for folder in folders}.values()
    plans = [_plan(folder, options, device, preset) for folder in once]  # bad input comes before the work
    if options.rerun:
        check_rerun()
    simulators = WorkerPool(available_cores() if workers is None else workers)
    with PeakMemory() as memory, ExitStack() as locks:
        for plan in plans:
            locks.enter_context(folder_lock(plan.folder / "results", "writing"))
            sweep(plan.folder)
        with simulators:
            for plan in plans:
                timings = Timings(plan.folder / "results" / "timings.json")
                with timings.stage("evaluate", memory):
                    _roll_out(plan, simulators, title="Evaluation" if len(plans) == 1 else str(plan.folder))
                    peak = max(timings.worker_peak_rss_mib, simulators.peak_rss_mib)
                    timings.worker_peak_rss_mib = round(peak, 1)
        # The simulators are gone: those that draw the videos take their place in memory.
        return [_present(plan, options, memory) for plan in plans]


def _roll_out(plan: EvalPlan, simulators: WorkerPool, title: str) -> None:
    for policy, group in plan.by_policy():
        for episodes, settings, task in group:
            name = title if len(plan.episode_sets) == 1 else f"{title} {episodes.name}"
            with Bar(name, settings.n_episodes) as bar:
                show = partial(_show_episodes, bar)
                evaluate(episodes.folder, plan.config, policy, settings, simulators, show, task=task)
                show(episodes.records())


def _show_episodes(bar: Bar, records: Sequence[dict[str, Any]]) -> None:
    bar.update(len(records), f"{sum(r['success'] for r in records)} of {len(records)} succeeded")


def _present(plan: EvalPlan, options: EvalOptions, memory: PeakMemory) -> dict[str, Any]:
    """Videos, figures, summary and report of a run whose rollouts are done."""
    folder, config, first = plan.folder, plan.config, plan.checkpoints[0]
    fps = plan.headline.schema.fps or CONTROL_HZ
    timings = Timings(folder / "results" / "timings.json")
    with timings.stage("report", memory):
        for episodes, settings, task in plan.episode_sets:
            if episodes.checkpoint == first:
                most = math.ceil(MOST_VIDEOS / len(plan.tasks))
                records = _film(episodes, task, settings, options.video_every, most)
                if records:
                    grid_video(episodes.videos, records, fps)
        for policy, group in plan.by_policy() if options.rerun else ():
            for episodes, settings, task in group:
                _record(episodes, task, policy, settings, math.ceil(MOST_RECORDINGS / len(plan.tasks)))
        draw_moments(config, plan.headline, plan.episode_sets[0][0], plan.tasks[0])
        film_failure(config, plan.headline, plan.episode_sets[0][0], plan.tasks[0])
    summary = summarise_run(folder, config.evaluate.split, first, list(kept_checkpoints(folder)), fps)
    summary |= {"policy": config.policy.kind, "encoder": encoder_name(config.policy.encoder), "preset": plan.preset}
    summary |= {"task": config.task.name, "seed": config.seed, **timings.as_dict()}
    write_text(folder / "results" / "summary.json", json.dumps(summary, indent=2) + "\n")
    write_report(folder)
    return summary


def _plan(folder: Path, options: EvalOptions, device: Device, preset: str) -> EvalPlan:
    check_rollouts(folder)
    config = read_run(folder)
    settings = config.evaluate
    seeds = (settings.seed,) if options.seeds is None else tuple(dict.fromkeys(options.seeds))
    n_episodes = settings.n_episodes if options.n_episodes is None else options.n_episodes
    settings = replace(settings, split=options.split or settings.split, n_episodes=n_episodes)
    config = replace(config, evaluate=settings)
    for seed in seeds:
        check(replace(config, evaluate=replace(settings, seed=seed)))
    checkpoints = _expand(folder, options.checkpoints)
    if not seeds or not checkpoints:
        raise PrismError(f"expected at least one seed and one checkpoint, got {len(seeds)} and {len(checkpoints)}")
    for checkpoint in checkpoints[1:]:
        load_policy(folder, checkpoint)  # a damaged one is found now, not after hours
    headline = load_policy(folder, checkpoints[0]).to(pick_device(device))
    preset = preset or _preset_before(folder / "results" / "summary.json")
    return EvalPlan(folder, config, checkpoints, seeds, preset, headline)


def _preset_before(summary: Path) -> str:
    """The preset that the summary before names."""
    if not summary.exists():
        return ""
    try:
        return str(read_json(summary, dict[str, Any], "").get("preset", ""))
    except PrismError as error:
        console.print(f"{error.problem}: it is written anew")
        return ""


def _expand(folder: Path, checkpoints: Sequence[str]) -> tuple[str, ...]:
    """Names of checkpoints with `last10` written out, each once."""
    kept = list(kept_checkpoints(folder))
    names: list[str] = []
    for name in checkpoints:
        if name == "last10" and len(kept) < LAST_TEN:
            there = f"{len(kept)} ({', '.join(kept)})" if kept else "0"
            raise PrismError(f"last10: expected {LAST_TEN} kept checkpoints in {folder / 'checkpoints'}, found {there}")
        names += kept[-LAST_TEN:] if name == "last10" else [name]
    return tuple(dict.fromkeys(names))


def _film(
    episodes: EpisodeSet, task: TaskConfig, settings: EvalConfig, every: int | None, most: int
) -> list[dict[str, Any]]:
    """Videos of every k-th episode, whose records are returned."""
    every = math.ceil(settings.n_episodes / most) if every is None else every
    if every < 1:
        return []
    records = [r for r in episodes.records() if r["episode"] < settings.n_episodes and r["episode"] % every == 0]
    with Bar("Videos", len(records)) as bar:
        render_videos(task, records, episodes.states, episodes.videos, None, bar.count)
    return records


def _record(episodes: EpisodeSet, task: TaskConfig, policy: Policy, settings: EvalConfig, most: int) -> None:
    """Rerun recordings of every k-th episode."""
    numbers = range(0, settings.n_episodes, math.ceil(settings.n_episodes / most))
    with Bar("Recordings", len(numbers)) as bar:
        for done, episode in enumerate(numbers, start=1):
            path = episodes.run / "recordings" / episodes.name / f"episode_{episode:03d}.rrd"
            if not path.exists():
                states = episodes.states(episode)
                record(path, task, policy, states, episodes.split, episodes.seed, episode)
            bar.count(done, len(numbers))


def print_summary(folder: Path, summary: dict[str, Any]) -> None:
    """The closing lines: success with its interval, where the report lies, what to run next."""
    _print_table(summary)
    low, high = summary["wilson_95"]
    console.print(
        "",
        f"Success: {summary['n_success']} of {summary['n_episodes']} unseen episodes ({summary['success_rate']:.0%}, "
        f"95% interval {low:.0%} to {high:.0%}), seed {', '.join(summary['seeds'])}; "
        f"{sum(summary['wall_s'].values()):.0f} s, peak memory {summary['peak_rss_mib'] / 1024:.1f} GiB",
    )
    console.print(f"Report:  {folder / 'report.html'} (open it in a browser)")
    # `make demo` calls .venv/bin/prism: show the command as it can be typed here.
    program = sys.argv[0] if Path(sys.argv[0]).name == "prism" and not shutil.which("prism") else "prism"
    other = "sspool" if summary["encoder"] == "prism" else "prism"
    task = "" if summary["task"] == "lift" else f" --task {summary['task']}"
    command = "train" if "tasks" in summary else "quickstart"
    if task_spec(summary["task"]).any_robot:
        console.print(f"Next:    {shell(program, 'serve', folder)}   (the policy for a robot or simulator of your own)")
        return
    console.print(f"Next:    {shell(program)} {command}{task} --encoder {other}   (another encoder; --help for more)")


def _print_table(summary: dict[str, Any]) -> None:
    """Checkpoints and seeds where there are several, and how far the failures came."""
    if len(summary["checkpoints"]) > 1 or len(summary["seeds"]) > 1:
        table = Table("checkpoint", "success", "95% interval", "mean over seeds", "seeds")
        for name, row in summary["checkpoints"].items():
            seeds = ", ".join(f"{seed}: {one['success_rate']:.0%}" for seed, one in row["seeds"].items())
            deviation = row["std_over_seeds"]
            mean = f"{row['mean_over_seeds']:.1%}" + ("" if deviation is None else f" ± {deviation:.1%}")
            table.add_row(name, *_rate_cells(row), mean, seeds)
        console.print(table)
    if by_task := summary.get("tasks"):
        table = Table("task", "success", "95% interval", "median time")
        for name, row in by_task.items():
            seconds = row["median_seconds_to_success"]
            time_to = "" if seconds is None else f"{seconds:.1f} s"
            table.add_row(f"{name} {task_spec(name).instruction}", *_rate_cells(row, digits=0), time_to)
        console.print(table)
    if ten := summary.get("mean_of_last_10"):
        console.print(f"Mean of the last 10 checkpoints: {ten['mean']:.1%}, standard deviation {ten['std']:.1%}")
    if failures := stages_of_failures(summary["task"], summary["failures_by_stage"]):
        reached = ", ".join(f"{name} {count}" for name, count in failures)
        console.print(f"Failures by the furthest stage reached: {reached}")


def _rate_cells(row: dict[str, Any], digits: int = 1) -> tuple[str, str]:
    low, high = (f"{share:.{digits}%}" for share in row["wilson_95"])
    return f"{row['n_success']} of {row['n_episodes']} ({row['success_rate']:.{digits}%})", f"{low} to {high}"


def print_runs(folders: Sequence[Path], summaries: Sequence[dict[str, Any]]) -> None:
    """Several runs side by side, and mean and standard deviation over them, as papers give them over training seeds."""
    table = Table("run", "success", "95% interval")
    for folder, row in zip(folders, summaries, strict=True):
        table.add_row(str(folder), *_rate_cells(row))
    console.print(table)
    mean, deviation = mean_and_std([row["success_rate"] for row in summaries])
    successes, n = (sum(row[key] for row in summaries) for key in ("n_success", "n_episodes"))
    low, high = wilson_interval(successes, n)
    console.print(
        f"Over {len(summaries)} runs: mean {mean:.1%}, standard deviation {deviation or 0:.1%}; all {n} episodes "
        f"together {successes / n:.1%}, 95% interval {low:.1%} to {high:.1%}"
    )
    console.print(f"Next:    {shell('prism', 'compare', *folders[:2])}   (episode by episode)")
