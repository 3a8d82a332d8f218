"""Pictures by which an operator puts objects where a start has them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from prism_client.robots.robot import Frame
from prism_policy.robots.results import beside
from prism_policy.robots.schedule import Mark
from prism_policy.utils.files import atomic, write_text

_COLOURS = ((220, 60, 40), (30, 110, 220), (20, 150, 90), (200, 140, 0))
_PAGE = """<!doctype html><title>Match</title><style>body{margin:8px;font:16px sans-serif}img{max-width:100%}</style>
<p>Left: how the objects shall lie. Middle: how they lie now. Right: both at once; move the objects until it is one
picture.</p><img id=now src=match.png><script>setInterval(()=>{now.src='match.png?'+Date.now()},500)</script>
"""


def snapshot(frame: Frame, path: Path) -> None:
    """Keep what the cameras show, beside each other, as a PNG."""
    _write(beside(list(frame["images"].values())), path)


def draw_marks(image: NDArray[np.uint8], marks: Sequence[Mark]) -> NDArray[np.uint8]:
    """An image (H, W, 3) with a numbered arrow where each object shall lie, and in which direction."""
    picture = Image.fromarray(image)
    draw, (width, height) = ImageDraw.Draw(picture), picture.size
    size = 0.06 * min(width, height)
    for number, mark in enumerate(marks):
        x, y, colour = mark.x * width, mark.y * height, _COLOURS[number % len(_COLOURS)]
        dx, dy = 2 * size * math.cos(mark.angle), -2 * size * math.sin(mark.angle)
        draw.ellipse((x - size, y - size, x + size, y + size), outline=colour, width=max(round(size / 5), 1))
        draw.line((x, y, x + dx, y + dy), fill=colour, width=max(round(size / 4), 1))
        draw.text((x + size, y + size), str(number + 1), colour)
    return np.asarray(picture)


class Matcher:
    """FOLDER/match.html: the wanted picture, the cameras now, and both at once.

    Usage::

        matcher = Matcher(folder, marks=marks(2, region, seed, start))  # or wanted=Path("start_003.png")
        while not ready():
            difference = matcher.update(robot.observe())
    """

    def __init__(self, folder: Path, wanted: Path | None = None, marks: Sequence[Mark] = ()) -> None:
        self._path, self._marks = folder / "match.png", marks
        self._wanted = None if wanted is None else np.asarray(Image.open(wanted).convert("RGB"))
        write_text(folder / "match.html", _PAGE)

    def update(self, frame: Frame) -> float | None:
        """Draw what the cameras show now; returns how far it is from the wanted picture, in grey levels of 255."""
        first, *others = frame["images"].values()
        now = beside([first, *others])
        if self._wanted is None:
            _write(np.concatenate([beside([draw_marks(first, self._marks), *others]), now], axis=1), self._path)
            return None
        if self._wanted.shape != now.shape:  # the cameras' sizes have changed
            _write(np.concatenate([beside([self._wanted]), now], axis=1), self._path)
            return None
        both = ((self._wanted.astype(np.uint16) + now) // 2).astype(np.uint8)
        _write(np.concatenate([self._wanted, now, both], axis=1), self._path)
        return float(np.abs(self._wanted.astype(float) - now).mean())


def _write(image: NDArray[np.uint8], path: Path) -> None:
    with atomic(path) as temporary:
        Image.fromarray(image).save(temporary, "png")
