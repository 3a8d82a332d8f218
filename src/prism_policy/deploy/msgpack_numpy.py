"""Messages between a policy server and a robot: msgpack with numpy arrays, as openpi's servers and clients write them.

An array is a map of the keys b"__ndarray__", b"data", b"dtype" and b"shape", a numpy scalar one of b"__npgeneric__",
b"data" and b"dtype". Nothing is unpickled, and only numbers and booleans are taken.
"""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np

from prism_policy.errors import PrismError

NUMBERS = "biuf"
"""Kinds of arrays that are sent and taken: booleans, integers, floats."""


def pack(message: dict[str, Any]) -> bytes:
    """A message as bytes."""
    return msgpack.packb(message, default=_packed)


def unpack(data: bytes) -> dict[str, Any]:
    """The message that bytes hold; its arrays may be written to."""
    try:
        message = msgpack.unpackb(data, object_hook=_unpacked)
    except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
        expected = "expected a msgpack message with arrays as openpi has them"
        raise PrismError(f"{expected}, got {error or 'others'}") from error
    if not isinstance(message, dict):
        raise PrismError(f"expected a map, got {type(message).__name__}")
    return message


def _packed(value: Any) -> dict[bytes, Any]:
    if not isinstance(value, (np.ndarray, np.generic)) or value.dtype.kind not in NUMBERS:
        raise TypeError(f"expected numbers or text, got {type(value).__name__}")
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}


def _unpacked(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" in value:
        return np.frombuffer(value[b"data"], _dtype(value)).reshape(value[b"shape"]).copy()
    if b"__npgeneric__" in value:
        return _dtype(value).type(value[b"data"])
    return value


def _dtype(value: dict[Any, Any]) -> np.dtype[Any]:
    dtype = np.dtype(value[b"dtype"])
    if dtype.kind not in NUMBERS:
        raise ValueError(f"an array of {dtype}")
    return dtype
