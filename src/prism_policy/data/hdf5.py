"""The one way in to HDF5 files that others wrote: typed reads that give what was asked for, or one sentence.

Nothing is believed. A file's first opening is left to a process that may die of it (`probe.py`); a size is compared
with what the file can hold before memory is asked for; whatever h5py raises becomes a PrismError that says where.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import psutil

from prism_policy.data import probe
from prism_policy.errors import PrismError
from prism_policy.utils.files import default_cache_dir
from prism_policy.utils.text import one_line, parsed_json

Item = Any
"""An `h5py.Group` or `h5py.Dataset`; h5py has no types."""
Kind = Literal["number", "integer", "uint8"]
_KINDS: dict[Kind, str] = {"number": "fiub", "integer": "iub", "uint8": "u"}
_LARGEST = float(np.finfo(np.float32).max)
_LARGE = 64 * 2**20
MARGIN = 0.9
"""Share of the free memory that one array may take."""


@contextmanager
def read_errors(where: str) -> Iterator[None]:
    """Turn whatever h5py raises into a sentence that begins with `where`."""
    try:
        yield
    except PrismError:
        raise
    except MemoryError as error:
        raise PrismError(f"{where}: not enough memory to read it") from error
    except Exception as error:  # h5py lets through what its types, text decoding and C calls raise, of any class
        why = one_line(f"{where}: {error}", 160)
        raise PrismError(f"damaged, cannot be read ({why}); get the file again") from error


def open_hdf5(path: Path) -> h5py.File:
    """Open a file for reading, after its structure was found sound.

    Raises:
        PrismError: there is no such file, it is locked or no HDF5, it is damaged, or it may not be read.
    """
    if path.is_dir():
        raise PrismError(f"{path}: expected an HDF5 file, got a folder")
    if not path.is_file():
        raise PrismError(f"{path} not found; expected demonstrations in robomimic's HDF5 layout there")
    try:
        with path.open("rb") as raw:
            raw.read(1)
        check_structure(path)
        return h5py.File(path, "r", locking="best-effort")  # where a file system has no locks, none is needed to read
    except PrismError:
        raise
    except PermissionError as error:
        raise PrismError(f"{path}: may not be read by this user; change its permissions (chmod +r)") from error
    except Exception as error:
        reason = one_line(str(error), 160)
        if "lock" in reason and ("errno = 11" in reason or "errno = 35" in reason):
            locked = "another process has it open for writing; wait until that ends, or stop it"
            raise PrismError(f"{path}: {locked}") from error
        if "already open for write" in reason or "consistency flag" in reason:
            left = "it is being written, or a process was killed while writing it"
            raise PrismError(f"{path}: {left}; wait, or run `h5clear -s` on a copy, or get it again") from error
        if isinstance(error, OSError) and error.errno in (errno.EIO, errno.ESTALE):
            raise PrismError(f"{path}: the disk does not give it ({reason})") from error
        raise PrismError(f"{path} is not a readable HDF5 file, or it is cut short ({reason}); get it again") from error


class _Probe:
    """The process that opens files first; started when it is needed, and again when it died."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.lock = threading.Lock()
        self.owner = 0

    def dies_of(self, path: Path) -> str:
        """How a walk through a file ends early; "" where it does not."""
        with self.lock:
            for _ in range(2):  # an idle process may have ended just now
                process = self._running()
                assert process.stdin is not None
                assert process.stdout is not None
                try:
                    process.stdin.write(os.fsencode(path.absolute()).hex() + "\n")
                    process.stdin.flush()
                    code = int(process.stdout.readline())
                except (OSError, ValueError):
                    self._end()
                    continue
                if code == 0:
                    return ""
                return "does not come to an end" if code == -signal.SIGALRM else "crashes"
        why = "too little memory, or no further process is allowed"
        raise PrismError(f"{path}: the process that looks through files first cannot run here ({why}); allow it more")

    def _running(self) -> subprocess.Popen[str]:
        if self.process and (self.owner != os.getpid() or self.process.poll() is not None):
            self.process = None
        if self.process is None:
            command = [sys.executable, "-P", probe.__file__]
            surroundings = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=surroundings
            )
            self.owner = os.getpid()
        return self.process

    def _end(self) -> None:
        process, self.process = self.process, None
        assert process
        with suppress(OSError):
            process.stdin and process.stdin.close()
        process.stdout and process.stdout.close()
        process.wait()


