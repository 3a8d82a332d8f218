"""An encoder of your own: choose its parts, see what it costs, and keep it as a file that every command takes.

python examples/own_encoder.py
prism probe --encoders sspool mine.json     # how many millimetres is it off?
"""

from dataclasses import replace
from pathlib import Path

import torch
import tyro

import prism_policy as pp
from prism_policy.config import config_json
from prism_policy.probe.encoder_cost import EncoderCost, encoder_costs


def mine() -> pp.EncoderConfig:
    """PRISM's keypoints from the middle stages alone, concatenated, with a temperature that is learned."""
    return replace(
        pp.presets.encoder("prism"),
        stages=(2, 3),
        fusion="concat",
        num_keypoints=64,
        temperature=0.5,
        learn_temperature=True,
    )


def main(out: Path = Path("mine.json"), width: int = 64, time_it: bool = True) -> list[EncoderCost]:
    """Compare the cost with two presets', try a forward pass, and write the file."""
    encoders = {"mine": mine(), "sspool": pp.presets.encoder("sspool"), "prism": pp.presets.encoder("prism")}
    costs = encoder_costs(encoders, resolutions=(84,), width=width, rounds=10 if time_it else 0)
    for row in costs:
        spent = "" if row.forward_ms is None else f", {row.forward_ms:.1f} ms a frame"
        print(f"{row.encoder}: {row.numbers} numbers, {row.encoder_parameters / 1e6:.2f} M parameters{spent}")

    encoder = pp.VisualEncoder(replace(mine(), width=width), cameras={"front": (84, 84), "wrist": (96, 128)}).eval()
    images = {"front": torch.zeros(2, 84, 84, 3).byte(), "wrist": torch.zeros(2, 96, 128, 3).byte()}
    with torch.no_grad():
        print(f"two cameras of unlike sizes: {tuple(encoder(images).shape)}")

    out.write_text(config_json.to_json(mine()))
    flags = "--policy.encoder.stages 2 3 --policy.encoder.fusion concat --policy.encoder.num-keypoints 64"
    print(f"File: {out}\nNext: prism probe --encoders sspool {out}, or prism train {flags}")
    return costs


if __name__ == "__main__":
    tyro.cli(main)
