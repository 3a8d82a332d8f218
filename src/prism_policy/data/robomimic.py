"""robomimic's HDF5 layout, written and read.

`data` (attributes `total`, `env_args`) / `demo_i` (`num_samples`, `model_file`, `ep_meta`): `actions`, `states`,
`rewards`, `dones`, `obs/<camera>_image` uint8 (T, H, W, 3), `obs/robot0_*`; `mask/*` holds lists of demo names. Of our
own: `disturbed`, where a push was executed instead of the expert's choice, and `stages`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from prism_policy.errors import PrismError

PROPRIO = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
"""What makes up `proprio`, in this order: (3,) [m], (4,) x y z w, (2,) [m]."""


@dataclass(frozen=True)
class Episode:
    """One demonstration of T steps."""

    name: str
    images: dict[str, np.ndarray]
    """camera -> uint8 (T, H, W, 3)."""
    proprio: np.ndarray
    """float32 (T, 9), or (T, 0) where the file holds only states."""
    actions: np.ndarray
    """float32 (T, 7): what was executed; replays the states."""
    disturbed: np.ndarray
    """bool (T,): the action was forced on the demonstrator and is not to be learned; all False where not recorded."""
    states: np.ndarray
    """float64 (T, S) simulator states; (T, 0) where the file has none."""
    extras: dict[str, np.ndarray] = field(default_factory=dict)
    """`rewards`, `dones`, `stages`, where recorded; each (T,)."""

    def __len__(self) -> int:
        return len(self.actions)


def write_demo(group: h5py.Group, arrays: dict[str, np.ndarray], attributes: dict[str, Any]) -> None:
    """Fill `group` with one demonstration.

    Args:
        group: an empty group, such as `data/demo_0`.
        arrays: by path in the group (`actions`, `obs/agentview_image`, ...), each (T, ...); `actions` must be there.
        attributes: e.g. `model_file`, an XML that may exceed HDF5's 64 KB for compact attributes.
    """
    steps = len(arrays["actions"])
    for path, values in arrays.items():
        if len(values) != steps:
            raise PrismError(f"{group.name}/{path}: expected {steps} steps like `actions`, got {len(values)}")
        if values.dtype == np.uint8 and values.ndim == 4:
            chunks = (min(steps, 16), *values.shape[1:])
            group.create_dataset(path, data=values, chunks=chunks, compression="gzip", compression_opts=1)
        else:
            group.create_dataset(path, data=values)
    group.attrs["num_samples"] = steps
    group.attrs["ep_meta"] = "{}"
    for name, value in attributes.items():
        group.attrs[name] = value


def merge_demos(parts: Sequence[Path], target: Path, env_args: str, attributes: dict[str, Any] | None = None) -> None:
    """Write `target` from files that hold one group `demo` each; the data are copied as they are, still compressed."""
    with h5py.File(target, "w", libver="latest") as file:
        data = file.create_group("data")
        total = 0
        for i, path in enumerate(parts):
            with h5py.File(path) as part:
                part.copy("demo", data, name=f"demo_{i}")
            total += int(data[f"demo_{i}"].attrs["num_samples"])
        data.attrs["total"] = total
        data.attrs["env_args"] = env_args
        for name, value in (attributes or {}).items():
            data.attrs[name] = value


def open_demos(path: Path) -> h5py.File:
    """Open a file in robomimic's layout for reading.

    Raises:
        PrismError: it is missing, truncated, no HDF5, or of another layout.
    """
    if not path.is_file():
        raise PrismError(f"{path} not found; expected demonstrations in robomimic's HDF5 layout there")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise PrismError(f"{path} is not a readable HDF5 file, or it is cut short ({error}); get it again") from error
    if not isinstance(file.get("data"), h5py.Group) or not demo_names(file):
        found = ", ".join(file) or "nothing"
        file.close()
        raise PrismError(f"{path}: expected robomimic's layout with groups data/demo_0, ...; found {found}")
    return file


def demo_names(file: h5py.File, mask: str | None = None) -> list[str]:
    """Names of the demos in numeric order, all or those of a `mask` (such as "train").

    Raises:
        PrismError: there is no such mask.
    """
    names = [name for name in file["data"] if name.startswith("demo_") and name[5:].isdigit()]
    if mask is not None:
        masks = file.get("mask", {})
        if mask not in masks:
            raise PrismError(f"{file.filename} has no mask {mask!r}; it has {', '.join(masks) or 'none'}")
        chosen = {name.decode() for name in masks[mask][:]}
        names = [name for name in names if name in chosen]
    return sorted(names, key=lambda name: int(name[5:]))


def cameras_of(demo: h5py.Group) -> list[str]:
    """Cameras whose images a demo holds."""
    return [key.removesuffix("_image") for key in demo.get("obs", {}) if key.endswith("_image")]


def read_demos(path: Path, cameras: Sequence[str] | None = None, mask: str | None = None) -> list[Episode]:
    """Read all demonstrations into memory.

    Args:
        path: the file.
        cameras: which images; None is all the file holds.
        mask: only the demos of this list.

    Raises:
        PrismError: a truncated or foreign file, a camera it does not hold, actions that are not finite or not (T, 7),
            arrays of unequal length, images of unequal shape.
    """
    return list(iter_demos(path, cameras, mask))


def iter_demos(path: Path, cameras: Sequence[str] | None = None, mask: str | None = None) -> Iterator[Episode]:
    """The demonstrations one after the other, each read when it is asked for; arguments and errors as `read_demos`."""
    with open_demos(path) as file:
        names = demo_names(file, mask)
        wanted = list(cameras) if cameras is not None else cameras_of(file["data"][names[0]]) if names else []
        shapes: dict[str, tuple[int, ...]] = {}
        for name in names:
            try:
                episode = _read_demo(file["data"][name], name, wanted, path)
            except (OSError, KeyError, RuntimeError) as error:
                raise PrismError(f"{path}, {name}: damaged, cannot be read ({error}); get the file again") from error
            for camera, frames in episode.images.items():
                if shapes.setdefault(camera, frames.shape[1:]) != frames.shape[1:]:
                    raise PrismError(
                        f"{path}, {name}: expected images of camera {camera!r} of one shape, {shapes[camera]} as in "
                        f"{names[0]}, got {frames.shape[1:]}; render them again"
                    )
            yield episode


def read_attributes(path: Path) -> dict[str, Any]:
    """Attributes of the file's `data` group, those in JSON decoded: `env_args`, `total`, `render`, ..."""
    with open_demos(path) as file:
        attributes = dict(file["data"].attrs)
    for name in ("env_args", "render"):
        if name in attributes:
            attributes[name] = json.loads(attributes[name])
    return attributes


