"""What a served policy takes and gives, as a server's metadata say it: what both sides of the socket check with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

import numpy as np

from prism_client.errors import PrismError
from prism_client.msgpack_numpy import NUMBERS
from prism_client.observations import Observation
from prism_client.schema import Part, PartKind, Schema
from prism_client.text import one_line, quoted

OVERHEAD = 128 * 2**10
"""Bytes of a question beside its frames: names, an instruction, a number as text."""
MOST = {"state_dim": 10_000, "n_obs_steps": 100, "n_action_steps": 10_000, "action_dim": 1_000, "n_chunk_steps": 10_000}
"""What metadata may say."""
MOST_PIXELS = 10_000
MARGIN = 0.1
"""Share of the demonstrations' range by which an action may leave it on either side."""


@dataclass(frozen=True)
class Interface:
    """What a robot sends and executes, frame by frame, and the range of its actions."""

    schema: Schema
    """At the sizes of the robot's own images."""
    n_obs_steps: int
    n_action_steps: int
    low: tuple[float, ...]
    """Lowest of each number of an action; -inf where nothing limits it."""
    high: tuple[float, ...]
    n_chunk_steps: int = 0
    """Actions of a chunk from the newest frame on, which a server sends that is given `known` ones; 0: not taken."""

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Interface:
        """What metadata tell, or a PrismError that says what is missing or absurd."""
        cameras = metadata.get("cameras")
        if not isinstance(cameras, dict) or not 0 < len(cameras) <= 32:
            raise PrismError(f"metadata: expected 'cameras', a map of names to sizes, got {quoted(cameras)}")
        for camera, size in cameras.items():
            numbers = isinstance(size, (list, tuple)) and all(type(n) is int and 0 < n <= MOST_PIXELS for n in size)
            if not isinstance(camera, str) or not numbers or len(size) != 3 or size[2] != 3:
                expected = f"expected [height, width, 3] of at most {MOST_PIXELS} pixels"
                raise PrismError(f"metadata: camera {quoted(camera)}: {expected}, got {one_line(size, 60)}")
        stated = {"action_dim": 7, "n_chunk_steps": 0, **metadata}  # openpi's servers do not say them
        for name, most in MOST.items():
            if type(stated.get(name)) is not int or not 0 <= stated[name] <= most:
                got = quoted(stated.get(name))
                raise PrismError(f"metadata: expected '{name}', a whole number up to {most}, got {got}")
        for name in ("n_obs_steps", "n_action_steps", "action_dim"):
            if stated[name] < 1:
                raise PrismError(f"metadata: expected '{name}', a whole number from 1 to {MOST[name]}, got 0")
        width = stated["action_dim"]
        state, action = (_parts(metadata, name, stated[f"{name}_dim"]) for name in ("state", "action"))
        low, high = _limits(metadata, "action_low", width, -np.inf), _limits(metadata, "action_high", width, np.inf)
        sizes = {camera: (size[0], size[1]) for camera, size in cameras.items()}
        counts = stated["n_obs_steps"], stated["n_action_steps"]
        return cls(Schema(sizes, state, action), *counts, low, high, stated["n_chunk_steps"])

    def metadata(self) -> dict[str, Any]:
        """What `of` reads."""
        schema = self.schema
        return {
            "cameras": {camera: [*size, 3] for camera, size in schema.cameras.items()},
            "state_dim": schema.state_dim,
            "state": [asdict(part) for part in schema.state],
            "action_dim": schema.action_dim,
            "action": [asdict(part) for part in schema.action],
            "action_low": list(self.low),
            "action_high": list(self.high),
            "n_obs_steps": self.n_obs_steps,
            "n_action_steps": self.n_action_steps,
            "n_chunk_steps": self.n_chunk_steps,
        }

    @property
    def largest_question(self) -> int:
        """Bytes that the longest question may have: all frames of the history, with some room."""
        pixels = sum(height * width for height, width in self.schema.cameras.values())
        frame = 3 * pixels + 8 * self.schema.state_dim
        known = 8 * self.n_chunk_steps * self.schema.action_dim
        return self.n_obs_steps * frame + known + OVERHEAD

    def frame(self, images: Any, state: Any) -> Observation:
        """A copy of a frame, checked: a camera's driver may write its next image where this one is."""
        cameras, expected_state = self.schema.cameras, (self.schema.state_dim,)
        if not isinstance(images, Mapping):
            raise PrismError(f"images: expected a dict of {', '.join(cameras)}, got {type(images).__name__}")
        if missing := [camera for camera in cameras if camera not in images]:
            raise PrismError(f"camera '{missing[0]}' is missing; the policy needs {', '.join(cameras)}")
        try:
            copies = {camera: np.array(images[camera]) for camera in cameras}
            with np.errstate(over="ignore"):
                state = np.array(state, np.float32)
        except Exception as error:  # whatever a caller's own types raise
            raise PrismError(f"images and state: expected arrays of numbers ({one_line(error, 200)})") from error
        for camera, (height, width) in cameras.items():
            image, size = copies[camera], (height, width, 3)
            if image.shape != size or image.dtype != np.uint8:
                got = f"{image.dtype} {image.shape}"
                raise PrismError(f"camera '{camera}': expected uint8 {size}, got {one_line(got, 100)}")
        if state.shape != expected_state or not np.isfinite(state).all():
            expected = f"expected {expected_state} finite numbers"
            raise PrismError(f"state: {expected}, got {one_line(state.shape, 100)}: {one_line(state, 200)}")
        return {"images": copies, "state": state}

    @property
    def _limits(self) -> tuple[np.ndarray, np.ndarray]:
        return np.asarray(self.low, np.float32), np.asarray(self.high, np.float32)

    def clipped(self, actions: np.ndarray) -> np.ndarray:
        """What a controller would make of actions (..., A) that leave its range, as robosuite does."""
        return np.clip(actions, *self._limits)

    def actions(self, actions: Any, steps: int | None = None) -> np.ndarray:
        """Actions that a robot may execute, float32 (steps, A), by default `n_action_steps`: the one guard, before and
        behind the socket.

        Raises:
            PrismError: no numbers, another shape, NaN or infinity, or outside the range that was announced.
        """
        shape = (self.n_action_steps if steps is None else steps, self.schema.action_dim)
        if not isinstance(actions, np.ndarray) or actions.dtype.kind not in NUMBERS or actions.shape != shape:
            array = isinstance(actions, np.ndarray)
            got = f"{actions.dtype} {actions.shape}" if array else type(actions).__name__
            raise PrismError(f"actions: expected numbers {shape}, got {one_line(got, 100)}; nothing may be executed")
        with np.errstate(over="ignore"):
            checked = actions.astype(np.float32)
        if not np.isfinite(checked).all():
            raise PrismError("actions: expected finite numbers, got NaN or infinity; nothing may be executed")
        low, high = self._limits
        if (beyond := (checked < low) | (checked > high)).any():
            i, got = int(np.argwhere(beyond)[0][1]), checked[beyond][0]
            shares = (low[i], high[i]) == (-1, 1)
            expected = "shares of the controller's range, in [-1, 1]" if shares else f"{low[i]:.4g} to {high[i]:.4g}"
            raise PrismError(f"actions: expected {expected}, got {got:.4g} (number {i}); nothing may be executed")
        return checked


