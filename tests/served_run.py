"""A served policy with random weights, and frames for it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prism_policy.config.settings import RunConfig
from prism_policy.data.schema import task_schema
from prism_policy.run_folder import make_policy, open_run, save_normalizer, save_weights


def write_run(folder: Path, config: RunConfig) -> Path:
    """A run folder as training leaves it, with random weights."""
    open_run(folder, config)
    torch.manual_seed(0)
    policy = make_policy(config, task_schema(config.task))
    save_normalizer(folder, policy, config.task)
    save_weights(folder, {name: t for name, t in policy.state_dict().items() if not name.startswith("normalizer.")})
    return folder


PANDA = "and state (9,): robot0_eef_pos (x, y, z), robot0_eef_quat (qx, qy, qz, qw)"


@contextmanager
def served(
    folder: Path, *arguments: str, key: str | None = None, state: str = PANDA
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`prism serve` in a process of its own, which says what `state` it wants: its address, and the process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **({"PRISM_API_KEY": key} if key else {})}
    command = [sys.executable, "-m", "prism_policy", "serve", str(folder), "--port", "0", *arguments]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout
            said = ""
            while "Ctrl-C stops it" not in said and (line := process.stdout.readline()):
                said += line
            actual = re.search(r"at (wss?://\S+)", said)
            assert actual, process.stderr and process.stderr.read()
            assert state in said
            yield actual[1], process
        finally:
            process.kill()


def frame(number: int) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    return {
        "images": {"agentview": rng.integers(0, 256, (32, 32, 3), np.uint8)},
        "state": rng.uniform(-1, 1, 9).astype(np.float32),
    }


def stacked(*numbers: int) -> dict[str, Any]:
    """Frames as a policy takes them, (To, ...)."""
    frames = [frame(number) for number in numbers]
    return {
        "images": {"agentview": np.stack([f["images"]["agentview"] for f in frames])},
        "state": np.stack([f["state"] for f in frames]),
    }
