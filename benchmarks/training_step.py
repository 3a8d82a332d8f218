"""What an update of the quickstart costs and where the time goes: encoder, U-Net, optimiser, data.

python benchmarks/training_step.py [--encoder prism sspool] [--threads 2]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from prism_policy import presets
from prism_policy.data.frames import Frames
from prism_policy.data.robomimic import Episode
from prism_policy.data.windows import Windows, batch_indices
from prism_policy.run_folder import make_policy


def median_ms(function: Callable[[], object], rounds: int) -> float:
    """Median milliseconds of a call, after two that are not counted."""
    seconds = []
    for _ in range(rounds + 2):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds[2:])


def main() -> None:
    """Print a table, one row an encoder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", nargs="+", default=["sspool", "ms_sspool", "prism"], choices=presets.ENCODERS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rng = np.random.default_rng(0)
    steps = 400
    frames = {c: rng.integers(0, 256, (steps, 84, 84, 3), np.uint8) for c in ("agentview", "robot0_eye_in_hand")}
    proprio, actions = rng.normal(size=(steps, 9)).astype(np.float32), rng.uniform(-1, 1, (steps, 7)).astype(np.float32)
    episode = Episode("", frames, proprio, actions, np.zeros(steps, bool), np.zeros((steps, 0)))
    windows = Windows(Frames.of([episode]), 16, 2, 8)
    print("| encoder | update [ms] | data | encoder | U-Net | optimiser | parameters |\n|---|---|---|---|---|---|---|")
    for name in arguments.encoder:
        config = presets.nano(encoder_name=name)
        policy = make_policy(config, 9, 7).to(memory_format=torch.channels_last).train()
        optimizer = torch.optim.AdamW(policy.parameters(), 1e-4, fused=True)
        indices = batch_indices(0, config.train.batch_size, len(windows), 0)
        batch = windows.batch(indices)
        cond = policy.condition(batch).detach()

        def update(policy=policy, optimizer=optimizer, indices=indices) -> None:
            loss, _ = policy(windows.batch(indices))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        parts = [
            median_ms(update, arguments.rounds),
            median_ms(lambda i=indices: windows.batch(i), arguments.rounds),
            median_ms(lambda p=policy, b=batch: p.condition(b).sum().backward(), arguments.rounds),
            median_ms(lambda p=policy, b=batch, c=cond: p.chunk_loss(b["actions"], c).backward(), arguments.rounds),
            median_ms(optimizer.step, arguments.rounds),
        ]
        count = sum(p.numel() for p in policy.parameters())
        print(f"| {name} | " + " | ".join(f"{ms:.0f}" for ms in parts) + f" | {count / 1e6:.1f} M |")


if __name__ == "__main__":
    main()
