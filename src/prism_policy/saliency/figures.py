"""Pictures of saliency, keypoints and attention, a film, and a study's metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse, Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from prism_policy.models.augment import crop_size
from prism_policy.saliency.clips import Clip
from prism_policy.saliency.faithfulness import SHARES
from prism_policy.saliency.heatmaps import BRIGHTEST, HEAT, STAGE_COLOURS, keypoint_pixels, paint, strength
from prism_policy.saliency.metrics import lift_on, share_on
from prism_policy.saliency.study import (
    MEASURED,
    Maps,
    Study,
    Subject,
    centre_crop,
    observation_for,
    per_run,
    sides,
    summary,
    task_mask,
)
from prism_policy.utils.files import atomic
from prism_policy.utils.video import FAILURE_COLOUR, SUCCESS_COLOUR, write_video

_OUTLINES = {2: ("object", "#00e5ff"), 1: ("gripper", "#8cff00")}  # seen on white, on dark and on what is painted
_INCHES = 1.75  # an image
_TITLE_INCHES = 5.5  # what the title needs
FILM_FPS = 5


def draw_grid(
    subjects: Sequence[Subject], clip: Clip, maps: Sequence[Maps], cameras: Sequence[str], path: Path
) -> None:
    """Saliency: frames across; for each camera a row of the frames as they are, then a row a run.

    Args:
        maps: `saliency_maps` of each run on this clip.
        path: its ending decides the format, .png or .pdf.
    """
    rows, columns = len(cameras) * (1 + len(subjects)), len(clip)
    size = (max(_INCHES * columns + 1.5, _TITLE_INCHES), (_INCHES + 0.17) * rows + 1.35)
    figure, axes = _frame_axes(size, rows, clip)
    for camera, lines in zip(cameras, np.split(axes, len(cameras)), strict=True):
        frames = clip.observation["images"][camera][:, -1]
        for column, axis in enumerate(lines[0]):
            axis.imshow(frames[column], interpolation="nearest")
            _outline(axis, clip, camera, column)
        lines[0, 0].set_ylabel("the frame" if len(cameras) == 1 else camera, fontsize=9)
        for line, subject, subject_maps in zip(lines[1:], subjects, maps, strict=True):
            _draw_saliency(line, subject, clip, subject_maps, camera)
            line[0].set_ylabel(subject.title.replace(", ", "\n"), fontsize=9)
    colours = ScalarMappable(LogNorm(1, BRIGHTEST), HEAT)
    bar = figure.colorbar(colours, ax=axes, location="right", fraction=0.03, shrink=0.5, pad=0.02)
    bar.set_ticks([1, 2, 5, 10], labels=["1 and less", "2", "5", "10 and more"])
    bar.ax.minorticks_off()
    bar.set_label("saliency / mean of its image", fontsize=8)
    if clip.masks:
        handles = [Line2D([], [], color=c, label=f"outline of the {name}") for name, c in _OUTLINES.values()]
        figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8, facecolor="#777777",
                      labelcolor="white")  # fmt: skip
    note = "below the frames: what moves the action, of the crop that the network sees"
    figure.suptitle(f"{', '.join(cameras)}, {clip.title}\n{note}", fontsize=9)
    _save(figure, path)


def _frame_axes(size: tuple[float, float], rows: int, clip: Clip, **layout: Any) -> tuple[Figure, NDArray[Any]]:
    """An empty picture with a column for each frame of a clip, which its title names."""
    figure = Figure(figsize=size, layout="constrained")  # no pyplot: no window system, nothing to close
    axes: NDArray[Any] = figure.subplots(rows, len(clip), squeeze=False, **layout)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for axis, phase, step in zip(axes[0], clip.phases, clip.steps, strict=True):
        axis.set_title(f"{phase}\nstep {step}".strip(), fontsize=10)
    return figure, axes


def _draw_saliency(axes: NDArray[Any], subject: Subject, clip: Clip, maps: Maps, camera: str) -> None:
    crop = subject.policy.encoder.config.crop
    frames = centre_crop(clip.observation["images"][camera][:, -1], crop)
    strengths, mask = strength(maps[camera]), task_mask(subject, clip, camera)
    for column, axis in enumerate(axes):
        axis.imshow(paint(frames[column], strengths[column]), interpolation="nearest")
        if mask is not None:
            _outline(axis, clip, camera, column, crop)
            share, lift = (measure(maps[camera][column], mask[column]) for measure in (share_on, lift_on))
            axis.set_xlabel(f"{share:.0%} on task, {lift:.1f}x chance", fontsize=7.5, labelpad=2)


def _outline(axis: Any, clip: Clip, camera: str, column: int, crop: float = 1.0) -> None:
    if not clip.masks:
        return
    mask = centre_crop(clip.masks[camera], crop)[column]
    for label, (_, colour) in _OUTLINES.items():
        if (mask == label).any():
            axis.contour(mask == label, levels=[0.5], colors=colour, linewidths=0.9)


def draw_keypoints(subject: Subject, clip: Clip, cameras: Sequence[str], path: Path) -> None:
    """Keypoints of all stages at once: frames across, a row a camera."""
    heatmaps = _heatmaps(subject, clip)
    stages = subject.policy.encoder.config.stages_read
    size = max(_INCHES * len(clip) + 0.3, _TITLE_INCHES), _INCHES * len(cameras) + 0.8
    figure, axes = _frame_axes(size, len(cameras), clip)
    for line, camera in zip(axes, cameras, strict=True):
        _show_frames(line, subject, clip, camera)
        for stage, heat in zip(stages, heatmaps[camera], strict=True):
            dots = {"color": STAGE_COLOURS[stage - 1], "edgecolors": "white", "label": f"stage {stage}"}
            for axis, points in zip(line, _keypoints(subject, camera, stage, heat)[0], strict=True):
                axis.scatter(*points.T, s=12, linewidths=0.5, **dots)
        line[0].set_ylabel(camera, fontsize=9)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(stages), frameon=False, fontsize=8)
    _save(figure, path, dpi=130)


def draw_stages(subject: Subject, clip: Clip, camera: str, path: Path) -> None:
    """Keypoints with their spread: frames across, a row a stage, and what the attention takes from each stage."""
    encoder = subject.policy.encoder
    heatmaps = _heatmaps(subject, clip)[camera]
    with torch.no_grad():
        attention = encoder.attention(_newest_images(subject, clip))[camera] if encoder.config.fusion == "tdca" else []
    weights = [a.mean(1).cpu().numpy() for a in attention]  # (F, tokens of the stage): mean over the queries
    stages = encoder.config.stages_read
    ratios = [*[1.0] * len(stages), *[0.45] * bool(weights)]
    size = (max(_INCHES * len(clip) + 0.8, _TITLE_INCHES), _INCHES * sum(ratios) + 1.2)
    figure, axes = _frame_axes(size, len(ratios), clip, height_ratios=ratios)
    for row, (stage, heat) in enumerate(zip(stages, heatmaps, strict=True)):
        _show_frames(axes[row], subject, clip, camera)
        middle, reach = _keypoints(subject, camera, stage, heat)
        colour = STAGE_COLOURS[stage - 1]
        sizes = weights[row] if row < len(weights) and weights[row].shape[1] == middle.shape[1] else None
        for column, axis in enumerate(axes[row]):
            for (x, y), (dx, dy) in zip(middle[column], reach[column], strict=True):
                axis.add_patch(Ellipse((x, y), 2 * dx, 2 * dy, fc=colour, ec=colour, alpha=0.06, lw=0))
                axis.add_patch(Ellipse((x, y), 2 * dx, 2 * dy, fill=False, ec=colour, alpha=0.35, lw=0.5))
            area = 14.0 if sizes is None else 4 + 40 * sizes[column] / sizes[column].max()
            axis.scatter(*middle[column].T, s=area, color=colour, edgecolors="white", linewidths=0.5, zorder=3)
        role = "\n(query)" if weights and row == len(stages) - 1 else ""
        axes[row, 0].set_ylabel(f"stage {stage}{role}", fontsize=9)
    if weights:
        _attention_bars(axes[-1], stages, weights)
    note = "dot: where a keypoint points; ellipse: one standard deviation of its heat map; dashed: the crop"
    if weights and encoder.config.tokens == "keypoint":
        note += "\nlarger dot: more attention from the deepest stage's keypoints"
    figure.suptitle(f"keypoints of {subject.title}\n{camera}, {clip.title}\n{note}", fontsize=8)
    _save(figure, path, dpi=85)  # many ellipses compress badly


def _newest_images(subject: Subject, clip: Clip) -> dict[str, torch.Tensor]:
    images = observation_for(subject.policy, clip)["images"]
    return {c: torch.from_numpy(x[:, -1]).to(subject.policy.device) for c, x in images.items()}


def _heatmaps(subject: Subject, clip: Clip) -> dict[str, list[np.ndarray]]:
    """Camera -> heat maps (F, K, h, w) of each stage."""
    with torch.no_grad():
        heatmaps = subject.policy.encoder.heatmaps(_newest_images(subject, clip))
    return {c: [heat.cpu().numpy() for heat in stages] for c, stages in heatmaps.items()}


def _show_frames(axes: NDArray[Any], subject: Subject, clip: Clip, camera: str) -> None:
    """The frames, and the crop that the network sees as a dashed frame."""
    (height, width), crop = subject.policy.encoder.cameras[camera], subject.policy.encoder.config.crop
    kept = crop_size(width, crop), crop_size(height, crop)
    corner = (width - kept[0]) // 2 - 0.5, (height - kept[1]) // 2 - 0.5  # imshow centres pixels on whole numbers
    for axis, frame in zip(axes, clip.observation["images"][camera][:, -1], strict=True):
        axis.imshow(frame, interpolation="nearest", alpha=0.75)
        axis.add_patch(Rectangle(corner, *kept, fill=False, ls=(0, (4, 4)), lw=0.6, ec="grey"))
        axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def _keypoints(subject: Subject, camera: str, stage: int, heat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of a stage's keypoints and their standard deviations, (F, K, 2) each, of its heat maps (F, K, h, w)."""
    encoder = subject.policy.encoder
    along = [(heat.sum(2), np.linspace(-1, 1, heat.shape[3])), (heat.sum(3), np.linspace(-1, 1, heat.shape[2]))]
    mean, square = (np.stack([p @ grid**power for p, grid in along], axis=-1) for power in (1, 2))
    spread = np.sqrt(np.maximum(square - mean**2, 0))  # as the mean, (x, y) in [-1, 1]
    size, crop = encoder.cameras[camera], encoder.config.crop
    middle, end = (keypoint_pixels(x, *size, crop, stage) for x in (mean, mean + spread))
    return middle, end - middle


