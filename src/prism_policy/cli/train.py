"""The commands that train: quickstart and train."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from prism_policy.cli.command import RunCommand
from prism_policy.config import presets
from prism_policy.config.ranges import Positive, Workers
from prism_policy.config.settings import Device, RunConfig, Tracker, check
from prism_policy.utils.terminal import console, shell
from prism_policy.utils.text import file_name


@dataclass(frozen=True)
class Train(RunCommand):
    """Train a policy on demonstrations: those of a file, or a scripted expert's, which are collected where missing.

    Learns from the file's mask `train` (nine of ten demonstrations) and validates on the others. Writes weights,
    settings and metrics into the run folder. Stop it whenever you like: the same command goes on from its last
    checkpoint and ends with the same weights. Next: prism evaluate RUN.

    Every setting of a run is a flag, too: --train.steps 3000 --train.batch-size 128 --train.lr 1e-3
    --policy.encoder.width 32 --task.cameras agentview --task.action-mode absolute. See --help-all.
    """

    preset: Literal["nano", "small", "paper"] = "nano"
    """Sizes and schedule: nano for two CPU cores; small (a fifth of the updates) and paper for a GPU."""
    dataset: Path | None = None
    """Demonstrations with images: HDF5 in robomimic's layout, a LeRobot folder, a folder of either, or hf:USER/NAME;
    by default a scripted expert's."""
    device: Device = "auto"
    """Where to compute; auto is a GPU where there is one."""
    processes: Workers = 1
    """Processes (GPUs) of this machine that share each batch; for several machines see docs/training.md."""
    track: tuple[Tracker, ...] = ()
    """Log metrics to TensorBoard (RUN/tensorboard) or Weights & Biases, too."""
    max_minutes: Positive | None = None
    """Stop after this time, with a checkpoint to go on from."""
    out: Path | None = None
    """Run folder; by default runs/train-TASK-POLICY-ENCODER-PRESET-sSEED."""

    def defaults(self) -> RunConfig:
        """The preset's settings."""
        preset = {"nano": presets.nano, "small": presets.small, "paper": presets.paper}[self.preset]
        if not self.dataset:
            return preset(self.task or "lift", self.policy, self.encoder, self.seed)
        from prism_policy.demos.dataset import task_of
        from prism_policy.utils.hub import local_path

        path = local_path(self.dataset, "dataset").expanduser().absolute()
        config = preset(self.task or task_of(path), self.policy, self.encoder, self.seed)
        return replace(config, dataset=str(path))

    def train(self, config: RunConfig, arguments: Sequence[str] = ()) -> None:
        """Train, in this process or in several, and print where the policy lies."""
        check(config)

        from prism_policy.training.distributed import is_launched, launch
        from prism_policy.training.run import train_run

        if self.processes > 1 and not is_launched():
            launch(self.processes, ["train", *arguments])
            return
        name = config.task.name
        if self.dataset and not config.task.spec.simulated:
            name = self.dataset.stem
        name = file_name(name)
        folder = self.out or Path("runs") / f"train-{name}-{self.policy}-{self.encoder}-{self.preset}-s{self.seed}"
        limit = math.inf if self.max_minutes is None else 60 * self.max_minutes
        train_run(folder, config, device=self.device, track=self.track, max_s=limit)
        if not int(os.environ.get("RANK", "0")):  # of several processes, one prints
            simulated = config.task.spec.simulated
            if not simulated:
                from prism_policy.reports.report import write_report

                console.print(f"Report: {write_report(folder)} (open it in a browser)")
            verb = "evaluate" if simulated else "serve"
            console.print(
                f"Policy: {folder} (weights.safetensors; metrics.jsonl)", f"Next: {shell('prism', verb, folder)}"
            )


@dataclass(frozen=True)
class Quickstart(RunCommand):
    """Collect demonstrations, train a policy, evaluate it and write a report: four minutes on two CPU cores for Lift.

    The same as `prism train` with the preset nano, then `prism evaluate`. A scripted expert collects the demonstrations
    in simulation (kept in ~/.cache/prism-policy, or $PRISM_CACHE), a small policy learns from their images, and 20
    unseen episodes measure its success. Stop it whenever you like: the same command goes on where it was.

    Every setting of a run is a flag, too, such as --task.cameras agentview --task.action-mode absolute. See --help-all.
    """

    smoke: bool = False
    """Run the same path at the smallest size, in about a minute; its success rate means nothing."""
    device: Device = "auto"
    """Where to compute; auto is a GPU where there is one."""
    out: Path | None = None
    """Run folder; by default runs/quickstart-TASK-POLICY-ENCODER-sSEED."""

    def defaults(self) -> RunConfig:
        """The preset nano, or with `--smoke` the smallest sizes."""
        config = presets.nano(self.task or "lift", self.policy, self.encoder, self.seed)
        return presets.smoke(config) if self.smoke else config

    def train(self, config: RunConfig, arguments: Sequence[str] = ()) -> None:
        """Train and evaluate, and print success and where the report lies."""
        check(config)

        from prism_policy.config.options import EvalOptions
        from prism_policy.reports.evaluate import Timings, evaluate_runs, print_summary
        from prism_policy.training.run import train_run
        from prism_policy.utils.memory import PeakMemory

        preset = "smoke" if self.smoke else "nano"
        name = f"{'smoke' if self.smoke else 'quickstart'}-{config.task.name}-{self.policy}-{self.encoder}-s{self.seed}"
        folder = self.out or Path("runs") / (name + "-absolute" * (config.task.action_mode == "absolute"))
        with PeakMemory() as memory:
            timings = folder / "results" / "timings.json"
            train_run(folder, config, device=self.device, stage=lambda stage: Timings(timings).stage(stage, memory))
        (summary,) = evaluate_runs([folder], EvalOptions(), device=self.device, preset=preset)
        print_summary(folder, summary)
