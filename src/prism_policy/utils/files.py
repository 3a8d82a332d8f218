"""Files that are whole or absent, whatever kills the process or fills the disk; locks between processes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prism_policy.errors import PrismError
from prism_policy.utils.terminal import console

ABANDONED_S = 24 * 3600.0
"""Age from which a temporary folder counts as left behind where the file system has no locks to ask [s]."""
SMALL = 32 * 2**20
"""Bytes of a file whose checksum is computed at each `check_seal`, in some hundredths of a second."""
_SAMPLES, _SAMPLE_BYTES = 64, 65536
_FULL = (errno.ENOSPC, errno.EDQUOT)
_UNWRITABLE = (
    errno.EACCES, errno.EROFS, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP,
    errno.EIO, errno.ESTALE, errno.EFBIG, errno.ENOLCK, errno.EOPNOTSUPP,
)  # fmt: skip
_swept: set[Path] = set()


def default_cache_dir() -> Path:
    """`$PRISM_CACHE`, or `~/.cache/prism-policy`."""
    try:
        return Path(os.environ.get("PRISM_CACHE") or "~/.cache/prism-policy").expanduser()
    except RuntimeError as error:
        raise PrismError(
            "there is no home folder for the cache; set PRISM_CACHE to a folder you may write to"
        ) from error


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the errors of a full, broken or read-only disk into one sentence that names the path."""
    try:
        yield
    except Exception as error:
        number = _error_number(error)
        cache = path.absolute().is_relative_to(default_cache_dir().absolute())
        if number in _FULL:
            elsewhere = "free some, or set PRISM_CACHE to a folder on another disk," if cache else "free some"
            full = f"no space left on the disk of {path}"
            raise PrismError(f"{full}; {elsewhere} and run the same command again, it goes on from there") from error
        # Some file systems, such as /proc, answer that a folder is not there which they do not let be made.
        about = getattr(error, "filename", None)
        absent = (
            number == errno.ENOENT and about and path.absolute().is_relative_to(Path(os.fsdecode(about)).absolute())
        )
        if number in _UNWRITABLE or absent:
            elsewhere = "set PRISM_CACHE to" if cache else "choose"
            raise PrismError(f"cannot write {path} ({error}); {elsewhere} a folder you may write to") from error
        raise


def _error_number(error: Exception) -> int | None:
    """The system's number of an error; HDF5 and safetensors wrap it in their own and keep only text."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    found = re.search(r"(?:os error|errno =) (\d+)", str(error))
    return int(found[1]) if found else errno.ENOSPC if "No space left" in str(error) else None


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path of the same name; on success it is flushed to the disk and takes `path`'s place."""
    with disk_errors(path), scratch(path.parent) as folder:
        temporary = folder / path.name
        yield temporary
        with open(temporary, "rb+") as file:
            # As the umask has it, which the folder shows: safetensors' files are readable by their owner alone.
            os.fchmod(file.fileno(), folder.stat().st_mode & 0o666)
            os.fsync(file.fileno())
        temporary.replace(path)


@contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """A folder in `parent`, on the same disk, for what is not whole yet. What is left in it at the end is removed.

    A process that is killed leaves its folder behind, but not the lock on it: the next one to write here removes it
    (`sweep`), in whatever container or on whichever machine either of them runs.
    """
    parent.mkdir(parents=True, exist_ok=True)
    if parent.absolute() not in _swept:
        _swept.add(parent.absolute())
        sweep(parent, below=False)
    lock = None
    while lock is None:
        folder = parent / f".prism-{secrets.token_hex(4)}.tmp"
        folder.mkdir()
        with suppress(FileNotFoundError):  # it was swept before it was locked
            lock = _acquire(folder / ".lock", or_go_on=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def sweep(folder: Path, below: bool = True) -> None:
    """Remove the temporary folders in `folder`, and below it, of processes that were killed."""
    for root, folders, _ in os.walk(folder):
        left = [name for name in folders if re.fullmatch(r"\.prism-[0-9a-f]{8}\.tmp", name)]
        for temporary in (Path(root) / name for name in left):
            with suppress(OSError, PrismError):  # another user's, or gone meanwhile, or there is no lock to ask
                old = time.time() - temporary.stat().st_mtime > ABANDONED_S
                if (lock := _acquire(temporary / ".lock", or_go_on=old)) is not None:
                    shutil.rmtree(temporary, ignore_errors=True)
                    os.close(lock)
        folders[:] = [name for name in folders if below and name not in left]


@contextmanager
def file_lock(path: Path, waiting: str = "") -> Iterator[bool]:
    """Lock `path`, an empty file, for the block: yields whether this process has it. The kernel frees a dead one's.

    `waiting` is printed before waiting for the process that holds it; without, False is yielded at once.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _acquire(path)
        if lock is None and waiting:
            console.print(waiting)
            lock = _acquire(path, wait=True)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            path.unlink(missing_ok=True)
            os.close(lock)


def _acquire(path: Path, wait: bool = False, or_go_on: bool = False) -> int | None:
    """Descriptor of a file that this process now holds the lock of; None where another one does.

    `or_go_on`: where the file system has no locks, a descriptor without one instead of the error.
    """
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if path.exists() and path.stat().st_ino == os.fstat(lock).st_ino:
                return lock  # else whoever held it has removed the file
        except BlockingIOError:
            os.close(lock)
            return None
        except OSError as error:
            if or_go_on:
                return lock
            os.close(lock)
            reason = f"its file system has no locks ({error.strerror}), and two processes could write the same files"
            raise PrismError(f"{path}: {reason}; choose a folder on another disk") from error
        os.close(lock)


@contextmanager
def folder_lock(folder: Path, doing: str) -> Iterator[None]:
    """Keep other processes from writing into `folder` during the block."""
    with file_lock(folder / ".lock") as locked:
        if not locked:
            raise PrismError(f"another process is {doing} {folder}; wait for it, or stop it and run this again")
        sweep(folder)
        yield


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write a JSON-lines file atomically."""
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def sha256(path: Path) -> str:
    """Checksum of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(path: Path, checksum: str) -> dict[str, Any]:
    """What `check_seal` compares, as JSON; `checksum` is the SHA-256 of the whole file."""
    return {"sha256": checksum, "sample": file_sample(path), "changed_ns": path.stat().st_mtime_ns}


def check_seal(path: Path, sealed: Mapping[str, Any]) -> dict[str, Any] | None:
    """The seal of a file that is what was sealed; None where it is damaged.

    A small file is read as a whole. So is a large one whose time of change is not the sealed one, such as a copy's, and
    the new seal has the new time: another call reads a sample of 4 MiB. Damage that leaves size and time as they were,
    as a bad disk does, is found in a large file where the sample meets it.

    Raises:
        OSError: the file is not there or cannot be read.
        KeyError: `sealed` holds no checksum.
    """
    about = path.stat()
    if about.st_size > SMALL and about.st_mtime_ns == sealed.get("changed_ns"):
        return dict(sealed) if file_sample(path) == sealed["sample"] else None
    if sha256(path) != sealed["sha256"]:
        return None
    return {**sealed, **seal(path, sealed["sha256"])}


def file_sample(path: Path) -> str:
    """Checksum of some stretches of a file, its beginning and end among them; of a small one, of all of it."""
    size, sample = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        for i in range(_SAMPLES):
            file.seek(max(size - _SAMPLE_BYTES, 0) * i // (_SAMPLES - 1))
            sample.update(file.read(_SAMPLE_BYTES))
    return sample.hexdigest()
