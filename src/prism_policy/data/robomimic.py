"""robomimic's HDF5 layout, written and read.

`data` (attributes `total`, `env_args`) / `demo_i` (`num_samples`, `model_file`, `ep_meta`): `actions`, `states`,
`rewards`, `dones`, `obs/<camera>_image` uint8 (T, H, W, 3), `obs/robot0_*`; `mask/*` holds lists of demo names. Of our
own: `disturbed`, where a push was executed instead of the expert's choice, and `stages`. See docs/data.md.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from prism_policy.config.settings import ActionMode
from prism_policy.data.episode import ActionKind, observations, read_actions, read_demo, states_of
from prism_policy.data.episode import Episode as Episode  # what the readers here give
from prism_policy.data.hdf5 import attribute, child, dataset, json_object, open_hdf5, read_errors, subgroup, texts
from prism_policy.data.recorded_env import as_said, read_env_args, recorded_env, turned_far
from prism_policy.data.schema import ABSOLUTE_ACTION, STATE, Part, PartKind, Schema
from prism_policy.errors import PrismError
from prism_policy.utils.files import atomic, disk_errors
from prism_policy.utils.progress import console
from prism_policy.utils.text import listed


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
        _write_masks(file, masks or split(names, valid_share=0.1, seed=0))


def write_masks(path: Path, valid_share: float = 0.1, seed: int = 0) -> None:
    """Write the masks `train` and `valid` into a file, over those it has: each demo is in one of them.

    `valid_share` is in (0, 1); both masks get at least one if there are two. A copy is written, which takes the file's
    place when it is whole.
    """
    if not 0 < valid_share < 1:
        raise PrismError(f"valid_share: expected a number between 0 and 1, got {valid_share}")
    with open_demos(path) as file:
        masks = split(demo_names(file), valid_share, seed)
    with disk_errors(path), path.open("r+b"):  # a read-only file is refused, though its folder may be written to
        pass
    with atomic(path) as temporary:
        shutil.copyfile(path, temporary)
        with read_errors(f"{path}: writing masks"), h5py.File(temporary, "r+") as file:
            _write_masks(file, masks)


def split_masks(file: h5py.File) -> None:
    """Write the masks `train` and `valid` into a file that is being made."""
    _write_masks(file, split(demo_names(file), valid_share=0.1, seed=0))


def split(names: Sequence[str], valid_share: float, seed: int) -> dict[str, list[str]]:
    """Masks `train` and `valid` of these names."""
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
    file = open_hdf5(path)
    try:
        data = child(file, "data")
        if isinstance(data, h5py.Group) and demo_names(file):
            return file
        with read_errors("its groups"):
            found = listed([f"data/{name}" for name in data] if isinstance(data, h5py.Group) and len(data) else [*file])
        raise PrismError(f"expected robomimic's layout with groups data/demo_0, ...; found {found}")
    except PrismError as error:
        file.close()
        raise error if str(path) in str(error) else PrismError(f"{path}: {error}") from error


def demo_names(file: h5py.File, mask: str | None = None) -> list[str]:
    """Names of the demos in natural order, all or those of a `mask` (such as "train").

    They are demo_0, demo_1, ...; in a file that has none of these, all groups with `actions`.
    """
    with read_errors("data"):
        names = {name for name in file["data"] if _is_demo(name)} or {
            name for name, item in file["data"].items() if isinstance(item, h5py.Group) and "actions" in item
        }
    if mask is not None:
        masks, flaws = masks_of(file)
        if mask in flaws:
            raise PrismError(f"{file.filename}: {flaws[mask]}; write the masks anew with `write_masks`")
        if mask not in masks:
            raise PrismError(f"{file.filename} has no mask {mask!r}; it has {listed(list(masks), 8)}")
        if absent := [name for name in masks[mask] if name not in names]:
            flaw = f"mask {mask!r} names {listed(absent, 3)}, which the file does not hold"
            raise PrismError(f"{file.filename}: {flaw}; write the masks anew with `write_masks`")
        names = set(masks[mask])
    return sorted(names, key=natural)


def natural(name: str) -> list[tuple[int, str]]:
    """What sorts names with their numbers as numbers: take_2 before take_10."""
    return [(int(part), "") if part.isdecimal() and part.isascii() else (-1, part) for part in _DIGITS.split(name)]


_DIGITS = re.compile(r"([0-9]{1,18})")


def _is_demo(name: str) -> bool:
    return re.fullmatch(r"demo_[0-9]{1,18}", name) is not None


def odd_names(file: h5py.File) -> list[str]:
    """What stands in `data` under another name than the demos', and is not read."""
    names = set(demo_names(file))
    with read_errors("data"):
        return [name for name in file["data"] if name not in names]


