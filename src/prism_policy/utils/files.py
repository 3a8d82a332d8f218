"""Files that are either whole or not there, whatever kills the process or fills the disk."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prism_policy.errors import PrismError
from prism_policy.utils.progress import console

_UMASK = os.umask(0)
os.umask(_UMASK)  # reading it means setting it


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what a full or read-only disk raises into one sentence that names the path."""
    try:
        yield
    except Exception as error:
        # HDF5 and safetensors wrap the system's error in their own and keep only its text.
        number = error.errno if isinstance(error, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            raise PrismError(
                f"no space left on the disk of {path}; free some and run the same command again, it goes on from there"
            ) from error
        if number in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise PrismError(f"cannot write {path} ({error}); choose a folder you may write to") from error
        raise


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed to the disk and takes `path`'s place.

    Usage::

        with atomic(folder / "weights.safetensors") as temporary:
            save_file(tensors, temporary)

    Raises:
        PrismError: no space left, or no permission.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fchmod(file.fileno(), 0o666 & ~_UMASK)  # safetensors makes its files readable by their owner alone
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def claim(lock: Path, waiting: str = "") -> Iterator[bool]:
    """Whether `lock`, an empty file, is this process's alone for the block; the kernel frees it of one that dies.

    Args:
        lock: made where it is not there.
        waiting: what to say before waiting for another process that has it; by default False comes back at once.
    """
    with disk_errors(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not waiting:
                yield False
                return
            console.print(waiting)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield True


@contextmanager
def alone_in(folder: Path, doing: str) -> Iterator[None]:
    """Nobody else writes into `folder` during the block.

    Raises:
        PrismError: another process is at it.
    """
    with claim(folder / ".lock") as mine:
        if not mine:
            raise PrismError(f"another process is {doing} {folder}; wait for it, or stop it and run this again")
        yield


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON-lines file; a last line cut off by a kill is left out. Missing file: no lines."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write a JSON-lines file atomically."""
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
