"""Episodes as MP4: H.264 that every browser plays, with the outcome written above the picture."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from prism_policy.utils.files import atomic

SUCCESS_COLOUR = (17, 122, 101)
FAILURE_COLOUR = (186, 74, 0)  # distinct for people who do not see red and green, too

_BORDER = 4  # [px]
_BANNER = 28  # [px]


def write_video(path: Path, frames: Iterable[NDArray[np.uint8]], fps: int) -> None:
    """Write frames (T, H, W, 3), uint8 RGB, as H.264 (yuv420p, index in front); an array or an iterator will do.

    The file appears at `path` only when it is complete. Odd heights and widths, which yuv420p cannot hold, lose their
    last row or column.
    """
    iterator = iter(frames)
    first = next(iterator, None)
    if first is None:
        raise ValueError(f"no frames to write to {path}")
    height, width = first.shape[0] // 2 * 2, first.shape[1] // 2 * 2
    with (
        atomic(path) as temporary,
        av.open(str(temporary), "w", format="mp4", options={"movflags": "faststart"}) as container,
    ):
        stream = container.add_stream("libx264", rate=fps, options={"crf": "23", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for image in itertools.chain([first], iterator):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image[:height, :width]), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def read_video(path: Path) -> Iterator[NDArray[np.uint8]]:
    """The frames of a video, uint8 (H, W, 3) each."""
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)


def tile(videos: Sequence[Iterator[NDArray[np.uint8]]], width: int) -> Iterator[NDArray[np.uint8]]:
    """Videos of one size in rows, uint8 (H, width, 3), until all are over; one that is over keeps its last frame."""
    now = [next(video) for video in videos]
    # As many columns as make the picture about as wide as high, with the tiles' own shape.
    shape = now[0].shape[1] / now[0].shape[0]
    columns = min(len(now), max(1, round(math.sqrt(len(now) * 1.6 / shape))))
    size = (width // columns, round(width / columns / shape))
    while True:
        canvas = np.full((size[1] * math.ceil(len(now) / columns), width, 3), 255, np.uint8)
        for i, frame in enumerate(now):
            x, y = i % columns * size[0], i // columns * size[1]
            small = Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR)
            canvas[y : y + size[1], x : x + size[0]] = small
        yield canvas
        following = [next(video, None) for video in videos]
        if all(frame is None for frame in following):
            return
        now = [before if frame is None else frame for before, frame in zip(now, following, strict=True)]


def mark_outcome(
    frames: Iterable[NDArray[np.uint8]], text: str, success: bool, scale: int = 3
) -> Iterator[NDArray[np.uint8]]:
    """Enlarge frames (H, W, 3) `scale` times, to uint8 (H * scale + 32, W * scale + 8, 3), bordered by their outcome.

    `text` is above, as a player's controls would cover it below. One frame is made at a time: 400 take hundreds of MiB.
    """
    colour = SUCCESS_COLOUR if success else FAILURE_COLOUR
    canvas: NDArray[np.uint8] | None = None
    for frame in frames:
        height, width = frame.shape[0] * scale, frame.shape[1] * scale
        if canvas is None:
            picture = Image.new("RGB", (width + 2 * _BORDER, height + _BORDER + _BANNER), colour)
            font = ImageFont.load_default(size=18)
            if (wide := font.getlength(text)) > width:
                font = ImageFont.load_default(size=18 * width / wide)
            ImageDraw.Draw(picture).text((picture.width / 2, _BANNER / 2), text, "white", font, anchor="mm")
            canvas = np.asarray(picture)
        marked = canvas.copy()
        enlarged = np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))
        marked[_BANNER : _BANNER + height, _BORDER : _BORDER + width] = enlarged
        yield marked
