"""A picture of what a policy sees and feels on a robot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from prism_client.robots.robot import Frame
from prism_client.schema import Schema
from prism_policy.utils.files import atomic

HEIGHT = 336
"""Of each camera's image in the picture [px]."""
_LINE = 14


def draw_frame(frame: Frame, schema: Schema, path: Path) -> Path:
    """Write a PNG: the cameras beside each other, enlarged pixel by pixel, and the state below; returns its path."""
    pictures = []
    for camera in schema.cameras:
        image = Image.fromarray(frame["images"][camera])
        width = max(round(image.width * HEIGHT / image.height), 1)
        pictures.append((camera, image, image.resize((width, HEIGHT), Image.Resampling.NEAREST)))
    texts, place = [], 0
    for part in schema.state:
        values = frame["state"][place : place + part.size]
        numbers = zip(part.number_names, values, strict=True)
        texts.append(f"{part.name}: " + "  ".join(f"{name} {value:+.3f}" for name, value in numbers))
        place += part.size
    width = max(sum(picture.width + 8 for _, _, picture in pictures), 8 + 6 * max(map(len, texts), default=0))
    canvas = Image.new("RGB", (width, HEIGHT + _LINE * (len(texts) + 2)), "white")
    draw, left = ImageDraw.Draw(canvas), 0
    for camera, image, picture in pictures:
        canvas.paste(picture, (left, _LINE))
        mean = np.asarray(image).mean()
        draw.text((left + 2, 1), f"{camera} {image.width} x {image.height}, mean {mean:.0f}", "black")
        left += picture.width + 8
    for i, text in enumerate(texts):
        draw.text((2, HEIGHT + _LINE * (i + 1) + 4), text, "black")
    with atomic(path) as temporary:
        canvas.save(temporary, "png")
    return path