def _attention_bars(axes: NDArray[Any], stages: Sequence[int], weights: Sequence[np.ndarray]) -> None:
    tokens = np.array([w.shape[1] for w in weights])
    shares = np.stack([w.sum(1) for w in weights], axis=1)  # (F, attended stages)
    for column, axis in enumerate(axes):
        places = range(len(weights))
        axis.bar(places, shares[column], color=[STAGE_COLOURS[s - 1] for s in stages[: len(weights)]])
        axis.plot(places, tokens / tokens.sum(), "k_", markersize=22)
        axis.set_xticks(places, [str(s) for s in stages[: len(weights)]])
        axis.yaxis.set_major_locator(MaxNLocator(3))
        axis.set_ylim(0, max(1.0, shares.max()))
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=7, labelleft=column == 0)
    axes[0].set_ylabel("attention\n(line: uniform)", fontsize=8)
    axes[len(axes) // 2].set_xlabel("attended stage", fontsize=8)


def film(subjects: Sequence[Subject], clip: Clip, maps: Sequence[Maps], path: Path) -> None:
    """The clip as a video: a row a camera for a single run, else a row a run; the frame, and the saliency beside it."""
    write_video(path, _film_frames(subjects, clip, maps), FILM_FPS)


def _film_frames(subjects: Sequence[Subject], clip: Clip, maps: Sequence[Maps]) -> Iterator[NDArray[np.uint8]]:
    crops = [s.policy.encoder.config.crop for s in subjects]
    frames = [{c: centre_crop(x[:, -1], crop) for c, x in clip.observation["images"].items()} for crop in crops]
    strengths = [{c: strength(x) for c, x in m.items()} for m in maps]
    single = len(subjects) == 1
    side, left = (240, 0) if single else (168, 110)
    colour = SUCCESS_COLOUR if clip.success else FAILURE_COLOUR
    font = ImageFont.load_default(size=15)
    for i, step in enumerate(clip.steps):
        plain = [x[i] for x in frames[0].values()]
        pairs = zip(frames, strengths, strict=True)
        painted = [[paint(x[i], strong[c][i]) for c, x in images.items()] for images, strong in pairs]
        body = _tiles(zip(plain, painted[0], strict=True) if single else [plain, *painted], side)
        page = Image.new("RGB", (body.shape[1] + left, body.shape[0] + 48), colour)
        page.paste(Image.fromarray(body), (left, 48))
        pen = ImageDraw.Draw(page)
        pen.text((6, 4), clip.title, "white", font)
        pen.text((6, 24), f"step {step} of {clip.length - 1}{clip.phases[i] and ': ' + clip.phases[i]}", "white", font)
        for row, name in enumerate([] if single else ["frame", *(s.title for s in subjects)]):
            pen.text((6, 48 + row * side + side / 2 - 16), name.replace(", ", "\n"), "white", font)
        yield np.asarray(page)


def _tiles(rows: Iterable[Sequence[NDArray[np.uint8]]], side: int) -> NDArray[np.uint8]:
    """Images in rows, each enlarged to `side` by `side` pixels."""

    def large(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))

    return np.concatenate([np.concatenate([large(image) for image in row], axis=1) for row in rows])


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


