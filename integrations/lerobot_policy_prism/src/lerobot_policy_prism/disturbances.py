"""Actions that were forced on the demonstrator, in datasets of `prism export`: no policy is to learn them."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from prism_policy.data.lerobot.parquet import Table
from prism_policy.data.lerobot.source import RAW
from prism_policy.data.windows import undisturbed_stretches
from torch import Tensor

COLUMN = f"{RAW}disturbed"


class Disturbances:
    """Which actions of each window are learned: of an undisturbed window all, the repeated edge of an episode too.

    LeRobot draws a window for each frame; `prism train` draws none whose newest frame's action was forced, so such a
    window is masked as a whole. What follows a push is masked, and replaced by the last action that is known, as
    `prism_policy.data.windows.Windows` does.
    """

    def __init__(self, episodes: np.ndarray, disturbed: np.ndarray) -> None:
        """Of all frames of a dataset by their index: the episode int (N,), and whether its action was forced (N,)."""
        frames = np.arange(len(episodes))
        starts = np.flatnonzero(np.r_[True, episodes[1:] != episodes[:-1]])
        bounds = np.r_[starts, len(episodes)]
        stretches = [undisturbed_stretches(disturbed[a:b]) for a, b in itertools.pairwise(bounds)]
        offset = np.repeat(starts, np.diff(bounds))
        begin, last = (np.concatenate(x) + offset for x in zip(*stretches, strict=True))
        end = np.repeat(bounds[1:], np.diff(bounds)) - 1
        self._of_frame = torch.from_numpy(np.stack([offset, end, begin, last, disturbed[frames]]).astype(np.int64))

    @classmethod
    def read(cls, meta: Any) -> Disturbances | None:
        """Those of a dataset (LeRobotDatasetMetadata); None where nothing is recorded of any."""
        if COLUMN not in meta.features:
            return None
        names = ("index", "episode_index", COLUMN)
        tables = [
            Table(path).read(dict.fromkeys(names, 1)) for path in sorted(Path(meta.root).glob("data/*/*.parquet"))
        ]
        index, episodes, disturbed = (np.concatenate([table[name] for table in tables]).reshape(-1) for name in names)
        if not disturbed.any():
            return None
        order = np.argsort(index)
        logging.info("%d of %d actions were forced on the demonstrator: not learned", disturbed.sum(), len(index))
        return cls(episodes[order], disturbed[order].astype(bool))

    def learnable(self, index: Tensor, actions: Tensor, n_obs_steps: int) -> tuple[Tensor, Tensor]:
        """Actions (B, T, A) of the windows whose newest frames are `index` (B,), and which are learned: bool (B, T)."""
        index = index.reshape(-1).cpu()
        first, end, begin, last, disturbed = self._of_frame[:, index, None]
        oldest = index[:, None] - (n_obs_steps - 1)
        steps = (oldest + torch.arange(actions.shape[1])).clamp(first, end)
        known = steps.clamp(begin, last)
        places = (known - oldest).to(actions.device)
        mask = (known == steps) & (disturbed == 0)
        return actions.gather(1, places[..., None].expand_as(actions)), mask.to(actions.device)
