"""What a command is asked to do with runs, beyond the settings that are kept in a run folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from prism_policy.config.ranges import Fraction, Natural, NonNegative, Number, Positive, Range, Seed, Size, Workers
from prism_policy.config.settings import Device


@dataclass(frozen=True)
class Attribution:
    """How saliency is computed."""

    method: str = "gradient"
    """Method: gradient, smoothgrad, integrated_gradients, layercam or occlusion."""
    target: str = "chunk"
    """What is explained: chunk (all actions, projected on themselves), a part of the action such as gripper, or the
    number of one of its numbers."""
    stage: Annotated[int, Range(1, 4)] | None = None
    """Stage of the trunk for layercam; by default the deepest."""
    noise_level: Annotated[float, Range(0, 1, open_low=True)] | None = None
    """Explain one call of the network at this noise level in (0, 1]; by default the whole sampler."""
    samples: Number | None = None
    """Noisy copies of smoothgrad (by default 16), steps of integrated_gradients (64: the sampler has sharp bends)."""
    blur: NonNegative = 0.1
    """Noise of smoothgrad, as a share of the range of grey levels."""
    patch: Size = 12
    """Side of the square of occlusion [px]; it moves by half of this."""
    seed: Seed = 0
    """Seed of the policy's noise and of smoothgrad's."""


@dataclass(frozen=True)
class SaliencyOptions:
    """Which frames of runs to measure, and what to write."""

    compare: bool = False
    """Test whether the first run is more localised than the others; runs that differ only by seed are one side."""
    episode: Natural = 0
    """The (first) episode; pictures and film are of it."""
    episodes: Number | None = None
    """Episodes to measure; by default 1, or 12 with --compare."""
    frames: Number | None = None
    """Most frames of each, spread evenly; by default 40 of one episode, 8 of each of several."""
    camera: tuple[str, ...] = ()
    """Cameras to show; by default all."""
    video: bool = True
    """Make the film; --no-video leaves it out."""
    checks: bool = True
    """Measure deletion, insertion and randomised weights (most of the time); --no-checks leaves them out."""
    format: str = "png"
    """Of the pictures: png or pdf."""

    @property
    def n_episodes(self) -> int:
        """`episodes`, or its default."""
        return self.episodes if self.episodes is not None else 12 if self.compare else 1

    @property
    def n_frames(self) -> int:
        """`frames`, or its default."""
        return self.frames if self.frames is not None else 40 if self.n_episodes == 1 else 8


@dataclass(frozen=True)
class EvalOptions:
    """What to evaluate of a run, and how."""

    n_episodes: Number | None = None
    """Episodes of each seed; by default as in the run's config.json."""
    checkpoints: tuple[str, ...] = ("last",)
    """Weights: last, best (in rollouts while training), updates such as 12500, last10; the first leads the report."""
    seeds: tuple[Seed, ...] | None = None
    """Seeds of the episodes' starts and noise; by default as in the run's config.json."""
    split: Literal["evaluate", "validate"] | None = None
    """Episodes to measure on: validate to choose settings, evaluate for results; by default as in config.json."""
    video_every: Natural | None = None
    """Record every k-th episode of the first checkpoint; 0 is none; by default at most 20 videos a seed."""
    rerun: bool = False
    """Also write recordings for Rerun, of at most 5 episodes a seed (needs prism-policy[rerun])."""


@dataclass(frozen=True)
class ClusterOptions:
    """What the cells of an experiment run on."""

    device: Device = "auto"
    """Where to compute; auto is a GPU where there is one."""
    workers: Workers | None = None
    """Simulator processes; by default one for each core."""
    ray: str | None = None
    """Run the cells through Ray (prism-policy[cluster]): auto, HOST:PORT, or local, on this machine."""
    gpus_per_cell: NonNegative | None = None
    """With --ray: GPUs a cell, such as 0.5; by default one where the cluster has any."""
    cpus_per_cell: Positive = 1.0
    """With --ray: cores a cell, each with a simulator."""


@dataclass(frozen=True)
class RecordOptions:
    """Which demonstrations to record on a robot, and how they are made."""

    by: Literal["keyboard", "spacemouse", "expert"] = "keyboard"
    """Who demonstrates; expert is for robot = "sim" alone."""
    episodes: Number = 20
    """Demonstrations to keep, those of earlier calls included."""
    format: Literal["robomimic", "lerobot"] = "robomimic"
    """Of the dataset: OUT/demos.hdf5, or LeRobot's v3.0 in OUT/lerobot; the same call with the other adds that."""
    task: str = ""
    """What to do, in words."""
    seed: Seed = 0
    """Of a simulation's starts and its expert."""
    max_steps: Number = 600
    """Control steps after which a demonstration is discarded."""
    speed: Positive = 0.15
    """Of the hand at a key or full deflection [m/s]."""
    turn_speed: Positive = 0.8
    """The same of turns [rad/s]."""
    noise: NonNegative = 0.5
    """Strength of the pushes that disturb the expert."""


@dataclass(frozen=True)
class TrialOptions:
    """Which trials on a robot, and how they are judged."""

    policies: tuple[str, ...]
    """NAME=RUN (a run folder, served here meanwhile) or NAME=ws://SERVER:PORT each."""
    starts: Number = 10
    """Placements, each met by every policy."""
    seed: Seed = 0
    """Of placements, order and the policies' noise."""
    judge: Literal["operator", "simulator"] = "operator"
    """Who says how it went; simulator is for robot = "sim" alone, and marks the results so."""
    until: Literal["all", "decided"] = "all"
    """When to end: all starts, or as soon as the evidence reaches 20 (5% error whenever you stop)."""
    max_steps: Number = 400
    """Control steps after which a trial ends."""
    instruction: str = ""
    """What to do, in words, for a policy of several tasks."""
    stages: tuple[str, ...] = ()
    """How far a trial can come, in order, the last one success; by default those of the task."""
    objects: Natural = 2
    """Objects to place, on a robot."""
    region: tuple[Fraction, Fraction, Fraction, Fraction] = (0.25, 0.35, 0.75, 0.85)
    """Where: left, top, right and bottom, as shares of the first camera's image."""
    reconnect_s: NonNegative = 10.0
    """How long the arm holds for a server that is gone before the trial is void [s]."""
    answer_s: Positive = 5.0
    """How long an answer may take before the server counts as gone [s]."""
    ca: str = ""
    """Of wss://, a file of the certificates to trust."""
