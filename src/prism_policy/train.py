"""The training loop: windows in, EMA weights out, resumable to the update."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from prism_policy.config import RunConfig, TrainConfig
from prism_policy.data.normalizer import LinearNormalizer
from prism_policy.data.windows import Windows, batch_indices
from prism_policy.errors import PrismError
from prism_policy.files import atomic, read_lines, write_lines, write_text
from prism_policy.memory import freed_memory_is_kept
from prism_policy.policies import Policy
from prism_policy.progress import console
from prism_policy.run_folder import make_policy, save_weights

VALID_WINDOWS = 256
"""Held-out windows that a validation looks at, at most."""

OnUpdate = Callable[[int, dict[str, float]], None]
"""Called with the number of updates done and the latest figures (loss, lr, samples_per_s)."""


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then a half cosine to zero at the last update (Table 8)."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


def ema_decay(step: int, config: TrainConfig) -> float:
    """1 - (1 + n)^-power at update n, so that the average forgets the random start quickly."""
    if config.ema_power is None:
        return config.ema_max_decay
    return min(1 - float((1 + step) ** -config.ema_power), config.ema_max_decay)


def fit_normalizers(policy: Policy, windows: Windows) -> None:
    """Min-max for positions and finger widths; rotations and the gripper command pass unchanged.

    Raises:
        PrismError: values that are not finite, or actions that do not lie in [-1, 1] afterwards.
    """
    actions = windows.frames.actions.cpu()
    policy.normalizer["proprio"] = LinearNormalizer.min_max(windows.frames.proprio.cpu().numpy(), keep=range(3, 7))
    policy.normalizer["action"] = normalizer = LinearNormalizer.min_max(
        actions.numpy(), keep=range(3, actions.shape[1])
    )
    largest = normalizer(actions).abs().amax(dim=0)
    if (worst := int(largest.argmax())) >= 3 and largest[worst] > 1 + 1e-4:
        raise PrismError(
            f"actions, number {worst}: expected rotations and gripper within [-1, 1], got {float(largest[worst]):.4g}; "
            "delta actions are shares of the controller's range, absolute ones need data.actions.encode_absolute"
        )


def train(
    folder: Path,
    config: RunConfig,
    windows: Windows,
    on_update: OnUpdate | None = None,
    valid: Windows | None = None,
    max_s: float = math.inf,
) -> Policy:
    """Train (or go on training) the run in `folder`; returns the policy with its EMA weights, which are also saved.

    Every update's batch, crop and noise derive from (seed, update) alone, so a run that was killed and resumed ends
    with the weights of one that was not.

    Args:
        folder: the run folder.
        config: of the run.
        windows: to learn from.
        on_update: called with the latest figures.
        valid: held-out windows; `validate` measures the EMA weights on them.
        max_s: seconds after which the training stops with a checkpoint.

    Raises:
        PrismError: the loss is not finite; the disk is full; `max_s` is over.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, with a checkpoint written.
    """
    settings = config.train
    torch.manual_seed(config.seed)
    policy = make_policy(config, windows.frames.proprio.shape[1], windows.frames.actions.shape[1])
    fit_normalizers(policy, windows)
    policy.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    parameters: dict[str, Tensor] = dict(policy.named_parameters())
    ema = {name: p.detach().clone() for name, p in parameters.items()}
    optimizer = torch.optim.AdamW(
        parameters.values(), settings.lr, settings.betas, settings.eps, settings.weight_decay, fused=True
    )
    done = restore(folder, parameters, ema, optimizer)
    metrics = [line for line in read_lines(folder / "metrics.jsonl") if line["step"] <= done]
    trained_s = metrics[-1]["wall_s"] if metrics else 0.0
    started, last_log, losses = time.perf_counter(), time.perf_counter(), []
    with stop_signal() as stopped, freed_memory_is_kept():
        for step in range(done, settings.steps):
            torch.manual_seed(_update_seed(config.seed, step))  # crop and noise
            batch = windows.batch(batch_indices(step, settings.batch_size, len(windows), config.seed))
            loss, _ = policy(batch)
            optimizer.zero_grad()
            loss.backward()
            if settings.grad_clip:
                torch.nn.utils.clip_grad_norm_(parameters.values(), settings.grad_clip)
            lr = learning_rate(step, settings)
            optimizer.param_groups[0]["lr"] = lr
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(list(ema.values()), list(parameters.values()), 1 - ema_decay(step, settings))
            losses.append(loss.detach())
            done = step + 1
            last = done == settings.steps
            validates = valid is not None and settings.valid_every and (last or done % settings.valid_every == 0)
            if done % settings.log_every == 0 or last or validates:
                now = time.perf_counter()
                line = {
                    "step": done,
                    "loss": float(torch.stack(losses).mean()),
                    "lr": lr,
                    "samples_per_s": len(losses) * settings.batch_size / (now - last_log),
                    "wall_s": trained_s + now - started,
                }
                if not math.isfinite(line["loss"]):
                    _refuse_loss(folder, config, windows, done - len(losses), losses)
                if valid is not None and validates:
                    with _swapped(parameters, ema):
                        line |= validate(policy, valid, settings.batch_size)
                losses, last_log = [], time.perf_counter()
                metrics.append(line)
                if on_update:
                    on_update(done, line)
            late = time.perf_counter() - started > max_s and not last
            if done % settings.checkpoint_every == 0 or last or late or stopped():
                save_checkpoint(folder, done, parameters, ema, optimizer)
                write_lines(folder / "metrics.jsonl", metrics)
            if stopped():
                raise KeyboardInterrupt
            if late:
                raise PrismError(
                    f"stopped at update {done} of {settings.steps}, as its time is over; run it again to go on"
                )
    save_weights(folder, policy, ema)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(ema[name])
    return policy.eval()


@torch.no_grad()
def validate(policy: Policy, windows: Windows, batch_size: int) -> dict[str, float]:
    """Loss and action error on held-out windows, as the policy acts: centre crops, the same noise every time.

    Returns:
        `valid_loss` over at most `VALID_WINDOWS` evenly spaced windows, and `valid_action_error`, the root mean square
        of what one sampled chunk an observation differs from the demonstrated one over the executed steps, in
        normalised units. Where there are several good ways to go on, even a perfect policy's is not zero.
    """
    chosen = torch.linspace(0, len(windows) - 1, min(len(windows), VALID_WINDOWS)).long()
    first = policy.config.n_obs_steps - 1
    due = slice(first, first + policy.config.n_action_steps)
    losses, errors, counts = 0.0, 0.0, 0.0
    policy.eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for indices in torch.split(chosen, batch_size):
            batch = windows.batch(indices)
            losses += float(policy(batch)[0]) * len(indices)
            wanted = policy.normalizer["action"](batch["actions"])
            error = (policy.sample(batch, policy.draw_noise(len(indices))) - wanted)[:, due].square().mean(-1)
            mask = batch["mask"][:, due]  # type: ignore[index]
            errors, counts = errors + float((error * mask).sum()), counts + float(mask.sum())
    policy.train()
    return {"valid_loss": losses / len(chosen), "valid_action_error": math.sqrt(errors / max(counts, 1))}


@contextmanager
def _swapped(parameters: dict[str, Tensor], others: dict[str, Tensor]) -> Iterator[None]:
    """Within, the parameters have the others' values; afterwards their own again, to the bit."""

    def swap() -> None:
        for name, parameter in parameters.items():
            parameter.data, others[name] = others[name], parameter.data

    swap()
    try:
        yield
    finally:
        swap()


