"""robomimic's HDF5 layout, written and read.

`data` (attributes `total`, `env_args`) / `demo_i` (`num_samples`, `model_file`, `ep_meta`): `actions`, `states`,
`rewards`, `dones`, `obs/<camera>_image` uint8 (T, H, W, 3), `obs/robot0_*`; `mask/*` holds lists of demo names. Of our
own: `disturbed`, where a push was executed instead of the expert's choice, and `stages`. See docs/data.md.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from prism_policy.config.settings import ActionMode
from prism_policy.data.actions import encode_absolute
from prism_policy.data.recorded_env import is_absolute, read_env_args
from prism_policy.errors import PrismError
from prism_policy.utils.observations import PROPRIO
from prism_policy.utils.progress import console

_EXTRAS = ("rewards", "dones", "stages")


@dataclass(frozen=True)
class Episode:
    """One demonstration of T steps."""

    name: str
    images: dict[str, np.ndarray]
    """camera -> uint8 (T, H, W, 3)."""
    proprio: np.ndarray
    """float32 (T, 9), or (T, 0) where the file holds only states."""
    actions: np.ndarray
    """float32 (T, 7): what was executed; replays the states. Or (T, 10) absolute, see `encode_absolute`."""
    disturbed: np.ndarray
    """bool (T,): the action was forced on the demonstrator and is not to be learned; all False where not recorded."""
    states: np.ndarray
    """float64 (T, S) simulator states; (T, 0) where the file has none."""
    extras: dict[str, np.ndarray] = field(default_factory=dict)
    """`rewards`, `dones`, `stages`, where recorded; each (T,)."""
    task: str = ""
    """LIBERO's name of the task, "" elsewhere."""

    def __len__(self) -> int:
        return len(self.actions)


def write_demo(
    group: h5py.Group, arrays: dict[str, np.ndarray], attributes: dict[str, Any], next_obs: bool = False
) -> None:
    """Fill an empty `group`, such as `data/demo_0`, with one demonstration.

    Args:
        arrays: by path in the group (`actions`, `obs/agentview_image`, ...), each (T, ...); `actions` must be there.
        next_obs: also write what followed each observation, as robomimic's offline RL wants it; nothing is recorded
            after the last one, which stands for its own successor.
    """
    steps = len(arrays["actions"])
    if next_obs:
        shifted = {p: np.concatenate([v[1:], v[-1:]]) for p, v in arrays.items() if p.startswith("obs/")}
        arrays = {**arrays, **{f"next_{path}": values for path, values in shifted.items()}}
    for path, values in arrays.items():
        if len(values) != steps:
            raise PrismError(f"{group.name}/{path}: expected {steps} steps like `actions`, got {len(values)}")
        if values.dtype == np.uint8 and values.ndim == 4:
            chunks = (min(steps, 16), *values.shape[1:])
            group.create_dataset(path, data=values, chunks=chunks, compression="gzip", compression_opts=1)
        else:
            group.create_dataset(path, data=values)
    group.attrs.update({"num_samples": steps, "ep_meta": "{}", **attributes})


def merge_demos(
    parts: Sequence[Path],
    target: Path,
    env_args: str,
    attributes: Mapping[str, Any] | None = None,
    names: Sequence[str] | None = None,
    masks: Mapping[str, Collection[str]] | None = None,
) -> None:
    """Write `target` from files that hold one group `demo` each; the data are copied as they are, still compressed.

    By default the demos are demo_0, demo_1, ... and a tenth of them is in the mask `valid`, the others in `train`.
    """
    names = names or [f"demo_{i}" for i in range(len(parts))]
    with h5py.File(target, "w", libver="latest") as file:
        data = file.create_group("data")
        total = 0
        for name, path in zip(names, parts, strict=True):
            with h5py.File(path) as part:
                part.copy("demo", data, name=name)
            total += int(data[name].attrs["num_samples"])
        data.attrs.update({"total": total, "env_args": env_args, **(attributes or {})})
        _write_masks(file, masks or _split(names, valid_share=0.1, seed=0))


def write_masks(path: Path, valid_share: float = 0.1, seed: int = 0) -> None:
    """Write the masks `train` and `valid` into a file, over those it has: each demo is in one of them.

    `valid_share` is in (0, 1); both masks get at least one if there are two.
    """
    if not 0 < valid_share < 1:
        raise PrismError(f"valid_share: expected a number between 0 and 1, got {valid_share}")
    with open_demos(path) as file:
        masks = _split(demo_names(file), valid_share, seed)
    with h5py.File(path, "r+") as file:
        _write_masks(file, masks)


