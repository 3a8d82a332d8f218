"""Work on many machines through Ray; results come back to the caller's folders."""

from __future__ import annotations

import io
import logging
import os
import tarfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prism_policy.errors import PrismError
from prism_policy.utils.files import default_cache_dir, scratch

RETRIES = 3
"""How often a piece of work is begun again after its process or machine died."""


def run_on_ray(
    address: str,
    folders: Sequence[Path],
    work: Sequence[Callable[[Path], bool]],
    on_done: Callable[[int, bool | PrismError], None],
    gpus: float | None = None,
    cpus: float = 1.0,
) -> None:
    """Do each piece of work, which fills a folder, on some machine of a Ray cluster.

    A machine that shares this one's file system writes where we read. To any other the folder is sent as far as it is
    there, and sent back when the work is done, without its checkpoints of training: nothing stays there.

    Args:
        address: `auto` (a cluster that runs here, or RAY_ADDRESS), `local` (start one on this machine), or HOST:PORT.
        work: called with the folder to fill, returns whether it was done; may be sent to another process.
        on_done: called with the number of a piece and what it returned, or its error.
        gpus: GPUs a piece, or a share of one; None is one where the cluster has any.
    """
    try:
        import ray
    except ImportError as error:
        raise PrismError("Ray is not installed; run `pip install prism-policy[cluster]`") from error

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        there = f"no Ray cluster at '{address}' ({_first_line(error)})"
        raise PrismError(f"{there}; start one with `ray start --head`, or use --ray local") from error
    try:
        has: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call, unused-ignore]
        gpus = min(1.0, has.get("GPU", 0.0)) if gpus is None else gpus
        if gpus > has.get("GPU", 0.0) or cpus > has.get("CPU", 0.0):
            got = f"{has.get('GPU', 0):g} and {has.get('CPU', 0):g} in all"
            raise PrismError(f"expected a cluster with {gpus:g} GPUs and {cpus:g} cores for a cell, got {got}")
        remote = ray.remote(num_gpus=gpus, num_cpus=cpus, max_retries=RETRIES)(_do_remotely)
        token = folders[0].parent / f".here-{uuid.uuid4().hex}"
        token.parent.mkdir(parents=True, exist_ok=True)
        token.touch()
        try:
            several = len(ray.nodes()) > 1
            # In a list, which is fetched by who needs it; as an argument of its own it would go to every machine.
            begun = [[ray.put(_pack(folder))] if several and folder.exists() else [] for folder in folders]
            jobs = enumerate(zip(work, folders, begun, strict=True))
            waiting = {remote.remote(do, folder, token, sent): number for number, (do, folder, sent) in jobs}
            while waiting:
                ready, _ = ray.wait(list(waiting))
                for reference in ready:
                    number = waiting.pop(reference)
                    try:
                        done, archive = ray.get(reference)
                        _unpack(archive, folders[number])
                    except ray.exceptions.RayTaskError as error:
                        on_done(number, PrismError(_first_line(error.cause)))
                    except ray.exceptions.RayError as error:
                        on_done(number, PrismError(f"its process died {RETRIES + 1} times ({_first_line(error)})"))
                    else:
                        on_done(number, done)
        finally:
            token.unlink(missing_ok=True)
    finally:
        ray.shutdown()


def _do_remotely(
    work: Callable[[Path], bool], folder: Path, token: Path, sent: Sequence[Any] = ()
) -> tuple[bool, bytes]:
    """Do the work on this machine of the cluster; in a folder of its own, which is packed, if it has not the caller's.

    `sent` refers to what the caller's folder holds already, packed; none where that is nothing.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if token.exists():
        return work(folder), b""
    with scratch(default_cache_dir()) as place:
        own = place / folder.name
        for reference in sent:
            import ray

            _unpack(ray.get(reference), own)
        return work(own), _pack(own)


def _pack(folder: Path) -> bytes:
    """The files of a folder, without those that are for going on with a training, where that is over."""
    over = (folder / "weights.safetensors").exists()
    left_out = ("previous", "last") if over else ("previous",)
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w") as archive:
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder)
            if path.is_file() and not (name.parts[0] == "checkpoints" and path.stem.startswith(left_out)):
                archive.add(path, str(name))
    return memory.getvalue()


def _unpack(archive: bytes, folder: Path) -> None:
    """Put the files in their places, the weights last: they say that the training is over."""
    if not archive:
        return
    with scratch(folder.parent) as temporary:
        with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
            packed.extractall(temporary, filter="data")
        there = [path for path in temporary.rglob("*") if path.is_file() and path.name != ".lock"]
        for path in sorted(there, key=lambda p: p.name == "weights.safetensors"):
            target = folder / path.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)


def _first_line(error: Any) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[0]
