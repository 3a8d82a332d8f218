"""Pictures of what policies look at: runs by phases of the task, keypoints with their spread, a film, the numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse, Rectangle
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from prism_policy.models.encoder import crop_size
from prism_policy.saliency.clips import Clip
from prism_policy.saliency.faithfulness import SHARES
from prism_policy.saliency.heatmaps import HEAT, STAGE_COLOURS, keypoint_pixels, paint
from prism_policy.saliency.metrics import lift_on, share_on
from prism_policy.saliency.study import (
    Maps,
    Study,
    Subject,
    densities,
    observation_for,
    per_run,
    seen,
    sides,
    summary,
)
from prism_policy.utils.files import atomic
from prism_policy.utils.video import FAILURE_COLOUR, SUCCESS_COLOUR, write_video

BRIGHTEST = 10.0
"""Saliency that is painted brightest, in units of the map's mean; 1, the mean, is painted not at all. Gradients of two
networks have no other common unit."""
_OUTLINES = {2: "#00e5ff", 1: "#8cff00"}  # objects, gripper: seen on white, on dark and on what is painted
_INCHES = 1.75  # an image
_TITLE_INCHES = 5.5  # what the title needs


def strength(density: np.ndarray) -> NDArray[np.float64]:
    """Densities (..., h, w) to how strongly they are painted, in [0, 1]."""
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter(np.asarray(density, np.float64), (*[0] * (density.ndim - 2), 1, 1))
    painted: NDArray[np.float64] = np.clip(np.log(np.maximum(smooth, 1.0)) / np.log(BRIGHTEST), 0, 1)
    return painted


def draw_grid(subjects: Sequence[Subject], clip: Clip, maps: Sequence[Maps], camera: str, path: Path) -> None:
    """Runs down, phases of the task across, one camera: all runs see the same frames.

    Args:
        clip: a frame a phase.
        maps: of each run, see `saliency_study.look`.
        path: its ending decides the format, .png or .pdf.
    """
    rows, columns = 1 + len(subjects), len(clip)
    width = max(_INCHES * columns + 1.5, _TITLE_INCHES)
    figure = Figure(figsize=(width, (_INCHES + 0.17) * rows + 1.35), layout="constrained")
    axes: NDArray[Any] = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    frames = clip.observation["images"][camera][:, -1]
    for column, (axis, step) in enumerate(zip(axes[0], clip.steps, strict=True)):
        title = f"{clip.phases[column]}\nstep {step}" if clip.phases[column] else f"step {step}"
        axis.set_title(title, fontsize=10)
        axis.imshow(frames[column], interpolation="nearest")
        _outline(axis, clip, camera, column)
    axes[0, 0].set_ylabel("the frame", fontsize=9)
    for line, subject, found in zip(axes[1:], subjects, maps, strict=True):
        share = subject.policy.encoder.config.crop
        inside = seen(frames, share)
        painted = strength(densities(found)[camera])
        mask = seen(clip.masks[camera], share) > 0 if clip.masks else None
        for column, axis in enumerate(line):
            axis.imshow(paint(inside[column], painted[column]), interpolation="nearest")
            if mask is not None:
                _outline(axis, clip, camera, column, share)
                share_there = share_on(found[camera][column], mask[column])
                times = lift_on(found[camera][column], mask[column])
                axis.set_xlabel(f"{share_there:.0%} on task, {times:.1f}x chance", fontsize=7.5, labelpad=2)
        line[0].set_ylabel(subject.title.replace(", ", "\n"), fontsize=9)
    bar = figure.colorbar(
        ScalarMappable(LogNorm(1, BRIGHTEST), HEAT), ax=axes, location="right", fraction=0.03, shrink=0.5, pad=0.02
    )
    bar.set_ticks([1, 2, 5, 10], labels=["1 and less", "2", "5", "10 and more"])
    bar.ax.minorticks_off()
    bar.set_label("saliency / mean of its image", fontsize=8)
    if clip.masks:
        names = {2: "object", 1: "gripper"}
        handles = [Line2D([], [], color=_OUTLINES[k], label=f"outline of the {name}") for k, name in names.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8, facecolor="#777777",
                      labelcolor="white")  # fmt: skip
    told = "below the frames: what moves the action, of the crop that the network sees"
    figure.suptitle(f"{camera}, {clip.title}\n{told}", fontsize=9)
    _save(figure, path)


def _outline(axis: Any, clip: Clip, camera: str, column: int, crop: float | None = None) -> None:
    if not clip.masks:
        return
    mask = clip.masks[camera] if crop is None else seen(clip.masks[camera], crop)
    for label, colour in _OUTLINES.items():
        if (mask[column] == label).any():
            axis.contour(mask[column] == label, levels=[0.5], colors=colour, linewidths=0.9)


def draw_stages(subject: Subject, clip: Clip, camera: str, path: Path) -> None:
    """Keypoints with their spread, a row a stage of the network, and what the attention takes from each stage.

    Raises:
        PrismError: the encoder has no keypoints.
    """
    encoder = subject.policy.encoder
    images = {c: torch.from_numpy(x[:, -1]) for c, x in observation_for(subject.policy, clip)["images"].items()}
    with torch.no_grad():
        heatmaps = encoder.heatmaps(images)[camera]
        attention = encoder.attention(images)[camera] if encoder.config.fusion == "tdca" else []
    weights = [a.mean(1).numpy() for a in attention]  # (F, tokens of the stage): mean over those that ask
    stages, columns, share = encoder.config.stages_read, len(clip), encoder.config.crop
    height, width = encoder.cameras[camera]
    rows = len(stages) + bool(weights)
    ratios = [*[1.0] * len(stages), *[0.45] * bool(weights)]
    size = (max(_INCHES * columns + 0.8, _TITLE_INCHES), _INCHES * sum(ratios) + 1.2)
    figure = Figure(figsize=size, layout="constrained")
    axes: NDArray[Any] = figure.subplots(rows, columns, squeeze=False, height_ratios=ratios)
    frames = clip.observation["images"][camera][:, -1]
    for row, (stage, heat) in enumerate(zip(stages, heatmaps, strict=True)):
        mean, spread = _moments(heat.numpy())
        middle = keypoint_pixels(mean, height, width, share, stage)  # (F, K, 2)
        reach = keypoint_pixels(mean + spread, height, width, share, stage) - middle
        colour = STAGE_COLOURS[stage - 1]
        asked = weights[row] if row < len(weights) and weights[row].shape[1] == mean.shape[1] else None
        for column in range(columns):
            axis = axes[row, column]
            axis.imshow(frames[column], interpolation="nearest", alpha=0.75)
            kept = crop_size(width, share), crop_size(height, share)
            corner = (width - kept[0]) // 2 - 0.5, (height - kept[1]) // 2 - 0.5
            axis.add_patch(Rectangle(corner, *kept, fill=False, ls=(0, (4, 4)), lw=0.6, ec="grey"))
            for (x, y), (dx, dy) in zip(middle[column], reach[column], strict=True):
                axis.add_patch(Ellipse((x, y), 2 * dx, 2 * dy, fc=colour, ec=colour, alpha=0.06, lw=0))
                axis.add_patch(Ellipse((x, y), 2 * dx, 2 * dy, fill=False, ec=colour, alpha=0.35, lw=0.5))
            area = 14.0 if asked is None else 4 + 40 * asked[column] / asked[column].max()
            axis.scatter(*middle[column].T, s=area, color=colour, edgecolors="white", linewidths=0.5, zorder=3)
            axis.set_xlim(-0.5, width - 0.5)
            axis.set_ylim(height - 0.5, -0.5)
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                axis.set_title(f"{clip.phases[column]}\nstep {clip.steps[column]}".strip(), fontsize=10)
        role = "\n(asks)" if weights and row == len(stages) - 1 else ""
        axes[row, 0].set_ylabel(f"stage {stage}{role}", fontsize=9)
    if weights:
        _attention_bars(axes[-1], stages, weights)
    note = "dot: where a keypoint points; ellipse: one standard deviation of its heat map; dashed: the crop"
    if weights and encoder.config.tokens == "keypoint":
        note += "\nlarger dot: more attention from the deepest stage's keypoints"
    figure.suptitle(f"keypoints of {subject.title}\n{camera}, {clip.title}\n{note}", fontsize=8)
    _save(figure, path, dpi=85)  # many ellipses compress badly


def _moments(heat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (F, K, 2), as (x, y) in [-1, 1], of heat maps (F, K, h, w) that sum to 1."""
    xs, ys = (np.linspace(-1, 1, n) for n in (heat.shape[3], heat.shape[2]))
    along = [(heat.sum(2), xs), (heat.sum(3), ys)]
    mean = np.stack([p @ grid for p, grid in along], axis=-1)
    square = np.stack([p @ grid**2 for p, grid in along], axis=-1)
    return mean, np.sqrt(np.maximum(square - mean**2, 0))


