"""How a camera's images are cut and resized: one function, for recorded frames and for live ones."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from PIL import Image

from prism_policy.errors import PrismError
from prism_policy.utils.text import quoted

LEAST, MOST = 8, 4096
"""Pixels of a side."""


@dataclass(frozen=True)
class Resize:
    """Cut a box out of an image, then resize it: by Pillow's triangle filter, which averages what becomes smaller.

    The same bits for an image alone and among others, whatever it was recorded in.

    Usage::

        resize = Resize.parse("84", crop="0,80,480,480")
        resize(images)  # uint8 (..., 480, 640, 3) -> (..., 84, 84, 3)
    """

    size: tuple[int, int] | None = None
    """Height and width [px]; None leaves those of the box."""
    box: tuple[int, int, int, int] | None = None
    """Top, left, height and width of what is cut out [px]; None is all."""

    @classmethod
    def parse(cls, size: str, crop: str = "") -> Resize | None:
        """Of "84" or "96x128" (height x width) and "TOP,LEFT,HEIGHT,WIDTH"; None where both are empty."""
        sides = [int(n) for n in size.split("x")] if re.fullmatch(r"\d{1,5}(x\d{1,5})?", size) else []
        box = [int(n) for n in crop.split(",")] if re.fullmatch(r"\d{1,5}(,\d{1,5}){3}", crop) else []
        if size and (not sides or not all(LEAST <= side <= MOST for side in sides)):
            expected = f"expected 84, or 96x128 for height and width, from {LEAST} to {MOST} px"
            raise PrismError(f"data.resize: {expected}, got {quoted(size)}")
        if crop and (not box or min(box[2:]) < LEAST):
            expected = f"expected TOP,LEFT,HEIGHT,WIDTH such as 0,80,480,480, at least {LEAST} px"
            raise PrismError(f"data.crop: {expected}, got {quoted(crop)}")
        if not sides and not box:
            return None
        return cls((sides[0], sides[-1]) if sides else None, (box[0], box[1], box[2], box[3]) if box else None)

    def output(self, height: int, width: int, camera: str = "") -> tuple[int, int]:
        """Height and width that become of a camera's images, or a PrismError where the box does not fit them."""
        if self.box and (self.box[0] + self.box[2] > height or self.box[1] + self.box[3] > width):
            box = ",".join(map(str, self.box))
            raise PrismError(f"data.crop: the box {box} leaves the {height}x{width} images of camera {camera!r}")
        return self.size or (self.box[2:] if self.box else (height, width))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Images uint8 (..., H, W, 3) at their new size."""
        height, width = self.output(images.shape[-3], images.shape[-2])
        if self.box:
            top, left, tall, wide = self.box
            images = images[..., top : top + tall, left : left + wide, :]
        if images.shape[-3:-1] == (height, width):
            return np.ascontiguousarray(images)
        flat = images.reshape(-1, *images.shape[-3:])
        made = np.empty((len(flat), height, width, 3), np.uint8)
        for i, image in enumerate(flat):
            made[i] = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        return made.reshape(*images.shape[:-3], height, width, 3)