def _refuse_loss(folder: Path, config: RunConfig, windows: Windows, first: int, losses: list[Tensor]) -> NoReturn:
    """Write down which windows made the first loss that is not finite, and stop."""
    step = first + next(i for i, loss in enumerate(losses) if not math.isfinite(float(loss)))
    indices = batch_indices(step, config.train.batch_size, len(windows), config.seed)
    write_text(folder / "bad_batch.json", json.dumps({"update": step + 1, "windows": indices.tolist()}))
    raise PrismError(
        f"the loss became {float(losses[step - first])} at update {step + 1}; the checkpoint before it is kept, and "
        f"{folder / 'bad_batch.json'} names the batch's windows. Lower the learning rate ({config.train.lr}) or look "
        "for odd actions in the demonstrations"
    )


def _update_seed(seed: int, step: int) -> int:
    # Any fixed map of the pair to well-spread numbers of 63 bits will do.
    return (seed * 0x9E3779B97F4A7C15 + (step + 1) * 0xBF58476D1CE4E5B9) % 2**63


def save_checkpoint(
    folder: Path, done: int, parameters: dict[str, Tensor], ema: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> None:
    """Everything the loop needs to go on after `done` updates; the checkpoint before it is kept as a spare."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        state = optimizer.state[parameter]
        tensors |= {f"model/{name}": parameter.detach(), f"ema/{name}": ema[name]}
        tensors |= {f"optimizer/{key}/{name}": value for key, value in state.items()}
    last = folder / "checkpoints" / "last.safetensors"
    with atomic(last) as temporary:
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata={"updates": json.dumps(done)})
        if last.exists():
            last.replace(last.with_name("previous.safetensors"))


def restore(
    folder: Path, parameters: dict[str, Tensor], ema: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> int:
    """Load the newest sound checkpoint in place; returns the number of updates it holds, 0 where there is none."""
    for name in ("last", "previous"):
        path = folder / "checkpoints" / f"{name}.safetensors"
        if not path.exists():
            continue
        try:
            with safetensors.safe_open(path, "pt") as file:
                done = int(json.loads(file.metadata()["updates"]))
                tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
            console.print(f"{path} is damaged ({error}); going back to the checkpoint before it")
            continue
        with torch.no_grad():
            for key, parameter in parameters.items():
                parameter.copy_(tensors[f"model/{key}"])
                ema[key].copy_(tensors[f"ema/{key}"])
        optimizer.load_state_dict(_optimizer_state(optimizer, list(parameters), tensors))
        return done
    return 0


def _optimizer_state(optimizer: torch.optim.Optimizer, names: list[str], tensors: dict[str, Tensor]) -> dict[str, Any]:
    state: dict[int, dict[str, Tensor]] = {i: {} for i in range(len(names))}
    index = {name: i for i, name in enumerate(names)}
    parameters = optimizer.param_groups[0]["params"]
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, field, name = key.split("/", 2)
            like = parameters[index[name]]
            # The file holds plain layout; the fused update walks memory and needs the weight's own.
            state[index[name]][field] = torch.empty_like(like).copy_(value) if value.shape == like.shape else value
    return {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}


@contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
    """Within, Ctrl-C and SIGTERM are noted instead of acted on, so that the loop can stop between two updates."""
    received: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    try:
        before = [signal.signal(s, lambda number, _: received.append(number)) for s in signals]
    except ValueError:  # not in the main thread: signals are somebody else's
        yield lambda: False
        return
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
