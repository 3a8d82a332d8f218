"""The commands about files and encoders: info and probe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from prism_policy.cli.command import PLAIN, Command, Flat, value_of
from prism_policy.config import presets
from prism_policy.config.ranges import Natural, Resolution, Seed, Size, Workers
from prism_policy.config.settings import Device, ProbeConfig

_named = tyro.conf.subcommand


@dataclass(frozen=True)
class Probe(Command):
    """Measure how well encoders locate objects, in millimetres and radians.

    Each encoder, with one linear layer on top, learns the poses of the objects and the hand in random still scenes of a
    task, and is measured on other scenes, from several seeds. It takes minutes instead of a policy's hours: a way to
    choose an encoder for a camera, a resolution or a task. Writes results.jsonl, table.md and probe.png. Stop it
    whenever you like: the same command goes on where it was, and more encoders, resolutions and seeds can be added to a
    folder later.
    """

    config: Annotated[ProbeConfig, Flat] = field(default_factory=ProbeConfig)
    encoders: tuple[str, ...] = tuple(presets.ENCODERS)
    """Presets, such as prism or sspool; sspool@2 reads the second stage; or JSON files with an EncoderConfig."""
    resolutions: tuple[Resolution, ...] = (84,)
    """Width and height of the frames [px]."""
    seeds: tuple[Seed, ...] = (0, 1, 2)
    """Seeds of the trainings; the interval is over them."""
    device: Device = "auto"
    """Where to compute; auto is a GPU where there is one."""
    workers: Workers | None = None
    """Trainings at a time; by default one for each core. A GPU does one at a time."""
    out: Path | None = None
    """Folder of the results; by default runs/probe-TASK-CAMERA-wWIDTH."""

    @classmethod
    def parse(cls, arguments: Sequence[str], prog: str) -> Callable[[], None]:
        """The probe that these arguments ask for; the task decides the camera unless `--camera` does."""
        task = value_of("--task", arguments, ProbeConfig.task)
        default = cls(ProbeConfig(task=task, camera=presets.task_config(task).cameras[0]))
        return tyro.cli(cls, args=list(arguments), prog=prog, default=default, config=PLAIN).run

    def run(self) -> None:
        """Train and measure the encoders, and print the table."""
        from prism_policy.probe.train import print_probe

        config = self.config
        folder = self.out or Path("runs") / f"probe-{config.task}-{config.camera}-w{config.width}"
        print_probe(folder, config, self.encoders, self.resolutions, self.seeds, self.workers, self.device)


@dataclass(frozen=True)
class InfoEncoders(Command):
    """What each encoder costs: numbers a camera, parameters, operations and milliseconds of a forward pass."""

    resolutions: tuple[Resolution, ...] = (84, 240)
    """Widths and heights of the image [px]; the encoder crops it (84 px to 76, 240 px to 216)."""
    width: Size = 64
    """Channels of the trunk's first stage."""
    batch_size: Size = 1
    """Images in the forward pass that is timed."""
    device: Device = "auto"
    """Where to time it; auto is a GPU where there is one."""
    threads: Workers | None = None
    """CPU threads of that forward pass; by default as many as torch chooses."""
    json: bool = False
    """Print JSON and nothing else."""

    def run(self) -> None:
        """Print the table."""
        from prism_policy.probe.encoder_cost import print_encoders

        print_encoders(self.resolutions, self.width, self.batch_size, self.threads, self.json, self.device)


@dataclass(frozen=True)
class InfoDemos(Command):
    """What a file of demonstrations in robomimic's layout holds, and whether they still succeed in the simulator here.

    Prints steps, cameras, observations, action statistics, masks and what recorded it, replays some demonstrations open
    loop, and writes a contact sheet of their frames. Next: prism train --dataset FILE.
    """

    file: Annotated[Path, tyro.conf.Positional]
    """An HDF5 file."""
    replay: Natural | None = None
    """Demonstrations to replay; by default 3 where the file has states and the simulator is installed, else none."""
    out: Path | None = None
    """The contact sheet; by default FILE's name with -contact.png, in the current folder."""
    json: bool = False
    """Print JSON and nothing else."""

    def run(self) -> None:
        """Print what the file holds."""
        from prism_policy.demos.inspect import print_demos

        print_demos(self.file, self.replay, self.out, self.json)


@dataclass(frozen=True)
class Info(Command):
    """Show what a file of demonstrations holds (`prism info FILE`), or what encoders cost (`prism info encoders`)."""

    topic: Annotated[Annotated[InfoDemos, _named("demos")] | Annotated[InfoEncoders, _named("encoders")], Flat]
    """`prism info FILE` is short for `prism info demos FILE`."""

    @classmethod
    def parse(cls, arguments: Sequence[str], prog: str) -> Callable[[], None]:
        """The inspection that these arguments ask for; the word `demos` may be left out before a file."""
        if arguments and arguments[0] not in ("demos", "encoders") and not arguments[0].startswith("-"):
            arguments = ["demos", *arguments]
        return tyro.cli(cls, args=list(arguments), prog=prog, config=PLAIN).topic.run
