"""What is done to images before the trunk sees them: crops, and in training colours and blanked rectangles.

Every function takes the uniform numbers that decide, a row an image, so that a batch is augmented on its device and the
same numbers give the same images.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the brightness that one sees (ITU-R BT.601)."""


def crop_size(size: int, share: float) -> int:
    """Pixels kept of `size`: 76 of 84 and 216 of 240 at a share of 0.9."""
    return round(size * share)


def crop(images: Tensor, height: int, width: int, position: Tensor | None = None) -> Tensor:
    """(B, H, W, 3) to (B, height, width, 3): from the centre, or for every image at its own position.

    Positions (B, 2) in [0, 1) say how far down and to the right of all offsets there are.
    """
    down, right = images.shape[1] - height, images.shape[2] - width
    if position is None:
        return images[:, down // 2 : down // 2 + height, right // 2 : right // 2 + width]
    top, left = (position[:, 0] * (down + 1)).long(), (position[:, 1] * (right + 1)).long()
    # A view of every possible crop, of which one each is copied: six times faster on a CPU than an index a pixel.
    crops = images.unfold(1, height, 1).unfold(2, width, 1).permute(0, 1, 2, 4, 5, 3)  # (B, y, x, height, width, 3)
    return crops[torch.arange(len(images), device=images.device), top, left]


def jitter_color(images: Tensor, numbers: Tensor, strength: float) -> Tensor:
    """Change brightness, contrast and saturation of float images (B, H, W, 3) in 0 to 255, in this order.

    Each by a factor of 1 - strength to 1 + strength, by `numbers` (B, 3) in [0, 1). As in PIL's ImageEnhance, contrast
    is the distance from the image's mean grey, saturation that from each pixel's grey.
    """
    factors = 1 + strength * (2 * numbers - 1)
    brightness, contrast, saturation = (factors[:, i, None, None, None].to(images.dtype) for i in range(3))
    luma = images.new_tensor(LUMA)
    images = (images * brightness).clamp(0, 255)
    grey = (images @ luma).mean((1, 2))[:, None, None, None]
    images = torch.lerp(grey.expand_as(images), images, contrast).clamp(0, 255)
    grey = (images @ luma)[..., None]
    return torch.lerp(grey.expand_as(images), images, saturation).clamp(0, 255)


def erase_rectangle(images: Tensor, numbers: Tensor, probability: float) -> Tensor:
    """Set a rectangle of some of the normalised images (B, H, W, 3) to zero, ImageNet's mean colour.

    2 to 20% of the area, 3:10 to 10:3 in form (Zhong et al., 2020). `numbers` (B, 5) in [0, 1) say whether, how large,
    of what form, and where.
    """
    height, width = images.shape[1:3]
    area = height * width * (0.02 + 0.18 * numbers[:, 1])
    form = torch.exp(math.log(10 / 3) * (2 * numbers[:, 2] - 1))
    spans = []
    for size, extent, place in ((height, area * form, numbers[:, 3]), (width, area / form, numbers[:, 4])):
        length = extent.sqrt().round().clamp(1, size)
        first = (place * (size - length + 1)).floor()
        at = torch.arange(size, device=images.device)
        spans.append((at >= first[:, None]) & (at < (first + length)[:, None]))  # (B, size)
    erased = spans[0][:, :, None] & spans[1][:, None, :] & (numbers[:, 0] < probability)[:, None, None]
    return images.masked_fill(erased[..., None], 0)
