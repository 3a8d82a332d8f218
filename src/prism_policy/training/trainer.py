"""The training loop: windows in, EMA weights out, resumable to the update, on one device or many."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from prism_policy.config.settings import RunConfig, TrainConfig
from prism_policy.data.schema import Part, slices
from prism_policy.data.windows import Windows, batch_indices
from prism_policy.errors import PrismError
from prism_policy.models.normalizer import LinearNormalizer
from prism_policy.policies import Policy
from prism_policy.run_folder import make_policy, read_metrics, save_normalizer, save_weights
from prism_policy.training.checkpoint import Checkpoints, TrainState
from prism_policy.training.compiled import compiled
from prism_policy.training.distributed import SINGLE_PROCESS, ProcessGroup
from prism_policy.training.health import advise_batch_size, check_losses, is_out_of_memory, update_memory
from prism_policy.training.prefetch import Prefetcher, moved, pinned
from prism_policy.training.runtime import arithmetic, resident, stop_signal
from prism_policy.utils.files import write_lines
from prism_policy.utils.memory import keep_freed_memory
from prism_policy.utils.threads import Threads

VALID_WINDOWS = 256  # held-out windows of a validation, at most
CPU = torch.device("cpu")

OnUpdate = Callable[[int, dict[str, float]], None]
"""Called with the number of updates done and the latest metrics (loss, lr, samples_per_s, ...)."""

Rollout = Callable[[Policy, int, Callable[[], None]], dict[str, float]]
"""Measures the policy after so many updates; its metrics, `success_rate` among them, go to metrics.jsonl. The last
argument is to be called now and then: it raises KeyboardInterrupt once training has been asked to stop."""


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


def update_seed(seed: int, step: int) -> int:
    """Seed of everything random about an update."""
    return (seed * 0x9E3779B97F4A7C15 + (step + 1) * 0xBF58476D1CE4E5B9) % 2**63


def fit_normalizers(policy: Policy, windows: Windows, clip_quantile: float = 0.0) -> None:
    """Min-max of each number of state and action, within their quantiles, see `fit_normalizer`."""
    frames, schema = windows.frames, policy.schema
    for name, values, parts in (("state", frames.state, schema.state), ("action", frames.actions, schema.action)):
        policy.normalizer[name] = fit_normalizer(parts, values.cpu().numpy(), clip_quantile)


def fit_normalizer(parts: Sequence[Part], numbers: np.ndarray, clip_quantile: float = 0.0) -> LinearNormalizer:
    """Min-max of numbers (N, D) of these parts; rotations and grippers pass unchanged.

    Those of other robots that leave [-1, 1], such as Euler angles or widths of a gripper, are scaled like the rest.
    """
    keep = list[int]()
    for part, where in zip(parts, slices(parts).values(), strict=True):
        if part.kind not in ("rotation", "gripper"):
            continue
        for i in range(where.start, where.stop):
            largest = float(np.abs(numbers[:, i]).max(initial=0))
            quaternion_or_rows = part.kind == "rotation" and part.size in (4, 6) and not part.shares
            if quaternion_or_rows or not largest > 1 + 1e-4:  # `min_max` refuses NaN
                keep.append(i)
            elif part.shares:
                raise PrismError(
                    f"actions, number {i}: expected rotations and gripper within [-1, 1], got {largest:.4g}; "
                    "delta actions are shares of the controller's range, absolute ones need "
                    "data.actions.encode_absolute"
                )
    if clip_quantile:
        low, high = np.quantile(numbers, (clip_quantile, 1 - clip_quantile), axis=0).astype(np.float32)
        numbers = np.clip(numbers, low, high)
    return LinearNormalizer.min_max(numbers, keep)


class Due(NamedTuple):
    """What follows an update; the same in every process."""

    log: bool
    validate: bool
    keep: bool
    rollout: bool
    save: bool
    stop: bool
    time_over: bool


class Trainer:
    """Trains, or goes on training, the run in `folder`.

    Every update's batch, crop and noise derive from (seed, update) alone, so a run that was killed and resumed ends
    with the weights of one that was not. Several processes share each batch among them, rows and noise, so that they do
    what one would.

    Usage::

        policy = Trainer(folder, config, windows).train()

    Args:
        valid: held-out windows; `validate` measures the EMA weights on them.
        max_s: seconds after which the training stops with a checkpoint.
        rollout: measures the EMA weights every `rollout_every` updates; the best are kept.
    """

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        windows: Windows,
        on_update: OnUpdate | None = None,
        valid: Windows | None = None,
        max_s: float = math.inf,
        rollout: Rollout | None = None,
        group: ProcessGroup = SINGLE_PROCESS,
        device: torch.device = CPU,
    ) -> None:
        group.check(config)
        self.folder, self.config, self.settings = folder, config, config.train
        self.on_update, self.valid, self.max_s, self.rollout = on_update, valid, max_s, rollout
        self.group, self.device = group, device
        self.rows = group.local_rows(self.settings.batch_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.policy = make_policy(config, windows.frames.schema)
        fit_normalizers(self.policy, windows, config.data.clip_quantile)
        self.policy.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.state = TrainState(self.policy, self.settings)
        parameters, rows = sum(map(Tensor.numel, self.state.parameters.values())), self.rows.stop - self.rows.start
        self.window_groups = windows.groups(self.settings.balance)  # on the host, where batches are drawn
        self.windows = resident(windows, device, update_memory(config, self.policy.schema, parameters, rows))
        self.checkpoints = Checkpoints(folder)
        self.metrics: list[dict[str, Any]] = []  # lines of metrics.jsonl
        self.losses: list[Tensor] = []  # of the updates since the last line
        self.started = self.saved = self.logged = time.perf_counter()
        self.trained_s = 0.0  # what earlier calls took, before they were stopped
        self.stopped: Callable[[], bool] = lambda: False
        self.threads = Threads(fixed=device.type != "cpu" or self.settings.deterministic)

    def train(self) -> Policy:
        """Train to the end; returns the policy with its EMA weights, which are also saved.

        Raises:
            PrismError: the loss is not finite or explodes; disk or memory are full; `max_s` is over.
            KeyboardInterrupt: after Ctrl-C or SIGTERM, with a checkpoint written.
        """
        if self.group.is_main_process:
            save_normalizer(self.folder, self.policy, self.config.task)
        surroundings = arithmetic(self.settings, self.device)
        with stop_signal() as self.stopped, keep_freed_memory(), surroundings, self.threads, self.checkpoints:
            self.resume()
            model = self.wrapped_policy()
            batches = Prefetcher(self.prepare, range(self.state.done, self.settings.steps))
            self.logged = time.perf_counter()
            for prepared in batches:
                with self.threads.work():
                    self.losses.append(self.step(model, prepared))
                due = self.due()
                if not any(due):
                    continue
                line = self.log(batches.waited_s, due.validate)
                if due.keep and self.group.is_main_process:
                    self.checkpoints.save_weights(self.state, f"update_{self.state.done:06d}")
                if due.save:
                    self.save()
                if due.rollout:
                    self.measure_rollouts(line)
                self.report(line)
                self.losses, batches.waited_s, self.logged = [], 0.0, time.perf_counter()
                if due.stop or due.time_over:
                    self.leave(due)
        return self.finish()

    def resume(self) -> None:
        """Go back to the newest checkpoint and to the metrics up to it, or begin, with pretrained weights if any."""
        if not self.checkpoints.restore(self.state, self.group):
            self.policy.encoder.load_pretrained()
            self.state.begin_average()
        if self.group.is_main_process:
            lines = read_metrics(self.folder).repaired("the lines that are damaged are left out")
            self.metrics = [line for line in lines if line["step"] <= self.state.done]
        self.metrics = self.group.of_main(self.metrics)
        if not self.metrics:
            return
        last = self.metrics[-1]
        self.trained_s = last["wall_s"]
        unmeasured = last["step"] == self.state.done and "success_rate" not in last
        if self.rollout and unmeasured and self.is_due(self.settings.rollout_every):  # a kill came between
            self.measure_rollouts(last)
            self.report(last)

    def wrapped_policy(self) -> nn.Module:
        """The policy, compiled and with gradients averaged over processes where the settings say so."""
        settings = self.settings
        policy = compiled(self.policy, settings.deterministic) if settings.compile else self.policy
        return self.group.wrap(policy, self.device)

    def prepare(self, step: int) -> dict[str, Any]:
        """What a thread can make of a batch while the device is busy; of the same in every process each keeps its rows.

        The mode is given, not read: a validation may have the policy in evaluation mode meanwhile.
        """
        batch_size, seed = self.settings.batch_size, self.config.seed
        indices = batch_indices(step, batch_size, self.window_groups, seed)
        generator, copies = torch.Generator().manual_seed(update_seed(seed, step)), self.settings.noise_draws
        draws = self.policy.draw(batch_size, generator, training=True, copies=copies)
        prepared = {"indices": indices, "draws": {name: x[self.rows] for name, x in draws.items()}}
        if self.windows.device.type == self.device.type != "cpu":
            return pinned(prepared)
        prepared |= self.gather(indices)
        return prepared if self.device.type == "cpu" else pinned(prepared)

    def gather(self, indices: Tensor) -> dict[str, Any]:
        """This process's windows of a batch, and the mean of the whole batch's mask."""
        return {**self.windows.batch(indices[self.rows]), "mask_share": self.windows.mask[indices].float().mean()}

    def step(self, model: nn.Module, prepared: dict[str, Any]) -> Tensor:
        """One update; returns its loss, still on the device."""
        batch = moved(prepared, self.device)
        if "mask" not in batch:
            batch |= self.gather(batch["indices"])
        try:
            return self.update(model, batch)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            # Without the other processes, which wait.
            advise_batch_size(error, partial(self.update, self.policy), batch, self.settings.batch_size)

    def update(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """Forward, backward, optimiser, moving average."""
        state, settings = self.state, self.settings
        with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            loss: Tensor = model(batch)
        state.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if settings.grad_clip:
            torch.nn.utils.clip_grad_norm_(state.parameters.values(), settings.grad_clip)
        state.update(learning_rate(state.done, settings), ema_decay(state.done, settings))
        return loss.detach()

    def due(self) -> Due:
        """What follows the update that was just made."""
        settings, now = self.settings, time.perf_counter()
        last = self.state.done == settings.steps
        stop, time_over, saves = self.group.any(
            self.stopped(),
            now - self.started > self.max_s and not last,
            now - self.saved > 60 * settings.checkpoint_minutes,
        )
        validates = self.is_due(settings.valid_every) or (last and settings.valid_every > 0)
        rolls = self.rollout is not None and self.is_due(settings.rollout_every)
        return Due(
            log=last or self.is_due(settings.log_every),
            validate=self.valid is not None and validates,
            keep=self.is_due(settings.keep_every),
            rollout=rolls,
            save=saves or rolls or stop or time_over or last,
            stop=stop,
            time_over=time_over,
        )

    def is_due(self, every: int) -> bool:
        """Whether the updates done are a multiple of `every`; of 0 none is."""
        return every > 0 and self.state.done > 0 and self.state.done % every == 0

    def log(self, waited_s: float, validates: bool) -> dict[str, Any]:
        """Append a line to the metrics and return it; reading the losses waits for the device."""
        state, settings = self.state, self.settings
        losses = self.group.mean(torch.stack(self.losses))
        now = time.perf_counter()
        seconds = now - self.logged
        line = {
            "step": state.done,
            "loss": float(losses.mean()),
            "lr": state.optimizer.param_groups[0]["lr"],
            "samples_per_s": len(self.losses) * settings.batch_size / seconds,
            "waiting": waited_s / seconds,
            "threads": self.threads.count,
            "wall_s": self.trained_s + now - self.started,
        }
        if self.device.type == "cuda":
            line["gpu_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        groups, weights = self.window_groups, state.parameters.values()
        check_losses(self.folder, self.config, groups, state.done, losses.tolist(), weights, self.metrics)
        if validates and self.valid is not None and self.group.is_main_process:
            with state.averaged():
                line |= validate(self.policy, self.valid, settings.batch_size)
        self.metrics.append(line)
        return line

    def save(self) -> None:
        """Write what is needed to go on; metrics first: lines beyond a checkpoint are made again, missing ones not."""
        self.saved = time.perf_counter()
        if self.group.is_main_process:
            write_lines(self.folder / "metrics.jsonl", self.metrics)
            self.checkpoints.save(self.state)

    def measure_rollouts(self, line: dict[str, Any]) -> None:
        """Measure the averaged weights, into the latest line; the best so far are kept."""
        if self.rollout and self.group.is_main_process:
            best = max((line["success_rate"] for line in self.metrics if "success_rate" in line), default=-1.0)
            with self.state.averaged():
                line |= self.rollout(self.policy.eval(), self.state.done, self.raise_if_stopped)
            self.policy.train()
            if line["success_rate"] >= best:
                self.checkpoints.save_weights(self.state, "best")
                self.checkpoints.wait()
            write_lines(self.folder / "metrics.jsonl", self.metrics)
        self.group.barrier()

    def report(self, line: dict[str, Any]) -> None:
        """Hand a line to `on_update`."""
        if self.group.is_main_process and self.on_update:
            self.on_update(self.state.done, line)

    def raise_if_stopped(self) -> None:
        """Raise KeyboardInterrupt after Ctrl-C or SIGTERM."""
        if self.stopped():
            raise KeyboardInterrupt

    def leave(self, due: Due) -> NoReturn:
        """Stop before the end, with everything on the disk."""
        self.checkpoints.wait()
        self.group.barrier()  # a process that ends has the others stopped
        if due.stop:
            raise KeyboardInterrupt
        at = f"update {self.state.done} of {self.settings.steps}"
        raise PrismError(f"stopped at {at}, as its time is over; run it again to go on")

    @torch.no_grad()
    def finish(self) -> Policy:
        """Save the averaged weights and put them into the policy."""
        if self.group.is_main_process:
            save_weights(self.folder, self.state.weights())
        self.group.barrier()
        for name, parameter in self.state.parameters.items():
            parameter.copy_(self.state.ema[name])
        return self.policy.eval()


@torch.no_grad()
def validate(policy: Policy, windows: Windows, batch_size: int) -> dict[str, float]:
    """Loss and action error on held-out windows, as the policy acts: centre crops, the same noise every time.

    Returns:
        `valid_loss` over at most `VALID_WINDOWS` evenly spaced windows, and `valid_action_error`, the root mean square
        of what one sampled chunk an observation differs from the demonstrated one over the executed steps, in
        normalised units. Where there are several good ways to go on, even a perfect policy's is not zero.
    """
    chosen = torch.linspace(0, len(windows) - 1, min(len(windows), VALID_WINDOWS)).long()
    losses, errors, counts = 0.0, 0.0, 0.0
    policy.eval()
    generator = torch.Generator().manual_seed(0)
    for indices in torch.split(chosen, batch_size):
        batch = moved(windows.batch(indices) | {"draws": policy.draw(len(indices), generator)}, policy.device)
        losses += float(policy(batch)) * len(indices)
        expected = policy.normalizer["action"](batch["actions"])
        draws = policy.draw_sampling(len(indices), generator)
        sampled = policy.sample({**batch, "draws": draws}, draws["noise"])
        error = (sampled - expected)[:, policy.executed].square().mean(-1)
        mask = batch["mask"][:, policy.executed]
        errors, counts = errors + float((error * mask).sum()), counts + float(mask.sum())
    policy.train()
    return {"valid_loss": losses / len(chosen), "valid_action_error": math.sqrt(errors / max(counts, 1))}
