"""Importing the libraries that are compared with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
