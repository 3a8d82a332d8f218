"""The command `prism doctor`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from prism_policy.cli.command import Command
from prism_policy.config.ranges import Range
from prism_policy.config.settings import Device


@dataclass(frozen=True)
class Doctor(Command):
    """Find out what is wrong with demonstrations, and with a policy that learned from them: `prism doctor DATA [RUN]`.

    Looks for frozen, black and swapped images, time stamps that jump, actions that lag, grippers and quaternions of
    another convention, idle stretches, episodes unlike all others, and more: docs/doctor.md has the list. With a run
    also whether it can learn at all, is better than doing nothing, sees where things are, and is served what it was
    trained on. Says of each fault where it is, why it matters and what to do. Exit code: 0 where there are at most
    notes, 1 with warnings or errors, 2 for bad input.
    """

    data: Annotated[str, tyro.conf.Positional] = ""
    """HDF5 file in robomimic's layout, LeRobot folder, folder of either, hf:USER/NAME, or a run folder, whose
    demonstrations are taken."""
    run_folder: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[RUN]")] = None
    """A run that learned from them, to be checked, too."""
    task: str = ""
    """In place of DATA: the scripted demonstrations of a task, such as lift, made where they are missing."""
    episodes: tuple[str, ...] = ()
    """Of a LeRobot dataset, which episodes: numbers and ranges such as 7 and 0:10 (0 to 9). By default all."""
    minutes: Annotated[float, Range(0, 1440)] = 2.0
    """With a run: longest time of the short training that shows whether it can learn at all; 0 leaves it out."""
    device: Device = "auto"
    """Where to compute; auto is a GPU where there is one."""
    json: bool = False
    """Print JSON and nothing else."""
    html: Path | None = None
    """Also write a page with what was found."""

    def run(self) -> None:
        """Check, print what was found, and exit with 1 where it is more than notes."""
        from prism_policy.doctor.command import DoctorOptions, diagnose

        options = DoctorOptions(self.task, self.episodes, self.minutes, self.device, self.json, self.html)
        if diagnose(self.data, self.run_folder, options):
            sys.exit(1)
