"""What a policy takes and gives, as a server's metadata say it: what both sides of the socket check with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from prism_policy.deploy.msgpack_numpy import NUMBERS
from prism_policy.errors import PrismError
from prism_policy.utils.observations import Observation
from prism_policy.utils.text import one_line, quoted

OVERHEAD = 128 * 2**10
"""Bytes of a question beside its frames: names, an instruction, a number as text."""
MOST = {"state_dim": 10_000, "n_obs_steps": 100, "n_action_steps": 10_000, "action_dim": 1_000}
"""What metadata may say."""
MOST_PIXELS = 10_000


@dataclass(frozen=True)
class Schema:
    """The shapes of frames and actions, and the range of the actions."""

    cameras: Mapping[str, tuple[int, ...]]
    """Height, width and 3 of each one's images."""
    state_dim: int
    n_obs_steps: int
    n_action_steps: int
    action_dim: int
    action_mode: str

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Schema:
        """The schema that metadata tell, or a PrismError that says what is missing or absurd."""
        cameras, mode = metadata.get("cameras"), metadata.get("action_mode", "")
        if not isinstance(cameras, dict) or not 0 < len(cameras) <= 32:
            raise PrismError(f"metadata: expected 'cameras', a map of names to sizes, got {quoted(cameras)}")
        for camera, size in cameras.items():
            numbers = isinstance(size, (list, tuple)) and all(type(n) is int and 0 < n <= MOST_PIXELS for n in size)
            if not isinstance(camera, str) or not numbers or len(size) != 3 or size[2] != 3:
                expected = f"expected [height, width, 3] of at most {MOST_PIXELS} pixels"
                raise PrismError(f"metadata: camera {quoted(camera)}: {expected}, got {one_line(size, 60)}")
        stated = {"action_dim": 7, **metadata}  # openpi's servers do not say it
        for name, most in MOST.items():
            if type(stated.get(name)) is not int or not 0 < stated[name] <= most:
                got = quoted(stated.get(name))
                raise PrismError(f"metadata: expected '{name}', a whole number from 1 to {most}, got {got}")
        if not isinstance(mode, str):
            raise PrismError(f"metadata: expected 'action_mode' as text, got {quoted(mode)}")
        sizes = {camera: tuple(size) for camera, size in cameras.items()}
        return cls(sizes, action_mode=mode, **{name: stated[name] for name in MOST})

    def metadata(self) -> dict[str, Any]:
        """What `of` reads."""
        numbers = {name: getattr(self, name) for name in MOST}
        return {"cameras": {c: list(s) for c, s in self.cameras.items()}, **numbers, "action_mode": self.action_mode}

    @property
    def largest_question(self) -> int:
        """Bytes that the longest question may have: all frames of the history, with some room."""
        frame = sum(int(np.prod(size)) for size in self.cameras.values()) + 8 * self.state_dim
        return self.n_obs_steps * frame + OVERHEAD

    def frame(self, images: Any, state: Any) -> Observation:
        """A copy of a frame, checked: a camera's driver may write its next image where this one is."""
        if not isinstance(images, Mapping):
            raise PrismError(f"images: expected a dict of {', '.join(self.cameras)}, got {type(images).__name__}")
        if missing := [camera for camera in self.cameras if camera not in images]:
            raise PrismError(f"camera '{missing[0]}' is missing; the policy needs {', '.join(self.cameras)}")
        try:
            copies = {camera: np.array(images[camera]) for camera in self.cameras}
            with np.errstate(over="ignore"):
                state = np.array(state, np.float32)
        except Exception as error:  # whatever a caller's own types raise
            raise PrismError(f"images and state: expected arrays of numbers ({one_line(error, 200)})") from error
        for camera, size in self.cameras.items():
            image = copies[camera]
            if image.shape != size or image.dtype != np.uint8:
                got = f"{image.dtype} {image.shape}"
                raise PrismError(f"camera '{camera}': expected uint8 {size}, got {one_line(got, 100)}")
        if state.shape != (self.state_dim,) or not np.isfinite(state).all():
            expected = f"expected ({self.state_dim},) finite numbers"
            raise PrismError(f"state: {expected}, got {one_line(state.shape, 100)}: {one_line(state, 200)}")
        return {"images": copies, "state": state}

    @property
    def limits(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest action, (A,) each: deltas and grippers are shares of the controller's range."""
        high = np.full(self.action_dim, 1.0 if self.action_mode == "delta" else np.inf, np.float32)
        if self.action_mode == "absolute":
            high[-1] = 1.0
        return -high, high

    def clipped(self, actions: np.ndarray) -> np.ndarray:
        """What a controller would make of actions (..., A) that leave its range, as robosuite does."""
        return np.clip(actions, *self.limits)

    def actions(self, actions: Any) -> np.ndarray:
        """Actions that a robot may execute, float32 (n_action_steps, A): the one guard, before and behind the socket.

        Raises:
            PrismError: no numbers, another shape, NaN or infinity, or outside the range that was announced.
        """
        shape = (self.n_action_steps, self.action_dim)
        if not isinstance(actions, np.ndarray) or actions.dtype.kind not in NUMBERS or actions.shape != shape:
            array = isinstance(actions, np.ndarray)
            got = f"{actions.dtype} {actions.shape}" if array else type(actions).__name__
            raise PrismError(f"actions: expected numbers {shape}, got {one_line(got, 100)}; nothing may be executed")
        with np.errstate(over="ignore"):
            checked = actions.astype(np.float32)
        if not np.isfinite(checked).all():
            raise PrismError("actions: expected finite numbers, got NaN or infinity; nothing may be executed")
        low, high = self.limits
        if (beyond := (checked < low) | (checked > high)).any():
            expected = f"expected shares of the controller's range, in [-1, 1], got {checked[beyond][0]:.4g}"
            raise PrismError(f"actions: {expected}; nothing may be executed")
        return checked
