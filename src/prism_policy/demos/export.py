"""Demonstrations written in another format: LeRobot's dataset v3.0, or robomimic's HDF5.

What a robomimic file holds beside images, state and actions goes into columns of its own (`robomimic.*`), which LeRobot
leaves alone, and its attributes into `meta/robomimic.json` and `meta/robomimic_demos.jsonl`: exported back, every array
is equal to the bit.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

import h5py
import numpy as np

from prism_policy.config.ranges import Natural
from prism_policy.config.typed_json import read_journal, read_json
from prism_policy.data.episode import EXTRAS, Episode, observations
from prism_policy.data.hdf5 import array, attribute, child, described, read_errors
from prism_policy.data.lerobot.parquet import MOST_NUMBERS
from prism_policy.data.lerobot.source import RAW, LeRobotSource
from prism_policy.data.lerobot.writer import LeRobotWriter, Raw, VideoCodec
from prism_policy.data.robomimic import open_demos, usual_state, write_demo
from prism_policy.data.schema import Schema, slices
from prism_policy.data.source import RobomimicSource, Source
from prism_policy.demos.cache import Progress, check_free
from prism_policy.errors import PrismError
from prism_policy.utils.files import atomic, disk_errors, scratch, write_text
from prism_policy.utils.text import listed

ExportFormat = Literal["lerobot", "robomimic"]
_ABOUT, _DEMOS = "meta/robomimic.json", "meta/robomimic_demos.jsonl"


class _About(TypedDict):
    attributes: dict[str, Any]
    masks: dict[str, tuple[str, ...]]


class _DemoLine(TypedDict):
    episode_index: Natural
    name: str
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Beside:
    """What a robomimic file holds beside images, state and actions; nothing in other formats."""

    raw: tuple[Raw, ...] = ()
    """Every array that all demonstrations hold, but the images."""
    images: Mapping[str, str] = field(default_factory=dict)
    """Path of each camera's images."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    masks: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By the demonstrations' names."""
    names: Mapping[str, str] = field(default_factory=dict)
    """What an episode was called in the robomimic file; empty where there is none."""
    notes: tuple[str, ...] = ()
    about: Callable[[str], Mapping[str, Any]] = lambda episode: {}
    """Attributes of an episode's demonstration."""
    arrays: Callable[[Episode], dict[str, np.ndarray]] = lambda episode: {}
    """All of `raw` of an episode, by path."""


@dataclass(frozen=True)
class ExportOptions:
    """How demonstrations are written."""

    video: VideoCodec | None = None
    """LeRobot's images as videos, which are smaller and not equal to the bit; by default PNG, which is."""
    fps: int | None = None
    """Frames a second, where the demonstrations do not say."""
    task: str = ""
    """What to do, in words; by default what the demonstrations say."""


def export(
    source: Source, out: Path, form: ExportFormat, options: ExportOptions, progress: Progress | None = None
) -> tuple[str, ...]:
    """Write all episodes of a source to `out`, a new folder (LeRobot) or file (robomimic), whole or not at all.

    Returns:
        What was left out, a sentence each.

    Raises:
        PrismError: `out` exists, the source is damaged or does not fit the format, or a full disk.
    """
    check_free(out)
    if isinstance(source, LeRobotSource):
        beside = _beside_of_folder(source)
    else:
        beside = _beside_of_file(source) if isinstance(source, RobomimicSource) else _beside_of_several()
    write = _write_lerobot if form == "lerobot" else _write_robomimic
    write(source, out, beside, options, progress or (lambda done, total: None))
    return beside.notes


