"""Checks of one camera's frames in one episode."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from prism_policy.doctor.finding import Mark, Place, runs

THUMB = 8
"""Rows and columns of the mean picture that stands for a camera's view of an episode."""
SAMPLED = 24
"""Frames of an episode of which the mean picture is made."""


def mean_view(images: np.ndarray) -> np.ndarray:
    """Mean over frames (T, H, W, 3) as a picture of 8 x 8 fields, in grey levels."""
    chosen = images[np.unique(np.linspace(0, len(images) - 1, min(SAMPLED, len(images))).astype(int))]
    mean = chosen.mean(axis=0, dtype=np.float32)
    rows, columns = (np.linspace(0, n, THUMB + 1).astype(int)[:-1] for n in mean.shape[:2])
    sums = np.add.reduceat(np.add.reduceat(mean, rows, axis=0), columns, axis=1)
    counts = np.diff([*rows, mean.shape[0]])[:, None, None] * np.diff([*columns, mean.shape[1]])[None, :, None]
    return np.asarray(sums / counts)


FINE = 240
"""Rows that are compared; of larger images every second, third, ... pixel, as codecs leave no single pixel alone."""


def look(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean change of each frame (T, H, W, 3) to the next (T - 1,), and which frames (T,) show nothing."""
    every = max(1, images.shape[1] // FINE)
    small = images[:, ::every, ::every]
    change, dull = np.zeros(max(len(small) - 1, 0)), np.zeros(len(small), bool)
    for i, frame in enumerate(small):
        sample = frame[::2, ::2].reshape(-1, 3)
        dark, plain = float(np.quantile(sample, 0.99)) < 16, float(sample.std(axis=0).max()) < 1
        dull[i] = dark or plain
        if i:
            change[i - 1] = np.abs(np.subtract(frame, small[i - 1], dtype=np.int16)).mean()
    return change, dull


def blank(place: Place, dull: np.ndarray) -> Iterator[Mark]:
    """Frames that are black (99 of 100 pixels below 16 of 255) or of one colour (deviation below 1)."""
    for stretch in runs(dull):
        yield Mark("black-frames", Place(place.episode, stretch, place.part), stretch[1] - stretch[0] + 1)


def still(place: Place, change: np.ndarray, speed: np.ndarray, fps: float | None) -> Iterator[Mark]:
    """Frames equal to the one before although the state moves, at half its mean speed or more.

    Five or more in a row, or a quarter of a second, are a frozen camera if the image leaps when it goes on, by half as
    much again as usually and in the steps after it: else nothing was to be seen, as where an arm waits. A stretch that
    lasts to the end, of a second or more, counts where the image follows all other motion. Shorter stretches, if they
    make a tenth of all steps, are a camera that is slower than the recording. Videos hardly repeat a frame to the bit:
    there, equal is a tenth of the usual change.
    """
    usual = float(np.median(change[change > 0])) if (change > 0).any() else 0.0
    equal = change <= 0.1 * usual
    moves = speed >= 0.5 * speed.mean() if speed.any() else np.zeros(len(change), bool)
    least, short = max(5, round(0.25 * (fps or 20))), 0
    for first, last in runs(equal):
        if not moves[first : last + 1].mean() > 0.5:
            continue
        count = last - first + 1
        if count < least:
            short += count
        elif last + 1 < len(change):
            after = change[last + 2 : last + 6]
            if change[last + 1] >= 1.5 * max(usual, float(np.median(after)) if len(after) else 0.0):
                yield Mark("frozen-frames", Place(place.episode, (first, last + 1), place.part), count)
        elif count >= 4 * least and (equal & moves)[:first].sum() <= 0.02 * moves[:first].sum():
            yield Mark("frozen-frames", Place(place.episode, (first, last + 1), place.part), count)
    if short > max(5, 0.1 * len(change)):
        yield Mark("duplicated-frames", place, short / len(change))
