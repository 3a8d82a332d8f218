"""Observations `{"images": {camera: uint8 (H, W, 3)}, "state": float32 (S,)}` and their history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Dict

import numpy as np

Observation = Dict[str, Any]


def stack_history(frames: Sequence[Observation]) -> Observation:
    """Stack consecutive observations, oldest first, along a new first axis To: images, state and all other arrays."""
    return {
        name: {part: np.stack([frame[name][part] for frame in frames]) for part in value}
        if isinstance(value, dict)
        else np.stack([frame[name] for frame in frames])
        for name, value in frames[0].items()
    }
