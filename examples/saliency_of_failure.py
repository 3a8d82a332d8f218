"""What did the policy look at when it failed? A picture of its first failed episode, with the saliency over it.

prism evaluate runs/a
python examples/saliency_of_failure.py runs/a
"""

from pathlib import Path
from typing import Annotated

import matplotlib
import tyro

import prism_policy as pp
from prism_policy.config.options import Attribution
from prism_policy.evaluation.results import episode_sets
from prism_policy.run_folder import read_run
from prism_policy.saliency.attribution import saliency
from prism_policy.saliency.clips import draw_clips, evaluated_source

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main(run: Annotated[Path, tyro.conf.Positional], frames: int = 5, method: str = "gradient") -> Path | None:
    """Write RUN/failure.png; returns its path, or None where nothing failed."""
    config, policy = read_run(run), pp.load_policy(run)
    episodes = episode_sets(run, "last", "evaluate")[0]
    failed = [record["episode"] for record in episodes.records() if not record["success"]]
    if not failed:
        print(f"{run}: no episode failed")
        return None
    source = evaluated_source(episodes, config.task, config.policy.n_obs_steps, failed[0])
    (clip,) = draw_clips([(source, frames, "even")])  # drawn again from the states that evaluation kept
    maps = saliency(policy, clip.observation, Attribution(method=method))  # camera -> float32 (F, To, H, W)
    cameras = list(maps)
    figure, axes = plt.subplots(len(cameras), len(clip), squeeze=False, figsize=(2 * len(clip), 2 * len(cameras)))
    for row, camera in zip(axes, cameras, strict=True):
        for i, axis in enumerate(row):
            newest = maps[camera][i, -1]  # (H, W)
            axis.imshow(clip.observation["images"][camera][i, -1])
            axis.imshow(newest / newest.mean(), cmap="inferno", alpha=0.5, vmin=0, vmax=10)
            axis.set_title(f"{camera}, step {clip.steps[i]}", fontsize=7)
            axis.axis("off")
    figure.suptitle(clip.title, fontsize=9)
    figure.savefig(run / "failure.png", dpi=150)
    print(f"Picture: {run / 'failure.png'}. A bright pixel would change the action; it is no reason for the failure")
    return run / "failure.png"


if __name__ == "__main__":
    tyro.cli(main)
