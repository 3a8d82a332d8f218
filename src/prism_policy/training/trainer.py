"""The training loop: windows in, EMA weights out, resumable to the update, on one device or many."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prism_policy.config.settings import RunConfig, TrainConfig
from prism_policy.data.windows import Windows, batch_indices
from prism_policy.errors import PrismError
from prism_policy.models.normalizer import LinearNormalizer
from prism_policy.policies import Policy
from prism_policy.run_folder import make_policy, save_normalizer, save_weights
from prism_policy.training.checkpoint import Checkpoints, TrainState
from prism_policy.training.distributed import Ranks
from prism_policy.training.health import advise_batch_size, check_compiler, check_losses, is_out_of_memory
from prism_policy.training.prefetch import Ahead, moved, pinned
from prism_policy.utils.files import read_lines, write_lines
from prism_policy.utils.memory import freed_memory_is_kept

VALID_WINDOWS = 256
"""Held-out windows that a validation looks at, at most."""
ON_DEVICE = 0.5
"""Share of a GPU's free memory that all frames may take; more of them stay mapped from the disk."""
ALONE, CPU = Ranks(), torch.device("cpu")

OnUpdate = Callable[[int, dict[str, float]], None]
"""Called with the number of updates done and the latest figures (loss, lr, samples_per_s, ...)."""

Rollout = Callable[[Policy, int, Callable[[], None]], dict[str, float]]
"""Measures the policy after so many updates; its figures, `success_rate` among them, go to metrics.jsonl. What it is
given last is to be called now and then: it raises KeyboardInterrupt where training has been told to stop."""


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
    rollout: Rollout | None = None,
    ranks: Ranks = ALONE,
    device: torch.device = CPU,
) -> Policy:
    """Train (or go on training) the run in `folder`; returns the policy with its EMA weights, which are also saved.

    Every update's batch, crop and noise derive from (seed, update) alone, so a run that was killed and resumed ends
    with the weights of one that was not. Several processes share each batch among them, rows and noise, so that they do
    what one would.

    Args:
        folder: the run folder.
        config: of the run.
        windows: to learn from.
        on_update: called with the latest figures.
        valid: held-out windows; `validate` measures the EMA weights on them.
        max_s: seconds after which the training stops with a checkpoint.
        rollout: measures the EMA weights every `rollout_every` updates; the best are kept.
        ranks: this process among those that train.
        device: where to compute.

    Raises:
        PrismError: the loss is not finite or explodes; disk or memory are full; `max_s` is over.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, with a checkpoint written.
    """
    settings = config.train
    ranks.check(config)
    mine = ranks.share(settings.batch_size)
    torch.manual_seed(config.seed)
    policy = make_policy(config, windows.frames.proprio.shape[1], windows.frames.actions.shape[1])
    fit_normalizers(policy, windows)
    policy.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    state = TrainState(policy, settings)
    windows = resident(windows, device)
    if ranks.first:
        save_normalizer(folder, policy)
    groups = windows.groups(settings.balance)
    metrics: list[dict[str, Any]] = []
    started = saved = time.perf_counter()

    def host_part(step: int) -> dict[str, Any]:
        """What can be prepared while the device is busy: the same in every process, of which each keeps its rows."""
        indices = batch_indices(step, settings.batch_size, groups, config.seed)
        draws = policy.draw(settings.batch_size, torch.Generator().manual_seed(_update_seed(config.seed, step)))
        part = {"indices": indices, "draws": {name: x[mine] for name, x in draws.items()}}
        if windows.device.type == device.type != "cpu":
            return pinned(part)
        part |= rows_and_share(indices)
        return part if device.type == "cpu" else pinned(part)

    def rows_and_share(indices: Tensor) -> dict[str, Any]:
        return {**windows.batch(indices[mine]), "mask_share": windows.mask[indices].float().mean()}

    def update(model: torch.nn.Module, batch: dict[str, Any]) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            loss = model(batch)
        state.optimizer.zero_grad()
        loss.backward()
        if settings.grad_clip:
            torch.nn.utils.clip_grad_norm_(state.parameters.values(), settings.grad_clip)
        state.update(learning_rate(state.done, settings), ema_decay(state.done, settings))
        return loss.detach()

    def wrapped() -> torch.nn.Module:
        if not settings.compile:
            return ranks.wrap(policy, device)
        check_compiler()
        return ranks.wrap(torch.compile(policy), device)  # type: ignore[arg-type]

    def heed_stop() -> None:
        if stopped():
            raise KeyboardInterrupt

    def save() -> None:
        """What is needed to go on; the figures first, as lines beyond a checkpoint are made again, missing ones not."""
        write_lines(folder / "metrics.jsonl", metrics)
        checkpoints.save(state)

    def measure_rollouts(line: dict[str, Any]) -> None:
        """Of the averaged weights, into the latest line; the best ones so far are kept."""
        best = max((line["success_rate"] for line in metrics if "success_rate" in line), default=-1.0)
        if rollout and ranks.first:
            with state.averaged():
                line |= rollout(policy.eval(), state.done, heed_stop)
            policy.train()
            if line["success_rate"] >= best:
                checkpoints.save_weights(state, "best")
                checkpoints.wait()
            write_lines(folder / "metrics.jsonl", metrics)
        ranks.wait()

    def tell(line: dict[str, Any]) -> None:
        if ranks.first and on_update:
            on_update(state.done, line)

    with (
        stop_signal() as stopped,
        freed_memory_is_kept(),
        arithmetic(settings, device),
        Checkpoints(folder) as checkpoints,
    ):
        checkpoints.restore(state)
        metrics += [line for line in read_lines(folder / "metrics.jsonl") if line["step"] <= state.done]
        ranks.wait()  # all have read what the first one is about to write
        trained_s = metrics[-1]["wall_s"] if metrics else 0.0
        unmeasured = [line for line in metrics[-1:] if line["step"] == state.done and "success_rate" not in line]
        if rollout and unmeasured and _due(state.done, settings.rollout_every):  # a kill had come between
            measure_rollouts(metrics[-1])
            tell(metrics[-1])
        model = wrapped()
        losses: list[Tensor] = []
        batches = Ahead(host_part, range(state.done, settings.steps))
        last_log = time.perf_counter()
        for part in batches:
            batch = moved(part, device)
            if "mask" not in batch:
                batch |= rows_and_share(batch["indices"])
            try:
                losses.append(update(model, batch))
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                # Without the other processes, which wait.
                advise_batch_size(error, partial(update, policy), batch, settings.batch_size)
            done, last = state.done, state.done == settings.steps
            validates = valid is not None and (last or _due(done, settings.valid_every)) and settings.valid_every > 0
            keeps = _due(done, settings.keep_every)
            rolls = rollout is not None and _due(done, settings.rollout_every)
            now = time.perf_counter()
            stop, late, saves = ranks.any(
                stopped(), now - started > max_s and not last, now - saved > 60 * settings.checkpoint_minutes
            )
            # Reading the loss waits for the device: seldom, but always before it is built upon.
            if _due(done, settings.log_every) or last or validates or keeps or rolls or stop or late or saves:
                mean_losses = ranks.mean(torch.stack(losses))
                now = time.perf_counter()
                line = {
                    "step": done,
                    "loss": float(mean_losses.mean()),
                    "lr": state.optimizer.param_groups[0]["lr"],
                    "samples_per_s": len(losses) * settings.batch_size / (now - last_log),
                    "waiting": batches.waited_s / (now - last_log),
                    "wall_s": trained_s + now - started,
                }
                if device.type == "cuda":
                    line["gpu_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
                check_losses(folder, config, groups, done, mean_losses.tolist(), state.parameters.values(), metrics)
                if validates and valid is not None and ranks.first:
                    with state.averaged():
                        line |= validate(policy, valid, settings.batch_size)
                metrics.append(line)
                if ranks.first and keeps:
                    checkpoints.save_weights(state, f"update_{done:06d}")
                if saves or rolls or stop or late or last:
                    saved = time.perf_counter()
                    if ranks.first:
                        save()
                if rolls:
                    measure_rollouts(line)
                tell(line)
                losses, batches.waited_s, last_log = [], 0.0, time.perf_counter()
            if stop or late:
                checkpoints.wait()
                ranks.wait()  # a process that ends has the others stopped
            if stop:
                raise KeyboardInterrupt
            if late:
                raise PrismError(
                    f"stopped at update {done} of {settings.steps}, as its time is over; run it again to go on"
                )
    if ranks.first:
        save_weights(folder, state.weights())
    ranks.wait()
    with torch.no_grad():
        for name, parameter in state.parameters.items():
            parameter.copy_(state.ema[name])
    return policy.eval()


def _due(done: int, every: int) -> bool:
    return every > 0 and done > 0 and done % every == 0


def resident(windows: Windows, device: torch.device) -> Windows:
    """The windows with their frames on the device where they fit, else mapped from the disk as they are."""
    if device.type != "cuda":
        return windows
    free, _ = torch.cuda.mem_get_info(device)
    return windows.to(device) if windows.frames.nbytes < ON_DEVICE * free else windows


@contextmanager
def arithmetic(settings: TrainConfig, device: torch.device) -> Iterator[None]:
    """Within, the precision and determinism that the settings ask for, where autocast does not reach."""
    precision = torch.get_float32_matmul_precision()
    deterministic = torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if settings.precision == "bfloat16" else "highest")
        torch.backends.cudnn.benchmark = not settings.deterministic
        if settings.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark = benchmark


