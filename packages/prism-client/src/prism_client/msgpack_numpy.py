"""Messages between a policy server and a robot: msgpack with numpy arrays, as openpi's servers and clients write them.

An array is a map of the keys b"__ndarray__", b"data", b"dtype" and b"shape", a numpy scalar one of b"__npgeneric__",
b"data" and b"dtype". Nothing is unpickled, and only numbers and booleans are taken.
"""

from __future__ import annotations

import math
from typing import Any

import msgpack
import numpy as np

from prism_client.errors import PrismError
from prism_client.text import one_line, quoted

NUMBERS = "biuf"
"""Kinds of arrays that are sent and taken: booleans, integers, floats of up to eight bytes."""
MOST_CONTAINERS = 256
"""Lists and maps in a message. A question has three a camera; each costs time and memory before anything can be read,
and one byte is enough to ask for one."""
MOST_ENTRIES = 1024
"""Entries of a list or a map."""


def pack(message: dict[str, Any], largest: float = math.inf) -> bytes:
    """A message as bytes.

    Raises:
        TypeError, ValueError, OverflowError: more than text and numbers is in it, or more than `largest` bytes, which
            are not copied.
    """
    left = largest

    def packed(value: Any) -> dict[bytes, Any]:
        nonlocal left
        if not isinstance(value, (np.ndarray, np.generic)) or not _is_number(value.dtype):
            raise TypeError(f"expected numbers or text, got {type(value).__name__}")
        if (left := left - value.nbytes) < 0:
            raise ValueError(f"expected at most {largest:,} bytes, as the policy's frames have")
        if isinstance(value, np.generic):
            return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}

    data: bytes = msgpack.packb(message, default=packed)
    if len(data) > largest:
        raise ValueError(f"expected at most {largest:,} bytes, as the policy's frames have, got {len(data):,}")
    return data


def unpack(data: bytes) -> dict[str, Any]:
    """The message that bytes hold; its arrays may be written to. What asks for more than a message needs is refused
    before it is built.
    """
    containers = 0

    def counted(value: Any) -> Any:
        nonlocal containers
        if (containers := containers + 1) > MOST_CONTAINERS:
            raise ValueError(f"more than {MOST_CONTAINERS} lists and maps")
        return _unpacked(value) if isinstance(value, dict) else value

    limits = {"max_array_len": MOST_ENTRIES, "max_map_len": MOST_ENTRIES}
    try:
        message = msgpack.unpackb(data, object_hook=counted, list_hook=counted, ext_hook=_refuse, **limits)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        expected = "expected a msgpack message with arrays as openpi has them"
        raise PrismError(f"{expected}, got {one_line(error, 200) or 'others'}") from error
    if not isinstance(message, dict):
        raise PrismError(f"expected a map, got {type(message).__name__}")
    return message


def _refuse(code: int, data: bytes) -> None:
    raise ValueError(f"an extension of type {code}")


def _unpacked(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" in value:
        dtype, data, shape = _dtype(value), value.get(b"data"), value.get(b"shape")
        if not isinstance(data, bytes) or not isinstance(shape, list) or len(shape) > 8:
            raise ValueError("an array without its bytes or its shape")
        if not all(type(n) is int and 0 <= n < 2**31 for n in shape):
            raise ValueError("an array whose shape has other than numbers of entries")
        if math.prod(shape) * dtype.itemsize != len(data):
            raise ValueError(f"an array of shape {one_line(shape, 60)} and {dtype} in {len(data)} bytes")
        return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="))
    if b"__npgeneric__" in value:
        dtype, number = _dtype(value), value.get(b"data")
        whole = dtype.kind in "iu"
        if not isinstance(number, int if whole else (bool, int, float)):
            raise ValueError(f"a numpy scalar of {dtype} without its number")
        if whole and not np.iinfo(dtype).min <= number <= np.iinfo(dtype).max:
            raise ValueError(f"{number} as {dtype}")
        return dtype.newbyteorder("=").type(number)
    return value


def _dtype(value: dict[Any, Any]) -> np.dtype[Any]:
    name = value.get(b"dtype")
    dtype = np.dtype(name) if isinstance(name, str) and len(name) <= 8 else None
    if dtype is None or not _is_number(dtype):
        raise ValueError(f"an array of {quoted(name, 20)}")
    return dtype


def _is_number(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in NUMBERS and dtype.itemsize <= 8
