"""Stop a training and go on: the weights end the same, to the bit, as without the stop.

python examples/resume.py
"""

from dataclasses import replace
from pathlib import Path

import tyro
from train_on_arrays import write  # the example beside this one

import prism_policy as pp
from prism_policy.config import presets
from prism_policy.config.settings import RunConfig
from prism_policy.training.run import train_run


def settings(file: Path, steps: int) -> RunConfig:
    """A small run, with a checkpoint after every update."""
    config = presets.nano("recorded", encoder_name="sspool")
    encoder = replace(config.policy.encoder, stages=(1, 2))
    train = replace(config.train, steps=steps, batch_size=8, checkpoint_minutes=0.0, valid_every=0)
    train = replace(train, deterministic=True)  # else the number of threads follows what else runs
    policy = replace(config.policy, encoder=encoder, down_dims=(16, 32))
    return replace(config, dataset=str(file.resolve()), train=train, policy=policy)


def main(out: Path = Path("runs/resume"), steps: int = 30) -> bool:
    """Train once without and once with a stop; returns whether the weights are equal."""
    write(out / "demos.hdf5", demos=6)
    config = settings(out / "demos.hdf5", steps)
    train_run(out / "whole", config)
    try:
        train_run(out / "stopped", config, max_s=0.5)  # prism train --max-minutes; Ctrl-C and kill -9 do as well
    except pp.PrismError as stop:
        print(stop)
    train_run(out / "stopped", config)  # the same call goes on
    whole, stopped = (pp.load_policy(out / name).fingerprint() for name in ("whole", "stopped"))
    print(f"weights: {whole} without a stop, {stopped} with one")
    return whole == stopped


if __name__ == "__main__":
    tyro.cli(main)
