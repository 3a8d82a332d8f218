"""What a policy looks at: the pixels that move its action, and the keypoints that its encoder hands on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from prism_policy.models.encoder import crop_size
from prism_policy.saliency.attribution import input_gradient
from prism_policy.utils.files import atomic

if TYPE_CHECKING:
    from prism_policy.policies.base import Observation, Policy

HEAT = mpl.colors.LinearSegmentedColormap.from_list("heat", mpl.colormaps["inferno"](np.linspace(0.25, 1, 256)))
STAGE_COLOURS = (
    "#3b78c2",
    "#14a085",
    "#e8a317",
    "#d4433f",
)  # shallow to deep, told apart on table, robot and by all eyes
_INCHES_A_FRAME = 2.3


def overlay(frame: NDArray[np.uint8], saliency: NDArray[np.float32], scale: float) -> NDArray[np.uint8]:
    """Paint saliency (H, W) over a frame (H, W, 3): a dim frame where it is 0, bright yellow from `scale` on."""
    return paint(frame, np.clip(saliency / scale, 0, 1))


def paint(frame: NDArray[np.uint8], strength: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Colour a frame (H, W, 3) by strengths (H, W) in [0, 1], from the dimmed frame itself to bright yellow."""
    grey = frame.mean(axis=-1, keepdims=True).repeat(3, axis=-1)
    backdrop = 0.6 * (0.5 * grey + 0.5 * frame)
    heat, cover = 255 * HEAT(strength)[..., :3], strength[..., None]
    painted: NDArray[np.uint8] = ((1 - cover) * backdrop + cover * heat).round().astype(np.uint8)
    return painted


def keypoint_pixels(
    keypoints: NDArray[np.floating], height: int, width: int, crop: float, stage: int
) -> NDArray[np.float32]:
    """Pixel coordinates (column, row) in the whole image of keypoints (..., 2) of a stage of the trunk, in [-1, 1].

    -1 is the first cell of the stage's feature map and +1 the last, as in the grid of `SpatialSoftmax`. The trunk's
    paddings centre cell i on pixel i * 2**(stage + 1) of the centre crop, so that the last cell lies before its edge.
    """
    size, stride = np.array([crop_size(width, crop), crop_size(height, crop)]), 2 ** (stage + 1)
    first = (np.array([width, height]) - size) // 2
    cells = -(-size // stride)
    pixels: NDArray[np.float32] = (first + (keypoints + 1) / 2 * (cells - 1) * stride).astype(np.float32)
    return pixels


def draw_saliency(policy: Policy, moments: Mapping[str, Observation], path: Path, seed: int = 0) -> None:
    """Draw the newest frame of each moment with its input gradient: a row a camera, a column a moment.

    Args:
        policy: a policy in evaluation mode.
        moments: a title, such as "grasp" -> the observation then, with B = 1, in the order of the columns.
        path: where the PNG goes.
        seed: of the noise from which every chunk is sampled.

    Raises:
        PrismError: the picture cannot be written.
    """
    noise = policy.draw_noise(1, torch.Generator().manual_seed(seed))
    maps = [input_gradient(policy, m, noise) for m in moments.values()]
    figure, axes = _grid(policy, moments)
    for row, camera in zip(axes, policy.encoder.cameras, strict=True):
        # A few pixels dwarf all others: the scale leaves them out and is the same for the whole row.
        newest = [m[camera][0, -1] for m in maps]  # (H, W) each
        scale = max(float(np.percentile(newest, 99.5)), 1e-12)
        for axis, observation, saliency in zip(row, moments.values(), newest, strict=True):
            axis.imshow(overlay(_newest_frame(observation, camera), saliency, scale), interpolation="nearest")
    _save(figure, path)


def draw_keypoints(policy: Policy, moments: Mapping[str, Observation], path: Path) -> None:
    """Draw the keypoints of every stage on the newest frame of each moment; arguments as for `draw_saliency`.

    Raises:
        PrismError: the encoder has no keypoints (its pooling is no spatial softmax), or the picture cannot be written.
    """
    share = policy.config.encoder.crop
    found = []
    for observation in moments.values():
        with torch.no_grad():
            found.append(policy.encoder.keypoints({c: x[:, -1] for c, x in observation["images"].items()}))
    stages = policy.config.encoder.stages_read
    figure, axes = _grid(policy, moments, legend=0.35)
    for row, (camera, (height, width)) in zip(axes, policy.encoder.cameras.items(), strict=True):
        size = np.array([crop_size(width, share), crop_size(height, share)])
        corner = (np.array([width, height]) - size) // 2 - 0.5  # imshow puts pixel centres on whole numbers
        for axis, observation, keypoints in zip(row, moments.values(), found, strict=True):
            axis.imshow(_newest_frame(observation, camera), interpolation="nearest")
            axis.add_patch(Rectangle(corner, *size, fill=False, linestyle=(0, (4, 4)), linewidth=0.7, edgecolor="grey"))
            for stage, points in zip(stages, keypoints[camera], strict=True):
                x, y = keypoint_pixels(points[0].cpu().numpy(), height, width, share, stage).T
                axis.scatter(
                    x,
                    y,
                    s=16,
                    color=STAGE_COLOURS[stage - 1],
                    edgecolors="white",
                    linewidths=0.6,
                    label=f"stage {stage}",
                )
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(stages), frameon=False, markerscale=1.5)
    _save(figure, path)


def _newest_frame(observation: Observation, camera: str) -> NDArray[np.uint8]:
    frame: Tensor = observation["images"][camera][0, -1]
    return frame.cpu().numpy()


def _grid(policy: Policy, moments: Mapping[str, Observation], legend: float = 0.0) -> tuple[Figure, NDArray[Any]]:
    """An empty picture with a row a camera, a column a moment and `legend` inches below; axes (cameras, moments)."""
    cameras = list(policy.encoder.cameras)
    size = (_INCHES_A_FRAME * len(moments) + 0.3, _INCHES_A_FRAME * len(cameras) + 0.25 + legend)
    figure = Figure(figsize=size, layout="constrained")  # no pyplot: no window system, nothing to close
    axes: NDArray[Any] = figure.subplots(len(cameras), len(moments), squeeze=False)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    for axis, title in zip(axes[0], moments, strict=True):
        axis.set_title(title, fontsize=11)
    for axis, camera in zip(axes[:, 0], cameras, strict=True):
        axis.set_ylabel(camera, fontsize=10)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
