"""An episode's frames out of a video that may hold many: sought once, decoded in one pass, found by their time."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from prism_policy.errors import PrismError
from prism_policy.utils.text import one_line

TOLERANCE_S = 1e-4
"""How far a frame may lie from its time in the table, as LeRobot has it [s]."""


@contextmanager
def _video_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise PrismError(f"{path} not found; get the whole dataset") from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        why = one_line(str(error), 120)
        codec = "its codec is not known to PyAV, or it is damaged, cut short or still being written"
        raise PrismError(f"{path} cannot be decoded: {codec} ({why}); get it again or convert it to h264") from error


def read_frames(path: Path, times: np.ndarray, size: tuple[int, int], threads: int = 1) -> np.ndarray:
    """The frames at these times, uint8 (T, H, W, 3).

    Args:
        times: increasing, of the file's own clock [s] (T,).
        size: height and width that are expected [px].

    Raises:
        PrismError: the video cannot be decoded, has no frame within `TOLERANCE_S` of a time, ends too early, or its
            frames are of another size. Named by the file.
    """
    with _video_errors(path), av.open(str(path)) as container:
        if not container.streams.video:
            raise PrismError(f"{path}: expected a video, got a file without one; get it again")
        stream = container.streams.video[0]
        if stream.codec_context is None:  # FFmpeg has no decoder for it
            raise PrismError(f"{path} cannot be decoded: its codec is not known to PyAV; convert it to h264")
        stream.codec_context.thread_count = threads
        stream.thread_type = "AUTO"
        if times[0] > 0:
            container.seek(max(int(times[0] / stream.time_base) - 1, 0), stream=stream)
        return _collect(container.decode(stream), path, times, size)


def _collect(decoded: Iterator[Any], path: Path, times: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    frames = np.empty((len(times), *size, 3), np.uint8)
    to_rgb, found, last_s = VideoReformatter(), 0, None
    for frame in decoded:
        if frame.time is None:
            continue
        if frame.time < times[found] - TOLERANCE_S:
            last_s = frame.time
            continue
        if frame.time > times[found] + TOLERANCE_S:
            around = f"the frames beside it are at {last_s} s and {frame.time:.4f} s"
            wanted = f"expected a frame at {times[found]:.4f} s (step {found}), within {TOLERANCE_S:g} s"
            raise PrismError(f"{path}: {wanted}, got none: {around}; the video does not belong to the table")
        if (frame.height, frame.width) != size:
            wanted = f"expected {size[1]}x{size[0]} as meta/info.json says"
            raise PrismError(f"{path}: {wanted}, got {frame.width}x{frame.height}; correct the shape there")
        frames[found] = to_rgb.reformat(frame, format="rgb24").to_ndarray()
        found, last_s = found + 1, frame.time
        if found == len(times):
            return frames
    end = "has no frames there" if last_s is None else f"ends at {last_s:.2f} s"
    wanted = f"expected {len(times)} frames, the last at {times[-1]:.2f} s, got {found}"
    raise PrismError(f"{path}: {wanted}: the video {end}, shorter than its table; get the whole video")


def read_images(rows: list[Any], folder: Path, size: tuple[int, int]) -> np.ndarray:
    """Encoded images (PNG, JPEG) of a column, or the files that it names, as uint8 (T, H, W, 3).

    Raises:
        PrismError: an image is missing, damaged, of another size, or no colour image. Not named by file or key.
    """
    frames = np.empty((len(rows), *size, 3), np.uint8)
    for step, row in enumerate(rows):
        data, path = (row.get("bytes"), row.get("path")) if isinstance(row, dict) else (row, None)
        place: Any = io.BytesIO(data) if isinstance(data, bytes) else None
        if place is None and isinstance(path, str) and ".." not in Path(path).parts and not Path(path).is_absolute():
            place = folder / path
        if place is None:
            raise PrismError(f"expected an encoded image at step {step}, got none")
        try:
            with Image.open(place) as image:
                if image.size != size[::-1]:
                    wanted = f"expected images of {size[1]}x{size[0]} as meta/info.json says"
                    raise PrismError(f"{wanted}, got {image.width}x{image.height} at step {step}")
                if image.mode[:1] in ("I", "F"):
                    raise PrismError(f"expected colour images of 8 bits, got mode {image.mode} at step {step}")
                frames[step] = np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise PrismError(f"no readable image at step {step} ({one_line(str(error), 80)})") from error
    return frames
