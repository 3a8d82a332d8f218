"""How saliency and keypoints are put on an image: colours, strengths, pixel coordinates."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from prism_policy.models.augment import crop_size
from prism_policy.saliency.metrics import density

HEAT = mpl.colors.LinearSegmentedColormap.from_list("heat", mpl.colormaps["inferno"](np.linspace(0.25, 1, 256)))
STAGE_COLOURS = ("#3b78c2", "#14a085", "#e8a317", "#d4433f")
"""Of the trunk's stages, shallow to deep: distinct on table and robot, and to colour-blind eyes."""
BRIGHTEST = 10.0
"""Saliency that is painted brightest, in units of the map's mean; 1, the mean, is painted not at all. Gradients of two
networks have no other common unit."""


def strength(maps: np.ndarray) -> NDArray[np.float64]:
    """How strongly saliency (..., h, w) is painted, in [0, 1]."""
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter(np.nan_to_num(density(maps)), (*[0] * (maps.ndim - 2), 1, 1))
    return np.clip(np.log(np.maximum(smooth, 1.0)) / np.log(BRIGHTEST), 0, 1)


def paint(frame: NDArray[np.uint8], strength: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Colour a frame (H, W, 3) by strengths (H, W): the dimmed frame itself at 0, bright yellow from 1 on."""
    strength = np.clip(strength, 0, 1)
    grey = frame.mean(axis=-1, keepdims=True).repeat(3, axis=-1)
    backdrop = 0.6 * (0.5 * grey + 0.5 * frame)
    heat, cover = 255 * HEAT(strength)[..., :3], strength[..., None]
    return ((1 - cover) * backdrop + cover * heat).round().astype(np.uint8)


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
    return (first + (keypoints + 1) / 2 * (cells - 1) * stride).astype(np.float32)
