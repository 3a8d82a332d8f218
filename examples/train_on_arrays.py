"""Train a policy on arrays of your own: images, state and actions of a robot that no simulator knows.

python examples/train_on_arrays.py
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import tyro

from prism_policy.config import presets
from prism_policy.data.schema import Part, Schema
from prism_policy.demos.record import Recorder
from prism_policy.training.run import train_run

SCHEMA = Schema(
    cameras={"front": (48, 64)},  # height, width
    state=(Part("joints", 2, "joint"),),
    action=(Part("joints", 2, "joint"),),
    fps=10,
)


def recording(rng: np.random.Generator, steps: int = 30) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images uint8 (T, H, W, 3), state (T, 2) and actions (T, 2): load yours here. These move a dot to a square."""
    start, goal = rng.uniform(0.1, 0.9, (2, 2))
    state = start + (goal - start) * np.linspace(0, 1, steps)[:, None]
    images = np.full((steps, 48, 64, 3), 255, np.uint8)
    for image, dot in zip(images, state, strict=True):
        for (x, y), colour in ((goal, (0, 0, 255)), (dot, (255, 0, 0))):
            image[int(y * 42) : int(y * 42) + 5, int(x * 58) : int(x * 58) + 5] = colour
    return images, state, np.concatenate([state[1:], state[-1:]])  # the next position is the action


def write(file: Path, demos: int) -> None:
    """Write demonstrations as a file that every command reads."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    with Recorder(file, SCHEMA) as recorder:
        for _ in range(demos):
            for image, state, action in zip(*recording(rng), strict=True):
                recorder.step({"images": {"front": image}, "state": state}, action)
            recorder.end()


def main(out: Path = Path("runs/arrays"), demos: int = 20, steps: int = 300) -> None:
    """Write the demonstrations, and train on them."""
    file = out.parent / f"{out.name}.hdf5"
    write(file, demos)
    config = presets.nano("recorded", encoder_name="sspool")
    train = replace(config.train, steps=steps, batch_size=32)
    encoder = replace(config.policy.encoder, stages=(1, 2, 3))  # the last stage is too coarse for 48 x 64 px
    config = replace(config, dataset=str(file.resolve()), train=train, policy=replace(config.policy, encoder=encoder))
    train_run(out, config)
    print(f"Next: prism serve {out}")


if __name__ == "__main__":
    tyro.cli(main)
