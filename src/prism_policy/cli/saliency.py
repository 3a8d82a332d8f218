"""The command `prism saliency`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from prism_policy.cli.command import Command, Flat
from prism_policy.config.options import Attribution, SaliencyOptions
from prism_policy.config.settings import Device
from prism_policy.utils.terminal import console, shell


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
    how: Annotated[Attribution, Flat] = field(default_factory=Attribution)
    options: Annotated[SaliencyOptions, Flat] = field(default_factory=SaliencyOptions)
    device: Device = "auto"
    """Where to compute; auto is a GPU where there is one."""
    out: Path | None = None
    """Folder of the results; by default FIRST_RUN/saliency."""

    def run(self) -> None:
        """Explain the runs, and print where pictures and numbers lie."""
        from prism_policy.saliency.run import run_saliency

        out = self.out or (self.folders[0] if self.folders else Path()) / "saliency"
        run_saliency(self.folders, self.how, self.options, out, self.device)
        console.print(f"Result: {out} (pictures, {'film.mp4, ' if self.options.video else ''}table.md, numbers.json)")
        if not self.options.compare:
            console.print(f"Next:   {shell('prism', 'saliency', '--compare', self.folders[0])} OTHER_RUN")