_probe, _sound = _Probe(), set[str]()


def file_version(path: Path) -> str:
    """What tells a file, as it is now, from other files and from what it was before."""
    about = path.stat()
    return f"{path.absolute()} {about.st_size} {about.st_mtime_ns} {about.st_ctime_ns} {about.st_ino}"


def check_structure(path: Path) -> None:
    """Have a file's structure walked in another process, once for each version of the file.

    What was found sound is remembered in the cache folder, where that can be written.
    """
    digest = hashlib.sha256(file_version(path).encode(errors="surrogateescape")).hexdigest()[:24]
    mark = default_cache_dir() / "sound" / digest
    if digest in _sound or mark.exists():
        _sound.add(digest)
        return
    if how := _probe.dies_of(path):
        raise PrismError(f"{path}: damaged, HDF5's library {how} when it reads this file; get it again")
    _sound.add(digest)
    with suppress(OSError):
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def child(group: h5py.Group, key: str) -> Item | None:
    """What stands in a group under a path; none where nothing does."""
    with read_errors(key):
        item = group
        for part in key.split("/"):
            if not isinstance(item, h5py.Group):
                raise PrismError(f"{key}: expected a group above it, got {described(item)}")
            if part not in item:
                if item.get(part, getlink=True) is not None:
                    raise PrismError(f"{key}: expected data, got a link that leads nowhere; get the whole file")
                return None
            item = item[part]
        if not isinstance(item, h5py.Group | h5py.Dataset):
            raise PrismError(f"{key}: expected an array or a group, got a data type")
        return item


def described(item: object) -> str:
    """Say what stands where something else was expected."""
    if isinstance(item, h5py.Group):
        return "a group"
    if isinstance(item, h5py.Dataset):
        with suppress(Exception):
            form = f"{one_line(item.dtype, 60)} {one_line(item.shape)}"
            return "an empty dataset" if item.shape is None else form
    return "something unreadable"


def subgroup(group: h5py.Group, key: str) -> h5py.Group | None:
    """The group under a path; none where there is none."""
    item = child(group, key)
    if item is not None and not isinstance(item, h5py.Group):
        raise PrismError(f"{key}: expected a group, got {described(item)}")
    return item


def dataset(
    group: h5py.Group, key: str, kind: Kind = "number", shape: Sequence[int | None] | None = None, name: str = ""
) -> Any:
    """The dataset under a path, checked but not read: its type, its shape (None is any length), what it claims.

    Raises:
        PrismError: it is missing or is something else; `name` is how it is called then, by default `key`.
    """
    name = name or key
    letters = "THWC" if shape and len(shape) == 4 else "TABC"
    form = "" if shape is None else f" ({', '.join(str(n or letters[i]) for i, n in enumerate(shape))})"
    type_name = {"number": "numbers", "integer": "whole numbers", "uint8": "uint8"}[kind]
    item = child(group, key)
    if item is None:
        raise PrismError(f"expected {name} as {type_name}{form}, got nothing")
    with read_errors(key):
        if not isinstance(item, h5py.Dataset) or item.shape is None or item.dtype.kind not in _KINDS[kind]:
            raise PrismError(f"expected {name} as {type_name}{form}, got {described(item)}")
        fits = shape is None or (
            len(shape) == item.ndim and all(n in (None, got) for n, got in zip(shape, item.shape, strict=True))
        )
        if kind == "uint8" and not (fits and item.dtype == np.uint8):
            raise PrismError(f"expected {name} as uint8{form}, got {described(item)}")
        if not fits:
            raise PrismError(f"expected {name} of shape{form}, got {one_line(item.shape)}")
        _check_readable(item, key)
    return item


