"""What LIBERO costs: a frame with LIBERO's defaults and with ours, a step, a reset, a chunk, memory; one process.

python benchmarks/libero_costs.py [--suite libero_10] [--rounds 8]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from prism_policy.config.presets import task_config
from prism_policy.config.settings import RenderConfig
from prism_policy.envs.libero import LiberoEnv
from prism_policy.envs.rendering import Renderer
from prism_policy.tasks import task_spec
from prism_policy.tasks.libero import SUITES

SETTINGS = {
    "LIBERO's defaults: 4x MSAA, shadows, reflections": (RenderConfig(128, 4, True, True), False),
    "no MSAA, no shadows, no reflections": (RenderConfig(128), False),
    "the same; out of view left out, what never moves kept (default here)": (RenderConfig(128), True),
}


def main() -> None:
    """Print a row a scene: medians over the rounds, in milliseconds, and the process's memory afterwards."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", choices=list(SUITES), default="libero_spatial")
    parser.add_argument("--task", type=int, action="append")
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    print(f"memory after the imports: {resident():.0f} MiB", flush=True)
    print(f"| task | {' | '.join(SETTINGS)} | step | reset | chunk of 8, 2 frames drawn | MiB |\n|{'---|' * 8}")
    members = task_spec(arguments.suite).members
    for number in arguments.task or range(len(members)):
        task = task_config(members[number])
        env = LiberoEnv(task)
        env.reset(options={"episode": 0})  # the first compiles
        actions = np.full((8, 7), 0.1)
        resets, steps, chunks = [], [], []
        for round_ in range(arguments.rounds):
            resets.append(timed(env.reset, options={"episode": round_}))
            steps.append(timed(env.advance, actions[0]))
            chunks.append(timed(env.step_chunk, actions, 2))
        memory = resident()
        frames: list[list[float]] = [[] for _ in SETTINGS]
        for times, (settings, shortcuts) in zip(frames, SETTINGS.values(), strict=True):
            renderer = Renderer(env.model, settings, shortcuts)
            for round_ in range(arguments.rounds + 2):
                for camera in task.cameras:
                    renderer.pose(env.states[-1 - round_ % 8][1 : 1 + env.model.nq])
                    ms = timed(renderer.draw, camera)
                    if round_ >= 2:
                        times.append(ms)
            renderer.close()
        cells = [f"{statistics.median(ms):.1f}" for ms in (*frames, steps, resets, chunks)]
        print(f"| {task.name} | {' | '.join(cells)} | {memory:.0f} |", flush=True)
        env.close()


def timed(work: Callable[..., Any], *arguments: Any, **options: Any) -> float:
    """Milliseconds that a call takes."""
    started = time.perf_counter()
    work(*arguments, **options)
    return 1000 * (time.perf_counter() - started)


def resident() -> float:
    """Memory that this process has resident [MiB]."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))


if __name__ == "__main__":
    main()
