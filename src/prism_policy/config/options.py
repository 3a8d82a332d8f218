"""What a command is asked to do with runs, beyond the settings that are kept in a run folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prism_policy.config.settings import Device


@dataclass(frozen=True)
class EvalOptions:
    """What to evaluate of a run, and how."""

    n_episodes: int | None = None
    """Episodes of each seed; by default as in the run's config.json."""
    checkpoints: tuple[str, ...] = ("last",)
    """Weights: last, best (in rollouts while training), updates such as 12500, last10; the first leads the report."""
    seeds: tuple[int, ...] | None = None
    """Seeds of the episodes' starts and noise; by default as in the run's config.json."""
    split: Literal["evaluate", "validate"] | None = None
    """Episodes to measure on: validate to choose settings, evaluate for results; by default as in config.json."""
    video_every: int | None = None
    """Record every k-th episode of the first checkpoint; 0 is none; by default at most 20 videos a seed."""
    rerun: bool = False
    """Also write recordings for Rerun, of at most 5 episodes a seed (needs prism-policy[rerun])."""


@dataclass(frozen=True)
class ClusterOptions:
    """What the cells of an experiment run on."""

    device: Device = "auto"
    """Where to compute; auto is a GPU where there is one."""
    workers: int | None = None
    """Simulator processes; by default one for each core."""
    ray: str | None = None
    """Run the cells through Ray (prism-policy[cluster]): auto, HOST:PORT, or local, on this machine."""
    gpus_per_cell: float | None = None
    """With --ray: GPUs a cell, such as 0.5; by default one where the cluster has any."""
    cpus_per_cell: float = 1.0
    """With --ray: cores a cell, each with a simulator."""
