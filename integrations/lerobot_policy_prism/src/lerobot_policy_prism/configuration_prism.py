"""`--policy.type=prism`: the settings of this library's policies as LeRobot's command line reads them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any, Literal, get_type_hints

import torch
from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamWConfig, LRSchedulerConfig, OptimizerConfig
from prism_policy.config import presets
from prism_policy.config.ranges import check_ranges
from prism_policy.config.settings import (
    DDPMConfig,
    EncoderConfig,
    FlowMatchingConfig,
    MeanFlowConfig,
    PolicyConfig,
    PolicyKind,
    TaskInput,
    TrainConfig,
)
from prism_policy.data.schema import Schema
from prism_policy.errors import PrismError
from prism_policy.policies.base import check_policy
from prism_policy.utils.images import Resize
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

NATIVE = 0
"""`encoder.num_keypoints` of as many keypoints as the stage has channels, which is none in `EncoderConfig`."""

_HINTS = get_type_hints(EncoderConfig)
# Every field of EncoderConfig, empty where the preset `name` decides: one declaration of each setting, there.
EncoderOptions: Any = make_dataclass(
    "EncoderOptions",
    [("name", str, "prism"), *((f.name, _HINTS[f.name] | None, None) for f in fields(EncoderConfig))],
    namespace={"__doc__": "An encoder by its preset's name, and what is otherwise."},
    module=__name__,
)


@LRSchedulerConfig.register_subclass("prism")
@dataclass
class PrismSchedulerConfig(LRSchedulerConfig):
    """Linear warm-up, then a half cosine to zero at the last update, as `prism train` has it."""

    num_warmup_steps: int | None = 500

    def build(self, optimizer: Optimizer, num_training_steps: int) -> LambdaLR:
        """The schedule over this many updates."""
        from prism_policy.training.trainer import learning_rate

        peak: float = optimizer.param_groups[0]["lr"]
        config = TrainConfig(steps=num_training_steps, warmup_steps=self.num_warmup_steps or 0, lr=peak)
        return LambdaLR(optimizer, lambda step: learning_rate(step, config) / peak)


@OptimizerConfig.register_subclass("prism_adamw")
@dataclass
class PrismAdamWConfig(AdamWConfig):
    """AdamW in one pass over all weights, as `prism train` has it: the same sums, in the same order."""

    def build(self, params: Any) -> Optimizer:
        """The optimiser of these weights."""
        return torch.optim.AdamW(params, self.lr, self.betas, self.eps, self.weight_decay, fused=True)


@PreTrainedConfig.register_subclass("prism")
@dataclass
class PrismConfig(PreTrainedConfig):
    """Diffusion, flow matching or MeanFlow over action chunks, on any of this library's encoders.

    What is left empty follows from `size`, `kind` and `encoder.name`; a saved config.json holds every number.
    """

    n_obs_steps: int = 2
    """Frames the policy sees."""
    size: Literal["paper", "nano"] = "paper"
    """Networks at the paper's size, or a tenth of it for two CPU cores; and the learning rate that goes with them."""
    kind: PolicyKind = "flow_matching"
    """Generative model of the action chunk."""
    encoder: EncoderOptions = field(default_factory=EncoderOptions)
    """`--policy.encoder.name=prism`, `sspool`, `ms_avgpool` ... and any field of it: `--policy.encoder.width=32`."""
    horizon: int = 16
    """Length of the predicted action chunk [steps]."""
    n_action_steps: int = 8
    """Actions executed before the next prediction."""
    task_input: TaskInput = "learned"
    """How tasks are distinguished: a learned vector each, or a language model's embedding of the task's words."""
    task_embed_dim: int = 32
    down_dims: tuple[int, ...] | None = None
    """Channels of the U-Net's levels."""
    kernel_size: int = 5
    n_groups: int = 8
    step_embed_dim: int | None = None
    ddpm: DDPMConfig = field(default_factory=DDPMConfig)
    flow_matching: FlowMatchingConfig = field(default_factory=FlowMatchingConfig)
    meanflow: MeanFlowConfig = field(default_factory=MeanFlowConfig)

    resize_shape: tuple[int, int] | None = None
    """Height and width that the policy sees, whatever the cameras' are; none is the recording's."""
    crop_box: tuple[int, int, int, int] | None = None
    """Top, left, height and width that are cut out of the images before [px]."""

    use_ema: bool = True
    """Act with a moving average of the weights, as `prism train` does."""
    ema_power: float | None = None
    """EMA decay at update n is 1 - (1 + n)^-power, at most `ema_max_decay`; 0 is `ema_max_decay` throughout."""
    ema_max_decay: float = 0.9999

    optimizer_lr: float | None = None
    optimizer_betas: tuple[float, float] = (0.9, 0.999)
    optimizer_eps: float = 1e-8
    optimizer_weight_decay: float = 1e-6
    optimizer_grad_clip_norm: float = 0.0
    """Largest norm of the gradient; 0 is off."""
    scheduler_warmup_steps: int | None = None

    # The policy holds its normalizer: LeRobot's processors, and what an override puts into them, change no number.
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: dict.fromkeys(("VISUAL", "STATE", "ENV", "ACTION"), NormalizationMode.IDENTITY)
    )
    robot: Schema | None = None
    """What the robot shows and takes; the dataset decides."""
    action_feature_names: list[str] | None = None
    """Names of the action's numbers, by which LeRobot orders what it sends to a robot; the dataset decides."""
    instructions: tuple[str, ...] = ()
    """Tasks that are learned, where there are several; the dataset decides."""

    def __post_init__(self) -> None:
        """Fill in what follows from the others, and refuse what cannot be."""
        super().__post_init__()
        if other := {mode for mode in self.normalization_mapping.values() if mode is not NormalizationMode.IDENTITY}:
            got = ", ".join(sorted(mode.value for mode in other))
            raise ValueError(f"normalization_mapping: expected IDENTITY, as the policy normalises itself, got {got}")
        try:
            self._fill()
            config = self.policy_config()
            check_ranges(config, "policy.")
            check_policy(config)
            check_ranges(self._train_config(), "policy.")
            self.resize()
        except PrismError as error:  # draccus names the class with a ValueError alone
            raise ValueError(str(error)) from error

    def _fill(self) -> None:
        preset = {"paper": presets.paper, "nano": presets.nano}[self.size](
            policy=self.kind, encoder_name=self.encoder.name
        )
        for name in ("down_dims", "step_embed_dim"):
            if getattr(self, name) is None:
                setattr(self, name, getattr(preset.policy, name))
        for name, value in vars(preset.policy.encoder).items():
            if getattr(self.encoder, name) is None:
                setattr(self.encoder, name, NATIVE if value is None else value)
        of_training = {"optimizer_lr": preset.train.lr, "scheduler_warmup_steps": preset.train.warmup_steps}
        of_training["ema_power"] = preset.train.ema_power or 0.0
        for name, value in of_training.items():
            if getattr(self, name) is None:
                setattr(self, name, value)

    def policy_config(self) -> PolicyConfig:
        """The same as this library's own settings."""
        encoder = {f.name: getattr(self.encoder, f.name) for f in fields(EncoderConfig)}
        encoder["num_keypoints"] = encoder["num_keypoints"] or None
        rest = {f.name: getattr(self, f.name) for f in fields(PolicyConfig) if f.name != "encoder"}
        return PolicyConfig(**rest, encoder=EncoderConfig(**encoder))

    def resize(self) -> Resize | None:
        """What is done to each image before the encoder; None is nothing."""
        return Resize.parse("x".join(map(str, self.resize_shape or ())), ",".join(map(str, self.crop_box or ())))

    def _train_config(self) -> TrainConfig:
        assert self.optimizer_lr is not None
        assert self.scheduler_warmup_steps is not None
        return TrainConfig(
            lr=self.optimizer_lr,
            betas=self.optimizer_betas,
            eps=self.optimizer_eps,
            weight_decay=self.optimizer_weight_decay,
            grad_clip=self.optimizer_grad_clip_norm,
            warmup_steps=self.scheduler_warmup_steps,
            ema_power=self.ema_power or None,
            ema_max_decay=self.ema_max_decay,
        )

    def ema_decay(self, update: int) -> float:
        """Decay of the moving average at this update, counted from 0."""
        from prism_policy.training.trainer import ema_decay

        return ema_decay(update, self._train_config())

    @property
    def drop_n_last_frames(self) -> int:
        """Frames at an episode's end that no window starts at: less than half of its actions would be there."""
        return max(self.horizon - self.n_action_steps - self.n_obs_steps + 1, 0)

    def get_optimizer_preset(self) -> PrismAdamWConfig:  # noqa: D102 (LeRobot's)
        settings = self._train_config()
        named = {name: getattr(settings, name) for name in ("lr", "betas", "eps", "weight_decay")}
        return PrismAdamWConfig(**named, grad_clip_norm=settings.grad_clip)

    def get_scheduler_preset(self) -> PrismSchedulerConfig:  # noqa: D102 (LeRobot's)
        return PrismSchedulerConfig(num_warmup_steps=self.scheduler_warmup_steps)

    def validate_features(self) -> None:
        """Refuse a dataset without a camera, a state, or an action."""
        there = ", ".join([*(self.input_features or {}), *(self.output_features or {})]) or "nothing"
        if not self.image_features:
            raise ValueError(f"expected images of at least one camera, got {there}")
        if self.action_feature is None:
            raise ValueError(f"expected the feature 'action', got {there}")

    @property
    def observation_delta_indices(self) -> list[int]:  # noqa: D102 (LeRobot's)
        return list(range(1 - self.n_obs_steps, 1))

    @property
    def action_delta_indices(self) -> list[int]:  # noqa: D102 (LeRobot's)
        return list(range(1 - self.n_obs_steps, 1 - self.n_obs_steps + self.horizon))

    @property
    def reward_delta_indices(self) -> None:  # noqa: D102 (LeRobot's)
        return None
