"""Every setting of the library: frozen dataclasses without torch, one source of each default.

The text under a field is its documentation and becomes `--help`. Variants are functions in `presets.py` that return
these types; nothing is changed behind the user's back, derived values are properties.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from prism_policy.config.ranges import (
    Count,
    Finite,
    Fraction,
    Natural,
    NonNegative,
    Positive,
    Range,
    check_ranges,
)
from prism_policy.errors import PrismError

if TYPE_CHECKING:
    from prism_policy.tasks.libero import LiberoTask

Pooling = Literal["spatial_softmax", "avg", "max", "none"]
Fusion = Literal["last", "concat", "tdca"]
Tokens = Literal["keypoint", "stage"]
TokenEmbedding = Literal["shared", "identity", "own"]
RefineBlock = Literal["bottleneck", "basic"]
Norm = Literal["group", "batch"]
Precision = Literal["float32", "bfloat16"]
PolicyKind = Literal["ddpm", "flow_matching", "meanflow"]
ActionMode = Literal["delta", "absolute"]
TaskName = Literal["lift", "can", "square", "tool_hang"]
SuiteName = Literal["libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90"]
AnyTask = Literal[TaskName, SuiteName]
TaskInput = Literal["learned", "language"]
Balance = Literal["task", "frame"]
ReferenceFrame = Literal["base", "world"]
Device = Literal["auto", "cpu", "cuda"]
Tracker = Literal["tensorboard", "wandb"]
Decay = Annotated[float, Range(0, 1, open_high=True)]

TASKS: dict[str, str] = {
    "lift": "Lift",
    "can": "PickPlaceCan",
    "square": "NutAssemblySquare",
    "tool_hang": "ToolHang",
}
"""Our name of a task -> robosuite's. LIBERO's are in `libero_suites`."""


@dataclass(frozen=True)
class RenderConfig:
    """How frames are drawn. It belongs to the data: demonstrations and evaluation must agree."""

    resolution: Annotated[int, Range(8, 2048)] = 84
    """Width and height of a frame [px]."""
    msaa: Natural = 0
    """Multi-sample anti-aliasing, samples a pixel; 0 is off. 4 about doubles the cost in software OpenGL."""
    shadows: bool = False
    """Draw shadows (about doubles the cost in software OpenGL)."""
    reflections: bool = False
    """Draw reflections."""


CAMERAS = ("agentview", "frontview", "birdview", "sideview", "robot0_robotview", "robot0_eye_in_hand")
"""Cameras of robosuite's scenes."""


@dataclass(frozen=True)
class TaskConfig:
    """A simulated task, or several of a LIBERO suite, as the policy meets them."""

    name: AnyTask = "lift"
    """Which task, or which suite."""
    cameras: tuple[str, ...] = ("agentview", "robot0_eye_in_hand")
    """Cameras the policy sees."""
    max_steps: Count = 400
    """Steps after which a rollout counts as failed (20 steps a second)."""
    action_mode: ActionMode = "delta"
    """What an action says: how far the hand shall move (7 numbers, shares of the controller's range), or where it shall
    be in the world (the policy's 10: position [m], rotation 6D, gripper)."""
    reference_frame: ReferenceFrame = "base"
    """Frame of delta actions: the robot's base as in this library's demonstrations, or the world as in robomimic's."""
    render: RenderConfig = RenderConfig()
    numbers: tuple[Natural, ...] = ()
    """Which tasks of a suite, by their place in it; empty is all of them."""


@dataclass(frozen=True)
class DemoConfig:
    """How the scripted expert's demonstrations are made."""

    num_demos: Count = 200
    """Successful demonstrations to keep, of each task."""
    noise: NonNegative = 0.5
    """Strength of the disturbances the expert has to recover from, as a share of the full action range."""
    seed: Natural = 0
    """Seed of the demonstrations; evaluation draws from a separate stream even at the same seed."""


