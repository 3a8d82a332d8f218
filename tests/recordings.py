"""Recordings of a robot that nothing here simulates: other cameras, keys, names and numbers than a Panda's."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

SETTINGS = (
    "--policy.encoder.width 16 --policy.encoder.stages 2 --policy.down-dims 16 32 --policy.step-embed-dim 16 "
    "--train.batch-size 8 --train.steps 12 --train.warmup-steps 2 --train.log-every 4 --train.valid-every 6"
)


def write_recording(path: Path, count: int = 4, steps: int = 24) -> Path:
    """Two cameras of two sizes, one rectangular; state in nested groups; six numbers of action, one constant."""
    with h5py.File(path, "w") as file:
        for i in range(count):
            rng, time = np.random.default_rng(i), np.linspace(0, 3, steps)
            demo = file.create_group(f"data/take_{i + 8}")  # 8, 9, 10, 11: not in the order of text
            joints = 40 * np.sin(time[:, None] + np.arange(5) + i)
            demo["actions"] = np.column_stack([joints, np.full(steps, 7.5)]).astype(np.float32)
            demo["obs/arm/qpos"] = joints + rng.normal(size=(steps, 5))
            demo["obs/arm/touch"] = rng.random(steps)
            demo["obs/unused"] = rng.random((steps, 3))
            demo["obs/front_image"] = rng.integers(0, 256, (steps, 48, 64, 3), np.uint8)
            demo["obs/wrist_rgb"] = rng.integers(0, 256, (steps, 40, 40, 3), np.uint8)
        file["mask/train"] = [b"take_8", b"take_9", b"take_10"]
        file["mask/valid"] = [b"take_11"]
        file["mask/few"] = [b"take_9"]
    return path