def _split(names: Sequence[str], valid_share: float, seed: int) -> dict[str, list[str]]:
    count = min(max(round(valid_share * len(names)), 1), len(names) - 1)
    valid = set(np.random.default_rng(seed).permutation(len(names))[:count])
    return {
        "train": [name for i, name in enumerate(names) if i not in valid],
        "valid": [name for i, name in enumerate(names) if i in valid],
    }


def _write_masks(file: h5py.File, masks: Mapping[str, Iterable[str]]) -> None:
    for mask, names in masks.items():
        if f"mask/{mask}" in file:
            del file[f"mask/{mask}"]
        file[f"mask/{mask}"] = np.array(list(names), dtype="S")


def open_demos(path: Path) -> h5py.File:
    """Open a file in robomimic's layout for reading."""
    if not path.is_file():
        raise PrismError(f"{path} not found; expected demonstrations in robomimic's HDF5 layout there")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise PrismError(f"{path} is not a readable HDF5 file, or it is cut short ({error}); get it again") from error
    if not isinstance(file.get("data"), h5py.Group) or not demo_names(file):
        groups = ", ".join(file) or "nothing"
        file.close()
        raise PrismError(f"{path}: expected robomimic's layout with groups data/demo_0, ...; found {groups}")
    return file


def demo_names(file: h5py.File, mask: str | None = None) -> list[str]:
    """Names of the demos in numeric order, all or those of a `mask` (such as "train")."""
    names = {name for name in file["data"] if name.startswith("demo_") and name[5:].isdigit()}
    if mask is not None:
        masks = read_masks(file)
        if mask not in masks:
            raise PrismError(f"{file.filename} has no mask {mask!r}; it has {', '.join(masks) or 'none'}")
        if absent := [name for name in masks[mask] if name not in names]:
            more = f" and {len(absent) - 3} others" if len(absent) > 3 else ""
            flaw = f"mask {mask!r} names {', '.join(absent[:3])}{more}, which the file does not hold"
            raise PrismError(f"{file.filename}: {flaw}; write the masks anew with `write_masks`")
        names = set(masks[mask])
    return sorted(names, key=lambda name: int(name[5:]))


def read_masks(file: h5py.File) -> dict[str, list[str]]:
    """The masks of an open file, with the names of demos as they stand there."""
    return {
        name: [entry.decode() if isinstance(entry, bytes) else str(entry) for entry in item[:]]
        for name, item in file.get("mask", {}).items()
    }


def cameras_of(demo: h5py.Group) -> list[str]:
    """Cameras whose images a demo holds."""
    return [key.removesuffix("_image") for key in demo.get("obs", {}) if key.endswith("_image")]


def bad_demos(
    file: h5py.File,
    names: Sequence[str],
    cameras: Sequence[str] = (),
    states: bool = False,
    action_mode: ActionMode = "delta",
) -> dict[str, str]:
    """Which demos lack these cameras, states or actions, or cannot be used, and why; images are not read."""
    bad: dict[str, str] = {}
    for name in names:
        try:
            reason = _flaw(file["data"][name], cameras, states, action_mode)
        except (OSError, KeyError, RuntimeError) as error:
            reason = _damaged(error)
        if reason:
            bad[name] = reason
    for camera in cameras:
        shapes = {name: file["data"][name][f"obs/{camera}_image"].shape[1:] for name in names if name not in bad}
        for usual, _ in Counter(shapes.values()).most_common(1):
            wanted = f"expected images of camera {camera!r} of one shape, {usual} as in most demos"
            odd = {name: shape for name, shape in shapes.items() if shape != usual}
            bad |= {name: f"{wanted}, got {shape}; render them again" for name, shape in odd.items()}
    return {name: bad[name] for name in names if name in bad}


def read_demos(
    path: Path, cameras: Sequence[str] | None = None, mask: str | None = None, skip_bad: bool = False
) -> list[Episode]:
    """Read all demonstrations into memory.

    Args:
        cameras: which images; None is all that the first demo holds.
        mask: only the demos of this list.
        skip_bad: leave out demos that cannot be used and say which and why, instead of raising.
    """
    return list(iter_demos(path, cameras, mask, skip_bad))


