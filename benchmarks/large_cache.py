"""100 GB of frames that take no disk: what opening, windows, batches and updates read of them.

python benchmarks/large_cache.py [--gb 12.5 25 50 100] [--updates 2] [--folder /tmp/large_cache]

The frame cache of a few made-up demonstrations is given more of them: its images are sparse files, of which a disk
holds nothing and a read gives zeros; state and actions are real. Every size is opened in a fresh process, as `train`
does it: the seals are checked, the arrays mapped, windows built, normalisers fitted, batches of 512 gathered, and some
updates made at nano's size. Zeros that are read lie in the page cache as an array's bytes would.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from elsewhere import output_of
from encoder import status_mib

from prism_policy.config import presets
from prism_policy.data.episode import Episode
from prism_policy.data.frames import open_frames
from prism_policy.data.schema import task_schema
from prism_policy.data.windows import Windows, batch_indices
from prism_policy.probe.encoder_cost import device_name
from prism_policy.run_folder import make_policy
from prism_policy.training.trainer import Trainer, fit_normalizers
from prism_policy.utils.files import seal, sha256, write_text

EPISODE, SIZE = 150, 84
SHOWN = ("opening", "opening a copy", "windows", "normalisers", "first order", "a batch of 512", "an update of nano")
"""What is timed [ms]."""


class Made:
    """A source of two made-up demonstrations, which the cache below is made from."""

    path, names, masks, findings = Path("made"), ("demo_0", "demo_1"), {}, ()  # type: ignore[var-annotated]
    schema = task_schema(presets.nano().task)

    def fingerprint(self) -> dict[str, Any]:
        """Always the same."""
        return {"made": True}

    def episodes(self, names: Any, schema: Any) -> Any:
        """Noise."""
        rng = np.random.default_rng(0)
        for name in names:
            images = {c: rng.integers(0, 256, (EPISODE, *size, 3), np.uint8) for c, size in schema.cameras.items()}
            state = rng.normal(size=(EPISODE, schema.state_dim)).astype(np.float32)
            actions = rng.uniform(-1, 1, (EPISODE, schema.action_dim)).astype(np.float32)
            yield Episode(name, images, state, actions, np.zeros(EPISODE, bool), np.zeros((EPISODE, 0)))


def enlarge(folder: Path, gb: float) -> None:
    """Make the cache one of so many bytes."""
    (cache,) = folder.glob("frames-*")
    manifest = json.loads((cache / "manifest.json").read_text())
    a_frame = sum(int(np.prod(x["shape"][1:])) for name, x in manifest["arrays"].items() if name.startswith("image"))
    episodes = int(gb * 1e9 / a_frame) // EPISODE
    for name, x in manifest["arrays"].items():
        raw, times = cache / f"{name}.raw", episodes // 2
        size = raw.stat().st_size // 2 * episodes
        if name.startswith("image"):
            os.truncate(raw, size)
            checksum = "never read as a whole"
        else:
            raw.write_bytes(raw.read_bytes() * times + raw.read_bytes()[: size - raw.stat().st_size * times])
            checksum = sha256(raw)
        x["shape"][0] = episodes * EPISODE
        x.update(seal(raw, checksum))
    manifest["names"] = [f"demo_{i}" for i in range(episodes)]
    manifest["ends"] = [EPISODE * (i + 1) for i in range(episodes)]
    write_text(cache / "manifest.json", json.dumps(manifest))


def bytes_read() -> int:
    """What this process has read by system calls; pages of a map are counted by the resident set."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("rchar:"))


def child(folder: Path, updates: int) -> dict[str, float]:
    """Open, gather and train; seconds, and MiB."""
    found: dict[str, float] = {}
    clock = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        found[name], clock = now - clock, now

    start = bytes_read()
    frames = open_frames(Made(), Made.schema, folder)  # type: ignore[arg-type]
    lap("opening")
    found["read at opening [MiB]"] = (bytes_read() - start) / 2**20
    config = presets.nano()
    windows = Windows(frames, 16, 2, 8, frames.indices(frames.names))
    lap("windows")
    policy = make_policy(config, frames.schema)
    clock = time.perf_counter()
    fit_normalizers(policy, windows)
    lap("normalisers")
    groups = windows.groups("task")
    batch_indices(0, 512, groups, 0)
    lap("first order")
    seconds = []
    for i in range(9):
        indices = batch_indices(i, 512, groups, 0)
        clock = time.perf_counter()
        windows.batch(indices)
        seconds.append(time.perf_counter() - clock)
    found["a batch of 512"] = float(np.median(seconds))
    settings = replace(config.train, steps=updates, warmup_steps=1, rollout_every=0, log_every=1)
    lines: list[dict[str, float]] = []
    run = folder / "run"
    Trainer(run, replace(config, train=settings), windows, lambda _, line: lines.append(dict(line))).train()
    shutil.rmtree(run)
    found["an update of nano"] = settings.batch_size / lines[-1]["samples_per_s"]
    found["GB"], found["frames"] = frames.nbytes / 1e9, len(frames)
    found["own memory [MiB]"] = status_mib("RssAnon")
    found["of the map in memory [MiB]"] = status_mib("RssFile")
    return found


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", nargs="+", type=float, default=[12.5, 25.0, 50.0, 100.0])
    parser.add_argument("--updates", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/large_cache"))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.child:
        print(json.dumps(child(arguments.folder, arguments.updates)))
        return
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(f"{device_name(torch.device('cpu'))}, torch {torch.__version__}, load {load}; times in ms.\n")
    first = True
    for gb in arguments.gb:
        shutil.rmtree(arguments.folder, ignore_errors=True)
        open_frames(Made(), Made.schema, arguments.folder)  # type: ignore[arg-type]
        enlarge(arguments.folder, gb)
        command = [sys.executable, __file__, "--child", "--folder", str(arguments.folder)]
        found = json.loads(output_of([*command, "--updates", str(arguments.updates)]).splitlines()[-1])
        size = sum(path.stat().st_blocks * 512 for path in arguments.folder.rglob("*.raw"))
        row = {"GB of frames": f"{found['GB']:.1f}", "frames": f"{found['frames']:.0f}"}
        row |= {"on the disk [MiB]": f"{size / 2**20:.0f}"}
        row |= {name: f"{1000 * found[name]:.1f}" for name in SHOWN if name in found}
        row |= {name: f"{x:.0f}" for name, x in found.items() if "MiB" in name}
        if first:
            print("| " + " | ".join(row) + " |")
            print("|---" * len(row) + "|")
        print("| " + " | ".join(row.values()) + " |", flush=True)
        first = False
    shutil.rmtree(arguments.folder)


if __name__ == "__main__":
    main()