@dataclass(frozen=True)
class EncoderConfig:
    """A visual encoder as independent choices; `presets.encoder(name)` spells out the paper's."""

    pooling: Pooling = "spatial_softmax"
    """What is kept of a feature map: where it responds (spatial softmax, Eq. 1), its mean, its maximum, or all."""
    fusion: Fusion = "tdca"
    """The deepest stage alone, all stages concatenated, or top-down cross-attention over the stages (Eq. 3)."""
    refine: bool = True
    """Residual refine block before the pooling of each stage (Eq. 2)."""
    refine_block: RefineBlock = "bottleneck"
    """A 3x3 convolution on half the channels between two 1x1, or two full 3x3 (about ten times the operations)."""
    truncate: bool = False
    """Drop the deepest of `stages` (the paper's Truncated ResNet18)."""
    shuffle_keypoints: bool = False
    """Permute the (x, y) pairs, afresh for every sample, in training and inference (Table 2)."""
    depth: Literal[18, 34] = 18
    """ResNet depth."""
    width: Count = 64
    """Channels of the first stage; the following stages double it."""
    norm: Norm = "group"
    """GroupNorm with C/16 groups (Table 10), or BatchNorm."""
    stages: tuple[Annotated[int, Range(1, 4)], ...] = (1, 2, 3, 4)
    """Stages of the trunk that are read, shallow to deep; fusion `last` reads the deepest of them."""
    num_keypoints: Count | None = 32
    """Keypoints a stage (spatial softmax only); null takes the stage's own channels, without a 1x1 convolution."""
    temperature: Positive = 1.0
    """Temperature of the spatial softmax (tau in Eq. 1)."""
    learn_temperature: bool = False
    """Learn the temperature of each stage, starting from `temperature`."""
    crop: Annotated[float, Range(0, 1, open_low=True)] = 0.9
    """Share of the image kept by the crop: random in training, centred in evaluation. 84 px becomes 76, 240 px 216."""
    attention_dim: Count = 200
    """Dimension of the cross-attention (d in Eq. 3)."""
    tokens: Tokens = "keypoint"
    """What the cross-attention sees as one token: all keypoints of a stage, or each keypoint."""
    token_embedding: TokenEmbedding = "identity"
    """What tells tokens apart, as attention ignores their order: `shared`, nothing, one linear map embeds them all;
    `identity`, that and a learned vector for each; `own`, a linear map and a vector for each."""
    residual_query: bool = False
    """Add the deepest stage's tokens to what they attend to; Eq. 3 has them as the query alone."""
    out_dim: Count = 320
    """Numbers a camera after the fusion's projection (tdca only)."""
    precision: Precision = "float32"
    """Arithmetic of the convolutions of trunk and refine blocks; bfloat16 is faster where the machine has it. Pooling,
    fusion and weights stay in float32."""
    share_cameras: bool = False
    """One trunk for all cameras instead of one each (Table 10: one each)."""

    @property
    def stages_read(self) -> tuple[int, ...]:
        """Stages whose feature maps are pooled, shallow to deep."""
        stages = self.stages[:-1] if self.truncate else self.stages
        return stages[-1:] if self.fusion == "last" else stages


@dataclass(frozen=True)
class DDPMConfig:
    """Denoising diffusion (Eq. 4 and 5, Table 12a): epsilon prediction, `fixed_small` variance."""

    train_timesteps: Count = 100
    """Diffusion steps K."""
    beta_schedule: Literal["squaredcos_cap_v2", "linear"] = "squaredcos_cap_v2"
    """Noise schedule by its name in diffusers."""
    beta_start: Fraction = 1e-4
    """First beta of the linear schedule; the squared cosine has its own (Table 12a lists it all the same)."""
    beta_end: Fraction = 2e-2
    """Last beta of the linear schedule."""
    clip_sample: bool = True
    """Clip the predicted clean chunk to [-1, 1] at every step."""
    sampler: Literal["ddpm", "ddim"] = "ddpm"
    """Ancestral sampling, or the deterministic DDIM, which needs fewer steps."""
    num_inference_steps: Count = 100
    """Steps at inference."""


