"""The command `prism saliency`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Saliency:
    """Show what policies look at: which pixels move the action, on frames that are the same for all runs.

    Writes a picture a camera (runs down, phases of the task across), keypoints with their spread and the attention's
    weights where the encoder has them, a film of the episode, and numbers: how much of the saliency lies on objects and
    gripper, how spread and how steady it is, and whether it is about this policy at all. docs/saliency.md says what
    each means, and what none of them can show.
    """

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders of one task. Frames are of the first one's evaluated episode, else of its demonstrations."""
    compare: bool = False
    """Test "the first run is more localised than the others", on episodes of all runs in turn. Runs that differ in
    nothing but their seed are one side; pictures and film show the first run of each."""
    episode: int = 0
    """The (first) episode."""
    episodes: int | None = None
    """Episodes that the numbers are of; by default 1, or 12 with --compare."""
    frames: int | None = None
    """Most frames of each, spread evenly; by default 40 of one episode, 8 of each of several."""
    method: str = "gradient"
    """gradient, smoothgrad, integrated_gradients, layercam or occlusion."""
    target: str = "chunk"
    """What is moved: chunk (the whole chunk's projection on itself), gripper, or the number of an action dimension."""
    stage: int | None = None
    """Stage of the trunk that layercam looks at; by default the deepest."""
    noise_level: float | None = None
    """By default the gradient goes through the whole sampler; with a number in (0, 1], through one call of the network
    at this level of noise."""
    samples: int | None = None
    """Noisy copies of smoothgrad (by default 16), steps of integrated_gradients (64)."""
    camera: tuple[str, ...] = ()
    """Some of the cameras; by default all."""
    video: bool = True
    """--no-video leaves out the film."""
    checks: bool = True
    """--no-checks leaves out deletion, insertion and randomised weights, which take most of the time."""
    format: str = "png"
    """Of the pictures: png or pdf."""
    out: Path | None = None
    """Folder of the results; by default FIRST_RUN/saliency."""

    def run(self) -> None:
        """Do it."""
        from prism_policy.saliency.attribution import Attribution
        from prism_policy.saliency.run import SaliencyOptions, run_saliency

        options = SaliencyOptions(
            how=Attribution(self.method, self.target, self.stage, self.noise_level, self.samples),
            compare=self.compare,
            episode=self.episode,
            episodes=self.episodes,
            frames=self.frames,
            cameras=self.camera,
            video=self.video,
            checks=self.checks,
            format=self.format,
        )
        out = self.out or (self.folders[0] if self.folders else Path()) / "saliency"
        run_saliency(self.folders, options, out)
        print(f"Result: {out} (pictures, {'film.mp4, ' if self.video else ''}table.md, numbers.json)")
        if not self.compare:
            print(f"Next:   prism saliency --compare {self.folders[0]} OTHER_RUN")
