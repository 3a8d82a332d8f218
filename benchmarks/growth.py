"""How the cost of a training step grows with batch, resolution, cameras, width and the number of demonstrations.

python benchmarks/growth.py [--sizes paper] [--threads 2] [--rounds 3] [--device cpu] [--precision float32]

Flow matching with PRISM; from one base (16 windows, 84 px, two cameras, width 64 at the paper's sizes) one thing is
changed at a time. Every point runs in a fresh process, which also tells its peak memory; on a CPU that is the growth of
the resident set over what PyTorch itself takes. Frames are in memory; only the demonstrations' sweep has them mapped
from the disk.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from elsewhere import output_of
from encoder import status_mib

from prism_policy.config import presets
from prism_policy.data.frames import Frames
from prism_policy.data.schema import Part, Schema
from prism_policy.data.windows import Windows, batch_indices
from prism_policy.policies import build_policy
from prism_policy.probe.encoder_cost import device_name
from prism_policy.training.checkpoint import TrainState
from prism_policy.training.prefetch import moved
from prism_policy.utils.memory import keep_freed_memory

STATE, ACTION, EPISODE = 9, 7, 50


@dataclass(frozen=True)
class Point:
    """What is measured at once."""

    sizes: str = "paper"
    batch: int = 16
    resolution: int = 84
    cameras: int = 2
    width: int = 64
    demos: int = 8


SWEEPS: dict[str, tuple[int, ...]] = {
    "batch": (1, 4, 16, 64),
    "resolution": (84, 120, 168, 240),
    "cameras": (1, 2, 4, 8),
    "width": (16, 32, 64),
    "demos": (20, 200, 2000),
}
"""Fields of `Point` and their values."""


def frames_of(point: Point, folder: Path | None) -> Frames:
    """Random frames, in memory or mapped from files in `folder`."""
    rng = np.random.default_rng(0)
    count = point.demos * EPISODE
    shape = (count, point.resolution, point.resolution, 3)
    images = {}
    block = rng.integers(0, 256, (EPISODE, *shape[1:]), np.uint8)
    for i in range(point.cameras):
        if folder is None:
            frames = np.tile(block, (point.demos, 1, 1, 1))
        else:
            path = folder / f"{i}.raw"
            with path.open("wb") as file:
                for _ in range(point.demos):
                    file.write(block.data)
            frames = np.memmap(path, np.uint8, "c", shape=shape)
        images[f"camera{i}"] = torch.from_numpy(frames)
    state = torch.from_numpy(rng.normal(size=(count, STATE)).astype(np.float32))
    actions = torch.from_numpy(rng.uniform(-1, 1, (count, ACTION)).astype(np.float32))
    ends = tuple(range(EPISODE, count + 1, EPISODE))
    cameras = dict.fromkeys(images, (point.resolution, point.resolution))
    schema = Schema(cameras, (Part("state", STATE),), (Part("action", ACTION),))
    return Frames(
        images, state, actions, torch.zeros(count, dtype=torch.bool), ends, ("",) * len(ends), schema, (), bool(folder)
    )


def measure(point: Point, arguments: argparse.Namespace, mapped: bool) -> dict[str, Any]:
    """Seconds of an update and of its batch, and MiB at the peak, in this process."""
    device = torch.device(arguments.device)
    torch.zeros(64, 64) @ torch.zeros(64, 64)  # what PyTorch itself takes
    before = status_mib("VmRSS")
    with tempfile.TemporaryDirectory() as folder, keep_freed_memory():
        windows = Windows(frames_of(point, Path(folder) if mapped else None), 16, 2, 8)
        preset = presets.paper() if point.sizes == "paper" else presets.nano()
        shape = replace(preset.policy, encoder=replace(preset.policy.encoder, width=point.width))
        policy = build_policy(shape, windows.frames.schema)
        policy = policy.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        state = TrainState(policy, preset.train)
        if device.type == "cuda":
            windows = windows.to(device)
        updates, batches = [], []
        for i in range(arguments.rounds + 2):
            started = time.perf_counter()
            batch: Any = windows.batch(batch_indices(i, point.batch, len(windows), 0))
            gathered = time.perf_counter()
            batch |= {"draws": policy.draw(point.batch)}
            with torch.autocast(device.type, torch.bfloat16, enabled=arguments.precision == "bfloat16"):
                loss = policy(moved(batch, device))
            state.optimizer.zero_grad()
            loss.backward()
            state.update(1e-4, 0.999)
            if device.type == "cuda":
                torch.cuda.synchronize()
            updates.append(time.perf_counter() - started)
            batches.append(gathered - started)
        peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else status_mib("VmHWM") - before
        return {
            "update_s": statistics.median(updates[2:]),
            "batch_s": statistics.median(batches[2:]),
            "peak_mib": peak,
            "mapped_mib": windows.frames.nbytes / 2**20,
        }


def main() -> None:
    """Print a table a sweep, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="paper", choices=["paper", "nano"])
    parser.add_argument("--sweeps", nargs="+", default=list(SWEEPS), choices=SWEEPS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--point", help=argparse.SUPPRESS)
    parser.add_argument("--mapped", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.point:
        print(json.dumps(measure(Point(**json.loads(arguments.point)), arguments, arguments.mapped)))
        return
    base = Point(arguments.sizes, width=64 if arguments.sizes == "paper" else 16)
    print(
        f"{device_name(torch.device(arguments.device))}, torch {torch.__version__}, {arguments.precision}; "
        f"base: {base}.\n"
    )
    for field in arguments.sweeps:
        print(f"| {field} | update [ms] | x the first | a window [ms] | its batch [ms] | peak memory [MiB] |")
        print("|---|---|---|---|---|---|")
        first = None
        for value in SWEEPS[field]:
            point = replace(base, **{field: value})  # type: ignore[arg-type]
            command = [sys.executable, __file__, "--point", json.dumps(vars(point)), "--device", arguments.device]
            command += ["--threads", str(arguments.threads), "--rounds", str(arguments.rounds)]
            command += ["--precision", arguments.precision, *["--mapped"] * (field == "demos")]
            found = json.loads(output_of(command))
            first = first or found["update_s"]
            label = str(value)
            if field == "demos":
                label += f" ({found['mapped_mib'] / 1024:.2f} GiB of frames)"
            print(
                f"| {label} | {1000 * found['update_s']:.0f} | {found['update_s'] / first:.2f} "
                f"| {1000 * found['update_s'] / point.batch:.1f} | {1000 * found['batch_s']:.1f} "
                f"| {found['peak_mib']:.0f} |",
                flush=True,
            )
        print()


if __name__ == "__main__":
    main()
