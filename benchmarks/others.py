"""Importing the libraries that are compared with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch


@contextmanager
def lenient_torchvision() -> Iterator[None]:
    """Within, torchvision can be imported on a PyTorch without CUDA.

    Its wheel lacks the C++ operators there, and registers shapes for them that are refused; nothing here calls them.
    """
    register = torch.library.register_fake

    def lenient(name: Any, *args: Any, **settings: Any) -> Any:
        return (lambda function: function) if "torchvision::" in str(name) else register(name, *args, **settings)

    torch.library.register_fake = lenient
    try:
        yield
    finally:
        torch.library.register_fake = register


def lerobot_name() -> str:
    """LeRobot with its version, where it is installed."""
    try:
        return f"LeRobot {version('lerobot')}"
    except PackageNotFoundError:
        return "LeRobot"


LEROBOT_AS_OURS = {
    "horizon": 16, "n_action_steps": 8, "use_group_norm": True, "pretrained_backbone_weights": None,
    "use_separate_rgb_encoder_per_camera": True, "crop_shape": (76, 76),
}  # fmt: skip
"""Settings of LeRobot's diffusion policy that make it the one of this library's: their defaults change."""
