"""A cell of an experiment: one variant, seed and scale, which is one ordinary run folder."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from prism_policy.config import presets
from prism_policy.config.settings import Device, EvalConfig, RunConfig, single_tasks
from prism_policy.demos.dataset import fit_to_dataset
from prism_policy.errors import PrismError
from prism_policy.evaluation.results import EpisodeSet
from prism_policy.paper.experiments import Variant
from prism_policy.reports.evaluate import known_timings
from prism_policy.run_folder import TimedLine, is_trained, read_metrics, read_run
from prism_policy.tasks import task_spec
from prism_policy.utils.files import file_lock

Scale = Literal["nano", "small", "paper", "smoke"]
_SCALES_FILE = files("prism_policy.paper").joinpath("scales.json")
SCALES: dict[Scale, str] = json.loads(_SCALES_FILE.read_text(encoding="utf-8"))
"""What each scale is, what it can show and what it cannot."""

_PRESETS = {"nano": presets.nano, "small": presets.small, "paper": presets.paper, "smoke": presets.nano}


@dataclass(frozen=True)
class Cell:
    """A variant, seed and scale, trained and evaluated once for all the tables it appears in."""

    variant: Variant
    seed: int
    """Of weights, batches, noise and scripted demonstrations; its episodes are of the same seed on another split."""
    folder: Path
    config: RunConfig

    @property
    def trained(self) -> bool:
        """Whether training has ended."""
        return (self.folder / "weights.safetensors").is_file()

    def records(self, checkpoint: str, n_episodes: int) -> list[dict[str, Any]]:
        """Its first so many episodes (of each task) with these weights, in order; none where any is missing."""
        sets = self.episode_sets(checkpoint)
        if any(episodes.journal().flaw for episodes in sets):
            return []  # to be measured: `prism evaluate` says what is damaged, and plays it again
        records = [r for episodes in sets for r in episodes.records() if r["episode"] < n_episodes]
        return records if len(records) == n_episodes * len(sets) else []

    def reported(self, checkpoint: str) -> bool:
        """Whether its report is of these episodes: one that was killed on the way to it has them, but no report."""
        report = self.folder / "report.html"
        journals = [episodes.folder / "episodes.jsonl" for episodes in self.episode_sets(checkpoint)]
        return report.exists() and all(j.exists() and j.stat().st_mtime <= report.stat().st_mtime for j in journals)

    def episode_sets(self, checkpoint: str) -> list[EpisodeSet]:
        """Its episodes: one set, or one for each task of a suite."""
        tasks = single_tasks(self.config.task)
        return [EpisodeSet.of(self.folder, checkpoint, "evaluate", self.seed, task) for task in tasks]

    def seconds(self, stage: Literal["train", "evaluate"]) -> float | None:
        """How long it took [s], where it is known."""
        if stage == "train":
            lines = read_metrics(self.folder, TimedLine).lines if self.trained else []
            return float(lines[-1]["wall_s"]) if lines else None
        try:
            known = known_timings(self.folder / "results" / "timings.json")["wall_s"]
        except PrismError:
            return None
        return sum(known.values()) if "report" in known else None


FOLLOWED = ("tool_hang",)
"""Tasks whose policies are rolled out while they learn at every scale: Figure 4 wants the peak."""


def run_config(variant: Variant, seed: int, scale: Scale) -> RunConfig:
    """The configuration of a cell; with no marks on the variant it is the preset's."""
    config = _PRESETS[scale](variant.task, variant.policy, variant.encoder, seed)
    task, encoder = config.task, config.policy.encoder
    encoder = replace(encoder, truncate=variant.truncate, shuffle_keypoints=variant.shuffle)
    encoder = replace(encoder, refine=encoder.refine or variant.refine)
    suite = task_spec(variant.task).members  # whose presets have a resolution of their own
    render = task.render if suite else replace(task.render, resolution=variant.resolution)
    config = replace(
        config,
        task=replace(task, cameras=task.cameras[: variant.views], render=render, numbers=variant.numbers),
        policy=replace(config.policy, encoder=encoder),
    )
    if scale in ("nano", "smoke") and variant.task in FOLLOWED:
        # Four rollouts as in Table 8, of fewer episodes.
        every = config.train.steps // 4
        config = replace(config, train=replace(config.train, rollout_every=every, rollout_episodes=10))
    if scale == "smoke":
        config = presets.smoke(config)
        config = replace(config, train=replace(config.train, rollout_every=config.train.steps, rollout_episodes=1))
    return config


def find_cells(
    variants: Sequence[Variant],
    seeds: Sequence[int],
    scale: Scale,
    cells_dir: Path,
    datasets: Mapping[str, Sequence[Path]],
) -> list[Cell]:
    """The cells of these variants and seeds, seed by seed; one whose configuration is there already keeps its folder.

    Args:
        datasets: files of demonstrations by task; a cell takes the first that has its cameras and resolution. Tasks
            without files learn from the scripted expert.
    """
    existing = _runs(cells_dir)
    cells = []
    for seed, variant in itertools.product(seeds, variants):
        config = run_config(variant, seed, scale)
        demos = datasets.get(variant.task, ())
        if demos:
            config = _fit(config, demos)
        suffix = f"-on-{Path(config.dataset).stem}" if demos else ""
        folder = cells_dir / f"{variant.name}{suffix}-{scale}-s{seed}"
        known = existing.get(_training(config))
        if known is None and (folder / "config.json").exists():
            holds = f"{folder} holds a run of another configuration than this plan's"
            raise PrismError(f"{holds}; move it away or choose another --cells")
        # The folder's own configuration: it may ask for another number of episodes.
        folder, config = known or (folder, config)
        cells.append(Cell(variant, seed, folder, config))
    return cells


def _runs(cells_dir: Path) -> dict[RunConfig, tuple[Path, RunConfig]]:
    """The folder's runs, by what decides their weights."""
    runs: dict[RunConfig, tuple[Path, RunConfig]] = {}
    for path in sorted(cells_dir.glob("*/config.json")):
        try:
            config = read_run(path.parent)
        except PrismError:
            continue  # of something else; where a cell needs its place, it is refused by name
        runs.setdefault(_training(config), (path.parent, config))
    return runs


def _training(config: RunConfig) -> RunConfig:
    """The part of a configuration that decides the weights, as a key."""
    return replace(config, evaluate=EvalConfig())


def _fit(config: RunConfig, demos: Sequence[Path]) -> RunConfig:
    """The configuration on the first of these files that fits it."""
    *others, last = (replace(config, dataset=str(file.absolute())) for file in demos)
    for candidate in others:
        with contextlib.suppress(PrismError):
            return fit_to_dataset(candidate)[0]
    return fit_to_dataset(last)[0]


def run_cell(
    cell: Cell, checkpoints: Sequence[str], n_episodes: int, device: Device = "auto", workers: int | None = None
) -> bool:
    """Train and evaluate what is missing of a cell; False where another process is at it."""
    from prism_policy.config.options import EvalOptions
    from prism_policy.reports.evaluate import evaluate_runs
    from prism_policy.training.run import train_run

    with file_lock(cell.folder.parent / f".{cell.folder.name}.lock") as acquired:
        if not acquired:
            return False
        if not is_trained(cell.folder):
            train_run(cell.folder, cell.config, device=device)
        every = math.ceil(n_episodes / 4)  # four videos are enough to see what the policy does
        options = EvalOptions(n_episodes, tuple(checkpoints), (cell.seed,), "evaluate", video_every=every)
        evaluate_runs([cell.folder], options, workers, device)
    return True