def _write_lerobot(source: Source, out: Path, beside: Beside, options: ExportOptions, progress: Progress) -> None:
    names, fps = source.names, _whole_rate(source, options.fps)
    schema = source.schema.select(state=usual_state(source.schema)) if beside.names else source.schema
    robot = beside.attributes.get("robot_type") or getattr(source, "info", {}).get("robot_type") or _robot(beside)
    with disk_errors(out), scratch(out.absolute().parent) as place:
        folder = place / out.name
        writer = LeRobotWriter(folder, schema, fps, options.video, robot, beside.raw, beside.images)
        for done, episode in enumerate(source.episodes(names, schema), start=1):
            task = options.task or episode.task or _task(beside, beside.about(episode.name)) or source.path.stem
            writer.add(episode.images, episode.state, episode.actions, task, beside.arrays(episode))
            progress(done, len(names))
        numbers = {name: i for i, name in enumerate(names)}
        masks = {mask: [numbers[n] for n in of if n in numbers] for mask, of in source.masks.items()}
        writer.finish({mask: numbers for mask, numbers in masks.items() if numbers})
        if beside.names:
            about = {"attributes": dict(beside.attributes), "masks": dict(beside.masks)}
            write_text(folder / _ABOUT, json.dumps(about, indent=4))
            with (folder / _DEMOS).open("w") as lines:
                for name in names:
                    line = {"episode_index": numbers[name], "name": beside.names[name]}
                    lines.write(json.dumps({**line, "attributes": dict(beside.about(name))}) + "\n")
        for path in (p for p in folder.rglob("*") if p.is_file()):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        os.rename(folder, out)  # noqa: PTH104 (`Path.rename` would replace a file that appeared meanwhile)


def _write_robomimic(source: Source, out: Path, beside: Beside, options: ExportOptions, progress: Progress) -> None:
    schema, names = source.schema, source.names
    called = {name: beside.names.get(name, f"demo_{i}") for i, name in enumerate(names)}
    with atomic(out) as temporary, h5py.File(temporary, "w", libver="latest") as file:
        data, total = file.create_group("data"), 0
        for done, episode in enumerate(source.episodes(names, schema), start=1):
            arrays = beside.arrays(episode) if beside.names else _arrays(episode, schema)
            arrays |= {beside.images.get(c, f"obs/{c}_image"): x for c, x in episode.images.items()}
            _check_space(temporary, sum(x.nbytes for x in arrays.values()))
            task = options.task or episode.task
            said = {"ep_meta": json.dumps({"lang": task})} if task else {}
            write_demo(data.create_group(called[episode.name]), arrays, {**said, **beside.about(episode.name)})
            file.flush()  # so that the disk's free space counts it
            total += len(episode)
            progress(done, len(names))
        env_args = json.dumps(_env_args(source, options.fps))
        data.attrs.update({"env_args": env_args, **beside.attributes, "total": total})
        masks = {mask: [called[n] for n in members if n in called] for mask, members in source.masks.items()}
        for mask, members in (beside.masks or masks).items():
            file[f"mask/{mask}"] = np.array([name for name in members if name in called.values()], dtype="S")


def _check_space(path: Path, size: int) -> None:
    """Raise the error of a full disk before HDF5's library meets one, which ends the process."""
    if shutil.disk_usage(path.parent).free < size + 2**20:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _arrays(episode: Episode, schema: Schema) -> dict[str, np.ndarray]:
    """An episode's numbers by robomimic's paths."""
    arrays = {"actions": episode.actions, **{name: episode.extras[name] for name in EXTRAS if name in episode.extras}}
    arrays |= {f"obs/{name}": episode.state[:, place] for name, place in slices(schema.state).items()}
    if episode.sim_states.shape[1]:
        arrays["states"] = episode.sim_states
    if episode.disturbed.any():
        arrays["disturbed"] = episode.disturbed
    return arrays


def _env_args(source: Source, fps: int | None) -> dict[str, Any]:
    """What robomimic asks of an environment, where there is none to make again: its name and rate."""
    info = getattr(source, "info", {})
    rate = fps or source.schema.fps
    settings = {"control_freq": rate} if rate else {}
    return {"env_name": info.get("robot_type") or "", "type": 1, "env_kwargs": settings}


def _whole_rate(source: Source, wanted: int | None) -> int:
    rate = wanted or source.schema.fps
    if rate is None:
        raise PrismError(f"{source.path}: it does not say how many frames a second it holds; add --fps")
    if rate != int(rate):
        raise PrismError(f"{source.path}: LeRobot holds whole numbers of frames a second, got {rate:g}; choose --fps")
    return int(rate)


