"""How fast a LeRobot dataset is read: this library against LeRobotDataset, in turn, in one run.

PRISM_LEROBOT_PYTHON=.../bin/python python benchmarks/lerobot_data.py FOLDER [--rounds 5] [--few 64]

FOLDER is a dataset v3.0. Two things are compared. The first pass: every frame decoded once, here into the frame cache
(written, checksummed and flushed to the disk, from an empty cache each time). And 512 windows of two frames a camera
and 16 actions once that is done: here from the cache, at the recording's size and resized to 84 px; LeRobot decodes
them again each time, and, being slow, only `--few` of them a round. LeRobot reads in one process and in two, by
torchcodec (its default, which needs FFmpeg's libraries) and by PyAV.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from timing import ratio

from prism_policy.data.frames import open_frames
from prism_policy.data.lerobot import LeRobotSource
from prism_policy.data.windows import Windows
from prism_policy.utils.images import Resize
from prism_policy.utils.memory import keep_freed_memory

BATCH, HORIZON, N_OBS, WORKERS = 512, 16, 2, 2


class Theirs:
    """LeRobot in a process of its own: its decoder does not survive a fork of what has used it."""

    def __init__(self, folder: Path, fps: int, backend: str, processes: int) -> None:
        worker = Path(__file__).with_name("lerobot_worker.py")
        offline = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": "", "CUDA_VISIBLE_DEVICES": ""}
        self.process = subprocess.Popen(
            [os.environ["PRISM_LEROBOT_PYTHON"], str(worker), str(folder), str(fps), backend, str(processes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=offline,
        )
        print("LeRobot:", self._line())

    def _line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def __call__(self, what: str) -> float:
        """Seconds of what is asked for."""
        assert self.process.stdin
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        """End it."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def seconds(function: Callable[[], object]) -> float:
    """Of one call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def decode_all(folder: Path) -> None:
    """Every episode, without a cache."""
    source = LeRobotSource(folder, workers=WORKERS)
    for _ in source.episodes(source.names, source.schema):
        pass


def fill_cache(folder: Path, resize: Resize | None = None) -> None:
    """The first pass of a training: every frame decoded, into a cache that is empty."""
    with tempfile.TemporaryDirectory() as cache:
        source = LeRobotSource(folder, workers=WORKERS)
        open_frames(source, source.schema, Path(cache), resize)


def table(title: str, rows: dict[str, list[float]], baselines: tuple[str, str], ours: tuple[str, ...]) -> None:
    """Print medians and, of ours, how many times as fast as each of LeRobot's."""
    print(
        f"\n| {title} | s, median | times as fast as {baselines[0]} | as {baselines[1]} |\n|---|---|---|---|",
        flush=True,
    )
    for name, times in rows.items():
        faster = [ratio(rows[baseline], times) for baseline in baselines] if name in ours else ["", ""]
        print(f"| {name} | {statistics.median(times):.4g} | {' | '.join(faster)} |")


def main() -> None:
    """Print two tables, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--few", type=int, default=64, help="windows that LeRobot reads a round")
    arguments = parser.parse_args()
    folder, rounds = arguments.folder, arguments.rounds
    torch.set_num_threads(1)
    fps = int(LeRobotSource(folder).schema.fps or 1)
    one, two, pyav = (
        f"LeRobotDataset, {how}" for how in ("torchcodec", "torchcodec, two processes", "PyAV, two processes")
    )
    ways = {one: ("torchcodec", 0), two: ("torchcodec", WORKERS), pyav: ("pyav", WORKERS)}
    theirs = {name: Theirs(folder, fps, *way) for name, way in ways.items()}
    print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    first: dict[str, Callable[[], float]] = {
        **{name: lambda ask=ask: ask("all") for name, ask in theirs.items()},
        "ours, decoded by two threads": lambda: seconds(lambda: decode_all(folder)),
        "ours, into the frame cache": lambda: seconds(lambda: fill_cache(folder)),
        "ours, into the frame cache at 84 px": lambda: seconds(lambda: fill_cache(folder, Resize((84, 84)))),
    }
    passes = {name: [] for name in first}
    for _ in range(rounds):
        for name, function in first.items():
            passes[name].append(function())
    table("first pass over all frames", passes, (one, two), tuple(list(first)[3:]))

    source = LeRobotSource(folder)
    with tempfile.TemporaryDirectory() as cache, keep_freed_memory():
        sizes = {"ours, from the cache": None, "ours, from the cache at 84 px": Resize((84, 84))}
        all_windows = {
            name: Windows(open_frames(source, source.schema, Path(cache), resize), HORIZON, N_OBS, 8)
            for name, resize in sizes.items()
        }
        times: dict[str, list[float]] = {name: [] for name in (*theirs, *sizes)}
        for i in range(-1, rounds):  # the first touches every page
            scale = BATCH / arguments.few
            timed = {name: scale * ask(f"windows {arguments.few} {i + 1}") for name, ask in theirs.items()}
            for name, windows in all_windows.items():
                indices = torch.randint(0, len(windows), (BATCH,), generator=torch.Generator().manual_seed(i + 1))
                timed[name] = statistics.median(seconds(lambda w=windows, x=indices: w.batch(x)) for _ in range(5))
            if i >= 0:
                for name, value in timed.items():
                    times[name].append(value)
    table(f"{BATCH} windows", times, (one, two), tuple(sizes))
    for one_of in theirs.values():
        one_of.close()
    print(f"\nload after: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
