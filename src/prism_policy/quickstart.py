"""The main job from one command: demonstrations, policy, measured success, report."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from prism_policy import config_json
from prism_policy.cache import default_cache_dir
from prism_policy.collect import collect, render_demos
from prism_policy.config import RunConfig, check
from prism_policy.data.frames import open_frames
from prism_policy.data.windows import Windows
from prism_policy.evaluate import evaluate, states_path, summarise
from prism_policy.files import write_text
from prism_policy.memory import PeakMemory
from prism_policy.policies import Policy
from prism_policy.presets import encoder_name
from prism_policy.progress import Bar, console
from prism_policy.replay import observe_moments, render_videos
from prism_policy.report import write_report
from prism_policy.run_folder import load_policy, open_run
from prism_policy.saliency import draw_keypoints, draw_saliency
from prism_policy.train import train


@dataclass
class Ledger:
    """Seconds a stage and peak memory, kept in the run folder so that a resumed run counts what was spent before."""

    path: Path
    wall_s: dict[str, float] = field(default_factory=dict)
    peak_rss_mib: float = 0.0

    def __post_init__(self) -> None:
        if self.path.exists():
            found = json.loads(self.path.read_text())
            self.wall_s, self.peak_rss_mib = found["wall_s"], found["peak_rss_mib"]

    @contextmanager
    def stage(self, name: str, memory: PeakMemory) -> Iterator[None]:
        """Count the time of the block under `name`, also when it is interrupted."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.wall_s[name] = round(self.wall_s.get(name, 0.0) + time.perf_counter() - started, 2)
            self.peak_rss_mib = round(max(self.peak_rss_mib, memory.peak_mib), 1)
            write_text(self.path, json.dumps({"wall_s": self.wall_s, "peak_rss_mib": self.peak_rss_mib}))


def quickstart(folder: Path, config: RunConfig, preset: str) -> dict[str, Any]:
    """Run (or go on with) the whole chain in `folder`; returns the summary, which is also results/summary.json.

    Args:
        preset: name of the sizes, for the summary.

    Raises:
        PrismError: bad input, see each stage.
    """
    open_run(folder, config)
    ledger = Ledger(folder / "results" / "ledger.json")
    with PeakMemory() as memory:
        with ledger.stage("demos", memory), Bar("Demonstrations", config.demos.num_demos) as bar:
            states = collect(config.task, config.demos, progress=bar.count)
        with ledger.stage("render", memory), Bar("Rendering", config.demos.num_demos) as bar:
            images = render_demos(states, config.task, progress=bar.count)
        with ledger.stage("train", memory):
            if not (folder / "weights.safetensors").exists():
                with Bar("Training", config.train.steps) as bar:
                    frames = open_frames(images, config.task.cameras, default_cache_dir(), config.task.action_mode)
                    shape = config.policy
                    windows = Windows(frames, shape.horizon, shape.n_obs_steps, shape.n_action_steps)
                    train(folder, config, windows, bar.train)
                    del frames, windows
        return _measure(folder, config, load_policy(folder), ledger, memory, preset)


def evaluate_run(folder: Path, n_episodes: int | None = None, workers: int | None = None) -> dict[str, Any]:
    """Measure the trained run in `folder` and write its videos and report; returns the summary.

    Args:
        folder: a run folder with weights.
        n_episodes: how many episodes; None is what the run's config says.
        workers: simulator processes; None is one for each core.

    Raises:
        PrismError: no run folder, or no weights in it; see `evaluate`.
    """
    config = config_json.load(RunConfig, folder / "config.json")
    if n_episodes is not None:
        config = replace(config, evaluate=replace(config.evaluate, n_episodes=n_episodes))
    check(config)
    policy = load_policy(folder)
    before = folder / "results" / "summary.json"
    preset = json.loads(before.read_text()).get("preset", "") if before.exists() else ""
    with PeakMemory() as memory:
        return _measure(folder, config, policy, Ledger(folder / "results" / "ledger.json"), memory, preset, workers)


def _measure(
    folder: Path,
    config: RunConfig,
    policy: Policy,
    ledger: Ledger,
    memory: PeakMemory,
    preset: str,
    workers: int | None = None,
) -> dict[str, Any]:
    """Rollouts, videos, figures, summary and report of a trained run."""
    with ledger.stage("evaluate", memory), Bar("Evaluation", config.evaluate.n_episodes) as bar:
        records = evaluate(folder, config, policy, workers, _show_episodes(bar))
    with ledger.stage("report", memory):
        with Bar("Videos", config.evaluate.n_episodes) as bar:
            render_videos(config.task, records, lambda i: states_path(folder, i), folder / "videos", progress=bar.count)
        _draw_figures(folder, config, policy)
    labels = {"policy": config.policy.kind, "encoder": encoder_name(config.policy.encoder), "preset": preset}
    summary = summarise(records) | labels
    summary |= {"task": config.task.name, "seed": config.seed, "split": config.evaluate.split}
    summary |= {"wall_s": ledger.wall_s, "peak_rss_mib": ledger.peak_rss_mib}
    write_text(folder / "results" / "summary.json", json.dumps(summary, indent=2) + "\n")
    write_report(folder)
    return summary


def _draw_figures(folder: Path, config: RunConfig, policy: Policy) -> None:
    """Saliency and keypoints at a few moments of the first episode (whatever its outcome: no picking)."""
    pictures = {"saliency": folder / "figures" / "saliency.png", "keypoints": folder / "figures" / "keypoints.png"}
    has_keypoints = config.policy.encoder.pooling == "spatial_softmax"
    if all(path.exists() for name, path in pictures.items() if name == "saliency" or has_keypoints):
        return
    found = observe_moments(config.task, states_path(folder, 0), count=5, n_obs_steps=config.policy.n_obs_steps)
    moments = {
        title: {
            "images": {c: torch.from_numpy(x)[None] for c, x in observation["images"].items()},
            "proprio": torch.from_numpy(observation["proprio"])[None],
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
    low, high = summary["wilson_95"]
    console.print(
        f"\nSuccess: {summary['n_success']} of {summary['n_episodes']} unseen episodes ({summary['success_rate']:.0%}, "
        f"95% interval {low:.0%} to {high:.0%}), seed {summary['seed']}; "
        f"{sum(summary['wall_s'].values()):.0f} s, peak memory {summary['peak_rss_mib'] / 1024:.1f} GiB"
    )
    console.print(f"Report:  {folder / 'report.html'} (open it in a browser)")
    # `make demo` calls .venv/bin/prism: show the command as it can be typed here.
    program = sys.argv[0] if Path(sys.argv[0]).name == "prism" and not shutil.which("prism") else "prism"
    other = "sspool" if summary["encoder"] == "prism" else "prism"
    task = "" if summary["task"] == "lift" else f" --task {summary['task']}"
    console.print(f"Next:    {program} quickstart{task} --encoder {other}   (another encoder; --help for more)")