def _attention_bars(axes: NDArray[Any], stages: Sequence[int], weights: Sequence[np.ndarray]) -> None:
    tokens = np.array([w.shape[1] for w in weights])
    shares = np.stack([w.sum(1) for w in weights], axis=1)  # (F, stages that answer)
    for column, axis in enumerate(axes):
        names = [str(s) for s in stages[: len(weights)]]
        axis.bar(names, shares[column], color=[STAGE_COLOURS[s - 1] for s in stages[: len(weights)]])
        axis.plot(names, tokens / tokens.sum(), "k_", markersize=22)
        axis.set_ylim(0, max(1.0, shares.max()))
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=7, labelleft=column == 0)
    axes[0].set_ylabel("attention\n(line: uniform)", fontsize=8)
    axes[len(axes) // 2].set_xlabel("stage that answers", fontsize=8)


def film(subjects: Sequence[Subject], clip: Clip, maps: Sequence[Maps], path: Path, fps: int = 5) -> None:
    """The clip as a video: a row a camera for a single run, else a row a run; the frame, and the saliency beside it."""
    write_video(path, _film_frames(subjects, clip, maps), fps)


def _film_frames(subjects: Sequence[Subject], clip: Clip, maps: Sequence[Maps]) -> Iterator[NDArray[np.uint8]]:
    crops = [s.policy.encoder.config.crop for s in subjects]
    frames = [{c: seen(x[:, -1], crop) for c, x in clip.observation["images"].items()} for crop in crops]
    painted = [{c: strength(x) for c, x in densities(found).items()} for found in maps]
    side = 240 if len(subjects) == 1 else 168
    colour = SUCCESS_COLOUR if clip.success else FAILURE_COLOUR
    font = ImageFont.load_default(size=15)
    for i, step in enumerate(clip.steps):
        rows = []
        if len(subjects) == 1:
            for c, x in frames[0].items():
                rows.append(np.concatenate([_large(x[i], side), _large(paint(x[i], painted[0][c][i]), side)], axis=1))
        else:
            rows.append(np.concatenate([_large(x[i], side) for x in frames[0].values()], axis=1))
            for seen_by, found in zip(frames, painted, strict=True):
                tiles = [_large(paint(x[i], found[c][i]), side) for c, x in seen_by.items()]
                rows.append(np.concatenate(tiles, axis=1))
        body = np.concatenate(rows)
        left = 0 if len(subjects) == 1 else 110
        page = Image.new("RGB", (body.shape[1] + left, body.shape[0] + 48), colour)
        page.paste(Image.fromarray(body), (left, 48))
        pen = ImageDraw.Draw(page)
        pen.text((6, 4), clip.title, "white", font)
        pen.text((6, 24), f"step {step} of {clip.length - 1}{clip.phases[i] and ': ' + clip.phases[i]}", "white", font)
        for row, name in enumerate(["frame", *(s.title for s in subjects)] if left else []):
            pen.text((6, 48 + row * side + side / 2 - 16), name.replace(", ", "\n"), "white", font)
        yield np.asarray(page)


def _large(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))