def read_masks(file: h5py.File) -> dict[str, list[str]]:
    """The masks of an open file, with the names of demos as they stand there; those that are no lists are left out."""
    return masks_of(file)[0]


def masks_of(file: h5py.File) -> tuple[dict[str, list[str]], dict[str, str]]:
    """As `read_masks`, and what is wrong with the others."""
    masks: dict[str, list[str]] = {}
    flaws: dict[str, str] = {}
    try:
        group = subgroup(file, "mask")
        with read_errors("mask"):
            names = [*group] if group is not None else []
    except PrismError as error:
        return {}, {"train": str(error)}  # none can be read, so it is not known what is to be learned
    for name in names:
        try:
            masks[name] = texts(group, name)
        except PrismError as error:
            flaws[name] = f"mask {error}"
    return masks, flaws


def recorded_schema(file: h5py.File, names: Sequence[str], kind: ActionKind, absolute: bool = False) -> Schema:
    """All that most demos hold, at the sizes that most have; `absolute` actions as policies learn them."""
    sizes: dict[str, Counter[tuple[int, ...]]] = {}
    readable = 0
    for name in names:
        try:
            held = observations(_demo(file, name))
            readable += 1
        except PrismError:
            continue  # the demo's own reading says why
        for observed, (_, shape) in held.items():
            sizes.setdefault(observed, Counter())[shape] += 1
    usual = {name: of.most_common(1)[0][0] for name, of in sizes.items() if 2 * of.total() >= readable}
    env = recorded_env(read_env_args(file), kind in ("absolute", "guessed"))
    schema = Schema(
        cameras={name: (shape[0], shape[1]) for name, shape in usual.items() if len(shape) == 3},
        state=tuple(_observed_part(name, shape[0]) for name, shape in usual.items() if len(shape) == 1 and shape[0]),
        action=ABSOLUTE_ACTION if absolute else env.action_parts(_action_width(file, names)),
        fps=env.control_hz,
    )
    return schema if absolute else as_said(schema, file)


def usual_state(schema: Schema) -> list[str]:
    """Parts of the state that a policy gets unless others are chosen: hands and fingers of robosuite's arms, or all."""
    arms = [part.name for part in schema.state if _ARM.fullmatch(part.name)]
    order = ("pos", "quat", "qpos")
    return sorted(arms, key=lambda name: (name[: name.index("_")], order.index(name.rpartition("_")[2]))) or [
        part.name for part in schema.state
    ]


_ARM = re.compile(r"robot[0-9]_(right_|left_)?(eef_pos|eef_quat|gripper_qpos)")


def _observed_part(name: str, size: int) -> Part:
    """A part of the state, whose kind follows from robosuite's names."""
    known = next((part for part in STATE if re.fullmatch(r"robot[0-9]" + part.name[6:], name)), None)
    if known and known.size == size:
        return replace(known, name=name)
    kind: PartKind = "other"
    if re.search(r"_quat(_site)?$", name) and size == 4:
        kind = "rotation"
    elif re.search(r"joint_pos$|qpos$", name):
        kind = "joint"
    elif re.search(r"_pos$", name):
        kind = "position"
    return Part(name, size, kind)


def action_kind(file: h5py.File, names: Sequence[str]) -> ActionKind:
    """What the file's `actions` are: what `env_args` say, unless most steps of all demos are poses."""
    env = recorded_env(read_env_args(file))
    if env.arms != ("OSC_POSE",) or _action_width(file, names) != 7:
        return "other"
    if env.action_mode == "absolute":
        return "absolute"
    far = steps = 0
    for name in names:
        try:
            turned = turned_far(read_actions(_demo(file, name), width=7))
        except PrismError:
            continue
        far, steps = far + int(turned.sum()), steps + len(turned)
    return "guessed" if 2 * far > steps else "delta"


def _action_width(file: h5py.File, names: Sequence[str]) -> int:
    """Numbers of an action in most demos that can be read; 7 where none can."""
    widths: Counter[int] = Counter()
    for name in names:
        with suppress(PrismError):  # the demo's own reading says why
            widths[dataset(_demo(file, name), "actions", shape=(None, None)).shape[1]] += 1
    return widths.most_common(1)[0][0] if widths else 7


def _demo(file: h5py.File, name: str) -> h5py.Group:
    demo = subgroup(file["data"], name)
    if demo is None:
        raise PrismError("expected a group, got nothing")
    return demo


