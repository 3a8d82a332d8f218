"""A LeRobot dataset, v3.0 or v2.1, in a training loop of your own: batches of windows, without LeRobot installed.

python examples/lerobot_dataset.py path/to/dataset
"""

from pathlib import Path
from typing import Annotated

import torch
import tyro

import prism_policy as pp
from prism_policy.config import presets
from prism_policy.data.frames import open_frames
from prism_policy.data.lerobot import LeRobotSource
from prism_policy.data.windows import Windows
from prism_policy.training.trainer import fit_normalizers
from prism_policy.utils.files import default_cache_dir
from prism_policy.utils.images import Resize


def main(dataset: Annotated[Path, tyro.conf.Positional], steps: int = 20, batch_size: int = 8) -> list[float]:
    """Train a small flow-matching policy for some updates; returns the losses."""
    source = LeRobotSource(dataset)
    for finding in source.findings:
        print(f"note: {finding}")
    print(f"{len(source.names)} episodes, cameras {source.schema.cameras}, {source.schema.fps:g} Hz")

    # Decoded once into plain arrays on the disk, then mapped into memory.
    frames = open_frames(source, source.schema, default_cache_dir(), resize=Resize((84, 84)))
    config = presets.nano("recorded", encoder_name="sspool").policy
    windows = Windows(frames, config.horizon, config.n_obs_steps, config.n_action_steps)

    torch.manual_seed(0)
    policy = pp.build_policy(config, frames.schema)  # its schema has the size that the images have now
    fit_normalizers(policy, windows)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    losses = []
    for step in range(steps):
        batch = windows.batch(torch.randint(len(windows), (batch_size,)))  # images uint8 (B, To, H, W, 3), ...
        loss = policy(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        print(f"update {step + 1}: loss {losses[-1]:.3f}")
    print("The same with checkpoints, validation and a report: prism train --dataset", dataset)
    return losses


if __name__ == "__main__":
    tyro.cli(main)
