"""One demonstration of a file in robomimic's layout, read whole or refused with the reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import h5py
import numpy as np

from prism_policy.config.settings import ActionMode
from prism_policy.data.actions import encode_absolute
from prism_policy.data.hdf5 import array, child, dataset, finite, read_errors, subgroup
from prism_policy.data.recorded_env import looks_absolute
from prism_policy.data.schema import Part, Schema
from prism_policy.errors import PrismError
from prism_policy.utils.text import listed, one_line

ActionKind = Literal["delta", "absolute", "guessed", "other"]
"""What the `actions` of a file are: steps or poses of one hand, as recorded; poses though nothing says so but most of
their steps; or anything else."""
EXTRAS = ("rewards", "dones", "stages")


@dataclass(frozen=True)
class Episode:
    """One demonstration of T steps."""

    name: str
    images: dict[str, np.ndarray]
    """camera -> uint8 (T, H, W, 3)."""
    state: np.ndarray
    """float32 (T, S); (T, 0) where the file holds only simulator states."""
    actions: np.ndarray
    """float32 (T, A): what was executed. Of a simulated hand its steps, or (T, 10) poses, see `encode_absolute`."""
    disturbed: np.ndarray
    """bool (T,): the action was forced on the demonstrator and is not to be learned; all False where not recorded."""
    sim_states: np.ndarray
    """float64 (T, D) simulator states; (T, 0) where the file has none."""
    extras: dict[str, np.ndarray] = field(default_factory=dict)
    """`rewards`, `dones`, `stages`, where recorded; each (T,)."""
    task: str = ""
    """LIBERO's name of the task, "" elsewhere."""
    clipped: int = 0
    """Steps whose recorded share of the controller's range leaves [-1, 1]; robosuite clips it, and so is it here."""

    def __len__(self) -> int:
        return len(self.actions)


def observations(demo: h5py.Group) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> key under `obs` and shape of one step: (H, W, 3) of a camera's images, (n,) of numbers.

    Images are uint8 (T, H, W, 3), as a rule `<camera>_image`; what lies in a group is named group_key.

    Raises:
        PrismError: two have one name.
    """
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    group = subgroup(demo, "obs")
    with read_errors("obs"):
        for key, item in _arrays(group) if group is not None else ():
            image = item.ndim == 4 and item.dtype == np.uint8 and (item.shape[-1] == 3 or key.endswith("_image"))
            if not (image or (item.ndim <= 2 and item.dtype.kind in "fiub")):
                continue
            name = key.replace("/", "_")
            name = name.removesuffix("_image") if image else name
            shape = tuple(item.shape[1:]) if image else (int(np.prod(item.shape[1:])),)
            if name in found:
                raise PrismError(f"obs/{found[name][0]} and obs/{key} are both named {name!r}; rename one")
            found[name] = key, shape
    return found


_DEEPEST = 8


def _arrays(group: h5py.Group, prefix: str = "", above: tuple[Any, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Paths and arrays of a group and of those in it; one that a link leads back to is not entered again."""
    above = (*above, group)
    for key in group:
        item = child(group, key)
        if isinstance(item, h5py.Dataset) and item.shape is not None:
            yield prefix + key, item
        elif isinstance(item, h5py.Group) and item not in above and len(above) < _DEEPEST:
            yield from _arrays(item, f"{prefix}{key}/", above)


def read_actions(demo: h5py.Group, key: str = "actions", width: int | None = None) -> np.ndarray:
    """The `actions` (T, A) of a demo as they are recorded, T > 0."""
    actions = finite(demo, key, (None, width))
    if not actions.size:
        raise PrismError(f"expected {key} of shape (T, {width or 'A'}) with T > 0, got none")
    return actions


