"""Train, validate and act on the fake device: a line of JSON for each combination. `python -m fake_cuda.train`."""

from __future__ import annotations

# isort: off
from fake_cuda.device import CUDA, fake_cuda  # before torch

# isort: on
import contextlib
import json
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

from panda import frames_of
from prism_policy.config import presets
from prism_policy.config.settings import RunConfig
from prism_policy.data.robomimic import Episode
from prism_policy.data.windows import Windows
from prism_policy.policies import Policy
from prism_policy.run_folder import make_policy
from prism_policy.training import checkpoint, trainer
from prism_policy.training.trainer import Trainer

CAMERAS, STATE, ACTION = ("agentview", "robot0_eye_in_hand"), 9, 7
PLANTED = ("float(loss)", "a tensor left on the CPU", "mixed types")


def run_config(kind: str, encoder: str, **train: Any) -> RunConfig:
    """Nano sizes, five denoising steps."""
    config = presets.nano(policy=kind, encoder_name=encoder)  # type: ignore[arg-type]
    policy = replace(config.policy, ddpm=replace(config.policy.ddpm, num_inference_steps=5))
    often = {"log_every": 2, "valid_every": 2, "keep_every": 2, "checkpoint_minutes": 0.0, "grad_clip": 1.0}
    settings = replace(config.train, **{"steps": 2, "batch_size": 16, "precision": "bfloat16", **often, **train})
    return replace(config, policy=policy, train=settings)


def some_windows(steps: int = 40) -> Windows:
    """Of one episode of random frames."""
    rng = np.random.default_rng(0)
    images = {c: rng.integers(0, 256, (steps, 84, 84, 3), np.uint8) for c in CAMERAS}
    state = rng.normal(size=(steps, STATE)).astype(np.float32)
    actions = rng.uniform(-1, 1, (steps, ACTION)).astype(np.float32)
    return Windows(
        frames_of([Episode("demo_0", images, state, actions, np.zeros(steps, bool), np.zeros((steps, 0)))]), 16, 2, 8
    )


