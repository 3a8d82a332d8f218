"""Files that are whole or absent, whatever kills the process or fills the disk; locks between processes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from prism_policy.errors import PrismError
from prism_policy.utils.progress import console


def default_cache_dir() -> Path:
    """`$PRISM_CACHE`, or `~/.cache/prism-policy`."""
    return Path(os.environ.get("PRISM_CACHE") or "~/.cache/prism-policy").expanduser()


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the errors of a full or read-only disk into one sentence that names the path."""
    try:
        yield
    except Exception as error:
        # HDF5 and safetensors wrap the system's error in their own and keep only its text.
        number = error.errno if isinstance(error, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            full = f"no space left on the disk of {path}"
            raise PrismError(f"{full}; free some and run the same command again, it goes on from there") from error
        if number in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise PrismError(f"cannot write {path} ({error}); choose a folder you may write to") from error
        raise


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed to the disk and takes `path`'s place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.touch()
            mode = temporary.stat().st_mode  # as the umask has it; safetensors' files are readable by their owner alone
            yield temporary
            with open(temporary, "rb+") as file:
                os.fchmod(file.fileno(), mode & 0o777)
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def file_lock(path: Path, waiting: str = "") -> Iterator[bool]:
    """Lock `path`, an empty file, for the block: yields whether this process has it. The kernel frees a dead one's.

    `waiting` is printed before waiting for the process that holds it; without, False is yielded at once.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    with file:
        if not (locked := _locked(file, fcntl.LOCK_NB)) and waiting:
            console.print(waiting)
            locked = _locked(file)
        yield locked


def _locked(file: TextIO, options: int = 0) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | options)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            reason = f"its file system has no locks ({error.strerror}), and two processes could write the same files"
            raise PrismError(f"{file.name}: {reason}; choose a folder on another disk") from error
        raise
    return True


@contextmanager
def folder_lock(folder: Path, doing: str) -> Iterator[None]:
    """Keep other processes from writing into `folder` during the block."""
    with file_lock(folder / ".lock") as locked:
        if not locked:
            raise PrismError(f"another process is {doing} {folder}; wait for it, or stop it and run this again")
        yield


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the whole lines of a JSON-lines file, without one cut off by a kill; none where there is no file."""
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