@torch.no_grad()
def validate(policy: Policy, windows: Windows, batch_size: int) -> dict[str, float]:
    """Loss and action error on held-out windows, as the policy acts: centre crops, the same noise every time.

    Returns:
        `valid_loss` over at most `VALID_WINDOWS` evenly spaced windows, and `valid_action_error`, the root mean square
        of what one sampled chunk an observation differs from the demonstrated one over the executed steps, in
        normalised units. Where there are several good ways to go on, even a perfect policy's is not zero.
    """
    chosen = torch.linspace(0, len(windows) - 1, min(len(windows), VALID_WINDOWS)).long()
    due = policy.executed
    losses, errors, counts = 0.0, 0.0, 0.0
    policy.eval()
    generator = torch.Generator().manual_seed(0)
    for indices in torch.split(chosen, batch_size):
        batch = moved(windows.batch(indices) | {"draws": policy.draw(len(indices), generator)}, policy.device)
        losses += float(policy(batch)) * len(indices)
        wanted = policy.normalizer["action"](batch["actions"])
        noise = policy.draw_noise(len(indices), generator)
        error = (policy.sample(batch, noise) - wanted)[:, due].square().mean(-1)
        mask = batch["mask"][:, due]
        errors, counts = errors + float((error * mask).sum()), counts + float(mask.sum())
    policy.train()
    return {"valid_loss": losses / len(chosen), "valid_action_error": math.sqrt(errors / max(counts, 1))}


def _update_seed(seed: int, step: int) -> int:
    # Any fixed map of the pair to well-spread numbers of 63 bits will do.
    return (seed * 0x9E3779B97F4A7C15 + (step + 1) * 0xBF58476D1CE4E5B9) % 2**63


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
