"""A small recording without a fault, in memory: a hand that moves smoothly, and two cameras that see it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from community import env_args, write_file
from prism_policy.data.episode import Episode
from prism_policy.data.schema import DELTA_ACTION, STATE, Part, Schema, slices
from prism_policy.errors import PrismError

CAMERAS = {"front": (32, 40), "wrist": (32, 40)}
SCHEMA = Schema(CAMERAS, STATE, DELTA_ACTION, fps=20.0)
REACH = 0.05
"""Of one action [m]."""
STEPS = 70


class MadeSource:
    """Episodes in memory as a `Source`; an exception among them is raised when it is reached."""

    def __init__(
        self,
        episodes: Sequence[Episode | Exception],
        schema: Schema = SCHEMA,
        masks: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        self.path, self.schema, self.masks = Path("made"), schema, masks or {}
        self.held = {getattr(one, "name", f"broken_{i}"): one for i, one in enumerate(episodes)}
        self.names, self.findings = tuple(self.held), ()

    def fingerprint(self) -> dict[str, Any]:
        return {}

    def episodes(self, names: Sequence[str], schema: Schema) -> Iterator[Episode]:
        for name in names:
            one = self.held[name]
            if isinstance(one, Exception):
                raise PrismError(str(one))
            yield one


def picture(camera: str, positions: np.ndarray, opening: np.ndarray) -> np.ndarray:
    """Images (T, 32, 40, 3): a bright spot where the hand is, before a background that is the camera's own."""
    height, width = CAMERAS[camera]
    rows, columns = np.mgrid[0:height, 0:width]
    along, across = (0, 2) if camera == "front" else (1, 2)
    x = (positions[:, along] + 0.5)[:, None, None] * width
    y = (positions[:, across] + 0.5)[:, None, None] * height
    spot = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18)
    ground = (
        (columns * 3.0, rows * 4.0, rows * 0.0 + 90)
        if camera == "front"
        else (rows * 5.0, rows * 0.0 + 40, columns * 2.0)
    )
    image = np.stack(np.broadcast_arrays(*(g[None] for g in ground), spot)[:3], axis=-1)
    colour = np.stack([np.full(len(opening), 250.0), 250 * opening, np.full(len(opening), 200.0)], axis=-1)
    return (image * (1 - spot[..., None]) + spot[..., None] * colour[:, None, None, :]).astype(np.uint8)


def episode(number: int) -> Episode:
    """From a start of its own to a place that depends on it, closing the gripper on the way."""
    rng = np.random.default_rng(number)
    steps = STEPS + int(rng.integers(-6, 7))
    time = np.arange(steps + 1) / STEPS
    start, goal = rng.uniform(-0.15, 0.15, 3), rng.uniform(-0.3, 0.3, 3)
    phase, swing = rng.uniform(0, 6, 3), 0.05
    ease = (1 - np.cos(np.pi * np.clip(0.05 + time * 0.9, 0, 1))) / 2
    path = start + (goal - start) * ease[:, None] + swing * np.sin(9 * time[:, None] + phase)
    path += 0.012 * np.sin(35 * time[:, None] + phase) * np.sin(6 * time[:, None] + phase[::-1]) ** 2
    position, action = path[:-1], np.diff(path, axis=0) / REACH
    angle = 0.4 * np.sin(3 * time[:-1] + phase[0])
    axis = 0.1 * np.sin(4 * time[:-1])
    quaternion = np.stack([np.cos(angle / 2), np.sin(angle / 2), 0.1 + axis, axis], axis=1)
    quaternion /= np.linalg.norm(quaternion, axis=1, keepdims=True)
    turn = np.stack(
        [np.gradient(angle), 0.1 * np.gradient(np.sin(5 * time[:-1])), 0.1 * np.gradient(np.cos(4 * time[:-1]))], 1
    )
    command = np.where(np.arange(steps) < steps * 2 // 3, -1.0, 1.0)
    opening = np.ones(steps)
    for i in range(1, steps):  # fingers open where the command is -1
        opening[i] = opening[i - 1] + 0.3 * ((command[i - 1] < 0) - opening[i - 1])
    fingers = 0.04 * opening[:, None] * [1.0, -1.0]
    state = np.concatenate([position, quaternion, fingers], axis=1).astype(np.float32)
    actions = np.concatenate([action, turn, command[:, None]], axis=1).astype(np.float32)
    images = {camera: picture(camera, position, opening) for camera in CAMERAS}
    times = np.arange(steps) / SCHEMA.fps
    none = np.zeros(steps, bool)
    return Episode(f"demo_{number}", images, state, actions, none, np.zeros((steps, 0)), times=times)


def clean(count: int = 12) -> list[Episode]:
    """Episodes without a fault."""
    return [episode(i) for i in range(count)]


def write(path: Path, episodes: Sequence[Episode], masks: dict[str, list[str]] | None = None) -> Path:
    """The episodes as a file in robomimic's layout, of an environment that nothing here simulates."""
    demos = {}
    for one in episodes:
        arrays = {"actions": one.actions, "timestamps": one.times}
        arrays |= {f"obs/{camera}_image": x for camera, x in one.images.items()}
        arrays |= {f"obs/{part.name}": one.state[:, where] for part, where in _parts()}
        demos[one.name] = {key: x for key, x in arrays.items() if x is not None}
    return write_file(path, demos, env_args("v1.4", env_name="Poke"), masks)


def _parts() -> list[tuple[Part, slice]]:
    return list(zip(SCHEMA.state, slices(SCHEMA.state).values(), strict=True))
