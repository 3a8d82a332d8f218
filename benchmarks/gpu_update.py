"""What the stages of `gpu_session.py` share: the recipe, its update, its gradient, and where numbers are written."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from timing import seconds_of
from torch import Tensor, nn

from prism_policy.config import presets
from prism_policy.config.settings import PolicyKind, RunConfig, TrainConfig
from prism_policy.data.frames import Frames
from prism_policy.data.robomimic import Episode, read_demos
from prism_policy.data.schema import task_schema
from prism_policy.data.windows import Windows
from prism_policy.policies import Policy
from prism_policy.run_folder import make_policy
from prism_policy.training.checkpoint import TrainState
from prism_policy.training.prefetch import moved
from prism_policy.training.runtime import arithmetic


@dataclass(frozen=True)
class Session:
    """What a stage is told."""

    out: Path
    device: torch.device
    sizes: str
    batch_size: int
    dataset: Path | None
    until: float  # when the stage is ended [s since 1970]
    stage: str = ""

    @property
    def on_gpu(self) -> bool:
        """Or on a CPU."""
        return self.device.type == "cuda"

    @property
    def left(self) -> float:
        """Seconds."""
        return self.until - time.time()

    def report(self, name: str, value: Any, unit: str = "") -> None:
        """Print a number and add it to session.json."""
        shown = f"{value:.4g}" if isinstance(value, float) else value
        print(f"{self.stage}: {name}: {shown} {unit}".rstrip(), flush=True)
        path = self.out / "session.json"
        numbers = self.numbers()
        numbers.setdefault(self.stage, {})[f"{name} [{unit}]" if unit else name] = value
        path.with_suffix(".new").write_text(json.dumps(numbers, indent=1))
        path.with_suffix(".new").replace(path)

    def numbers(self) -> dict[str, Any]:
        """All that was reported so far, by stage."""
        path = self.out / "session.json"
        return json.loads(path.read_text()) if path.exists() else {}


def recipe(session: Session, kind: PolicyKind = "flow_matching", encoder: str = "prism", pixels: int = 84) -> RunConfig:
    """The paper's run of this policy, or a smaller one, in bfloat16 and compiled."""
    config = (presets.paper if session.sizes == "paper" else presets.nano)(policy=kind, encoder_name=encoder)
    policy = config.policy
    if session.sizes == "tiny":
        stages = policy.encoder.stages[:2] if len(policy.encoder.stages) > 1 else (2,)
        policy = replace(policy, down_dims=(16, 32), encoder=replace(policy.encoder, stages=stages))
    train = replace(config.train, precision="bfloat16", compile=True, batch_size=session.batch_size)
    task = replace(config.task, render=replace(config.task.render, resolution=pixels))
    return replace(config, task=task, policy=policy, train=train)


def network(config: RunConfig, device: torch.device) -> Policy:
    """The policy of this run in training, the same weights each time."""
    torch.manual_seed(0)
    policy = make_policy(config, task_schema(config.task))
    return policy.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]


def batch_of(policy: Policy, size: int, seed: int = 1) -> dict[str, Any]:
    """A random batch, all that is random about its loss included, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    cameras = policy.encoder.cameras.items()
    steps, horizon = policy.config.n_obs_steps, policy.config.horizon
    images = {
        c: torch.randint(0, 256, (size, steps, *s, 3), dtype=torch.uint8, generator=generator) for c, s in cameras
    }
    mask = torch.rand(size, horizon, generator=generator) < 0.9
    return {
        "images": images,
        "state": torch.randn(size, steps, policy.state_dim, generator=generator),
        "actions": torch.rand(size, horizon, policy.action_dim, generator=generator) * 2 - 1,
        "mask": mask,
        "mask_share": mask.float().mean(),
        "draws": policy.draw(size, generator, training=True),
    }


def some_windows(session: Session, config: RunConfig) -> Windows:
    """Of --dataset, or of random frames."""
    if session.dataset:
        episodes = read_demos(session.dataset, config.task.cameras)
    else:
        rng, schema, steps = np.random.default_rng(0), task_schema(config.task), 400
        images = {c: rng.integers(0, 256, (steps, *size, 3), np.uint8) for c, size in schema.cameras.items()}
        state = rng.normal(size=(steps, schema.state_dim)).astype(np.float32)
        actions = rng.uniform(-1, 1, (steps, schema.action_dim)).astype(np.float32)
        episodes = [Episode("demo_0", images, state, actions, np.zeros(steps, bool), np.zeros((steps, 0)))]
    return Windows(Frames.of(episodes, task_schema(config.task)), 16, 2, 8)


def gradient(model: nn.Module, batch: Mapping[str, Any], precision: str, device: torch.device) -> Tensor:
    """Of a batch's loss, all of it as one vector, as `train` computes it in this precision."""
    model.zero_grad()
    surroundings = arithmetic(TrainConfig(precision=precision), device)  # type: ignore[arg-type]
    with surroundings, torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        loss = model(batch)
        loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def off(found: Tensor, exact: Tensor) -> float:
    """Norm of the difference over the norm."""
    return float((found.double() - exact.double()).norm() / exact.double().norm())


class Update:
    """The recipe's update of one batch that lies on the device, eager or compiled."""

    def __init__(self, session: Session, config: RunConfig, model: Callable[[Policy], nn.Module] | None = None) -> None:
        self.session, self.precision = session, config.train.precision
        self.policy = network(config, session.device)
        self.model = model(self.policy) if model else self.policy
        self.state = TrainState(self.policy, config.train)
        self.batch = moved(batch_of(self.policy, session.batch_size), session.device)

    def __call__(self) -> None:
        """Forward, backward, optimiser, moving average."""
        with torch.autocast(self.session.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            loss = self.model(self.batch)
        self.state.optimizer.zero_grad()
        loss.backward()
        self.state.update(1e-4, 0.999)

    def measure(self, name: str, rounds: int = 30) -> float:
        """Report and return the median seconds of an update, after how long the first took."""
        session = self.session
        session.report(f"{name}: first update", seconds_of(self, session.device), "s")
        warm, rounds = (5, rounds) if session.on_gpu else (0, 2)
        seconds = [seconds_of(self, session.device) for _ in range(warm + rounds)][warm:]
        session.report(f"{name}: update", 1e3 * median(seconds), "ms")
        if session.on_gpu:
            torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            self()
            session.report(f"{name}: host", 1e3 * (time.perf_counter() - started), "ms")
            torch.cuda.synchronize()
            session.report(f"{name}: peak memory", torch.cuda.max_memory_allocated() / 2**30, "GiB")
        return median(seconds)
