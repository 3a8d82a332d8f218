"""A run so small that an update takes a few milliseconds, in this process and from the shell."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from commandline import prism
from community import demo, env_args, write_file
from panda import frames_of
from prism_policy.cli.train import Train
from prism_policy.config.settings import PolicyKind, RunConfig
from prism_policy.data.robomimic import read_demos
from prism_policy.data.windows import Windows

SETTINGS = (
    "--task.cameras agentview",
    "--task.render.resolution 32",
    "--policy.encoder.width 16",
    "--policy.encoder.stages 2",  # deeper ones have no room for keypoints at 32 px
    "--policy.down-dims 16 32",
    "--policy.step-embed-dim 16",
    "--train.batch-size 8",
    "--train.noise-draws 1",
    "--train.steps 12",
    "--train.warmup-steps 2",
    "--train.log-every 1",
)


def config_of(*flags: str) -> RunConfig:
    """The settings that `prism train` makes of these flags, such as "--train.steps 12"."""
    return Train.parse_run(split(flags))[1]


def split(flags: Sequence[str]) -> list[str]:
    """The words of flags, as a shell makes them."""
    return " ".join(flags).split()


def small_config(*flags: str, kind: PolicyKind = "flow_matching") -> RunConfig:
    """SSPool at 32 px."""
    return config_of(f"--policy {kind} --encoder sspool", *SETTINGS, *flags)


def write_demos(path: Path, actions: int = 7, size: int = 32) -> Path:
    """Four demonstrations, the last of them held out; pushes make masks of unequal size."""
    demos = {f"demo_{i}": demo(20 + i, i, ["agentview"], size) for i in range(4)}
    for i, arrays in enumerate(demos.values()):
        arrays["disturbed"] = np.isin(np.arange(20 + i), (5 + i, 6 + i, 14))
        arrays["actions"] = np.resize(arrays["actions"], (20 + i, actions))
    return write_file(path, demos, env_args("v1.5"), {"train": ["demo_0", "demo_1", "demo_2"], "valid": ["demo_3"]})


def small_windows(folder: Path) -> Windows:
    """Windows of the demonstrations to learn from."""
    folder.mkdir(parents=True, exist_ok=True)
    frames = frames_of(read_demos(write_demos(folder / "demos.hdf5")))
    return Windows(frames, 16, 2, 8, episodes=[0, 1, 2])


def command(folder: Path, *arguments: str | Path, settings: tuple[str, ...] = ()) -> list[str]:
    """`prism train` of the demonstrations in `folder`."""
    run = ["train", "--dataset", folder / "demos.hdf5", "--encoder", "sspool", *arguments]
    return [sys.executable, "-m", "prism_policy", *map(str, run), *split((*SETTINGS, *settings))]


def environment(folder: Path) -> dict[str, str]:
    """Of the command: a cache of its own, and one thread."""
    return {**os.environ, "PRISM_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}


def prism_train(
    folder: Path, *arguments: str | Path, settings: tuple[str, ...] = (), code: int = 0, **named: Any
) -> str:
    """Run the command; returns what it printed, or its one sentence (of an unknown flag: its box) of complaint."""
    run = command(folder, *arguments, settings=settings)
    if named or "--processes" in arguments:
        done = subprocess.run(run, env=environment(folder), capture_output=True, text=True, timeout=300, **named)
    else:
        done = prism(*run[3:], PRISM_CACHE=str(folder / "cache"))
    assert done.returncode == code, done.stdout + done.stderr
    if code == 0:
        return done.stdout
    if "run prism train --help" not in done.stderr:  # tyro's box about flags
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert done.stderr.startswith("prism: ")
    return done.stderr
