"""`prism reproduce study`: encoders compared over training seeds, in regimes that a pilot chose (results/PLAN.md).

A finished cell is one line of cells.jsonl, which holds all that the report needs: the file can be committed, and
another machine goes on with what is missing, without the weights.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch

from prism_policy.config.options import Attribution
from prism_policy.config.ranges import NonNegative, Seed
from prism_policy.config.settings import EvalConfig, RenderConfig, RunConfig, TaskConfig, single_tasks
from prism_policy.config.typed_json import read_journal
from prism_policy.data.robomimic import demo_names, open_demos, read_masks
from prism_policy.demos.collect import collect_scenes
from prism_policy.demos.dataset import scripted_demos
from prism_policy.demos.render import render_demos
from prism_policy.envs.episode import Split
from prism_policy.envs.workers import WorkerPool, kept_workers
from prism_policy.errors import PrismError
from prism_policy.evaluation.results import EpisodeSet
from prism_policy.evaluation.rollouts import evaluate
from prism_policy.paper.cells import run_config
from prism_policy.paper.experiments import Variant
from prism_policy.policies import Policy
from prism_policy.probe.encoder_cost import device_name
from prism_policy.probe.ridge import ridge_error
from prism_policy.probe.train import Scenes, read_scenes
from prism_policy.run_folder import load_policy, read_metrics
from prism_policy.saliency.clips import Source, draw_clips
from prism_policy.saliency.study import load_subjects, run_study
from prism_policy.training.run import train_run
from prism_policy.utils.files import file_lock, write_lines
from prism_policy.utils.progress import console
from prism_policy.utils.text import shown

Line = dict[str, Any]
"""One measured cell."""


class CellLine(TypedDict):
    """A line of cells.jsonl, as far as the report needs it."""

    regime: str
    encoder: str
    seed: Seed
    settings: str
    successes: str
    train_s: NonNegative
    evaluate_s: NonNegative
    probe_s: NonNegative
    commit: str
    processor: str
    valid_loss: NotRequired[float]
    valid_action_error: NotRequired[float]
    probe_cm: NotRequired[float]
    saliency_lift: NotRequired[float]
    saliency_entropy: NotRequired[float]


N_EPISODES = 50
SEEDS = tuple(range(6))


@dataclass(frozen=True)
class Regime:
    """What all cells of a comparison have in common: the task, what is seen of it, and how much is learned from."""

    name: str
    task: str
    resolution: int
    num_demos: int
    steps: int
    """Updates of 32 windows."""
    max_steps: int
    """Steps after which an episode has failed: the expert's slowest takes fewer than 100."""
    views: int = 1


_DESIGN_FILE = files("prism_policy.paper").joinpath("study.json")
REGIMES = tuple(Regime(**regime) for regime in json.loads(_DESIGN_FILE.read_text(encoding="utf-8"))["regimes"])
"""Two steps of the ladder, the cube as it is and one of half the edge: in each SSPool succeeded in 35 to 75% of the
pilot's episodes (results/PLAN.md)."""

ENCODERS = (
    "sspool", "avgpool", "ms_sspool", "prism", "maxpool", "nopool", "sspool-truncated", "avgpool-truncated",
    "sspool-shuffled", "ms_sspool-refined",
)  # fmt: skip
"""In the order of the runs: the main comparison first, so that it is complete wherever a seed is cut short."""


@dataclass(frozen=True)
class Cell:
    """An encoder, regime and training seed."""

    regime: Regime
    encoder: str
    seed: int

    @property
    def key(self) -> tuple[str, str, int]:
        """What names its line."""
        return self.regime.name, self.encoder, self.seed

    @property
    def config(self) -> RunConfig:
        """Its run: nano's encoder with a U-Net of half the width, on demonstrations that all encoders of a seed share.

        Half the width and half the batch make a cell affordable on one core; what is compared is the encoder.
        """
        name, _, mark = self.encoder.partition("-")
        truncate, shuffle, refine = (mark == word for word in ("truncated", "shuffled", "refined"))
        regime = self.regime
        base = run_config(Variant(regime.task, "flow_matching", name, truncate, shuffle, refine), self.seed, "nano")
        task = replace(base.task, max_steps=regime.max_steps, render=RenderConfig(regime.resolution))
        # Nothing is kept and nothing rolled out on the way: one validation at the end.
        train = replace(base.train, steps=regime.steps, valid_every=regime.steps, keep_every=0, rollout_every=0)
        train = replace(train, batch_size=32, noise_draws=1, lr=1e-3)  # as the plan fixed it
        return replace(
            base,
            task=replace(task, cameras=task.cameras[: regime.views]),
            demos=replace(base.demos, num_demos=regime.num_demos),
            policy=replace(base.policy, down_dims=(32, 64, 128)),
            train=train,
            evaluate=EvalConfig(N_EPISODES, "evaluate", self.seed),
        )


