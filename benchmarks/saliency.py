"""Seconds that saliency takes: an 84 px episode of two cameras and 40 frames, every method.

python benchmarks/saliency.py [RUN] [--methods gradient layercam]; without a run, a nano flow-matching policy whose
weights were never trained (which changes nothing about the time).
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch

from prism_policy.config import presets
from prism_policy.data.schema import task_schema
from prism_policy.run_folder import load_policy, make_policy
from prism_policy.saliency.attribution import METHODS, Attribution, saliency

FRAMES = 40


def main() -> None:
    """Print a row a method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--preset", choices=("nano", "paper"), default="nano")
    parser.add_argument("--policy", choices=("flow_matching", "ddpm", "meanflow"), default="flow_matching")
    parser.add_argument("--encoder", default="prism")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    asked = parser.parse_args()
    if asked.run:
        policy = load_policy(asked.run)
    else:
        config = getattr(presets, asked.preset)("lift", asked.policy, asked.encoder)
        policy = make_policy(config, task_schema(config.task)).eval()
    size = next(iter(policy.encoder.cameras.values()))
    images = {c: torch.randint(0, 256, (FRAMES, 2, *size, 3), dtype=torch.uint8) for c in policy.encoder.cameras}
    observation = {"images": images, "state": torch.zeros(FRAMES, 2, 9)}
    print(f"{asked.run or asked.preset}, {policy.config.kind}, {len(images)} cameras of {size[0]} px, {FRAMES} frames, "
          f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f} before")  # fmt: skip
    print("| method | through | s | ms a frame |\n|---|---|---|---|")
    for method in asked.methods:
        for level in (None, 0.5):
            started = time.perf_counter()
            saliency(policy, observation, Attribution(method=method, noise_level=level))
            seconds = time.perf_counter() - started
            through = "the sampler" if level is None else "one call"
            print(f"| {method} | {through} | {seconds:.1f} | {1000 * seconds / FRAMES:.0f} |", flush=True)


if __name__ == "__main__":
    main()
