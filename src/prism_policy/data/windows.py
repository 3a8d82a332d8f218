"""Episodes into training windows: the first frames of a window are observed, its actions predicted."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from prism_policy.config.settings import Balance
from prism_policy.data.frames import Frames

Batch = dict[str, dict[str, Tensor] | Tensor]


class Windows:
    """All windows of some or all episodes over frames held once, as uint8.

    A window starting at step s of an episode holds the observations s .. s + n_obs_steps - 1 and the actions
    s .. s + horizon - 1. Starts run from n_obs_steps - 1 before the episode to n_action_steps - 1 past its last whole
    window; what lies outside repeats the edge. An action that was forced on the demonstrator is not to be learned, nor
    is what followed it, of which nothing can be seen yet: the mask (the M of Eq. 7, arXiv:2606.15232) leaves both out,
    and no window's newest frame is a pushed one. Where there are several tasks, `task` (B, E) says which one
    each window is of.

    Usage::

        windows = Windows(frames, horizon=16, n_obs_steps=2, n_action_steps=8)
        windows.batch(indices)
        # {"images": {camera: (B, 2, H, W, 3)}, "state": (B, 2, S), "actions": (B, 16, A), "mask": bool (B, 16)}
    """

    def __init__(
        self,
        frames: Frames,
        horizon: int,
        n_obs_steps: int,
        n_action_steps: int,
        episodes: Sequence[int] | None = None,
        task_vectors: Mapping[str, Tensor] | None = None,
    ) -> None:
        """See the class; `episodes` are all by default, `task_vectors` (E,) by the names in `frames.tasks`."""
        self.frames = frames
        observed, predicted, masks, tasks = [], [], [], []
        bounds, pushed = list(itertools.pairwise((0, *frames.ends))), frames.disturbed.cpu().numpy()
        numbers = {task: i for i, task in enumerate(dict.fromkeys(frames.tasks))}
        for episode in range(len(bounds)) if episodes is None else episodes:
            first, end = bounds[episode]
            length, disturbed = end - first, pushed[first:end]
            starts = np.arange(-(n_obs_steps - 1), max(length - horizon + n_action_steps, 1))
            current = np.clip(starts + n_obs_steps - 1, 0, length - 1)  # the newest frame's step
            starts, current = starts[~disturbed[current], None], current[~disturbed[current], None]
            begin, last = undisturbed_stretches(disturbed)
            steps = np.clip(starts + np.arange(horizon), 0, length - 1)  # (m, H)
            known = np.clip(steps, begin[current], last[current])
            observed.append(first + np.clip(starts + np.arange(n_obs_steps), 0, length - 1))
            predicted.append(first + known)
            masks.append(known == steps)
            tasks.append(np.full(len(steps), numbers[frames.tasks[episode]] if numbers else 0))
        device = frames.actions.device
        self.observed = torch.from_numpy(np.concatenate(observed)).to(device)  # (M, To), rows of the frames
        self.predicted = torch.from_numpy(np.concatenate(predicted)).to(device)  # (M, H)
        self.mask = torch.from_numpy(np.concatenate(masks)).to(device)  # (M, H)
        self.task = torch.from_numpy(np.concatenate(tasks)).to(device)  # (M,), number k of the task
        vectors = [task_vectors[task] for task in numbers] if task_vectors else []
        self.task_vectors = torch.stack(vectors).to(device) if vectors else None  # (K, E)

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
        moved.task = self.task.to(device)
        moved.task_vectors = None if self.task_vectors is None else self.task_vectors.to(device)
        return moved

    def batch(self, indices: Tensor) -> Batch:
        """The windows at `indices` (B,)."""
        frames, indices = self.frames, indices.to(self.device, non_blocking=True)
        observed = self.observed[indices]
        if frames.mapped:
            frames.announce(observed.numpy())
        batch: Batch = {
            "images": {camera: rows(images, observed) for camera, images in frames.images.items()},
            "state": rows(frames.state, observed),
            "actions": rows(frames.actions, self.predicted[indices]),
            "mask": self.mask[indices],
        }
        if self.task_vectors is not None:
            batch["task"] = self.task_vectors[self.task[indices]]
        return batch

    def groups(self, balance: Balance) -> list[np.ndarray]:
        """Numbers of the windows that are drawn equally often: of each task, or all of them together."""
        if balance == "frame":
            return [np.arange(len(self))]
        task = self.task.cpu().numpy()
        counts = np.unique(task, return_counts=True)[1]
        return np.split(np.argsort(task, kind="stable"), np.cumsum(counts)[:-1])


def rows(values: Tensor, indices: Tensor) -> Tensor:
    """values[indices]: (N, ...) and (B, n) to (B, n, ...), whole images at a time.

    Plain indexing moves an image number by number and was twenty times as slow. On the CPU numpy does it in one thread,
    and without Python's lock: the threads of the training step next door are not disturbed.
    """
    if values.device.type == "cpu":
        return torch.from_numpy(np.take(values.numpy(), indices.numpy(), axis=0))
    return values.flatten(1).index_select(0, indices.flatten()).view(*indices.shape, *values.shape[1:])


def undisturbed_stretches(disturbed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last step (T,) of the undisturbed stretch that each step (T,) lies in; itself where disturbed."""
    steps = np.arange(len(disturbed))
    begin = np.maximum.accumulate(np.where(disturbed, steps + 1, 0))
    end = np.minimum.accumulate(np.where(disturbed, steps - 1, len(steps) - 1)[::-1])[::-1]
    return np.where(disturbed, steps, begin), np.where(disturbed, steps, end)


def batch_indices(step: int, batch_size: int, windows: int | Sequence[np.ndarray], seed: int) -> Tensor:
    """Indices (B,) of update `step`: every epoch is a fresh permutation, and epochs join without a short batch.

    A function of its arguments alone, so that a resumed run draws the same batches with no sampler state to save.

    `windows` is how many there are; or groups of their indices, which take turns (`Windows.groups`).
    """
    groups = [np.arange(windows)] if isinstance(windows, int) else windows
    turns = np.arange(step * batch_size, (step + 1) * batch_size)
    indices = np.empty(batch_size, np.int64)
    for number, group in enumerate(groups):
        of_group = turns % len(groups) == number
        epochs, places = np.divmod(turns[of_group] // len(groups), len(group))
        orders = {epoch: _permutation(seed, epoch, number, len(group)) for epoch in np.unique(epochs).tolist()}
        indices[of_group] = group[[orders[epoch][i] for epoch, i in zip(epochs.tolist(), places, strict=True)]]
    return torch.from_numpy(indices)


@lru_cache(maxsize=256)  # two epochs of every task of the largest suite
def _permutation(seed: int, epoch: int, group: int, n_windows: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch, group)).permutation(n_windows)
