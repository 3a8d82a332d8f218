"""Folders of demonstrations found by what they were made from, so that a stale one is never used.

A folder's name holds a digest of everything that decides its content. It is built from parts by one process at a time,
which may be killed at any moment, and checked against its own checksum when it is used again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prism_policy.data.robomimic import merge_demos
from prism_policy.envs.pool import WorkerPool
from prism_policy.errors import PrismError
from prism_policy.utils.files import atomic, disk_errors, file_lock, write_text
from prism_policy.utils.progress import console

DATA_FILE, MANIFEST = "demos.hdf5", "manifest.json"


def default_cache_dir() -> Path:
    """`$PRISM_CACHE`, or `~/.cache/prism-policy`."""
    return Path(os.environ.get("PRISM_CACHE") or "~/.cache/prism-policy").expanduser()


Build = Callable[[Path, "WorkerPool"], tuple[list[Path], str, dict[str, Any]]]
"""(folder, pool) -> parts in order, env_args, attributes of the merged file."""


def cached(
    name: str,
    key: dict[str, Any],
    cache_dir: Path | None,
    workers: int | None,
    build: Build,
    **layout: Any,
) -> Path:
    """The file of demonstrations that `key` decides, built where it is not there yet.

    Args:
        name: beginning of the folder's name.
        key: everything that decides the content, as JSON would have it.
        cache_dir: where the folder lies; None is `default_cache_dir()`.
        workers: simulator processes; None is one for each core.
        build: makes the parts; killed and called again, it finds those that were finished.
        layout: what `merge_demos` is to be told about names and masks.

    Raises:
        PrismError: the disk is full or may not be written; what `build` raises.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    folder = (cache_dir or default_cache_dir()).expanduser() / f"{name}-{digest}"
    data, manifest, parts = folder / DATA_FILE, folder / MANIFEST, folder / "parts"
    pool = WorkerPool(workers)
    with disk_errors(folder):
        parts.mkdir(parents=True, exist_ok=True)
        with file_lock(folder / "lock", f"another process is making {folder}: waiting for it"):
            if manifest.exists():
                if _intact(data, manifest):
                    shutil.rmtree(parts, ignore_errors=True)
                    return data
                console.print(f"{data} is damaged (its checksum differs): making it again")
                manifest.unlink()
            parts.mkdir(exist_ok=True)
            for leftover in (*folder.glob(".*.tmp"), *parts.glob(".*.tmp")):  # of processes that were killed
                leftover.unlink()
            with pool:
                chosen, env_args, attributes = build(parts, pool)
            with atomic(data) as temporary:
                merge_demos(chosen, temporary, env_args, attributes, **layout)
            write_text(manifest, json.dumps({"sha256": sha256(data), **key}, indent=2))
            shutil.rmtree(parts)
    return data


def _intact(data: Path, manifest: Path) -> bool:
    try:
        return bool(json.loads(manifest.read_text())["sha256"] == sha256(data))
    except (OSError, ValueError, KeyError):
        return False


def check_free(target: Path | None) -> None:
    """Refuse a place for the result that is taken, before the work.

    Raises:
        PrismError: something is there.
    """
    if target is not None and target.exists():
        raise PrismError(f"{target} exists; choose another --out or move it away")


def copy_out(data: Path, target: Path) -> Path:
    """A copy of a cached file where the user wants it, whole or not at all; returns `target`.

    Raises:
        PrismError: the disk is full.
    """
    with atomic(target) as temporary:
        shutil.copyfile(data, temporary)
    return target


def sha256(path: Path) -> str:
    """Checksum of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