def _read_demo(demo: h5py.Group, name: str, cameras: list[str], path: Path) -> Episode:
    where = f"{path}, {name}"
    actions = demo["actions"][:].astype(np.float32)
    if actions.ndim != 2 or actions.shape[1] != 7 or len(actions) == 0:
        raise PrismError(f"{where}: expected actions of shape (T, 7), got {actions.shape}")
    if not np.isfinite(actions).all():
        step = int(np.argwhere(~np.isfinite(actions))[0, 0])
        raise PrismError(f"{where}: actions are not finite at step {step}; repair or remove this demo")
    if missing := [camera for camera in cameras if camera not in cameras_of(demo)]:
        held = ", ".join(map(repr, cameras_of(demo))) or "no images (run `prism render` first)"
        raise PrismError(f"{where}: unknown camera {missing[0]!r}; the file has {held}")
    steps = len(actions)
    images = {camera: demo[f"obs/{camera}_image"][:] for camera in cameras}
    observations = demo.get("obs", {})
    low_dim = [observations[key][:] for key in PROPRIO if key in observations]
    disturbed = demo["disturbed"][:].astype(bool) if "disturbed" in demo else np.zeros(steps, bool)
    states = demo["states"][:] if "states" in demo else np.zeros((steps, 0))
    extras = {key: demo[key][:] for key in ("rewards", "dones", "stages") if key in demo}
    for values in (disturbed, states, *images.values(), *low_dim, *extras.values()):
        if len(values) != steps:
            raise PrismError(f"{where}: expected {steps} steps everywhere, got an array of shape {values.shape}")
    for camera, frames in images.items():
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            found = f"{frames.dtype} {frames.shape}"
            raise PrismError(f"{where}: expected images of {camera!r} as uint8 (T, H, W, 3), got {found}")
    complete = len(low_dim) == len(PROPRIO)
    proprio = np.concatenate(low_dim, axis=1).astype(np.float32) if complete else np.zeros((steps, 0), np.float32)
    return Episode(name, images, proprio, actions, disturbed, states, extras)