_SIDE_COLOURS = (*STAGE_COLOURS, "#8a5bb5", "#555555")
_PANELS = {
    "lift": "on objects and gripper\n[times chance] more is better",
    "entropy": "entropy of the map\nless is more concentrated",
    "time": "agreement with the next step\n[rank correlation]",
    "seeds": "agreement of training seeds\n[rank correlation]",
    "deletion": "deletion: gain over chance\n[area] more is better",
    "insertion": "insertion: gain over chance\n[area] more is better",
    "randomised": "agreement with random weights\n[rank correlation] near 0 is better",
}


def draw_numbers(found: Study, path: Path) -> None:
    """A panel a number: each side's mean with its 95% interval over episodes, each of its runs as a dot."""
    told, places = summary(found), sides(found.subjects)
    names = list(told)
    colours = {side: _SIDE_COLOURS[i % len(_SIDE_COLOURS)] for i, side in enumerate(names)}
    figure = Figure(figsize=(11.5, 1.9 + 0.42 * len(names) * 2), layout="constrained")
    axes: NDArray[Any] = figure.subplots(2, 4)
    for axis, (number, title) in zip(axes.flat, _PANELS.items(), strict=False):
        for y, side in enumerate(names):
            if (estimate := told[side].get(number)) is None or not np.isfinite(estimate.mean):
                continue
            if number in found.values and len(places[side]) > 1:
                runs = per_run(found, number, places[side])
                axis.scatter(runs, [y + 0.22] * len(runs), s=9, color=colours[side], alpha=0.7)
            if estimate.low is not None:
                axis.plot([estimate.low, estimate.high], [y, y], color=colours[side], linewidth=2)
            axis.scatter([estimate.mean], [y], s=34, color=colours[side], zorder=3)
            if number == "lift" and (chance := told[side].get("randomised_lift")):
                axis.scatter([chance.mean], [y], s=30, marker="x", color="#777777")
        if not axis.has_data():  # of a single training each, say
            axis.text(0.5, 0.5, "not to be had\nfrom these runs", transform=axis.transAxes, ha="center", fontsize=8)
            axis.set_xticks([])
        axis.set_title(title, fontsize=8)
        axis.set_yticks(range(len(names)), names if axis in axes[:, 0] else [""] * len(names), fontsize=8)
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.tick_params(labelsize=8)
        axis.grid(axis="x", alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].axvline(1, color="#777777", linewidth=0.8, linestyle=":")
    if found.curves:
        _deletion(axes[1, 3], found, colours)
    else:
        axes[1, 3].set_axis_off()
    frames = sum(len(c) for c in found.clips)
    figure.suptitle(
        f"Task {found.subjects[0].config.task.name}: {frames} frames of {len(found.clips)} episodes, the same for all "
        "runs. Large dot and line: mean and 95% interval over episodes; small dots: runs (training seeds);\n"
        "cross: the same network with random weights; dotted: a map that knows nothing of the task",
        fontsize=8,
    )
    _save(figure, path)


def _deletion(axis: Any, found: Study, colours: dict[str, str]) -> None:
    for side, places in sides(found.subjects).items():
        axis.plot(SHARES, found.curves["deletion"][places].mean((0, 1)), color=colours[side], label=side, linewidth=1.3)
    chance = found.curves["deletion_chance"].mean((0, 1))
    axis.plot(SHARES, chance, color="#777777", linestyle="--", label="masks moved at random", linewidth=1.2)
    axis.set_title(
        "deletion: change of the action over the share\nof pixels painted over, most salient first", fontsize=8
    )
    axis.legend(fontsize=6.5, frameon=False)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path, dpi: int = 110) -> None:
    with atomic(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:] or "png", dpi=dpi)
