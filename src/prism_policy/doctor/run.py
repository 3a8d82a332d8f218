"""Checks with a run: can it learn at all, does it do better than nothing, does it see, is it served what it learned."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prism_client.msgpack_numpy import pack, unpack
from prism_policy.config.settings import Device, RunConfig
from prism_policy.data.schema import Schema, slices
from prism_policy.data.source import Source
from prism_policy.data.windows import Windows
from prism_policy.demos.dataset import Dataset, open_dataset
from prism_policy.deploy.session import Adapter
from prism_policy.doctor.finding import Finding, Place, finding
from prism_policy.errors import PrismError
from prism_policy.policies import Policy
from prism_policy.probe.ridge import ridge_error
from prism_policy.run_folder import load_policy, make_policy, read_data
from prism_policy.training.checkpoint import TrainState
from prism_policy.training.prefetch import moved
from prism_policy.training.trainer import fit_normalizers
from prism_policy.utils.device import pick_device

Progress = Callable[[int, int], None]
WINDOWS = 10
UPDATES = 400
"""Of the short training, at most."""
WARM_UP = 20
"""Updates in which the learning rate rises."""
COPIES = 8
"""Noises for each window in an update."""
LEARNED = 0.5
"""Loss of windows learned by heart, as a share of their loss with exchanged observations."""
ALIKE = 0.05
"""Deviation of normalised actions below which nothing tells one window from another."""
MEASURED = 256
"""Held-out windows, at most."""
FRAMES = 400
"""Frames of which the encoder's features are read, on either side."""
BLIND = 0.8
"""Error of a linear map as a share of the mean predictor's, above which the encoder sees nothing."""


@dataclass
class RunExamination:
    """What was found, and what was measured whether or not it is a fault."""

    findings: list[Finding]
    measured: list[str]


def examine_run(
    folder: Path,
    config: RunConfig,
    source: Source | None,
    minutes: float,
    device: Device,
    progress: Progress = lambda done, total: None,
) -> RunExamination:
    """Check a trained run against demonstrations.

    Args:
        config: of the run, with the demonstrations to check it on as its dataset.
        source: of these demonstrations, at the recording's sizes; None where there are several.
        minutes: longest time of the short training; 0 leaves it out.

    Raises:
        PrismError: the run has no trained policy, or does not fit the demonstrations.
    """
    policy = load_policy(folder).to(pick_device(device)).eval()
    dataset = open_dataset(config)
    if dataset.schema != policy.schema:
        expected = f"expected {_about(policy.schema)} as in the run"
        raise PrismError(f"{config.dataset or config.task.name}: {expected}, got {_about(dataset.schema)}")
    found = RunExamination([], [])
    learned = read_data(folder)
    if learned is not None and learned.content != dataset.content:
        found.findings.append(finding("other-demonstrations", "their content differs from what data.json says"))
    if minutes:
        _add(found, by_heart(policy, config, dataset.train, 60 * minutes, progress))
    _add(found, against_nothing(policy, dataset))
    _add(found, sight(policy, dataset))
    if source is not None:
        found.findings += served(folder, policy, config, dataset, source)
        found.measured.append("The server's images and state were compared with training's, bit by bit")
    return found


def _add(found: RunExamination, result: tuple[Finding | None, str]) -> None:
    one, sentence = result
    if one is not None:
        found.findings.append(one)
    if sentence:
        found.measured.append(sentence)


def _about(schema: Schema) -> str:
    sizes = ", ".join(f"{camera} {h}x{w}" for camera, (h, w) in schema.cameras.items())
    return f"{sizes}, state of {schema.state_dim} and actions of {schema.action_dim} numbers"