def iter_demos(
    path: Path,
    cameras: Sequence[str] | None = None,
    mask: str | None = None,
    skip_bad: bool = False,
    action_mode: ActionMode = "delta",
) -> Iterator[Episode]:
    """The demonstrations one after the other, each read when it is needed; as `read_demos` otherwise."""
    with open_demos(path) as file:
        names = demo_names(file, mask)
        if not names:
            raise PrismError(f"{path}: expected at least one demo in mask {mask!r}, got none")
        wanted = list(cameras) if cameras is not None else cameras_of(file["data"][names[0]])
        bad = bad_demos(file, names, wanted, action_mode=action_mode)
        for name in names:
            if name not in bad:
                try:
                    episode = _read_demo(file["data"][name], name, wanted, action_mode)
                except (OSError, RuntimeError) as error:
                    bad[name] = _damaged(error)
                else:
                    yield episode
                    continue
            if not skip_bad:
                raise PrismError(f"{path}, {name}: {bad[name]}")
            console.print(f"{path.name}: left out {name}: {bad[name]}")
    if len(bad) == len(names):
        raise PrismError(f"{path}: no usable demo among {len(names)}; {names[0]}: {bad[names[0]]}")


def _damaged(error: Exception) -> str:
    return f"damaged, cannot be read ({error}); get the file again"


def read_attributes(path: Path) -> dict[str, Any]:
    """As `attributes_of`, of the file at `path`."""
    with open_demos(path) as file:
        return attributes_of(file)


def attributes_of(file: h5py.File) -> dict[str, Any]:
    """Attributes of the file's `data` group, those in JSON decoded: `env_args`, `total`, `render`, ..."""
    attributes = dict(file["data"].attrs)
    if env_args := read_env_args(file):
        attributes["env_args"] = env_args
    if "render" in attributes:
        attributes["render"] = json.loads(attributes["render"])
    return attributes


def _actions(demo: h5py.Group, action_mode: ActionMode) -> np.ndarray | None:
    """(T, 7) in float64, if the demo has such. Absolute ones are beside the deltas, or in their place."""
    if action_mode == "absolute" and "actions_abs" in demo:
        return np.asarray(demo["actions_abs"][:])
    actions = np.asarray(demo["actions"][:])
    return actions if action_mode == "delta" or (actions.ndim == 2 and is_absolute(actions)) else None


def _flaw(demo: h5py.Group, cameras: Sequence[str], states: bool, action_mode: ActionMode) -> str:
    actions = _actions(demo, action_mode)
    if actions is None:
        return "no absolute actions (`actions_abs`); run `prism render` on the file of its states"
    if actions.ndim != 2 or actions.shape[1] != 7 or len(actions) == 0:
        return f"expected actions of shape (T, 7), got {actions.shape}"
    if not np.isfinite(actions).all():
        return f"actions are not finite at step {np.argwhere(~np.isfinite(actions))[0, 0]}; repair or remove this demo"
    if states and "states" not in demo:
        return "expected simulator states, got none; take a file that has them (robomimic's demo or low_dim files do)"
    held = cameras_of(demo)
    for camera in cameras:
        if camera not in held:
            others = ", ".join(map(repr, held)) or "no images (run `prism render` first)"
            return f"unknown camera {camera!r}; the file has {others}"
        image = demo[f"obs/{camera}_image"]
        if image.dtype != np.uint8 or image.ndim != 4 or image.shape[-1] != 3:
            return f"expected images of {camera!r} as uint8 (T, H, W, 3), got {image.dtype} {image.shape}"
    low_dim = {f"obs/{key}": (width,) for key, width in PROPRIO.items()}
    for path in (*low_dim, *(f"obs/{camera}_image" for camera in cameras), "states", "disturbed", *_EXTRAS):
        if path in demo and len(demo[path]) != len(actions):
            return f"expected {len(actions)} steps everywhere, got {path} of shape {demo[path].shape}"
    for path, width in low_dim.items():
        if path in demo and demo[path].shape[1:] != width:
            return f"expected {path} of shape (T, {width[0]}), got {demo[path].shape}"
    return ""


def _read_demo(demo: h5py.Group, name: str, cameras: Sequence[str], action_mode: ActionMode) -> Episode:
    actions = _actions(demo, action_mode)
    assert actions is not None  # `_flaw` sees to it
    actions = encode_absolute(actions) if action_mode == "absolute" else actions
    steps = len(actions)
    images = {camera: demo[f"obs/{camera}_image"][:] for camera in cameras}
    complete = all(f"obs/{key}" in demo for key in PROPRIO)
    low_dim = [demo[f"obs/{key}"][:] for key in PROPRIO] if complete else [np.zeros((steps, 0))]
    proprio = np.concatenate(low_dim, axis=1).astype(np.float32)
    disturbed = demo["disturbed"][:].astype(bool) if "disturbed" in demo else np.zeros(steps, bool)
    states = demo["states"][:] if "states" in demo else np.zeros((steps, 0))
    extras = {key: demo[key][:] for key in _EXTRAS if key in demo}
    return Episode(name, images, proprio, actions.astype(np.float32), disturbed, states, extras)