@dataclass(frozen=True)
class FlowMatchingConfig:
    """Flow matching along straight paths (Eq. 6 and 7, Table 12b)."""

    num_inference_steps: Count = 10
    """Uniform steps at inference."""
    solver: Literal["euler", "midpoint"] = "euler"
    """Euler, or the midpoint rule with two network calls a step."""
    time_scale: Positive = 100.0
    """Flow time in [0, 1] is multiplied by this before the sinusoidal embedding, which was made for steps 0 to 100."""


@dataclass(frozen=True)
class MeanFlowConfig:
    """MeanFlow (Eq. 8 to 13, Table 12c)."""

    t_mean: Finite = -0.6
    """t = sigmoid(N(t_mean, t_std))."""
    t_std: NonNegative = 1.6
    r_mean: Finite = -4.0
    """r = sigmoid(N(r_mean, r_std)), then r = min(t, r)."""
    r_std: NonNegative = 1.6
    equal_ratio: Fraction = 0.75
    """Probability of r = t, where the target is the instantaneous velocity. The paper says 0.75 in its text and in
    Table 12c; in code it builds on, 0.75 is the probability that they differ."""
    order: Literal["clamp", "swap"] = "clamp"
    """What makes r <= t: r = min(t, r), or exchanging the two."""
    norm_power: NonNegative = 0.75
    """p of the adaptive weight (Eq. 13)."""
    norm_eps: Positive = 1e-3
    """epsilon of the adaptive weight (Eq. 13)."""
    num_inference_steps: Count = 1
    """Steps at inference: one network call each."""
    time_scale: Positive = 10.0
    """t and h = t - r are multiplied by this before the sinusoidal embedding. Their derivative, which the target holds,
    grows alike: with 100, as in flow matching, learning was far slower."""


@dataclass(frozen=True)
class PolicyConfig:
    """A generative policy: the encoder, the 1D U-Net and the noise process."""

    kind: PolicyKind = "flow_matching"
    """Which generative model of the action chunk."""
    encoder: EncoderConfig = EncoderConfig()
    horizon: Count = 16
    """Length of the predicted action chunk [steps] (Table 9)."""
    n_obs_steps: Count = 2
    """Frames the policy sees (Table 9)."""
    n_action_steps: Count = 8
    """Actions executed before the next prediction (Table 9)."""
    task_input: TaskInput = "learned"
    """What a policy of several tasks is told about the one at hand: a learned vector of its own, or an embedding of its
    instruction by a frozen language model, which also has an answer for instructions never seen."""
    task_embed_dim: Count = 32
    """Numbers that the U-Net's condition gets of it."""
    down_dims: tuple[Count, ...] = (256, 512, 1024)
    """Channels of the U-Net's levels (Table 11)."""
    kernel_size: Count = 5
    """Kernel of the U-Net's convolutions (Table 11)."""
    n_groups: Count = 8
    """Groups of the U-Net's GroupNorm (Table 11)."""
    step_embed_dim: Count = 128
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
    balance: Balance = "task"
    """Of several tasks, windows are drawn as often from each, or as often as it has frames."""
    lr: Positive = 1e-4
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NonNegative = 1e-6
    warmup_steps: Natural = 500
    """Linear warm-up before the cosine decay to zero."""
    grad_clip: NonNegative = 0.0
    """Clip the gradient's norm to this; 0 is off."""
    ema_power: Positive | None = 0.75
    """EMA decay at update n is 1 - (1 + n)^-power, at most `ema_max_decay`; null is `ema_max_decay` throughout."""
    ema_max_decay: Decay = 0.9999
    precision: Precision = "float32"
    """Arithmetic of the network: bfloat16 where it does no harm (autocast), or float32 throughout."""
    compile: bool = False
    """Fuse the network's operations with torch.compile: for a GPU; on a CPU it gained nothing."""
    deterministic: bool = False
    """On a GPU, only operations that give the same bits every time, so that a resumed run ends with the same weights;
    a CPU always does."""
    checkpoint_minutes: NonNegative = 1.0
    """Minutes between checkpoints; at most this much work is lost to a kill."""
    keep_every: Natural = 12_500
    """Updates between averaged weights that are kept (Table 8: 50 epochs); 0 is never."""
    log_every: Natural = 50
    """Updates between lines of metrics.jsonl."""
    valid_every: Natural = 250
    """Updates between validations on held-out demonstrations, where there are any (Table 8: an epoch); 0 is never."""
    rollout_every: Natural = 12_500
    """Updates between rollouts of the averaged weights, where there is a simulator (Table 8: 50 epochs); 0 is never."""
    rollout_episodes: Count = 50
    """Episodes of each, of the stream `validate`: the best is not chosen on the episodes that measure it. Several tasks
    share them."""


