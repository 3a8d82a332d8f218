"""Demonstrations as plain arrays on the disk, mapped into memory: opened at once, whatever their size.

What is used often stays in the kernel's page cache, so a dataset that fits into memory is read from there and a larger
one from the disk, with no setting between the two; several processes share one copy.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import math
import mmap
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prism_policy.data.episode import Episode
from prism_policy.data.schema import Schema
from prism_policy.data.source import Source
from prism_policy.errors import PrismError
from prism_policy.utils.files import check_seal, disk_errors, scratch, seal, write_text
from prism_policy.utils.images import Resize
from prism_policy.utils.progress import console

Progress = Callable[[int, int], None]  # called with (demonstrations done, of how many)

_FORMAT = 3  # of the arrays; a change makes every cache anew
_MANIFEST = "manifest.json"
_NO_RESERVE = 0x4000 if sys.platform == "linux" else 0
"""Linux' MAP_NORESERVE: what may be copied when it is written to would have to fit into memory and swap otherwise."""
_WILL_NEED = 3  # Linux' MADV_WILLNEED


_madvise: Any = None
"""Linux' madvise by addresses, which tensors have, where the standard library's needs the mapping; else None."""
if sys.platform == "linux":
    with contextlib.suppress(OSError, AttributeError):
        _madvise = ctypes.CDLL(None).madvise
        _madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


@dataclass(frozen=True)
class Frames:
    """All frames of all demonstrations, one after the other."""

    images: dict[str, Tensor]  # camera -> uint8 (N, H, W, 3)
    state: Tensor  # float32 (N, S)
    actions: Tensor  # float32 (N, A)
    disturbed: Tensor  # bool (N,): the action was forced on the demonstrator
    ends: tuple[int, ...]  # one past the last frame of each demonstration
    names: tuple[str, ...]  # names of the demonstrations; of several files, with the file's before it
    schema: Schema  # what images, state and actions are
    tasks: tuple[str, ...] = ()  # the task of each demonstration, where there are several
    mapped: bool = False  # whether the arrays are mapped from the disk
    content: str = ""  # checksum of all arrays and names, of those that are mapped

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(x.nbytes for x in (*self.images.values(), self.state, self.actions, self.disturbed))

    def indices(self, names: Sequence[str]) -> list[int]:
        """Numbers of these demonstrations, such as those of a mask, for `Windows(episodes=...)`."""
        numbers = {name: number for number, name in enumerate(self.names)}
        if missing := [name for name in names if name not in numbers]:
            raise PrismError(f"no demonstration {missing[0]!r}; there are {self.names[0]} to {self.names[-1]}")
        return [numbers[name] for name in names]

    def to(self, device: torch.device | str) -> Frames:
        """The same frames in the memory of a device."""
        images = {camera: x.to(device) for camera, x in self.images.items()}
        state, actions, disturbed = (x.to(device) for x in (self.state, self.actions, self.disturbed))
        return Frames(images, state, actions, disturbed, self.ends, self.names, self.schema, self.tasks)

    @classmethod
    def of(cls, episodes: Sequence[Episode], schema: Schema) -> Frames:
        """Frames of demonstrations that are in memory already."""
        arrays = [_arrays(episode) for episode in episodes]
        joined = {key: torch.from_numpy(np.concatenate([a[key] for a in arrays])) for key in arrays[0]}
        ends = np.cumsum([len(episode) for episode in episodes])
        tasks = [episode.task for episode in episodes]
        return cls._from(joined, schema, ends.tolist(), [e.name for e in episodes], tasks if any(tasks) else ())

    @classmethod
    def _from(
        cls, arrays: dict[str, Tensor], schema: Schema, ends: Iterable[int], names: Iterable[str], tasks: Iterable[str]
    ) -> Frames:
        images = {key.removeprefix("image."): x for key, x in arrays.items() if key.startswith("image.")}
        rest = (arrays["state"], arrays["actions"], arrays["disturbed"])
        return cls(images, *rest, tuple(ends), tuple(names), schema, tuple(tasks))

    def announce(self, steps: np.ndarray) -> None:
        """Tell the kernel that the images of `steps` (B, n), each row in order, are about to be read.

        A disk then reads them all at once, instead of one page after the other as each is missed: 15 times as fast.
        """
        if not self.mapped or _madvise is None:
            return
        for images in self.images.values():
            size, base = math.prod(images.shape[1:]), images.data_ptr()
            begin = (base + size * steps[:, 0]) // mmap.PAGESIZE * mmap.PAGESIZE
            length = base + size * (steps[:, -1] + 1) - begin
            for address, count in zip(begin.tolist(), length.tolist(), strict=True):
                _madvise(address, count, _WILL_NEED)