def for_real(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` on true tensors: `Module.to` cannot exchange fake ones, and numpy reads data."""

    def call(*arguments: Any, **named: Any) -> Any:
        with unset_fake_temporarily():
            return function(*arguments, **named)

    return call


class Inline:
    """`Prefetcher` without its thread, as a thread knows nothing of the fake device."""

    def __init__(self, make: Callable[[int], Any], items: range) -> None:
        self.make, self.items, self.waited_s = for_real(make), items, 0.0

    def __iter__(self) -> Iterator[Any]:
        return map(self.make, self.items)


def on_host(batch_of: Callable[..., Any]) -> Callable[..., Any]:
    """`Windows.batch`; what lies in the host's memory is gathered by numpy, which wants true indices."""

    def batch(self: Windows, indices: Tensor) -> Any:
        if self.device.type == "cuda":
            return batch_of(self, indices)
        with unset_fake_temporarily():
            return batch_of(self, torch.arange(len(indices)) % len(self))

    return batch


@contextlib.contextmanager
def surroundings(resident: bool) -> Iterator[None]:
    """What a fake tensor cannot do (threads, files, scalars) is made up."""
    with contextlib.ExitStack() as stack:

        def patch(target: Any, name: str, new: Any, **options: Any) -> None:
            stack.enter_context(mock.patch.object(target, name, new, **options))

        free = 80 * 2**30 if resident else 0
        patch(torch.cuda, "mem_get_info", lambda *_: (free, free))
        patch(torch.cuda, "max_memory_allocated", lambda *_: 0)
        patch(trainer, "make_policy", for_real(make_policy))
        patch(trainer, "fit_normalizers", for_real(trainer.fit_normalizers))
        patch(trainer, "Prefetcher", Inline)
        patch(trainer, "save_normalizer", lambda *_: None)
        patch(trainer, "save_weights", lambda *_: None)
        patch(Windows, "batch", on_host(Windows.batch))
        patch(FakeTensor, "tolist", lambda x: [1.0] * x.numel(), create=True)
        patch(checkpoint, "_write_file", lambda *_: None)
        empty = torch.empty
        patch(torch, "empty", lambda *shape, pin_memory=False, **options: empty(*shape, **options))
        yield


def trained(kind: str, encoder: str, resident: bool = True, planted: str = "", **train: Any) -> dict[str, Any]:
    """`Trainer.train` itself: updates, validation, checkpoints."""
    config, windows, valid = run_config(kind, encoder, **train), some_windows(), some_windows()
    in_step: list[str] = []
    step, update = Trainer.step, Trainer.update

    def watched_step(self: Trainer, *arguments: Any) -> Tensor:
        before = len(watch.waits)
        loss = step(self, *arguments)
        in_step.extend(watch.waits[before:])
        return loss

    def update_with_a_mistake(self: Trainer, model: Any, batch: Any) -> Tensor:
        if planted == PLANTED[1]:
            batch["state"] = torch.zeros(batch["state"].shape)
        loss = update(self, model, batch)
        if planted == PLANTED[0]:
            float(loss)
        if planted == PLANTED[2]:
            weight = next(self.policy.parameters()).flatten(1)
            torch.ops.aten.mm(weight.bfloat16(), weight.t())
        return loss

    with tempfile.TemporaryDirectory() as folder, fake_cuda() as watch, surroundings(resident):
        with (
            mock.patch.object(Trainer, "step", watched_step),
            mock.patch.object(Trainer, "update", update_with_a_mistake),
        ):
            done = Trainer(Path(folder), config, windows, valid=valid, device=CUDA)
            policy = done.train()
        assert {p.device for p in policy.parameters()} == {CUDA}
        for name, p in policy.named_parameters():
            assert p.grad is not None
            assert (p.grad.device, p.grad.dtype) == (p.device, p.dtype), name
            # The fused update walks memory: a gradient must lie as its weight does.
            same = [a == b for n, a, b in zip(p.shape, p.grad.stride(), p.stride(), strict=True) if n > 1]
            assert all(same), (name, p.grad.stride(), p.stride())
        acts(policy)
    badly = {"laid_out_anew": watch.laid_out_anew, "unrepeatable": watch.unrepeatable}
    return {"waits": in_step, "mixed": watch.mixed, **badly}


def acts(policy: Policy) -> None:
    """What rollouts, servers and saliency call."""
    images = {c: torch.zeros(4, 2, 84, 84, 3, dtype=torch.uint8) for c in CAMERAS}
    observation = {"images": images, "state": torch.zeros(4, 2, STATE)}
    actions = policy.act(observation)
    assert (actions.device, actions.shape) == (CUDA, (4, 8, ACTION))
    with contextlib.suppress(NotImplementedError):  # MeanFlow has no inpainting
        known = (torch.zeros(4, 16, ACTION), torch.zeros(4, 16, ACTION, dtype=torch.bool))
        policy.act(observation, known=known)
    there = {"images": {c: x.to(CUDA) for c, x in images.items()}, "state": observation["state"].to(CUDA)}
    policy.sample(there, policy.draw_noise(4)).sum().backward()


def main() -> None:
    """Run what is named in the arguments, "all" or "planted"."""
    torch.set_num_threads(1)
    kinds = ("flow_matching", "ddpm", "meanflow")
    runs: list[tuple[str, Callable[[], dict[str, Any]]]] = []
    if "planted" in sys.argv:
        runs = [(name, lambda name=name: trained("flow_matching", "sspool", planted=name)) for name in PLANTED]  # type: ignore[misc]
    else:
        pairs = [("flow_matching", name) for name in presets.ENCODERS]
        pairs += [(kind, name) for kind in kinds[1:] for name in ("prism", "sspool")]
        runs = [(f"{k} {e}", lambda k=k, e=e: trained(k, e)) for k, e in pairs]  # type: ignore[misc]
        runs.append(("frames mapped", lambda: trained("flow_matching", "sspool", resident=False)))
        runs.append(("float32", lambda: trained("flow_matching", "prism", precision="float32")))
    for name, run in runs:
        try:
            line = run()
        except Exception as error:
            line = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
        sys.stdout.write(json.dumps({"run": name, **line}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
