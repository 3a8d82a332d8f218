"""Every setting of the library: frozen dataclasses without torch, each declared once.

A field is also a flag of the command line: its type says what is accepted (`Count` holds a range, see `ranges.py`), and
the text under it is its `--help`. Variants are functions in `presets.py`; derived values are properties.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from prism_policy.config.encoder import EncoderConfig as EncoderConfig
from prism_policy.config.encoder import Precision as Precision
from prism_policy.config.ranges import (
    Count,
    Finite,
    Fraction,
    Natural,
    NonNegative,
    Number,
    Positive,
    Range,
    Resolution,
    Seed,
    Size,
    check_ranges,
)
from prism_policy.errors import PrismError
from prism_policy.tasks import task_spec
from prism_policy.tasks.spec import TaskSpec

PolicyKind = Literal["ddpm", "flow_matching", "meanflow"]
ActionMode = Literal["delta", "absolute"]
TaskInput = Literal["learned", "language"]
Balance = Literal["task", "frame"]
ReferenceFrame = Literal["base", "world"]
Device = Literal["auto", "cpu", "cuda"]
Tracker = Literal["tensorboard", "wandb"]
Decay = Annotated[float, Range(0, 1, open_high=True)]
Beta = Annotated[float, Range(0, 1, open_low=True, open_high=True)]


@dataclass(frozen=True)
class RenderConfig:
    """How frames are drawn; demonstrations and evaluation must agree."""

    resolution: Resolution = 84
    """Width and height of a frame [px]."""
    msaa: Annotated[int, Range(0, 64)] = 0
    """Samples a pixel of multi-sample anti-aliasing; 0 is off. 4 about doubles the cost in software OpenGL."""
    shadows: bool = False
    """Draw shadows (about doubles the cost in software OpenGL)."""
    reflections: bool = False
    """Draw reflections."""


@dataclass(frozen=True)
class TaskConfig:
    """A simulated task, or several of a LIBERO suite, as the policy meets them."""

    name: str = "lift"
    """Which task (lift, can, square, tool_hang, libero_spatial_3), or which suite (libero_spatial)."""
    cameras: tuple[str, ...] = ("agentview", "robot0_eye_in_hand")
    """Cameras the policy sees."""
    max_steps: Number = 400
    """Steps after which a rollout counts as failed (20 steps a second)."""
    action_mode: ActionMode = "delta"
    """Actions are steps of the hand (7 numbers), or its pose in the world (10: position [m], rotation 6D, gripper)."""
    reference_frame: ReferenceFrame = "base"
    """Frame of delta actions: the robot's base (this library's demonstrations) or the world (robomimic's)."""
    render: RenderConfig = RenderConfig()
    numbers: tuple[Natural, ...] = ()
    """Tasks of a suite, by their place in it; empty is all."""
    state: tuple[str, ...] = ()
    """Of robosuite:NAME and gymnasium's, the parts of the state that are observed; the dataset decides."""
    adapter: str = ""
    """Of gym:ID, the ObservationAdapter as MODULE:NAME; empty is the one that comes with this library."""
    env_kwargs: str = ""
    """Of robosuite:NAME, robots, controllers and rate as the dataset recorded them, in JSON; the dataset decides."""

    @property
    def spec(self) -> TaskSpec:
        """What is known of the task."""
        return task_spec(self.name)


@dataclass(frozen=True)
class DemoConfig:
    """How the scripted expert's demonstrations are made."""

    num_demos: Number = 200
    """Successful demonstrations to keep, of each task."""
    noise: NonNegative = 0.5
    """Strength of the disturbances that the expert recovers from, as a share of the full action range."""
    seed: Seed = 0
    """Seed of the demonstrations; evaluated episodes differ from them even at the same seed."""


@dataclass(frozen=True)
class DDPMConfig:
    """Denoising diffusion (Eq. 4 and 5, Table 12a): epsilon prediction, `fixed_small` variance."""

    train_timesteps: Size = 100
    """Diffusion steps K."""
    beta_schedule: Literal["squaredcos_cap_v2", "linear"] = "squaredcos_cap_v2"
    """Noise schedule by its name in diffusers."""
    beta_start: Beta = 1e-4
    """First beta of the linear schedule; the squared cosine has its own."""
    beta_end: Beta = 2e-2
    """Last beta of the linear schedule."""
    clip_sample: bool = True
    """Clip the predicted clean chunk to [-1, 1] at every step."""
    sampler: Literal["ddpm", "ddim"] = "ddpm"
    """Ancestral sampling (ddpm), or deterministic sampling that needs fewer steps (ddim)."""
    num_inference_steps: Size = 100
    """Steps at inference."""


@dataclass(frozen=True)
class FlowMatchingConfig:
    """Flow matching along straight paths (Eq. 6 and 7, Table 12b)."""

    num_inference_steps: Size = 10
    """Uniform steps at inference."""
    solver: Literal["euler", "midpoint"] = "euler"
    """Euler, or the midpoint rule with two network calls a step."""
    time_scale: Positive = 100.0
    """Factor of the flow time in [0, 1] before the sinusoidal embedding, which was made for steps 0 to 100."""


@dataclass(frozen=True)
class MeanFlowConfig:
    """MeanFlow (Eq. 8 to 13, Table 12c)."""

    t_mean: Finite = -0.6
    """t = sigmoid(N(t_mean, t_std))."""
    t_std: NonNegative = 1.6
    r_mean: Finite = -4.0
    """r = sigmoid(N(r_mean, r_std)), then r = min(t, r)."""
    r_std: NonNegative = 1.6
    # The paper says 0.75 in its text and in Table 12c; in code it builds on, 0.75 is the probability that they differ.
    equal_ratio: Fraction = 0.75
    """Probability of r = t, where the target is the instantaneous velocity (Table 12c)."""
    order: Literal["clamp", "swap"] = "clamp"
    """What makes r <= t: r = min(t, r) (clamp), or exchanging the two (swap)."""
    norm_power: NonNegative = 0.75
    """p of the adaptive weight (Eq. 13)."""
    norm_eps: Positive = 1e-3
    """epsilon of the adaptive weight (Eq. 13)."""
    num_inference_steps: Size = 1
    """Steps at inference: one network call each."""
    time_scale: Positive = 10.0
    """Factor of t and h = t - r before the sinusoidal embedding; with flow matching's 100 learning was far slower."""


@dataclass(frozen=True)
class PolicyConfig:
    """A generative policy: the encoder, the 1D U-Net and the noise process."""

    kind: PolicyKind = "flow_matching"
    """Generative model of the action chunk."""
    encoder: EncoderConfig = EncoderConfig()  # noqa: RUF009 (frozen)
    horizon: Size = 16
    """Length of the predicted action chunk [steps] (Table 9)."""
    n_obs_steps: Size = 2
    """Frames the policy sees (Table 9)."""
    n_action_steps: Size = 8
    """Actions executed before the next prediction (Table 9)."""
    task_input: TaskInput = "learned"
    """How tasks are distinguished: a learned vector each, or a language model's embedding of the instruction."""
    task_embed_dim: Size = 32
    """Size of the task's part of the U-Net's condition."""
    down_dims: tuple[Size, ...] = (256, 512, 1024)
    """Channels of the U-Net's levels (Table 11)."""
    kernel_size: Size = 5
    """Kernel of the U-Net's convolutions (Table 11)."""
    n_groups: Size = 8
    """Groups of the U-Net's GroupNorm (Table 11)."""
    step_embed_dim: Size = 128
    """Dimension of the embedding of the diffusion step or time (Table 11)."""
    ddpm: DDPMConfig = DDPMConfig()
    """Read where kind is `ddpm`."""
    flow_matching: FlowMatchingConfig = FlowMatchingConfig()
    """Read where kind is `flow_matching`."""
    meanflow: MeanFlowConfig = MeanFlowConfig()
    """Read where kind is `meanflow`."""


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation (Table 8)."""

    steps: Count = 50_000
    """Updates."""
    batch_size: Count = 512
    """Windows an update."""
    noise_draws: Count = 1
    """Noise and times that each window of an update is learned with; more cost little beside encoding its images."""
    balance: Balance = "task"
    """Draw windows of several tasks equally often (task), or as often as each has frames (frame)."""
    lr: Positive = 1e-4
    """Peak learning rate of AdamW."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NonNegative = 1e-6
    warmup_steps: Natural = 500
    """Linear warm-up before the cosine decay to zero."""
    grad_clip: NonNegative = 0.0
    """Largest norm of the gradient; 0 is off."""
    ema_power: Positive | None = 0.75
    """EMA decay at update n is 1 - (1 + n)^-power, at most `ema_max_decay`; None is `ema_max_decay` throughout."""
    ema_max_decay: Decay = 0.9999
    precision: Precision = "float32"
    """Arithmetic of the network: bfloat16 where it does no harm (autocast), or float32."""
    compile: bool = False
    """Fuse the network's operations with torch.compile: for a GPU; on a CPU it gained nothing."""
    deterministic: bool = False
    """Only operations that give the same bits every time, in as many threads all the time, so that a resumed run ends
    the same (on a CPU, OMP_NUM_THREADS does that, too)."""
    checkpoint_minutes: NonNegative = 1.0
    """Minutes between checkpoints; at most this much work is lost to a kill."""
    keep_every: Natural = 12_500
    """Updates between kept checkpoints of the averaged weights (Table 8: 50 epochs); 0 is never."""
    log_every: Natural = 50
    """Updates between lines of metrics.jsonl; with 0 only checkpoints, validations and the end write one."""
    valid_every: Natural = 250
    """Updates between validations on held-out demonstrations (Table 8: an epoch); 0 is never."""
    rollout_every: Natural = 12_500
    """Updates between rollouts of the averaged weights in simulation (Table 8: 50 epochs); 0 is never."""
    rollout_episodes: Number = 50
    """Episodes of each (several tasks share them), of the split `validate`, which no result is measured on."""


@dataclass(frozen=True)
class EvalConfig:
    """Rollouts in simulation."""

    n_episodes: Number = 20
    """Episodes (of each task), all unseen in training and tuning."""
    split: Literal["evaluate", "validate"] = "evaluate"
    """Episodes to measure on: `validate` to choose settings, `evaluate` for results."""
    seed: Seed = 0
    """Seed of the episodes' starts and of the policy's noise."""


@dataclass(frozen=True)
class ProbeConfig:
    """The spatial probe: encoders learn where things are in still scenes."""

    task: str = "lift"
    """Task whose scenes are drawn."""
    camera: str = "agentview"
    """Camera that sees them."""
    width: Size = 16
    """Channels of the trunk's first stage: 16 trains in seconds on two cores, 64 is the paper's."""
    steps: Count = 1000
    """Updates of each encoder."""
    batch_size: Count = 16
    """Frames an update."""
    lr: Positive = 1e-3
    """Peak learning rate of AdamW, after a warm-up of a twentieth and before a cosine to zero."""
    train_frames: Number = 2000
    """Scenes to learn from."""
    test_frames: Number = 500
    """Other scenes, on which the error is measured."""
    scene_seed: Seed = 0
    """Seed of the scenes."""


@dataclass(frozen=True)
class DataConfig:
    """What of the demonstrations is learned from; what there is, `prism info` says."""

    cameras: tuple[str, ...] = ()
    """Cameras, in this order; empty is those of the task, or of a task without a simulator all."""
    state: tuple[str, ...] = ()
    """Parts of the state, in this order; empty is hands and fingers where so named, else all."""
    action: tuple[str, ...] = ()
    """Parts of the action, in this order; empty is all."""
    resize: str = ""
    """Size of the images that the policy sees: 84, or 96x128 (height x width); empty is that of the recording."""
    crop: str = ""
    """Box that is cut out of the recording's images before: TOP,LEFT,HEIGHT,WIDTH [px]."""
    mask: str = ""
    """Mask to learn from, such as 20_percent; empty is `train`, or all where there are no masks."""
    episodes: tuple[str, ...] = ()
    """Episodes of a LeRobot dataset, numbers and ranges such as 7 and 0:10; empty is all that are there."""
    clip_quantile: Annotated[float, Range(0, 0.5, open_high=True)] = 0.0
    """Clip actions, and the ranges that scale state and action, to this quantile and 1 less it; 0 is off."""


@dataclass(frozen=True)
class RunConfig:
    """Everything a run depends on; `config.json` in the run folder."""

    task: TaskConfig = TaskConfig()
    dataset: str = ""
    """File of demonstrations with images; empty is a scripted expert's, collected as `demos` says."""
    data: DataConfig = DataConfig()
    demos: DemoConfig = DemoConfig()
    policy: PolicyConfig = PolicyConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvalConfig = EvalConfig()
    seed: Seed = 0
    """Seed of the initial weights, the batches and the noise in training."""


def check(config: RunConfig) -> None:
    """Check a run's settings before anything is written."""
    check_task(config.task)
    check_ranges(config)


def single_tasks(task: TaskConfig) -> tuple[TaskConfig, ...]:
    """The tasks of a suite one by one, with the cameras, limit and drawing of the whole; any other task alone."""
    spec = task.spec
    if task.action_mode not in spec.action_modes:
        expected = " or ".join(map(repr, spec.action_modes))
        raise PrismError(f"task.action_mode: expected {expected} for {task.name}, got {task.action_mode!r}")
    if not spec.members:
        if task.numbers:
            raise PrismError(f"task.numbers: expected none, as '{task.name}' is a single task, got {task.numbers}")
        return (task,)
    if len(set(task.numbers)) < len(task.numbers):
        raise PrismError(f"task.numbers: expected each task only once, got {task.numbers}")
    if wrong := [number for number in task.numbers if not 0 <= number < len(spec.members)]:
        raise PrismError(f"{task.name}: expected a task from 0 to {len(spec.members) - 1}, got {wrong[0]}")
    numbers = task.numbers or range(len(spec.members))
    return tuple(replace(task, name=spec.members[number], numbers=()) for number in numbers)


def check_task(task: TaskConfig) -> None:
    """Refuse what no simulation can have."""
    single_tasks(task)
    if not task.spec.simulated or not task.spec.simulator.cameras:  # the dataset and the adapter say what there is
        return
    cameras = task.spec.simulator.cameras
    if unknown := [camera for camera in task.cameras if camera not in cameras]:
        raise PrismError(f"unknown camera '{unknown[0]}'; task '{task.name}' has {', '.join(cameras)}")
    if not task.cameras or len(set(task.cameras)) < len(task.cameras):
        raise PrismError(f"expected at least one camera and each only once, got {', '.join(task.cameras) or 'none'}")