def plan_cells(
    seeds: Sequence[int] | None = None, tasks: Sequence[str] | None = None, encoders: Sequence[str] | None = None
) -> list[Cell]:
    """The cells in the order of the runs: whole seeds first, so that stopping early leaves balanced data."""
    chosen = {"tasks": (tasks, [r.task for r in REGIMES]), "encoders": (encoders, list(ENCODERS))}
    for what, (some, known) in chosen.items():
        if other := [name for name in some or () if name not in known]:
            raise PrismError(f"the study has no {what} '{other[0]}'; it has {', '.join(known)}")
    seeds = SEEDS if seeds is None else seeds
    if not seeds or min(seeds) < 0:
        raise PrismError(f"seeds: expected at least one, each 0 or more, got {', '.join(map(str, seeds)) or 'none'}")
    return [
        Cell(regime, encoder, seed)
        for seed in dict.fromkeys(seeds)
        for regime in REGIMES
        if tasks is None or regime.task in tasks
        for encoder in ENCODERS
        if encoders is None or encoder in encoders
    ]


def read_cells(path: Path) -> list[Line]:
    """The measured cells of a file; of a cell that was measured twice the first."""
    lines: dict[tuple[str, str, int], Line] = {}
    for line in read_journal(path, CellLine).sound("expected cells of `prism reproduce study`: restore the file"):
        if set(line["successes"]) - {"0", "1"} or not line["successes"]:
            raise PrismError(f"{path}: expected successes as 0 and 1, got {shown(line['successes'])}; restore the file")
        lines.setdefault((line["regime"], line["encoder"], line["seed"]), line)
    return list(lines.values())


def missing_cells(cells: Sequence[Cell], lines: Sequence[Line]) -> list[Cell]:
    """Those without a line.

    Raises:
        PrismError: a line is of other settings than this plan's: the two must not be mixed.
    """
    known = {(line["regime"], line["encoder"], line["seed"]): line for line in lines}
    for cell in cells:
        line = known.get(cell.key)
        if line is not None and line["settings"] != settings(cell.regime):
            name, there = "-".join(map(str, cell.key)), line["settings"]
            raise PrismError(
                f"cell {name} was measured with {there}, and now is {settings(cell.regime)}: use another file"
            )
    return [cell for cell in cells if cell.key not in known]


def settings(regime: Regime) -> str:
    """What a regime is, in a few words that go with every line."""
    seen = f"{regime.views} view{'s' * (regime.views > 1)} of {regime.resolution} px"
    return f"{regime.task}, {seen}, {regime.num_demos} demonstrations, {regime.steps} updates, {regime.max_steps} steps"


def estimate(missing: Sequence[Cell], lines: Sequence[Line]) -> float | None:
    """Seconds that these cells take, as those of their regime and encoder took, or else of the encoder, or any."""
    total = 0.0
    for cell in missing:
        alike = [
            [x for x in lines if x["encoder"] == cell.encoder and x["regime"] == cell.regime.name],
            [x for x in lines if x["encoder"] == cell.encoder],
            lines,
        ]
        closest = next((some for some in alike if some), None)
        if closest is None:
            return None
        total += statistics.median(line["train_s"] + line["evaluate_s"] + line["probe_s"] for line in closest)
    return total


def print_cells(cells: Sequence[Cell], missing: Sequence[Cell], lines: Sequence[Line]) -> None:
    """Print what there is to do and what it costs, before it begins."""
    for regime in dict.fromkeys(cell.regime for cell in cells):
        console.print(f"{regime.name}: {settings(regime)}")
    seconds = estimate(missing, lines) if missing else 0.0
    cost = "unknown until the first cell is done" if seconds is None else f"about {seconds / 3600:.1f} h of one core"
    done = len(cells) - len(missing)
    console.print(f"{len(cells)} cells of {N_EPISODES} episodes: {done} measured, {len(missing)} to do; {cost}")


