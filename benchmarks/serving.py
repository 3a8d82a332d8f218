"""What a policy server adds to the policy: chunks asked for in the process and through a socket, five each in turn.

python benchmarks/serving.py [--rounds 20]
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

import numpy as np
import torch
from elsewhere import LIMIT_S

from prism_client.client import PolicyClient
from prism_policy.config import presets
from prism_policy.config.settings import RunConfig
from prism_policy.data.schema import task_schema
from prism_policy.run_folder import load_policy, make_policy, open_run, save_normalizer, save_weights


def main() -> None:
    """Print a row a policy: medians and 95% quantiles [ms], and the median of what the way there and back adds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    print(f"| policy | act, median (95%) | through the server | added, median of pairs |\n|{'---|' * 4}")
    for name, config in (("nano", presets.nano()), ("paper", presets.paper("lift", "flow_matching", "prism"))):
        with tempfile.TemporaryDirectory() as folder:
            row(name, config, Path(folder) / "run", rounds)


def row(name: str, config: RunConfig, folder: Path, rounds: int) -> None:
    """Measure one policy with random weights."""
    open_run(folder, config)
    policy = make_policy(config, task_schema(config.task))
    save_normalizer(folder, policy, config.task)
    save_weights(folder, {n: t for n, t in policy.state_dict().items() if not n.startswith("normalizer.")})
    policy = load_policy(folder)
    rng = np.random.default_rng(0)
    frames = {c: rng.integers(0, 256, (2, *size, 3), np.uint8) for c, size in policy.encoder.cameras.items()}
    state = np.zeros((2, 9), np.float32)
    observation = {
        "images": {c: torch.from_numpy(x)[None] for c, x in frames.items()}, "state": torch.from_numpy(state)[None]
    }  # fmt: skip
    command = [sys.executable, "-m", "prism_policy", "serve", str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        limit = threading.Timer(LIMIT_S, server.kill)
        limit.start()
        try:
            if not (found := re.search(r"at (ws://\S+)", server.stdout.readline())):
                sys.exit("the server did not start (its own words stand above)")
            with PolicyClient(found[1]) as client:
                direct, served = [], []
                for i in range(rounds + 1):  # the first one makes kernels and buffers
                    here = timed(lambda: policy.act(observation))
                    there = timed(lambda: client.infer({"images": frames, "state": state}))
                    if i:
                        direct += here
                        served += there
        finally:
            limit.cancel()
            server.terminate()
    added = median(1000 * (b - a) for a, b in zip(direct, served, strict=True))
    print(f"| {name} | {milliseconds(direct)} | {milliseconds(served)} | {added:+.1f} ms |", flush=True)


def timed(call: Callable[[], object]) -> list[float]:
    """Seconds of each of five calls, once the other process's threads no longer spin."""
    time.sleep(0.5)
    found = []
    for _ in range(5):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return found


def milliseconds(seconds: list[float]) -> str:
    """Median and 95% quantile in ms."""
    return f"{1000 * median(seconds):.1f} ({1000 * quantiles(seconds, n=20)[-1]:.1f}) ms"


if __name__ == "__main__":
    main()