def draw_metrics(study: Study, path: Path) -> None:
    """A panel a metric: each side's mean with its 95% interval over episodes, each of its runs as a dot."""
    means, places = summary(study), sides(study.subjects)
    names = list(means)
    colours = {side: _SIDE_COLOURS[i % len(_SIDE_COLOURS)] for i, side in enumerate(names)}
    figure = Figure(figsize=(11.5, 1.9 + 0.42 * len(names) * 2), layout="constrained")
    axes: NDArray[Any] = figure.subplots(2, 4)
    for axis, (metric, title) in zip(axes.flat, _PANELS.items(), strict=False):
        for y, side in enumerate(names):
            if (estimate := means[side].get(metric)) is None or not np.isfinite(estimate.mean):
                continue
            if metric in MEASURED and len(places[side]) > 1:
                runs = per_run(study, metric, places[side])
                axis.scatter(runs, [y + 0.22] * len(runs), s=9, color=colours[side], alpha=0.7)
            if estimate.low is not None:
                axis.plot([estimate.low, estimate.high], [y, y], color=colours[side], linewidth=2)
            axis.scatter([estimate.mean], [y], s=34, color=colours[side], zorder=3)
            if metric == "lift" and (chance := means[side].get("randomised_lift")):
                axis.scatter([chance.mean], [y], s=30, marker="x", color="#777777")
        if not axis.has_data():  # of a single training each, say
            axis.text(0.5, 0.5, "not to be had\nfrom these runs", transform=axis.transAxes, ha="center", fontsize=8)
            axis.set_xticks([])
        _finish(axis, title)
        axis.set_yticks(range(len(names)), names if axis in axes[:, 0] else [""] * len(names), fontsize=8)
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.grid(axis="x", alpha=0.25)
    axes[0, 0].axvline(1, color="#777777", linewidth=0.8, linestyle=":")
    if study.curves:
        _deletion(axes[1, 3], study, colours)
    else:
        axes[1, 3].set_axis_off()
    frames = sum(len(c) for c in study.clips)
    figure.suptitle(
        f"Task {study.subjects[0].config.task.name}: {frames} frames of {len(study.clips)} episodes, the same for all "
        "runs. Large dot and line: mean and 95% interval over episodes; small dots: runs (training seeds);\n"
        "cross: the same network with random weights; dotted: a map that knows nothing of the task",
        fontsize=8,
    )
    _save(figure, path)


def _deletion(axis: Any, study: Study, colours: dict[str, str]) -> None:
    for side, places in sides(study.subjects).items():
        axis.plot(SHARES, study.curves["deletion"][places].mean((0, 1)), color=colours[side], label=side, linewidth=1.3)
    chance = study.curves["deletion_chance"].mean((0, 1))
    axis.plot(SHARES, chance, color="#777777", linestyle="--", label="masks moved at random", linewidth=1.2)
    _finish(axis, "deletion: change of the action over the share\nof pixels painted over, most salient first")
    axis.legend(fontsize=6.5, frameon=False)


def _finish(axis: Any, title: str) -> None:
    axis.set_title(title, fontsize=8)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path, dpi: int = 110) -> None:
    with atomic(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:] or "png", dpi=dpi)
