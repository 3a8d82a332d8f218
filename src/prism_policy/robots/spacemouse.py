"""3Dconnexion's SpaceMouse, by pyspacemouse."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import numpy as np

from prism_policy.errors import PrismError
from prism_policy.utils.text import one_line

MOST_REPORTS = 100
"""Reports that may have piled up since the last control step."""


def open_spacemouse() -> Callable[[], tuple[np.ndarray, bool]]:
    """A function that reads it: deflections (x forward, y left, z up, and turns about these), and its left button.

    Raises:
        PrismError: pyspacemouse is not installed, or there is no SpaceMouse that may be read.
    """
    try:
        device = importlib.import_module("pyspacemouse")
    except ImportError as error:
        raise PrismError("--by spacemouse needs pyspacemouse; run `pip install prism-policy[spacemouse]`") from error
    try:
        opened = device.open()
    except Exception as error:  # of whichever HID library it found
        raise PrismError(
            f"cannot open a SpaceMouse ({one_line(error, 150)}); is it plugged in, and readable?"
        ) from error
    if not opened:
        raise PrismError("there is no SpaceMouse; plug it in, and allow reading it (a udev rule for hidraw)")
    reader = opened if hasattr(opened, "read") else device

    def read() -> tuple[np.ndarray, bool]:
        state = reader.read()
        for _ in range(MOST_REPORTS):  # it reports a hundred times a second, one report a call
            if (before := getattr(state, "t", None)) is None or (state := reader.read()).t == before:
                break
        # Its y points away from the person and its x to the right.
        motion = [state.y, -state.x, state.z, state.roll, state.pitch, -state.yaw]
        return np.array(motion, float), bool(state.buttons[0])

    return read
