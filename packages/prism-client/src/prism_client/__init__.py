"""The robot's side of prism-policy: policy client, robot protocol, control loop. Python 3.8 and later, no torch.

The names below load on first use, as others need no more than the error.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prism_client.client import PolicyClient
    from prism_client.errors import PrismError

__version__ = "0.1.0"

_HOMES = {"PolicyClient": "client", "PrismError": "errors"}

__all__ = ["PolicyClient", "PrismError"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"prism_client.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'prism_client' has no attribute '{name}'")