def run_cells(missing: Sequence[Cell], journal: Path, folder: Path) -> None:
    """Train and measure these cells one after the other on one core, and append a line for each as it ends.

    Killed at any moment and called again, it goes on: inside a cell from its last checkpoint and finished episodes. A
    cell that another process is at is left to it.
    """
    torch.set_num_threads(1)
    journal.parent.mkdir(parents=True, exist_ok=True)
    for number, cell in enumerate(missing, start=1):
        name = f"{cell.regime.name}-{cell.encoder}-s{cell.seed}"
        with file_lock(folder / f".{name}.lock") as free:
            if not free or cell.key in {(x["regime"], x["encoder"], x["seed"]) for x in read_cells(journal)}:
                continue
            console.print(f"{name} ({number} of {len(missing)})", style="bold")
            with kept_workers():
                line = measure(cell, folder / name)
            with file_lock(folder / ".journal.lock", "another process is writing a cell: waiting for it"):
                write_lines(journal, [*read_cells(journal), line])  # without a line that a kill or a full disk cut off
            shutil.rmtree(folder / name / "checkpoints", ignore_errors=True)  # to go on with: most of the disk space


def measure(cell: Cell, folder: Path) -> Line:
    """Train a cell in its run folder, roll it out, probe it, and return its line."""
    config = cell.config
    started = time.perf_counter()
    train_run(folder, config, device="cpu")
    metrics = read_metrics(folder).lines
    policy = load_policy(folder)
    trained = time.perf_counter()
    (task,) = single_tasks(config.task)
    episodes = EpisodeSet.of(folder, "last", "evaluate", cell.seed, task)
    with WorkerPool(1) as simulators:
        records = evaluate(episodes.folder, config, policy, config.evaluate, simulators)
    rolled = time.perf_counter()
    cheap = {**spatial_probe(policy, config.task), **saliency_lift(folder, config)}
    last = next(line for line in reversed(metrics) if "valid_loss" in line)
    return {
        "regime": cell.regime.name,
        "encoder": cell.encoder,
        "seed": cell.seed,
        "settings": settings(cell.regime),
        "successes": "".join(str(int(r["success"])) for r in records),
        "stages": dict(Counter(r["stage"] for r in records)),
        "valid_loss": last["valid_loss"],
        "valid_action_error": last["valid_action_error"],
        **cheap,
        "train_s": round(max(metrics[-1]["wall_s"], trained - started), 1),
        "evaluate_s": round(rolled - trained, 1),
        "probe_s": round(time.perf_counter() - rolled, 1),
        "weights": policy.fingerprint(),
        "commit": commit(),
        "processor": device_name(torch.device("cpu")),
    }


PROBE_SCENES: Mapping[Split, int] = {"collect": 300, "evaluate": 200}


@torch.no_grad()
def spatial_probe(policy: Policy, task: TaskConfig) -> dict[str, float]:
    """How far a linear map of the trained encoder's numbers is from where the object lies, on other still scenes [cm].

    The encoder stays as the policy's training left it; the map is a ridge regression, with a strength relative to the
    features' variance, so that encoders of few and of many numbers are treated alike.
    """
    camera, thing = task.cameras[0], task.spec.tracked[0].name
    task = replace(task, cameras=(camera,))
    scenes: dict[Split, Scenes] = {}
    for split, count in PROBE_SCENES.items():
        states = collect_scenes(task, count, split, workers=1)
        scenes[split] = read_scenes(render_demos(states, task, workers=1), camera)
    x, y = {}, {}
    encoder = policy.encoder.encoders[camera]
    for split, some in scenes.items():
        images = torch.split(some.frames, 50)
        x[split] = torch.cat([encoder(policy.encoder.prepare(camera, part)) for part in images]).double().numpy()
        y[split] = some.poses[thing][:, :2].double().numpy()
    error = ridge_error(x["collect"], y["collect"], x["evaluate"], y["evaluate"])
    return {"probe_cm": round(100 * error, 3)}


def saliency_lift(folder: Path, config: RunConfig) -> dict[str, float]:
    """Saliency on object and gripper over their area, on held-out demonstrations that all encoders of a seed share."""
    (images,) = scripted_demos(single_tasks(config.task), config.demos).values()
    with open_demos(images) as file:
        names, held_out = demo_names(file), read_masks(file).get("valid") or demo_names(file)
    history = config.policy.n_obs_steps
    chosen = [names.index(name) for name in held_out[:3]]
    run = replace(config, dataset=str(images))
    wanted = [(Source(config.task, history, i, f"demonstration {i}", run=run), 6, "even") for i in chosen]
    clips = draw_clips(wanted, workers=1)  # type: ignore[arg-type]
    study = run_study(load_subjects([folder], "cpu"), clips, Attribution(), config.task.cameras, checked=0)
    return {f"saliency_{name}": round(float(np.nanmean(study.values(name))), 4) for name in ("lift", "entropy")}


def commit() -> str:
    """The commit of this code, with a plus where files differ from it; "" where it lies in no repository."""
    here = Path(__file__).parent
    found = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=here, capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 else ""
