"""prism-policy: robot demonstrations into visuomotor policies, measured honestly.

The names below load on first use, so that `import prism_policy` stays free of torch and of the simulator.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prism_client.client import PolicyClient
    from prism_policy.config import presets
    from prism_policy.config.settings import EncoderConfig, PolicyConfig, TrainConfig
    from prism_policy.errors import PrismError
    from prism_policy.models.encoder import ImageEncoder, VisualEncoder
    from prism_policy.models.pooling import SpatialSoftmax
    from prism_policy.models.unet1d import ConditionalUNet1D
    from prism_policy.policies import build_policy
    from prism_policy.run_folder import load_policy

__version__ = "0.1.0"

_HOMES = {
    "EncoderConfig": "config.settings",
    "PolicyConfig": "config.settings",
    "TrainConfig": "config.settings",
    "PrismError": "errors",
    "ImageEncoder": "models.encoder",
    "VisualEncoder": "models.encoder",
    "SpatialSoftmax": "models.pooling",
    "ConditionalUNet1D": "models.unet1d",
    "build_policy": "policies",
    "load_policy": "run_folder",
}

__all__ = [
    "ConditionalUNet1D",
    "EncoderConfig",
    "ImageEncoder",
    "PolicyClient",
    "PolicyConfig",
    "PrismError",
    "SpatialSoftmax",
    "TrainConfig",
    "VisualEncoder",
    "build_policy",
    "load_policy",
    "presets",
]


def __getattr__(name: str) -> Any:
    if name == "presets":
        return importlib.import_module("prism_policy.config.presets")
    if name == "PolicyClient":
        return importlib.import_module("prism_client").PolicyClient
    if name in _HOMES:
        return getattr(importlib.import_module(f"prism_policy.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'prism_policy' has no attribute '{name}'")