def limits(
    parts: Sequence[Part], seen: tuple[Sequence[float], Sequence[float]] | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Lowest and highest of each number of an action: of shares of a controller's range -1 and 1, else the range that
    was `seen` in the demonstrations, with a margin.
    """
    shares = np.array([part.shares for part in parts for _ in range(part.size)], bool)
    low, high = np.full(len(shares), -np.inf), np.full(len(shares), np.inf)
    if seen is not None:
        low, high = np.asarray(seen[0], np.float64), np.asarray(seen[1], np.float64)
        low, high = low - MARGIN * (high - low), high + MARGIN * (high - low)
    low, high = np.where(shares, -1.0, low), np.where(shares, 1.0, high)
    return tuple(low.astype(np.float32).tolist()), tuple(high.astype(np.float32).tolist())


def _parts(metadata: Mapping[str, Any], name: str, width: int) -> tuple[Part, ...]:
    """Parts of state or action; one part where nothing is said, as by openpi's servers."""
    if (said := metadata.get(name)) is None:
        return (Part(name, width),)
    if not isinstance(said, (list, tuple)):
        raise PrismError(f"metadata: expected '{name}', a list of parts, got {quoted(said)}")
    parts = tuple(_part(f"{name}[{i}]", one) for i, one in enumerate(said))
    if any(part.size < 1 for part in parts) or sum(part.size for part in parts) != width:
        raise PrismError(f"metadata: expected the parts of '{name}' to have {width} numbers, got {one_line(said, 100)}")
    return parts


def _part(path: str, said: Any) -> Part:
    names = said.get("names", ()) if isinstance(said, dict) else None
    if not isinstance(names, (list, tuple)) or set(said) - {field.name for field in fields(Part)}:
        raise PrismError(f"metadata: {path}: expected name, size, kind, names, shares; got {one_line(said, 100)}")
    part = Part(**{"name": "", "size": 0, **said, "names": tuple(names)})
    texts = isinstance(part.name, str) and all(isinstance(name, str) for name in part.names)
    if not texts or type(part.size) is not int or part.kind not in get_args(PartKind) or type(part.shares) is not bool:
        kinds = ", ".join(get_args(PartKind))
        raise PrismError(f"metadata: {path}: expected a part of kind {kinds}, got {one_line(said, 100)}")
    return part


def _limits(metadata: Mapping[str, Any], name: str, width: int, default: float) -> tuple[float, ...]:
    said = metadata.get(name)
    if said is None:
        return (default,) * width
    numbers = isinstance(said, (list, tuple)) and all(type(n) in (int, float) and n == n for n in said)
    if not numbers or len(said) != width:
        raise PrismError(f"metadata: expected '{name}', {width} numbers, got {one_line(said, 60)}")
    return tuple(map(float, said))