def _robot(beside: Beside) -> str | None:
    try:
        robots = json.loads(beside.attributes.get("env_args", "{}"))["env_kwargs"]["robots"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return " ".join(map(str, robots)) if isinstance(robots, list) else str(robots)


def _task(beside: Beside, about: Mapping[str, Any]) -> str:
    """What a robomimic file says there is to do: its words, else the environment's name."""
    for text, key in ((about.get("ep_meta"), "lang"), (beside.attributes.get("env_args"), "env_name")):
        if key == "env_name" and isinstance(said := beside.attributes.get("instruction"), str) and said:
            return said
        try:
            said = json.loads(text)[key] if isinstance(text, str) else ""
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if isinstance(said, str) and said:
            return said
    return ""


def _beside_of_folder(source: LeRobotSource) -> Beside:
    """What an earlier export from robomimic left."""
    features = source.info["features"]
    images = {
        camera: about["robomimic"]["path"]
        for camera, key in source.camera_keys.items()
        if "robomimic" in (about := features[key])
    }
    if not (source.path / _DEMOS).exists():
        return Beside(images=images)
    lines = read_journal(source.path / _DEMOS, _DemoLine).sound("export it again")
    demos = {f"episode_{line['episode_index']:06d}": line for line in lines}
    raw = tuple(
        Raw(about["robomimic"]["path"], about["dtype"], tuple(about["robomimic"].get("shape", ())))
        for key, about in features.items()
        if key.startswith(RAW) and "robomimic" in about
    )
    names = [line["name"] for line in lines]
    if len(set(names)) < len(names) or not all(name and "/" not in name for name in names):
        raise PrismError(
            f"{source.path / _DEMOS}: expected a name for each demonstration, and no slash; export it again"
        )
    about = read_json(source.path / _ABOUT, _About, "export it again")
    return Beside(
        raw,
        images,
        about["attributes"],
        about["masks"],
        {name: line["name"] for name, line in demos.items()},
        about=lambda name: demos[name]["attributes"],
        arrays=lambda episode: source.raw(episode.name),
    )


def _beside_of_file(source: Source) -> Beside:
    """All arrays and attributes of a robomimic file but its images."""
    with open_demos(source.path) as file:
        data = file["data"]
        held = observations(data[source.names[0]])
        images = {camera: f"obs/{held[camera][0]}" for camera in source.schema.cameras}
        shapes: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
        odd = set[str]()
        for name in source.names:
            steps = len(data[name]["actions"])
            for path, item in _datasets(data[name]):
                if path in images.values():
                    continue
                plain = item.dtype.kind in "fiub" and item.dtype.itemsize <= 8 and item.ndim in (1, 2, 3)
                if plain and len(item) == steps and 0 < math.prod(item.shape[1:]) <= MOST_NUMBERS:
                    shapes.setdefault(path, []).append((item.dtype.name, tuple(item.shape[1:])))
                else:
                    odd.add(f"{path} ({described(item)})")
        every = {path: of for path, of in shapes.items() if len(of) == len(source.names) and len(set(of)) == 1}
        odd |= {f"{path} (not alike in all demonstrations)" for path in shapes.keys() - every.keys()}
        raw = tuple(Raw(path, *of[0]) for path, of in sorted(every.items()))
        attributes = _attributes(data)
    notes = (f"left out {listed(sorted(odd), 6)}",) if odd else ()

    def about(name: str) -> dict[str, Any]:
        with open_demos(source.path) as file:
            return _attributes(file["data"][name])

    def arrays(episode: Episode) -> dict[str, np.ndarray]:
        with open_demos(source.path) as file:
            return {one.path: array(file["data"][episode.name], one.path) for one in raw}

    masks = {mask: [name for name in of if name in source.names] for mask, of in source.masks.items()}
    return Beside(raw, images, attributes, masks, {name: name for name in source.names}, notes, about, arrays)


def _beside_of_several() -> Beside:
    """Of several files as one: what is not to be learned; the rest may differ between them."""
    notes = ("of several files as one, images, state and actions are exported; their other arrays with each alone",)
    raw = (Raw("disturbed", "bool", ()),)
    return Beside(raw, notes=notes, arrays=lambda episode: {"disturbed": episode.disturbed})


def _datasets(group: h5py.Group, prefix: str = "") -> Iterator[tuple[str, h5py.Dataset]]:
    with read_errors(prefix or group.name):
        for key in group:
            item = child(group, key)
            if isinstance(item, h5py.Dataset) and item.shape is not None:
                yield f"{prefix}{key}", item
            elif isinstance(item, h5py.Group):
                yield from _datasets(item, f"{prefix}{key}/")


def _attributes(item: h5py.Group) -> dict[str, Any]:
    """Attributes that JSON can hold: texts, numbers and lists of them."""
    made = {}
    for name in item.attrs:
        value = attribute(item, name)
        value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        if isinstance(value, str | int | float | list):
            made[name] = value
    return made