@dataclass(frozen=True)
class EvalConfig:
    """Rollouts in simulation."""

    n_episodes: Count = 20
    """Episodes (of each task), all unseen in training and tuning."""
    split: Literal["evaluate", "validate"] = "evaluate"
    """Stream of episodes: `validate` is for choosing settings, `evaluate` for the result."""
    seed: Natural = 0
    """Episode i starts from (seed, i), with policy noise from the same pair."""


@dataclass(frozen=True)
class ProbeConfig:
    """The spatial probe: encoders learn to say where things are in still scenes."""

    task: TaskName = "lift"
    """Whose scenes."""
    camera: str = "agentview"
    """The camera that looks at them."""
    width: Count = 16
    """Channels of the trunk's first stage: 16 is what two cores train in seconds, 64 the paper's."""
    steps: Count = 1000
    """Updates of each encoder."""
    batch_size: Count = 16
    """Frames an update."""
    lr: Positive = 1e-3
    """Peak learning rate of AdamW, after a warm-up of a twentieth and before a cosine to zero."""
    train_frames: Count = 2000
    """Scenes to learn from."""
    test_frames: Count = 500
    """Other scenes, on which the error is measured."""
    scene_seed: Natural = 0
    """Seed of the scenes."""


@dataclass(frozen=True)
class RunConfig:
    """Everything a run depends on; `config.json` in the run folder."""

    task: TaskConfig = TaskConfig()
    dataset: str = ""
    """File of demonstrations with images; empty is the scripted expert's, made by `demos`."""
    demos: DemoConfig = DemoConfig()
    policy: PolicyConfig = PolicyConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvalConfig = EvalConfig()
    seed: Natural = 0
    """Seed of the initial weights, the batches and the noise in training."""


def check(config: RunConfig) -> None:
    """Check a run's settings before anything is written.

    Raises:
        PrismError: tasks that the suite does not have; an unknown or repeated camera, or none; a number out of its
            field's range.
    """
    check_task(config.task)
    check_ranges(config)


def check_task(task: TaskConfig) -> None:
    """Find what no simulation can have.

    Raises:
        PrismError: tasks that the suite does not have, or see `check_cameras`.
    """
    from prism_policy.tasks.libero import single_tasks  # which builds on this module

    single_tasks(task)
    check_cameras(task)


def check_cameras(task: TaskConfig | LiberoTask) -> None:
    """Find cameras and ways of drawing that no simulation can have.

    Raises:
        PrismError: an unknown or repeated camera, or none; a resolution or a number of samples out of range.
    """
    if unknown := [c for c in task.cameras if c not in CAMERAS]:
        raise PrismError(f"unknown camera '{unknown[0]}'; task '{task.name}' has {', '.join(CAMERAS)}")
    if not task.cameras or len(set(task.cameras)) < len(task.cameras):
        raise PrismError(f"expected at least one camera and each only once, got {', '.join(task.cameras) or 'none'}")
    if not 8 <= task.render.resolution <= 2048:
        raise PrismError(f"resolution: expected 8 to 2048 px, got {task.render.resolution}")
    if task.render.msaa < 0:
        raise PrismError(f"msaa: expected 0 or more samples, got {task.render.msaa}")
