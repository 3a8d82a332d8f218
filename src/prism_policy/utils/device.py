"""The device to compute on."""

from __future__ import annotations

from typing import Literal

import torch

from prism_policy.errors import PrismError


def pick_device(wanted: Literal["auto", "cpu", "cuda"] = "auto", index: int = 0) -> torch.device:
    """The device for `--device`: "auto" is a GPU (of this index) where PyTorch can use one, else the CPU."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise PrismError("device: expected a GPU that PyTorch can use, found none; choose --device cpu")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if index >= torch.cuda.device_count():
        raise PrismError(f"processes: expected at most one for each of {torch.cuda.device_count()} GPUs")
    return torch.device("cuda", index)
