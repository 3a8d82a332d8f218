"""Which camera shows where things are? The spatial probe answers in millimetres, without a policy.

python examples/probe_camera.py --cameras agentview sideview
"""

from pathlib import Path

import tyro

import prism_policy as pp
from prism_policy.config.settings import ProbeConfig
from prism_policy.probe.train import probe


def main(
    task: str = "lift",
    cameras: tuple[str, ...] = ("agentview", "sideview"),
    encoder: str = "prism",
    steps: int = 1000,
    scenes: int = 2000,
    out: Path = Path("runs/probe-cameras"),
) -> dict[str, float]:
    """Train the encoder to say where objects and hand are in still scenes; return the mean error by camera [m]."""
    errors = {}
    for camera in cameras:
        config = ProbeConfig(task=task, camera=camera, steps=steps, train_frames=scenes, test_frames=scenes // 4)
        lines = probe(out / camera, config, {encoder: pp.presets.encoder(encoder)}, seeds=(0,))
        (line,) = lines  # one encoder, one resolution, one seed
        by_thing = {thing: error for thing, error in line["errors"].items() if not thing.endswith(" angle")}
        errors[camera] = sum(by_thing.values()) / len(by_thing)
        print(f"{camera}: " + ", ".join(f"{thing} {1000 * error:.1f} mm" for thing, error in by_thing.items()))
    best = min(errors, key=errors.__getitem__)
    print(f"Closest: {best}. One seed says little where they are close; pictures and tables are in {out}")
    return errors


if __name__ == "__main__":
    tyro.cli(main)
