"""Folders of demonstrations found by what they were made from, so that a stale one is never used.

A folder's name holds a digest of everything that decides its content. It is built from parts by one process at a time,
which may be killed at any moment, and checked against its own checksum when it is used again.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from prism_policy.config.settings import TaskConfig
from prism_policy.data.robomimic import merge_demos, write_demo
from prism_policy.envs.workers import WorkerPool
from prism_policy.errors import PrismError
from prism_policy.utils.files import (
    atomic,
    check_seal,
    default_cache_dir,
    disk_errors,
    file_lock,
    seal,
    sha256,
    sweep,
    write_text,
)
from prism_policy.utils.progress import console

DATA_FILE, MANIFEST = "demos.hdf5", "manifest.json"


Progress = Callable[[int, int], None]  # called with (done, total) when work begins and after each episode
Build = Callable[[Path, WorkerPool], tuple[list[Path], str, dict[str, Any]]]
"""(folder, pool) -> parts in order, env_args, attributes of the merged file."""


def cached(
    name: str,
    key: dict[str, Any],
    cache_dir: Path | None,
    workers: int | None,
    build: Build,
    out: Path | None = None,
    **layout: Any,
) -> Path:
    """The file of demonstrations whose content `key` decides, built where it is not there yet.

    Args:
        name: beginning of the folder's name.
        build: makes the parts; killed and called again, it finds those that were finished.
        out: where a copy is wanted, which is returned then.
        layout: names and masks, for `merge_demos`.

    Raises:
        PrismError: `out` is there and is another file; one that was made before, by a command that was killed at its
            end, is right.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    folder = (cache_dir or default_cache_dir()).expanduser() / f"{name}-{digest}"
    data, manifest, parts = folder / DATA_FILE, folder / MANIFEST, folder / "parts"
    if out is not None and out.exists():
        if _intact(out, manifest):
            return out
        raise taken(out)
    pool = WorkerPool(workers)
    with disk_errors(folder):
        parts.mkdir(parents=True, exist_ok=True)
        with file_lock(folder / "lock", f"another process is making {folder}: waiting for it"):
            sweep(folder)
            if manifest.exists():
                if _sealed(data, manifest):
                    shutil.rmtree(parts, ignore_errors=True)
                    return _copy_out(data, out) if out else data
                console.print(f"{data} is damaged (its checksum differs): making it again")
                manifest.unlink()
            parts.mkdir(exist_ok=True)
            with pool:
                chosen, env_args, attributes = build(parts, pool)
            with atomic(data) as temporary:
                merge_demos(chosen, temporary, env_args, attributes, **layout)
            write_text(manifest, json.dumps({**seal(data, sha256(data)), **key}, indent=2))
            shutil.rmtree(parts)
    return _copy_out(data, out) if out else data


def _intact(data: Path, manifest: Path) -> bool:
    try:
        return bool(json.loads(manifest.read_text())["sha256"] == sha256(data))
    except (OSError, ValueError, KeyError):
        return False


def _sealed(data: Path, manifest: Path) -> bool:
    """As `_intact`, of the cache's own file, which is read as a whole only where it is small or a copy."""
    try:
        held = json.loads(manifest.read_text())
        if (now := check_seal(data, held)) is None:
            return False
    except (OSError, ValueError, KeyError, AttributeError):
        return False
    if now != held:
        write_text(manifest, json.dumps(now, indent=2))
    return True


def check_free(target: Path | None) -> None:
    """Refuse a place for the result that is taken, before the work."""
    if target is not None and target.exists():
        raise taken(target)


def taken(target: Path) -> PrismError:
    """The error of a place that is taken."""
    return PrismError(f"{target} exists; choose another --out or move it away")


def _copy_out(data: Path, target: Path) -> Path:
    """A copy of a cached file where the user wants it, whole or not at all; returns `target`."""
    with atomic(target) as temporary:
        shutil.copyfile(data, temporary)
    return target


def versions(task: TaskConfig) -> dict[str, str]:
    """Versions of the packages that decide what a simulation gives."""
    simulator = task.spec.simulator
    try:
        return {name: importlib.metadata.version(name) for name in simulator.distributions}
    except importlib.metadata.PackageNotFoundError as error:
        command = f"pip install prism-policy[{simulator.extra}]"
        raise PrismError(f"the simulator is not installed ({error.name} is missing); run `{command}`") from error


def instruction_attribute(task: TaskConfig) -> dict[str, str]:
    """The attribute that says what to do, where the task has words for it."""
    return {"instruction": task.spec.instruction} if task.spec.instruction else {}


def make_missing(
    pool: WorkerPool, parts: Sequence[Path], work: Sequence[tuple[Any, ...]], progress: Progress | None
) -> None:
    """Have the pool do `work`, `(function, *arguments)` a part, where the part is not there yet."""
    missing = [job for part, job in zip(parts, work, strict=True) if part_success(part) is None]
    done = len(parts) - len(missing)
    progress = progress or (lambda done, total: None)
    progress(done, len(parts))
    for count, future in enumerate(as_completed([pool.submit(*job) for job in missing]), start=done + 1):
        future.result()
        progress(count, len(parts))


def write_part(
    path: Path,
    arrays: dict[str, np.ndarray],
    attributes: dict[str, Any],
    success: bool,
    env_args: str,
    schema: str = "",
) -> None:
    """Write one demonstration as a file of its own, whole or not at all."""
    memory = io.BytesIO()
    with h5py.File(memory, "w", libver="latest") as file:
        write_demo(file.create_group("demo"), arrays, attributes)
        file.attrs.update({"success": success, "env_args": env_args} | ({"schema": schema} if schema else {}))
    with atomic(path) as temporary:
        temporary.write_bytes(memory.getbuffer())


def part_success(part: Path) -> bool | None:
    """Whether the part's episode succeeded; None where there is no readable part."""
    try:
        with h5py.File(part) as file:
            return bool(file.attrs["success"])
    except (OSError, KeyError):
        return None