def _check_readable(item: h5py.Dataset, key: str) -> None:
    filters, size = item.id.get_create_plist(), math.prod(item.shape) * item.dtype.itemsize
    for i in range(filters.get_nfilters()):
        number, _, _, name = filters.get_filter(i)
        if not h5py.h5z.filter_avail(number):
            known = one_line(name.decode(errors="replace"), 30) or "unnamed"
            how = "repack it with gzip where that filter is installed: `h5repack -f GZIP=1 OLD NEW`"
            raise PrismError(f"{key}: compressed with filter {number} ({known}), which is not installed here; {how}")
    if item.is_virtual or item.external:
        raise PrismError(f"{key}: its data lie in other files; copy them into this one (h5repack)")
    if size <= probe.UNWRITTEN and not item.chunks:
        return
    if trouble := probe.excess(item, Path(item.file.filename).stat().st_size):
        raise PrismError(f"{key}: {trouble}: damaged; get the file again")
    if size > _LARGE and size > MARGIN * psutil.virtual_memory().available:
        much = f"{size / 2**30:.3g} GiB"
        raise PrismError(f"{key}: {much} do not fit into the free memory; use a machine with more")


def array(group: h5py.Group, key: str, kind: Kind = "number", shape: Sequence[int | None] | None = None) -> np.ndarray:
    """The array under a path; see `dataset`."""
    item = dataset(group, key, kind, shape)
    with read_errors(key):
        return np.asarray(item[()])


def finite(group: h5py.Group, key: str, shape: Sequence[int | None] | None = None) -> np.ndarray:
    """The array of numbers (T, ...) under a path, none of which is NaN, infinite, or too large for float32."""
    values = array(group, key, "number", shape)
    good = np.abs(np.asarray(values, np.float64)) < _LARGEST  # also false for NaN
    if not good.all():
        step = np.argwhere(~good)[0]
        where = f" at step {step[0]}" if len(step) else ""
        raise PrismError(f"{key} {'are' if key.endswith('s') else 'is'} not finite{where}; repair or remove this demo")
    return values


def texts(group: h5py.Group, key: str) -> list[str]:
    """The list of texts under a path, such as a mask's names."""
    item = child(group, key)
    if not isinstance(item, h5py.Dataset) or item.shape is None or item.ndim != 1:
        raise PrismError(f"{key}: expected a list of names, got {described(item)}")
    with read_errors(key):
        if item.size and item.dtype.kind not in "SO":
            raise PrismError(f"{key}: expected a list of names, got {described(item)}")
        _check_readable(item, key)
        return [x.decode() if isinstance(x, bytes) else str(x) for x in (item[()] if item.size else ())]


def attribute(item: Item, name: str) -> Any:
    """The value of an attribute; none where there is no such attribute.

    Text comes as str, everything else as h5py gives it.
    """
    with read_errors(f"attribute {name!r}"):
        if name not in item.attrs:
            return None
        if probe.attribute_size(item, name) > Path(item.file.filename).stat().st_size:
            raise PrismError(f"attribute {name!r}: claims more than the file holds: damaged; get the file again")
        value = item.attrs[name]
        return value.decode() if isinstance(value, bytes) else value


def text(item: Item, name: str) -> str:
    """The text of an attribute; "" where there is none."""
    value = attribute(item, name)
    if value is not None and not isinstance(value, str):
        raise PrismError(f"attribute {name!r}: expected text, got {one_line(value)}")
    return value or ""


def json_object(item: Item, name: str) -> dict[str, Any] | None:
    """The JSON object that an attribute holds as text; none where there is no such attribute."""
    value = attribute(item, name)
    if value is None:
        return None
    try:
        made = parsed_json(value) if isinstance(value, str) else None
    except (ValueError, RecursionError):
        made = None
    if not isinstance(made, dict):
        raise PrismError(f"expected `{name}` to be a JSON object, it is none ({one_line(value)})")
    return made