def open_frames(
    sources: Source | Mapping[str, Source],
    schema: Schema,
    cache_dir: Path,
    resize: Resize | None = None,
    progress: Progress | None = None,
) -> Frames:
    """The demonstrations of a source, unpacked into `cache_dir` at the first call.

    The cache belongs to the source's fingerprint (of a file: size, time of change and a sample of its bytes) and to
    what is read of it: another file, or the same one changed, never finds it. Unpacking takes the memory of one
    demonstration, or of a few that are decoded at a time.

    Args:
        sources: one, or one for each of several tasks, by the task's name.
        schema: cameras and parts to read, at the sizes of the recording.
        cache_dir: where unpacked arrays are kept; the raw bytes of all frames are needed there.
        resize: what is done to each image; the frames' own schema has the size that results.
    """
    by_task = sources if isinstance(sources, Mapping) else {"": sources}
    prints: dict[str, Any] = {task: source.fingerprint() for task, source in by_task.items()}
    key = {"format": _FORMAT, "schema": asdict(schema), "resize": resize and asdict(resize)}
    key |= {"file": prints.get("", prints)}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_dir.expanduser() / f"frames-{digest}"
    if not _whole(folder):
        if folder.exists():
            console.print(f"{folder} is damaged: making it again")
        with disk_errors(folder):
            _unpack(by_task, _episodes(by_task, schema, resize), folder, key, progress)
    manifest = json.loads((folder / _MANIFEST).read_text())
    arrays = {name: torch.from_numpy(_map(folder, name, about)) for name, about in manifest["arrays"].items()}
    shown = resized_schema(schema, resize)
    frames = Frames._from(arrays, shown, manifest["ends"], manifest["names"], manifest.get("tasks", ()))
    return replace(frames, mapped=True, content=manifest["content"])


def resized_schema(schema: Schema, resize: Resize | None) -> Schema:
    """The schema with the sizes of the images that policies see."""
    if resize is None:
        return schema
    return replace(schema, cameras={c: resize.output(*size, camera=c) for c, size in schema.cameras.items()})


def _episodes(sources: Mapping[str, Source], schema: Schema, resize: Resize | None) -> Iterator[Episode]:
    for task, source in sources.items():
        for episode in source.episodes(source.names, schema):
            if resize is not None:
                episode = replace(episode, images={c: resize(x) for c, x in episode.images.items()})
            yield replace(episode, name=f"{task}/{episode.name}", task=task) if task else replace(episode, task="")


def _arrays(episode: Episode) -> dict[str, np.ndarray]:
    images = {f"image.{camera}": frames for camera, frames in episode.images.items()}
    return {**images, "state": episode.state, "actions": episode.actions, "disturbed": episode.disturbed}


def _whole(folder: Path) -> bool:
    """Whether all arrays of a cache are what was written, as far as their seals tell."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        resealed = {}
        for name, x in manifest["arrays"].items():
            raw = folder / f"{name}.raw"
            if raw.stat().st_size != math.prod(x["shape"]) * np.dtype(x["dtype"]).itemsize:
                return False
            if (now := check_seal(raw, x)) is None:
                return False
            resealed[name] = {**x, **now}
        whole = len(manifest["ends"]) == len(manifest["names"]) and isinstance(manifest["content"], str)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
    if whole and resealed != manifest["arrays"]:  # a copy, whose times are its own: the next opening needs a sample
        with contextlib.suppress(PrismError):  # of somebody who may only read it
            write_text(folder / _MANIFEST, json.dumps({**manifest, "arrays": resealed}))
    return whole


def _map(folder: Path, name: str, about: dict[str, Any]) -> np.ndarray:
    shape = tuple(about["shape"])
    if math.prod(shape) == 0:  # nothing to map
        return np.zeros(shape, about["dtype"])
    # Copy on write: torch knows no read-only tensors, and a slip must not reach the disk.
    flags, access = mmap.MAP_PRIVATE | _NO_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE
    with (folder / f"{name}.raw").open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, flags, access), about["dtype"]).reshape(shape)


def _unpack(
    sources: Mapping[str, Source],
    episodes: Iterable[Episode],
    folder: Path,
    key: dict[str, Any],
    progress: Progress | None,
) -> None:
    with scratch(folder.parent) as place:
        temporary = place / folder.name
        temporary.mkdir()
        total = sum(len(source.names) for source in sources.values())
        shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
        files: dict[str, Any] = {}
        sums: dict[str, Any] = {}
        names, tasks, ends = list[str](), list[str](), list[int]()
        try:
            for episode in episodes:
                for name, values in _arrays(episode).items():
                    about = (str(values.dtype), values.shape[1:])
                    if (usual := shapes.setdefault(name, about)) != about:
                        where = f"{sources[episode.task].path}, {episode.name}"
                        raise PrismError(f"{where}: expected {name} of {usual} as in {names[0]}, got {about}")
                    if name not in files:
                        files[name], sums[name] = (temporary / f"{name}.raw").open("wb"), hashlib.sha256()
                    content = np.ascontiguousarray(values).data
                    files[name].write(content)
                    if content.nbytes:
                        sums[name].update(content)
                names.append(episode.name)
                tasks += [episode.task] * bool(episode.task)
                ends.append((ends[-1] if ends else 0) + len(episode))
                if progress:
                    progress(len(names), total)
        finally:
            for opened in files.values():
                opened.flush()
                os.fsync(opened.fileno())
                opened.close()
        arrays: dict[str, dict[str, Any]] = {}
        for name, (dtype, shape) in shapes.items():
            raw = temporary / f"{name}.raw"
            arrays[name] = {"dtype": dtype, "shape": [ends[-1], *shape], **seal(raw, sums[name].hexdigest())}
        paths = {task: str(source.path) for task, source in sources.items()}
        digests = [(name, x["dtype"], x["shape"], x["sha256"]) for name, x in sorted(arrays.items())]
        content_sum = hashlib.sha256(json.dumps([digests, names, tasks, ends]).encode()).hexdigest()
        manifest = {"arrays": arrays, "names": names, "tasks": tasks, "ends": ends, "content": content_sum, **key}
        manifest["path"] = paths.get("", paths)
        write_text(temporary / _MANIFEST, json.dumps(manifest))
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        try:
            temporary.rename(folder)
        except OSError:
            if not _whole(folder):  # else another process was faster
                raise
