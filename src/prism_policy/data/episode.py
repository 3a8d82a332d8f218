"""One demonstration of a file in robomimic's layout, read whole or refused with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import h5py
import numpy as np

from prism_policy.config.settings import ActionMode
from prism_policy.data.actions import encode_absolute
from prism_policy.data.hdf5 import array, child, dataset, finite, read_errors, subgroup
from prism_policy.data.recorded_env import looks_absolute
from prism_policy.errors import PrismError
from prism_policy.utils.observations import STATE

ActionKind = Literal["delta", "absolute", "guessed"]
"""What the `actions` of a file are: as recorded, or absolute though nothing says so but most of their steps."""
EXTRAS = ("rewards", "dones", "stages")


@dataclass(frozen=True)
class Episode:
    """One demonstration of T steps."""

    name: str
    images: dict[str, np.ndarray]
    """camera -> uint8 (T, H, W, 3)."""
    state: np.ndarray
    """float32 (T, 9), or (T, 0) where the file holds only states."""
    actions: np.ndarray
    """float32 (T, 7): what was executed, deltas in [-1, 1]; replays the states. Or (T, 10) absolute, see
    `encode_absolute`."""
    disturbed: np.ndarray
    """bool (T,): the action was forced on the demonstrator and is not to be learned; all False where not recorded."""
    sim_states: np.ndarray
    """float64 (T, S) simulator states; (T, 0) where the file has none."""
    extras: dict[str, np.ndarray] = field(default_factory=dict)
    """`rewards`, `dones`, `stages`, where recorded; each (T,)."""
    task: str = ""
    """LIBERO's name of the task, "" elsewhere."""
    clipped: int = 0
    """Steps whose recorded delta leaves [-1, 1]; robosuite clips it, and so is it here."""

    def __len__(self) -> int:
        return len(self.actions)


def cameras_of(demo: h5py.Group) -> list[str]:
    """Cameras whose images a demo holds."""
    observations = subgroup(demo, "obs")
    with read_errors("obs"):
        return [key.removesuffix("_image") for key in observations or () if key.endswith("_image")]


def read_actions(demo: h5py.Group) -> np.ndarray:
    """The `actions` (T, 7) of a demo as they are recorded, T > 0."""
    actions = finite(demo, "actions", (None, 7))
    if not len(actions):
        raise PrismError("expected actions of shape (T, 7) with T > 0, got none")
    return actions


def read_demo(
    demo: h5py.Group,
    name: str,
    cameras: Sequence[str],
    action_mode: ActionMode = "delta",
    kind: ActionKind = "delta",
    with_images: bool = True,
) -> Episode:
    """Read a demonstration.

    Args:
        kind: what the file's `actions` are, from `action_kind`.
        with_images: read them, else only look at type and shape.

    Raises:
        PrismError: why it cannot be used, without the names of file and demo.
    """
    recorded = read_actions(demo)
    if looks_absolute(recorded) != (kind == "guessed") and kind != "absolute":
        ours, others = ("deltas", "poses") if kind == "guessed" else ("poses", "deltas")
        raise PrismError(f"its actions look like {ours}, those of the file are {others}; remove this demo")
    steps = len(recorded)
    actions, clipped = _actions(demo, recorded, action_mode, kind)
    images: dict[str, np.ndarray] = {}
    for camera in cameras:
        frames = _images(demo, camera, steps)
        if with_images:
            with read_errors(f"obs/{camera}_image"):
                images[camera] = frames[()]
    disturbed = _of_steps(demo, "disturbed", steps)
    states = _of_steps(demo, "states", steps)
    extras = {key: x for key in EXTRAS if (x := _of_steps(demo, key, steps)) is not None}
    return Episode(
        name,
        images,
        _state(demo, steps),
        actions.astype(np.float32),
        np.zeros(steps, bool) if disturbed is None else disturbed.astype(bool),
        np.zeros((steps, 0)) if states is None else states,
        extras,
        clipped=clipped,
    )


def _actions(
    demo: h5py.Group, recorded: np.ndarray, action_mode: ActionMode, kind: ActionKind
) -> tuple[np.ndarray, int]:
    """Actions as they are asked for, and how many steps were clipped. Absolute ones are beside or instead of deltas."""
    if action_mode == "absolute":
        if child(demo, "actions_abs") is not None:
            steps, recorded = len(recorded), finite(demo, "actions_abs", (None, 7))
            check_length("actions_abs", recorded.shape, steps)
        elif kind == "delta":
            raise PrismError("no absolute actions (`actions_abs`); run `prism render` on the file of its states")
        return encode_absolute(np.asarray(recorded, np.float64)), 0
    if kind != "delta":
        return recorded, 0
    return np.clip(recorded, -1.0, 1.0), int((np.abs(recorded) > 1 + 1e-6).any(axis=1).sum())


def _images(demo: h5py.Group, camera: str, steps: int) -> h5py.Dataset:
    if camera not in (held := cameras_of(demo)):
        others = ", ".join(map(repr, held[:6])) or "no images (run `prism render` first)"
        raise PrismError(f"unknown camera {camera!r}; the file has {others}")
    frames = dataset(demo, f"obs/{camera}_image", "uint8", (None, None, None, 3), f"images of {camera!r}")
    if 0 in frames.shape[1:]:
        raise PrismError(f"expected images of {camera!r} with pixels, got {frames.shape}")
    check_length(f"obs/{camera}_image", frames.shape, steps)
    return frames


def _state(demo: h5py.Group, steps: int) -> np.ndarray:
    held = [key for key in STATE if child(demo, f"obs/{key}") is not None] if child(demo, "obs") is not None else []
    if not held:
        return np.zeros((steps, 0), np.float32)
    if missing := [key for key in STATE if key not in held]:
        raise PrismError(f"expected obs/{missing[0]} beside obs/{held[0]}, got nothing; add it or remove this demo")
    parts = []
    for key, width in STATE.items():
        check_length(f"obs/{key}", dataset(demo, f"obs/{key}").shape, steps)
        parts.append(finite(demo, f"obs/{key}", (None, width)))
    return np.concatenate(parts, axis=1).astype(np.float32)


def _of_steps(demo: h5py.Group, key: str, steps: int) -> np.ndarray | None:
    """Optional numbers (T, ...) of a demo."""
    if child(demo, key) is None:
        return None
    check_length(key, dataset(demo, key).shape, steps)
    return array(demo, key)


def check_length(key: str, shape: tuple[int, ...], steps: int) -> None:
    """Refuse an array that has not one entry for each step."""
    if not shape or shape[0] != steps:
        raise PrismError(f"expected {steps} steps everywhere, got {key} of shape {shape}")


def states_of(demo: h5py.Group) -> np.ndarray:
    """Simulator states (T, S), which must be there and finite."""
    if child(demo, "states") is None:
        raise PrismError(
            "expected simulator states, got none; take a file that has them (robomimic's demo or low_dim files do)"
        )
    return finite(demo, "states", (None, None))
