"""Episodes into training windows: the first frames of a window are observed, its actions predicted."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from prism_policy.data.frames import Frames

Batch = dict[str, dict[str, Tensor] | Tensor]


class Windows:
    """All windows of some or all episodes over frames held once, as uint8.

    A window starting at step s of an episode holds the observations s .. s + n_obs_steps - 1 and the actions
    s .. s + horizon - 1. Starts run from n_obs_steps - 1 before the episode to n_action_steps - 1 past its last whole
    window; what lies outside repeats the edge. An action that was forced on the demonstrator is not to be learned, nor
    is what followed it, of which nothing can be seen yet: the mask (the M of Eq. 7, arXiv:2606.15232) leaves both out,
    and no window's newest frame is a pushed one.

    Usage::

        windows = Windows(frames, horizon=16, n_obs_steps=2, n_action_steps=8)
        windows.batch(indices)
        # {"images": {camera: (B, 2, H, W, 3)}, "proprio": (B, 2, P), "actions": (B, 16, A), "mask": bool (B, 16)}
    """

    def __init__(
        self,
        frames: Frames,
        horizon: int,
        n_obs_steps: int,
        n_action_steps: int,
        episodes: Sequence[int] | None = None,
    ) -> None:
        self.frames = frames
        observed, predicted, masks = [], [], []
        bounds = list(itertools.pairwise((0, *frames.ends)))
        pushed = frames.disturbed.cpu().numpy()
        for first, end in bounds if episodes is None else [bounds[i] for i in episodes]:
            length, disturbed = end - first, pushed[first:end]
            starts = np.arange(-(n_obs_steps - 1), max(length - horizon + n_action_steps, 1))
            current = np.clip(starts + n_obs_steps - 1, 0, length - 1)  # the newest frame's step
            starts, current = starts[~disturbed[current], None], current[~disturbed[current], None]
            begin, last = _undisturbed_stretches(disturbed)
            steps = np.clip(starts + np.arange(horizon), 0, length - 1)  # (m, H)
            known = np.clip(steps, begin[current], last[current])
            observed.append(first + np.clip(starts + np.arange(n_obs_steps), 0, length - 1))
            predicted.append(first + known)
            masks.append(known == steps)
        device = frames.actions.device
        self.observed = torch.from_numpy(np.concatenate(observed)).to(device)  # (M, To), rows of the frames
        self.predicted = torch.from_numpy(np.concatenate(predicted)).to(device)  # (M, H)
        self.mask = torch.from_numpy(np.concatenate(masks)).to(device)  # (M, H)

    def __len__(self) -> int:
        return len(self.observed)

    @property
    def device(self) -> torch.device:
        """Where the frames lie."""
        return self.mask.device

    def to(self, device: torch.device) -> Windows:
        """The same windows with all frames in the memory of a device."""
        moved = copy.copy(self)
        moved.frames = self.frames.to(device)
        moved.observed, moved.predicted, moved.mask = (x.to(device) for x in (self.observed, self.predicted, self.mask))
        return moved

    def batch(self, indices: Tensor) -> Batch:
        """The windows at `indices` (B,)."""
        frames, indices = self.frames, indices.to(self.device, non_blocking=True)
        observed = self.observed[indices]
        if frames.mapped:
            frames.announce(observed.numpy())
        return {
            "images": {camera: rows(images, observed) for camera, images in frames.images.items()},
            "proprio": rows(frames.proprio, observed),
            "actions": rows(frames.actions, self.predicted[indices]),
            "mask": self.mask[indices],
        }


def rows(values: Tensor, indices: Tensor) -> Tensor:
    """values[indices]: (N, ...) and (B, n) to (B, n, ...), whole images at a time.

    Plain indexing moves an image number by number and was twenty times as slow. On the CPU numpy does it in one thread,
    and without Python's lock: the threads of the training step next door are not disturbed.
    """
    if values.device.type == "cpu":
        return torch.from_numpy(np.take(values.numpy(), indices.numpy(), axis=0))
    return values.flatten(1).index_select(0, indices.flatten()).view(*indices.shape, *values.shape[1:])


def _undisturbed_stretches(disturbed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last step (T,) of the undisturbed stretch that each step (T,) lies in; itself where disturbed."""
    steps = np.arange(len(disturbed))
    begin = np.maximum.accumulate(np.where(disturbed, steps + 1, 0))
    end = np.minimum.accumulate(np.where(disturbed, steps - 1, len(steps) - 1)[::-1])[::-1]
    return np.where(disturbed, steps, begin), np.where(disturbed, steps, end)


def batch_indices(step: int, batch_size: int, n_windows: int, seed: int) -> Tensor:
    """Indices (B,) of update `step`: every epoch is a fresh permutation, and epochs join without a short batch.

    A function of its arguments alone, so that a resumed run draws the same batches with no sampler state to save.
    """
    first, last = step * batch_size, (step + 1) * batch_size - 1
    epochs = range(first // n_windows, last // n_windows + 1)
    order = np.concatenate([_permutation(seed, epoch, n_windows) for epoch in epochs])
    begin = first - epochs[0] * n_windows
    return torch.from_numpy(order[begin : begin + batch_size])


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, n_windows: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(n_windows)