def by_heart(
    policy: Policy, config: RunConfig, windows: Windows, seconds: float, progress: Progress
) -> tuple[Finding | None, str]:
    """Train a fresh policy of the run's settings on ten windows alone, until it knows which actions belong to which.

    That is: until the loss of the windows with their own observations is below `LEARNED` of that with another
    window's. A sampled chunk's error would take ten times as many updates. Where time is over before, it is not settled
    and no finding.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        fresh = make_policy(config, policy.schema)
    fit_normalizers(fresh, windows, config.data.clip_quantile)
    fresh.to(policy.device).train()
    chosen = torch.linspace(0, len(windows) - 1, min(WINDOWS, len(windows))).long()
    batch: Any = moved(dict(windows.batch(chosen)), policy.device)
    if float(fresh.normalizer["action"](batch["actions"]).std(0).max()) < ALIKE:
        return None, "Ten windows by heart: not measured, as their actions are alike"
    state, generator = TrainState(fresh, config.train), torch.Generator().manual_seed(0)
    started, share = time.perf_counter(), math.inf
    while state.done < UPDATES and time.perf_counter() - started < seconds:
        loss = _loss(fresh, batch, generator)
        state.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if config.train.grad_clip:
            torch.nn.utils.clip_grad_norm_(state.parameters.values(), config.train.grad_clip)
        state.update(config.train.lr * min(1.0, (state.done + 1) / WARM_UP), 0.0)
        progress(state.done, UPDATES)
        if state.done % 20 == 0 and (share := _share(fresh, batch)) < LEARNED:
            break
    took, done = time.perf_counter() - started, state.done
    if done < UPDATES and not share < LEARNED:
        return None, f"Ten windows by heart: not settled after {done} updates in {took:.0f} s (--minutes)"
    numbers = f"loss {share:.2f} of that with exchanged observations, after {done} updates in {took:.0f} s"
    if not share < LEARNED:
        return finding("cannot-overfit", f"{numbers}; below {LEARNED} is expected"), f"Ten windows by heart: {numbers}"
    return None, f"Ten windows by heart: {numbers}"


@torch.no_grad()
def _share(policy: Policy, batch: Any) -> float:
    """Loss of the windows with their own observations, as a share of that with another window's; NaN if it is that."""
    others = torch.roll(torch.arange(len(batch["actions"])), max(1, len(batch["actions"]) // 3))
    exchanged = {**batch, "images": {c: x[others] for c, x in batch["images"].items()}, "state": batch["state"][others]}
    own, other = (
        sum(float(_loss(policy, one, torch.Generator().manual_seed(seed))) for seed in range(3))
        for one in (batch, exchanged)
    )
    return own / other


def _loss(policy: Policy, batch: Any, generator: torch.Generator) -> torch.Tensor:
    """The training loss of a batch with several noises for each of its observations, which are encoded once.

    The crop is the centre, as in acting.
    """
    draws = policy.draw(len(batch["actions"]), generator, training=False, copies=COPIES)
    loss: torch.Tensor = policy({**batch, "draws": {name: x.to(policy.device) for name, x in draws.items()}})
    return loss


def _chunks(
    policy: Policy, windows: Windows, chosen: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Predicted and recorded executed actions, normalised (N, Ta, A), which count (N, Ta), rows of the newest frame."""
    generator, executed, scale = torch.Generator().manual_seed(0), policy.executed, policy.normalizer["action"]
    predicted, recorded, weights = [], [], []
    for indices in torch.split(chosen, 64):
        batch = windows.batch(indices)
        observation = {name: value for name, value in batch.items() if name not in ("actions", "mask")}
        predicted.append(scale(policy.predict_chunk(observation, generator))[:, executed].cpu())
        recorded.append(scale(torch.as_tensor(batch["actions"]).to(policy.device))[:, executed].cpu())
        weights.append(torch.as_tensor(batch["mask"])[:, executed].cpu())
    return torch.cat(predicted), torch.cat(recorded), torch.cat(weights), windows.observed[chosen][:, -1].cpu()


@torch.no_grad()
def against_nothing(policy: Policy, dataset: Dataset) -> tuple[Finding | None, str]:
    """Root mean square error of the actions, normalised, beside holding still and repeating the last action."""
    windows = dataset.valid or dataset.train
    frames = windows.frames
    chosen = torch.linspace(0, len(windows) - 1, min(len(windows), MEASURED)).long()
    predicted, recorded, weight, now = _chunks(policy, windows, chosen)
    starts = np.array((0, *frames.ends[:-1]))
    first = starts[np.searchsorted(frames.ends, now.numpy(), side="right")]
    before = frames.actions.cpu()[np.maximum(now.numpy() - 1, first)]
    still = hold_still(frames.state.cpu()[now], before, policy.schema)

    def error(actions: torch.Tensor) -> float:
        return float((actions - recorded)[weight].square().mean().sqrt())

    scale = policy.normalizer["action"]
    none, last = (error(scale(x.to(policy.device)).cpu()[:, None].expand_as(recorded)) for x in (still, before))
    own = error(predicted)
    of = "held-out" if dataset.valid else "learned (none are held out)"
    numbers = (
        f"{own:.3f} over {len(chosen)} {of} windows, holding still {none:.3f}, repeating the last action {last:.3f}"
    )
    sentence = f"Action error, normalised: {numbers}"
    if own >= none:
        return finding("no-better-than-still", f"action error {numbers}"), sentence
    if own >= last:
        return finding("no-better-than-repeating", f"action error {numbers}"), sentence
    return None, sentence


def hold_still(state: torch.Tensor, before: torch.Tensor, schema: Schema) -> torch.Tensor:
    """Actions (N, A) that leave the robot where it is: no step; or the state as the target; grippers as before."""
    actions, of_state = before.clone(), slices(schema.state)
    for part, where in zip(schema.action, slices(schema.action).values(), strict=True):
        same = [one.name for one in schema.state if (one.kind, one.size) == (part.kind, part.size)]
        if part.kind == "gripper":
            continue
        if part.shares:
            actions[:, where] = 0
        elif part.kind in ("position", "joint") and same:
            actions[:, where] = state[:, of_state[same[0]]]
    return actions


@torch.no_grad()
def sight(policy: Policy, dataset: Dataset) -> tuple[Finding | None, str]:
    """Ridge regression from the encoder's features to the state's positions (or joints), on other episodes' frames."""
    schema, frames = policy.schema, dataset.train.frames
    parts = [p.name for p in schema.state if p.kind == "position"] or [
        p.name for p in schema.state if p.kind == "joint"
    ]
    names, held_out = dataset.names
    if not held_out:
        names, held_out = names[::2], names[1::2]
    if not parts or not held_out:
        return None, ""
    columns = np.concatenate([np.arange(schema.state_dim)[slices(schema.state)[name]] for name in parts])
    sides = [_rows_of(dataset, some) for some in (names, held_out)]
    x, y = [], []
    for rows in sides:
        y.append(frames.state.cpu().numpy()[rows][:, columns].astype(np.float64))
        batches = np.array_split(rows, max(1, len(rows) // 64))
        x.append(np.concatenate([_features(policy, dataset, batch) for batch in batches]))
    moved_by = float(np.linalg.norm(y[1] - y[0].mean(0), axis=1).mean())
    if moved_by < 1e-6:
        return None, ""
    error = ridge_error(x[0], y[0], x[1], y[1])
    numbers = f"{error:.3g} for {', '.join(parts)}, always saying the mean has {moved_by:.3g} ({error / moved_by:.0%})"
    sentence = f"Where things are, by a linear map of the encoder's numbers: error {numbers}"
    if error > BLIND * moved_by:
        return finding("encoder-blind", f"mean error {numbers}"), sentence
    return None, sentence


def _rows_of(dataset: Dataset, names: Sequence[str]) -> np.ndarray:
    """Rows of the frames of these episodes, evenly spread."""
    frames = dataset.train.frames
    bounds = [((0, *frames.ends)[i], frames.ends[i]) for i in frames.indices(names)]
    rows = np.concatenate([np.arange(*bound) for bound in bounds])
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(FRAMES, len(rows))).astype(int))]


def _features(policy: Policy, dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    images = {c: x[torch.from_numpy(rows)].to(policy.device) for c, x in dataset.train.frames.images.items()}
    return np.asarray(policy.encoder(images).double().cpu().numpy())


def served(folder: Path, policy: Policy, config: RunConfig, dataset: Dataset, source: Source) -> Iterator[Finding]:
    """Send frames of an episode, as a robot would, to what stands between the socket and the policy.

    Packed, unpacked, checked and resized there, they have to be what the frame cache holds, to the bit.
    """
    frames = dataset.train.frames
    adapter = Adapter.of(policy, config, read_data(folder))
    name = (dataset.names[1] or dataset.names[0])[0]
    recorded = replace(policy.schema, cameras=adapter.interface.schema.cameras)
    episode = next(iter(source.episodes([name], recorded)))
    first = (0, *frames.ends)[frames.indices([name])[0]]
    for step in sorted({0, len(episode) // 2, len(episode) - 1}):
        frame = {"images": {c: x[step] for c, x in episode.images.items()}, "state": episode.state[step]}
        sent = unpack(pack(frame))
        arrived = adapter.interface.frame(sent["images"], sent["state"])
        seen = {**adapter.seen(arrived["images"]), "state": arrived["state"]}
        for part, values in seen.items():
            held = frames.state[first + step] if part == "state" else frames.images[part][first + step]
            differs = np.abs(values.astype(np.float64) - held.cpu().numpy())
            if differs.any():
                what = f"{part} differs by up to {differs.max():.3g} in {(differs > 0).mean():.0%} of its numbers"
                yield finding("served-otherwise", what, [Place(name, (step, step), part)])
                return