def bad_demos(
    file: h5py.File,
    names: Sequence[str],
    schema: Schema,
    kind: ActionKind,
    action_mode: ActionMode = "delta",
    states: bool = False,
) -> dict[str, str]:
    """Which demos lack cameras, parts, states or actions, or cannot be used, and why; images are not read."""
    bad: dict[str, str] = {}
    for name in names:
        try:
            demo = _demo(file, name)
            read_demo(demo, name, schema, action_mode, kind, with_images=False)
            if states:
                states_of(demo)
        except PrismError as error:
            bad[name] = str(error)
    return bad


def read_demos(
    path: Path, cameras: Sequence[str] | None = None, mask: str | None = None, skip_bad: bool = False
) -> list[Episode]:
    """Read all demonstrations into memory.

    Args:
        cameras: which images; None is all that most demos hold.
        mask: only the demos of this list.
        skip_bad: leave out demos that cannot be used and say which and why, instead of raising.
    """
    episodes = list(iter_demos(path, cameras, mask, skip_bad))
    with open_demos(path) as file:
        odd, kind = odd_names(file), action_kind(file, demo_names(file))
    notes = [f"left out {listed(odd)}: expected names demo_0, demo_1, ..."] if odd else []
    notes += [GUESSED] if kind == "guessed" else []
    if clipped := sum(episode.clipped for episode in episodes):
        notes.append(clip_text(clipped, sum(map(len, episodes))))
    for note in notes:
        console.print(f"{path.name}: {note}")
    return episodes


def iter_demos(
    path: Path,
    cameras: Sequence[str] | None = None,
    mask: str | None = None,
    skip_bad: bool = False,
    action_mode: ActionMode = "delta",
    schema: Schema | None = None,
    names: Sequence[str] | None = None,
    checked: ActionKind | None = None,
) -> Iterator[Episode]:
    """The demonstrations one after the other, each read when it is needed; as `read_demos` otherwise.

    Args:
        schema: what to read; by default images of `cameras`, the usual state, and the actions.
        names: of the demonstrations, by default all (of the mask).
        checked: what the file's actions are, where `read_facts` has looked at all demonstrations: none is looked at
            before it is read then, and a call for one costs what one costs.
    """
    with open_demos(path) as file:
        names = list(names) if names is not None else demo_names(file, mask)
        if not names:
            raise PrismError(f"{path}: expected at least one demo in mask {mask!r}, got none")
        kind = checked or action_kind(file, demo_names(file))
        if schema is None:
            schema = recorded_schema(file, demo_names(file), kind, action_mode == "absolute")
            schema = schema.select(state=usual_state(schema))
            if cameras is not None:
                wanted = {camera: schema.cameras.get(camera, (0, 0)) for camera in cameras}
                schema = replace(schema, cameras=wanted)
        bad = {} if checked else bad_demos(file, names, schema, kind, action_mode)
        for name in names:
            if name not in bad:
                try:
                    episode = read_demo(_demo(file, name), name, schema, action_mode, kind)
                except PrismError as error:
                    bad[name] = str(error)
                else:
                    yield episode
                    continue
            if not skip_bad:
                raise PrismError(f"{path}, {name}: {bad[name]}")
            console.print(f"{path.name}: left out {name}: {bad[name]}")
    if len(bad) == len(names):
        raise PrismError(f"{path}: no usable demo among {len(names)}; {names[0]}: {bad[names[0]]}")


GUESSED = "`actions` are taken for absolute poses, as most of them turn further than a delta can; nothing else says so"


def clip_text(clipped: int, steps: int) -> str:
    """Say how many deltas overshoot."""
    return f"{clipped} of {steps} actions leave [-1, 1] and are clipped, as robosuite does"


def read_attributes(path: Path) -> dict[str, Any]:
    """As `attributes_of`, of the file at `path`."""
    with open_demos(path) as file:
        return attributes_of(file)


def attributes_of(file: h5py.File) -> dict[str, Any]:
    """Attributes of the file's `data` group, those in JSON decoded: `env_args`, `total`, `render`, ..."""
    data = file["data"]
    try:
        with read_errors("attributes of data"):
            attributes = {name: attribute(data, name) for name in data.attrs}
        if (env_args := read_env_args(file)) or "env_args" in attributes:
            attributes["env_args"] = env_args
        if (render := json_object(data, "render")) is not None:
            attributes["render"] = render
    except PrismError as error:
        raise error if file.filename in str(error) else PrismError(f"{file.filename}: {error}") from error
    return attributes
