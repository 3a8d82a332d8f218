"""Named settings: the paper's encoders, and whole runs by scale."""

from __future__ import annotations

from dataclasses import replace

from prism_policy.config.settings import (
    DemoConfig,
    EncoderConfig,
    EvalConfig,
    PolicyConfig,
    PolicyKind,
    RenderConfig,
    RunConfig,
    TaskConfig,
    TrainConfig,
)
from prism_policy.errors import PrismError
from prism_policy.tasks import task_spec

_LAST = EncoderConfig(fusion="last", refine=False)
_CONCAT = EncoderConfig(fusion="concat", refine=False)

ENCODERS: dict[str, EncoderConfig] = {
    "avgpool": replace(_LAST, pooling="avg"),
    "maxpool": replace(_LAST, pooling="max"),
    "nopool": replace(_LAST, pooling="none"),
    "sspool": _LAST,
    "ms_avgpool": replace(_CONCAT, pooling="avg"),
    "ms_maxpool": replace(_CONCAT, pooling="max"),
    "ms_nopool": replace(_CONCAT, pooling="none"),
    "ms_sspool": replace(_CONCAT, num_keypoints=48),
    "prism": EncoderConfig(num_keypoints=48, tokens="keypoint", attention_dim=200, out_dim=320),
}


def encoder(name: str) -> EncoderConfig:
    """Return the paper's encoder of this name, at full width; `sspool@2` is sspool after the trunk's second stage."""
    known = {**ENCODERS, **prism_designs()}
    base, _, stage = name.partition("@")
    if base not in known or (stage and (known[base].fusion != "last" or stage not in ("1", "2", "3", "4"))):
        raise PrismError(
            f"unknown encoder '{name}'; available: {', '.join(ENCODERS)}; those that read one stage also with another "
            "one, as in sspool@2"
        )
    return replace(known[base], stages=(int(stage),)) if stage else known[base]


def encoder_name(config: EncoderConfig) -> str:
    """Return the name of the preset with this pooling and fusion, whatever its sizes."""
    return next(n for n, e in ENCODERS.items() if (e.pooling, e.fusion) == (config.pooling, config.fusion))


def prism_designs() -> dict[str, EncoderConfig]:
    """Designs of PRISM that fit all the paper states: 384 numbers before the fusion, +15.4% parameters within 0.2.

    The percentage is of the whole one-camera policy against SSPool. docs/prism-design.md compares them.
    """
    keypoint = ENCODERS["prism"]
    stage = replace(keypoint, tokens="stage", attention_dim=512, out_dim=396)
    keypoint_own = replace(keypoint, token_embedding="own")
    stage_own = replace(stage, token_embedding="own", out_dim=392)
    return {
        "prism-keypoint": keypoint,
        "prism-keypoint-shared": replace(keypoint, token_embedding="shared"),
        "prism-keypoint-own": keypoint_own,
        "prism-keypoint-own-residual": replace(keypoint_own, residual_query=True),
        "prism-keypoint-own-basic": replace(keypoint_own, refine_block="basic", attention_dim=176, out_dim=192),
        "prism-stage": stage,
        "prism-stage-own": stage_own,
        "prism-stage-own-residual": replace(stage_own, residual_query=True),
        "prism-stage-own-basic": replace(stage_own, refine_block="basic", attention_dim=320, out_dim=236),
        "prism-stage-own-3x64": replace(stage_own, stages=(2, 3, 4), num_keypoints=64),
    }


def task_config(name: str) -> TaskConfig:
    """A task or suite with the cameras, limit on a rollout and resolution that it comes with."""
    spec = task_spec(name)
    return TaskConfig(name, spec.cameras, spec.max_steps, render=RenderConfig(spec.resolution))


def demo_config(task: str, seed: int = 0) -> DemoConfig:
    """A task's scripted demonstrations."""
    spec = task_spec(task)
    return DemoConfig(spec.num_demos, spec.noise, seed)


def paper(
    task: str = "lift", policy: PolicyKind = "flow_matching", encoder_name: str = "prism", seed: int = 0
) -> RunConfig:
    """The paper's run at full size (Tables 8 to 12): 50,000 updates of 512 windows. It needs a GPU."""
    # Table 12c gives MeanFlow a constant EMA decay; the others have diffusion policy's, as the paper gives none.
    train = TrainConfig(ema_power=None if policy == "meanflow" else 0.75, precision="bfloat16", compile=True)
    return RunConfig(
        task=task_config(task),
        demos=demo_config(task, seed),
        policy=PolicyConfig(kind=policy, encoder=encoder(encoder_name)),
        train=train,
        evaluate=EvalConfig(n_episodes=50, seed=seed),
        seed=seed,
    )


def nano(
    task: str = "lift", policy: PolicyKind = "flow_matching", encoder_name: str = "prism", seed: int = 0
) -> RunConfig:
    """A run that two CPU cores finish in minutes on Lift: a trunk a quarter as wide, a U-Net a tenth as large.

    Most of a CPU's update is the encoder, so each window that it has encoded is learned from with two draws of noise.
    """
    base, spec, demos = encoder(encoder_name), task_spec(task), demo_config(task, seed)
    keypoints = min(base.num_keypoints or 32, 32)
    narrow = replace(base, width=16, num_keypoints=keypoints, temperature=0.3, attention_dim=64, out_dim=64)
    return RunConfig(
        task=replace(task_config(task), render=RenderConfig(resolution=84)),
        demos=replace(demos, num_demos=20) if spec.members else demos,
        policy=PolicyConfig(policy, narrow, down_dims=(64, 128, 256), step_embed_dim=64),
        train=TrainConfig(
            steps=spec.nano_steps, batch_size=32, noise_draws=2, lr=1.5e-3, warmup_steps=50, log_every=10
        ),
        evaluate=EvalConfig(n_episodes=10 if spec.members else 20, seed=seed),
        seed=seed,
    )


def small(
    task: str = "lift", policy: PolicyKind = "flow_matching", encoder_name: str = "prism", seed: int = 0
) -> RunConfig:
    """The paper's networks on a tenth of its windows and half as many demonstrations; it needs a GPU.

    10,000 updates of 256 windows are 2.6 million, 150 passes over 100 of the expert's demonstrations of Can. The rate
    stays at 1e-4, as the batch is only halved; rollouts and kept checkpoints come four times, as in Table 8.
    """
    base = paper(task, policy, encoder_name, seed)
    train = replace(base.train, steps=10_000, batch_size=256, rollout_episodes=20)
    train = replace(train, keep_every=2_500, rollout_every=2_500)
    return replace(base, demos=replace(base.demos, num_demos=base.demos.num_demos // 2), train=train)


def smoke(config: RunConfig) -> RunConfig:
    """The same path at the smallest size: it shows that everything works and claims nothing about success."""
    return replace(
        config,
        demos=replace(config.demos, num_demos=2),
        train=replace(config.train, steps=10, batch_size=8, warmup_steps=2, log_every=1),
        task=replace(config.task, max_steps=24),
        evaluate=replace(config.evaluate, n_episodes=2),
    )
