"""Predicted against recorded actions: what can be measured of a policy that nothing simulates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from matplotlib.figure import Figure

from prism_policy.config.ranges import Natural
from prism_policy.config.typed_json import read_json
from prism_policy.data.schema import slices
from prism_policy.data.windows import Windows
from prism_policy.policies import Policy
from prism_policy.utils.files import atomic, write_text

MOST_WINDOWS = 512
PANELS = 24
"""Numbers of the action that are drawn, at most."""


class PartError(TypedDict):
    """Root mean square error of one part of the action, in the robot's units."""

    part: str
    error: float
    repeated: float
    spread: float


class OpenLoop(TypedDict):
    """What open_loop.json holds."""

    held_out: bool
    demonstrations: Natural
    windows: Natural
    parts: tuple[PartError, ...]


def open_loop_path(folder: Path) -> Path:
    """Of the numbers; the picture is `figures/open_loop.png`."""
    return folder / "results" / "open_loop.json"


def read_open_loop(folder: Path) -> OpenLoop:
    """The numbers of a run whose actions were compared."""
    result: OpenLoop = read_json(open_loop_path(folder), OpenLoop, "measure the run again", "train the run first")
    return result


def measure_open_loop(folder: Path, policy: Policy, windows: Windows, episodes: list[int], held_out: bool) -> OpenLoop:
    """Compare chunks with what was recorded, over windows spread evenly, and draw the first of the `episodes`.

    Of each part of the action: the root mean square error over the executed steps; that of repeating the action before;
    and the standard deviation of the recorded actions, which always predicting their mean would have for an error.
    """
    chosen = torch.linspace(0, len(windows) - 1, min(len(windows), MOST_WINDOWS)).long()
    generator = torch.Generator().manual_seed(0)
    frames, executed = windows.frames, policy.executed
    starts = np.array((0, *frames.ends[:-1]))
    errors, repeats = [], []
    for indices in torch.split(chosen, 64):
        batch = windows.batch(indices)
        actions, mask = batch["actions"], batch["mask"]
        assert isinstance(actions, torch.Tensor)
        assert isinstance(mask, torch.Tensor)
        observation = {name: value for name, value in batch.items() if name not in ("actions", "mask")}
        predicted = policy.predict_chunk(observation, generator).cpu()
        now = windows.observed[indices][:, -1].cpu().numpy()
        before = np.maximum(now - 1, starts[np.searchsorted(frames.ends, now, side="right")])
        weight = mask[:, executed].cpu()
        recorded = actions[:, executed].cpu()
        errors.append((predicted[:, executed] - recorded)[weight])
        repeats.append((frames.actions.cpu()[torch.from_numpy(before)][:, None] - recorded)[weight])
    error, repeated = torch.cat(errors), torch.cat(repeats)
    spread = frames.actions.cpu().std(0)
    parts = [
        PartError(
            part=name,
            error=_rms(error[:, where]),
            repeated=_rms(repeated[:, where]),
            spread=_rms(spread[where]),
        )
        for name, where in slices(policy.schema.action).items()
    ]
    result = OpenLoop(held_out=held_out, demonstrations=len(episodes), windows=len(chosen), parts=tuple(parts))
    write_text(open_loop_path(folder), json.dumps(result, indent=2) + "\n")
    draw_episode(policy, windows, episodes[0], folder / "figures" / "open_loop.png")
    return result


def _rms(values: torch.Tensor) -> float:
    return float(values.square().mean().sqrt())


def draw_episode(policy: Policy, windows: Windows, episode: int, target: Path) -> None:
    """Draw every number of an episode's actions over time: as recorded, and the chunks as they would be executed."""
    frames = windows.frames
    first, end = (0, *frames.ends)[episode], frames.ends[episode]
    recorded = frames.actions[first:end].cpu().numpy()
    starts, chunks = range(0, end - first, policy.config.n_action_steps), []
    generator = torch.Generator().manual_seed(0)
    for start in starts:
        rows = [first + max(start - i, 0) for i in reversed(range(policy.config.n_obs_steps))]
        observation: dict[str, Any] = {
            "images": {camera: x[rows][None] for camera, x in frames.images.items()},
            "state": frames.state[rows][None],
        }
        if windows.task_vectors is not None:
            place = int(np.flatnonzero(windows.observed[:, -1].cpu().numpy() >= first)[0])
            observation["task"] = windows.task_vectors[windows.task[place]][None]
        chunks.append(policy.act(observation, generator)[0].cpu().numpy())
    names = [name for part in policy.schema.action for name in part.number_names][:PANELS]
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(3.2 * columns, 1.7 * lines + 0.6), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True)
    rate = policy.schema.fps or 1.0
    for i, axis in enumerate(axes.flat):
        if i >= len(names):
            axis.set_axis_off()
            continue
        axis.plot(np.arange(len(recorded)) / rate, recorded[:, i], color="0.25", linewidth=1.2, label="recorded")
        for start, chunk in zip(starts, chunks, strict=True):
            steps = np.arange(start, min(start + len(chunk), len(recorded)))
            label = "predicted" if start == 0 else None
            axis.plot(steps / rate, chunk[: len(steps), i], color="#d95f02", linewidth=1.0, label=label)
        axis.set_title(names[i], fontsize=8, loc="left")
        axis.tick_params(labelsize=7)
        if i >= len(names) - columns:
            axis.set_xlabel("time [s]" if policy.schema.fps else "step", fontsize=8)
    axes[0, 0].legend(fontsize=7, frameon=False)
    left_out = sum(part.size for part in policy.schema.action) - len(names)
    more = f"; {left_out} more numbers are not shown" if left_out else ""
    figure.suptitle(
        f"Actions of {frames.names[episode]}: recorded and predicted, each chunk as executed{more}", fontsize=9
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic(target) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def in_words(result: OpenLoop) -> str:
    """The errors in a line."""
    of = "held-out" if result["held_out"] else "learned (none are held out)"
    numbers = "; ".join(
        f"{part['part']} {part['error']:.3g} (repeating the action before {part['repeated']:.3g})"
        for part in result["parts"]
    )
    return f"Action error over {result['windows']} windows of {of} demonstrations, in the robot's units: {numbers}"
