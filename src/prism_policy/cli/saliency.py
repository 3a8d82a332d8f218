"""The command `prism saliency`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from prism_policy.cli.command import Command
from prism_policy.config.settings import Device


@dataclass(frozen=True)
class Saliency(Command):
    """Show which pixels move a policy's action, on frames that are the same for all runs.

    Writes a picture for each camera (runs down, phases of the task across), keypoints with their spread and attention
    weights where the encoder has them, a film of the episode, and table.md and numbers.json: how much of the saliency
    lies on objects and gripper, how spread and how steady it is, and whether it depends on the trained weights at all.
    docs/saliency.md says what each means, and what none of them can show.
    """

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders of one task; frames are of the first run's evaluated episode, else of its demonstrations."""
    compare: bool = False
    """Test whether the first run is more localised than the others; runs that differ only by seed are one side."""
    episode: int = 0
    """The (first) episode."""
    episodes: int | None = None
    """Episodes to measure; by default 1, or 12 with --compare."""
    frames: int | None = None
    """Most frames of each, spread evenly; by default 40 of one episode, 8 of each of several."""
    method: str = "gradient"
    """Method: gradient, smoothgrad, integrated_gradients, layercam or occlusion."""
    target: str = "chunk"
    """What is explained: chunk (all actions, projected on themselves), gripper, or the number of an action part."""
    stage: int | None = None
    """Stage of the trunk for layercam; by default the deepest."""
    noise_level: float | None = None
    """Explain one call of the network at this noise level in (0, 1]; by default the whole sampler."""
    samples: int | None = None
    """Noisy copies of smoothgrad (by default 16), steps of integrated_gradients (64)."""
    camera: tuple[str, ...] = ()
    """Cameras to show; by default all."""
    video: bool = True
    """Make the film; --no-video leaves it out."""
    checks: bool = True
    """Measure deletion, insertion and randomised weights (most of the time); --no-checks leaves them out."""
    format: str = "png"
    """Of the pictures: png or pdf."""
    device: Device = "auto"
    """Where to compute; auto is a GPU where there is one."""
    out: Path | None = None
    """Folder of the results; by default FIRST_RUN/saliency."""

    def run(self) -> None:
        """Explain the runs, and print where pictures and numbers lie."""
        from prism_policy.saliency.attribution import Attribution
        from prism_policy.saliency.run import Asked, show

        episodes = self.episodes if self.episodes is not None else 12 if self.compare else 1
        options = Asked(
            how=Attribution(self.method, self.target, self.stage, self.noise_level, self.samples),
            episode=self.episode,
            episodes=episodes,
            frames=self.frames if self.frames is not None else 40 if episodes == 1 else 8,
            cameras=self.camera,
            compare=self.compare,
            video=self.video,
            checks=self.checks,
            format=self.format,
        )
        out = self.out or (self.folders[0] if self.folders else Path()) / "saliency"
        show(self.folders, options, out, self.device)
        print(f"Result: {out} (pictures, {'film.mp4, ' if self.video else ''}table.md, numbers.json)")
        if not self.compare:
            print(f"Next:   prism saliency --compare {self.folders[0]} OTHER_RUN")
