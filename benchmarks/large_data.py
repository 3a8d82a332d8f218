"""Training from more data than fits into memory, against training from memory.

python benchmarks/large_data.py [--limit-gib 1.5] [--times 10] [--updates 80] [--rounds 3] [--folder /tmp/large]

Random frames of two cameras, `times` the limit in size, lie on the disk as `open_frames` leaves them. As root, each
process is held to the limit by a cgroup (v1 or v2), its page cache included; elsewhere by nothing, which is said. The
page cache is dropped before each cold measurement. Training is nano's as `train` runs it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from elsewhere import output_of

from prism_policy.config import presets
from prism_policy.config.settings import TaskConfig
from prism_policy.data.frames import Frames
from prism_policy.data.schema import task_schema
from prism_policy.data.windows import Windows
from prism_policy.probe.encoder_cost import device_name
from prism_policy.training.trainer import Trainer

SIZE, EPISODE = 84, 150
CAMERAS = ("agentview", "robot0_eye_in_hand")


def write_frames(folder: Path, gib: float) -> int:
    """Random frames of `gib` in all; returns how many of each camera."""
    count = int(gib * 2**30 / (len(CAMERAS) * SIZE * SIZE * 3)) // EPISODE * EPISODE
    block = np.random.default_rng(0).integers(0, 256, (EPISODE, SIZE, SIZE, 3), np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    for camera in CAMERAS:
        path = folder / f"{camera}.raw"
        if path.exists() and path.stat().st_size == count * block[0].nbytes:
            continue
        with path.open("wb") as file:
            for i in range(count // EPISODE):
                block[:, 0, 0, 0] = i % 256
                file.write(block.data)
            file.flush()
            os.fsync(file.fileno())
    return count


def open_windows(folder: Path, count: int, mapped: bool = True) -> Windows:
    """Windows over the first `count` frames of each camera, mapped or read into memory."""
    shape = (count, SIZE, SIZE, 3)
    maps = {c: np.memmap(folder / f"{c}.raw", np.uint8, "c", shape=shape) for c in CAMERAS}
    images = {c: torch.from_numpy(x if mapped else np.array(x)) for c, x in maps.items()}
    rng = np.random.default_rng(1)
    state = torch.from_numpy(rng.normal(size=(count, 9)).astype(np.float32))
    actions = torch.from_numpy(rng.uniform(-1, 1, (count, 7)).astype(np.float32))
    ends = tuple(range(EPISODE, count + 1, EPISODE))
    names = tuple(f"demo_{i}" for i in range(len(ends)))
    schema = task_schema(TaskConfig())
    frames = Frames(images, state, actions, torch.zeros(count, dtype=torch.bool), ends, names, schema, (), mapped)
    return Windows(frames, 16, 2, 8)


def drop_page_cache(folder: Path) -> None:
    """So that the next read is the disk's."""
    for path in folder.glob("*.raw"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def hold_to(gib: float) -> Path | None:
    """A cgroup with this limit that child processes can be put into; None where that is not allowed."""
    for root, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(root) / f"prism_bench_{os.getpid()}"
        try:
            group.mkdir()
            (group / limit).write_text(str(int(gib * 2**30)))
            return group
        except OSError:
            shutil.rmtree(group, ignore_errors=True)
    return None


def child(arguments: argparse.Namespace) -> None:
    """One measurement in a process of its own: prints a line of JSON."""
    folder, count = Path(arguments.folder), arguments.count
    if arguments.child == "batches":
        windows = open_windows(folder, count)
        rng = np.random.default_rng(2)
        seconds = []
        for _ in range(12):
            indices = torch.from_numpy(rng.integers(0, len(windows), 512))
            began = time.perf_counter()
            windows.batch(indices)
            seconds.append(time.perf_counter() - began)
        print(json.dumps({"batch_ms": 1000 * statistics.median(seconds)}))
        return
    config = presets.nano()
    settings = replace(config.train, steps=arguments.updates, log_every=10, checkpoint_minutes=60.0, rollout_every=0)
    windows = open_windows(folder, count, mapped=arguments.child == "disk")
    rates, waits = [], []

    def on_update(done: int, line: dict[str, float]) -> None:
        rates.append(line["samples_per_s"])
        waits.append(line["waiting"])

    started = time.perf_counter()
    run = folder / f"run-{os.getpid()}"
    Trainer(run, replace(config, train=settings), windows, on_update).train()
    shutil.rmtree(run)
    status = Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]
    print(
        json.dumps(
            {
                "windows_per_s": statistics.median(rates[1:]),
                "waiting": statistics.median(waits[1:]),
                "anonymous_mib": int(status) / 1024,
                "wall_s": time.perf_counter() - started,
            }
        )
    )


def measure(kind: str, count: int, arguments: argparse.Namespace, group: Path | None) -> dict[str, float]:
    """Run `child` in a fresh process, in the cgroup."""

    def enter() -> None:
        if group is not None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    command = [sys.executable, __file__, "--child", kind, "--folder", str(arguments.folder), "--count", str(count)]
    command += ["--updates", str(arguments.updates)]
    return json.loads(output_of(command, preexec_fn=enter).splitlines()[-1])


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit-gib", type=float, default=1.5)
    parser.add_argument("--times", type=float, default=10)
    parser.add_argument("--updates", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/large"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    count = write_frames(arguments.folder, arguments.limit_gib * arguments.times)
    few = int(count / arguments.times * 0.2) // EPISODE * EPISODE  # fits into memory beside the training
    group = hold_to(arguments.limit_gib)
    held = f"each process held to {arguments.limit_gib} GiB" if group else "processes not held to a limit"
    print(f"{device_name(torch.device('cpu'))}, torch {torch.__version__}; {held}.\n")
    rows: dict[str, list[dict[str, float]]] = {"memory": [], "disk": []}
    for _ in range(arguments.rounds):
        for kind, frames in (("memory", few), ("disk", count)):
            drop_page_cache(arguments.folder)
            rows[kind].append(measure(kind, frames, arguments, group))
    drop_page_cache(arguments.folder)
    cold = measure("batches", count, arguments, group)
    warm = [measure("batches", few, arguments, group) for _ in range(2)][-1]
    gib = len(CAMERAS) * SIZE * SIZE * 3 / 2**30
    print("| frames | GiB | windows/s | x memory | waiting for data | process's own memory [MiB] |")
    print("|---|---|---|---|---|---|")
    for kind, frames in (("memory", few), ("disk", count)):
        rates = [row["windows_per_s"] for row in rows[kind]]
        ratios = [r / b["windows_per_s"] for r, b in zip(rates, rows["memory"], strict=True)]
        print(
            f"| in {kind} | {frames * gib:.1f} | {statistics.median(rates):.0f} "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) "
            f"| {statistics.median(row['waiting'] for row in rows[kind]):.1%} "
            f"| {statistics.median(row['anonymous_mib'] for row in rows[kind]):.0f} |"
        )
    print(
        f"\nA batch of 512 windows: {cold['batch_ms']:.1f} ms from the disk "
        f"({512 / cold['batch_ms'] * 1000:.0f} windows/s), {warm['batch_ms']:.1f} ms from the page cache."
    )
    if group is not None:
        group.rmdir()


if __name__ == "__main__":
    main()