def read_demo(
    demo: h5py.Group,
    name: str,
    schema: Schema,
    action_mode: ActionMode = "delta",
    kind: ActionKind = "delta",
    with_images: bool = True,
) -> Episode:
    """Read a demonstration.

    Args:
        schema: cameras and parts to read, at the sizes of the recording.
        kind: what the file's `actions` are, from `action_kind`.
        with_images: read them, else only look at type and shape.

    Raises:
        PrismError: why it cannot be used, without the names of file and demo.
    """
    recorded = read_actions(demo, width=7 if action_mode == "absolute" else schema.action_dim)
    if kind in ("delta", "guessed") and looks_absolute(recorded) != (kind == "guessed"):
        ours, others = ("deltas", "poses") if kind == "guessed" else ("poses", "deltas")
        raise PrismError(f"its actions look like {ours}, those of the file are {others}; remove this demo")
    steps = len(recorded)
    if action_mode == "absolute":
        actions, clipped = encode_absolute(np.asarray(_absolute(demo, recorded, kind), np.float64)), 0
    else:
        actions, clipped = clip_shares(recorded, schema.action)
    held = observations(demo)
    images: dict[str, np.ndarray] = {}
    for camera, size in schema.cameras.items():
        frames = _images(demo, camera, held, steps, size)
        if with_images:
            with read_errors(f"obs/{held[camera][0]}"):
                images[camera] = frames[()]
    disturbed = _of_steps(demo, "disturbed", steps)
    states = _of_steps(demo, "states", steps)
    extras = {key: x for key in EXTRAS if (x := _of_steps(demo, key, steps)) is not None}
    return Episode(
        name,
        images,
        _state(demo, schema.state, held, steps),
        actions.astype(np.float32),
        np.zeros(steps, bool) if disturbed is None else disturbed.astype(bool),
        np.zeros((steps, 0)) if states is None else states,
        extras,
        clipped=clipped,
    )


def _absolute(demo: h5py.Group, recorded: np.ndarray, kind: ActionKind) -> np.ndarray:
    """Poses (T, 7): beside or instead of deltas."""
    if child(demo, "actions_abs") is not None:
        absolute = read_actions(demo, "actions_abs", 7)
        check_length("actions_abs", absolute.shape, len(recorded))
        return absolute
    if kind not in ("absolute", "guessed"):
        raise PrismError("no absolute actions (`actions_abs`); run `prism render` on the file of its states")
    return recorded


def clip_shares(actions: np.ndarray, parts: Sequence[Part]) -> tuple[np.ndarray, int]:
    """Actions (T, A) with shares of a controller's range within [-1, 1], and how many steps left it."""
    shares = np.array([part.shares for part in parts for _ in range(part.size)], bool)
    beyond = int(((np.abs(actions) > 1 + 1e-6) & shares).any(axis=1).sum())
    return np.where(shares, np.clip(actions, -1.0, 1.0), actions), beyond


def _images(
    demo: h5py.Group, camera: str, held: dict[str, tuple[str, tuple[int, ...]]], steps: int, size: tuple[int, int]
) -> h5py.Dataset:
    cameras = [name for name, (_, shape) in held.items() if len(shape) == 3]
    if camera not in cameras and child(demo, f"obs/{camera}_image") is None:
        others = ", ".join(repr(one_line(name, 40)) for name in cameras[:6]) or "no images (run `prism render` first)"
        raise PrismError(f"unknown camera {camera!r}; the file has {others}")
    key = f"obs/{held[camera][0]}" if camera in held else f"obs/{camera}_image"
    frames = dataset(demo, key, "uint8", (None, None, None, 3), f"images of {camera!r}")
    if 0 in frames.shape[1:]:
        raise PrismError(f"expected images of {camera!r} with pixels, got {frames.shape}")
    check_length(key, frames.shape, steps)
    if frames.shape[1:3] != size:
        wanted = f"expected images of camera {camera!r} of one shape, {(*size, 3)} as in most demos"
        raise PrismError(f"{wanted}, got {frames.shape[1:]}; render them again")
    return frames


def _state(
    demo: h5py.Group, parts: Sequence[Part], held: dict[str, tuple[str, tuple[int, ...]]], steps: int
) -> np.ndarray:
    """float32 (T, S)."""
    columns = [np.zeros((steps, 0))]
    for part in parts:
        if part.name not in held:
            beside = next((f" beside obs/{held[other.name][0]}" for other in parts if other.name in held), "")
            has = "" if beside else f"; it has {listed(list(held), 6)}"
            raise PrismError(f"expected obs/{part.name}{beside}, got nothing; add it or remove this demo{has}")
        key = f"obs/{held[part.name][0]}"
        shape = dataset(demo, key).shape
        check_length(key, shape, steps)
        if part.size == 1 and len(shape) == 1:
            columns.append(finite(demo, key, (None,))[:, None])
        else:
            columns.append(finite(demo, key, (None, part.size)))
    return np.concatenate(columns, axis=1).astype(np.float32)


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
    """Simulator states (T, D), which must be there and finite."""
    if child(demo, "states") is None:
        raise PrismError(
            "expected simulator states, got none; take a file that has them (robomimic's demo or low_dim files do)"
        )
    return finite(demo, "states", (None, None))
