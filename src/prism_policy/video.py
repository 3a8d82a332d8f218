"""Episodes as MP4: H.264 that every browser plays, with the outcome written above the picture."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from prism_policy.files import atomic

SUCCESS_COLOUR = (17, 122, 101)
FAILURE_COLOUR = (186, 74, 0)  # told apart from the success colour by people who do not see red and green, too

_BORDER = 4  # [px]
_BANNER = 28  # [px]


def write_video(path: Path, frames: Iterable[NDArray[np.uint8]], fps: int) -> None:
    """Write frames (T, H, W, 3), uint8 RGB, as H.264 (yuv420p, index in front); an array or an iterator will do.

    The file appears at `path` only when it is complete. Odd heights and widths, which yuv420p cannot hold, lose their
    last row or column.

    Raises:
        ValueError: no frames.
        PrismError: no space left, or no permission.
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


def mark_outcome(
    frames: Iterable[NDArray[np.uint8]], text: str, success: bool, scale: int = 3
) -> Iterator[NDArray[np.uint8]]:
    """Enlarge frames (T, H, W, 3) `scale` times, framed in the colour of their outcome, with `text` above.

    The text is not below because a player's controls would cover it. One frame is made at a time: 400 enlarged frames
    would take hundreds of MiB.

    Yields:
        uint8 (H * scale + 32, W * scale + 8, 3).
    """
    colour = SUCCESS_COLOUR if success else FAILURE_COLOUR
    canvas: NDArray[np.uint8] | None = None
    for frame in frames:
        height, width = frame.shape[0] * scale, frame.shape[1] * scale
        if canvas is None:
            picture = Image.new("RGB", (width + 2 * _BORDER, height + _BORDER + _BANNER), colour)
            middle = (picture.width / 2, _BANNER / 2)
            ImageDraw.Draw(picture).text(middle, text, "white", _fitting_font(text, width), anchor="mm")
            canvas = np.asarray(picture)
        marked = canvas.copy()
        enlarged = np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))
        marked[_BANNER : _BANNER + height, _BORDER : _BORDER + width] = enlarged
        yield marked


def _fitting_font(text: str, width: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    font = ImageFont.load_default(size=18)
    return font if font.getlength(text) <= width else ImageFont.load_default(size=18 * width / font.getlength(text))
