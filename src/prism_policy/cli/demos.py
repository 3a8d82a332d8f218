"""The commands that make files of demonstrations: collect, render, import, export, download."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from prism_policy.cli.command import PLAIN, Command, Flat, value_of
from prism_policy.config.presets import demo_config, task_config
from prism_policy.config.ranges import Natural, Range, Workers
from prism_policy.config.settings import DemoConfig, RenderConfig, check_task, single_tasks
from prism_policy.errors import PrismError
from prism_policy.tasks.adapted import is_adapted
from prism_policy.utils.progress import Bar
from prism_policy.utils.terminal import console, shell


@dataclass(frozen=True)
class Collect(Command):
    """Collect demonstrations of a scripted expert in simulation; only successes are kept, as simulator states.

    Writes an HDF5 file in robomimic's layout. The same seed gives the same demonstrations whatever the number of
    workers. Stop it whenever you like: the same command goes on where it was. Next: prism render FILE, which draws the
    images, at any cameras and resolution.
    """

    task: str = "lift"
    """Task to demonstrate: lift, can, square, tool_hang, the LIBERO suite libero_spatial or libero_10, or gym:ID
    with an expert (gym:FetchPickAndPlace-v4)."""
    numbers: tuple[Natural, ...] = ()
    """Tasks of a suite, by their place in it; by default all."""
    adapter: str = ""
    """Of gym:ID, the ObservationAdapter as MODULE:NAME; by default the one that comes with this library."""
    demos: Annotated[DemoConfig, Flat] = field(default_factory=DemoConfig)
    workers: Workers | None = None
    """Simulator processes; by default one for each core of the job."""
    out: Path | None = None
    """Copy of the file (of a suite: a folder); by default it stays in ~/.cache/prism-policy, or $PRISM_CACHE."""

    @classmethod
    def parse(cls, arguments: Sequence[str], prog: str) -> Callable[[], None]:
        """The work that these arguments ask for; the task decides how many demonstrations, and how disturbed."""
        task = value_of("--task", arguments, cls.task)
        default = cls(task, demos=demo_config(task))
        return tyro.cli(cls, args=list(arguments), prog=prog, default=default, config=PLAIN).run

    def run(self) -> None:
        """Collect them, and print where they lie."""
        from prism_policy.data.robomimic import read_attributes
        from prism_policy.demos.collect import collect

        for task in single_tasks(replace(task_config(self.task), numbers=self.numbers, adapter=self.adapter)):
            suite = task.spec.suite
            with Bar(f"Demonstrations of {task.name}" if suite else "Demonstrations", self.demos.num_demos) as bar:
                out = self.out / f"{task.spec.env_name}_demo.hdf5" if self.out and suite else self.out
                file = collect(task, self.demos, workers=self.workers, progress=bar.count, out=out)
            about = read_attributes(file)
            steps, tried = about["total"], about["tried"]
            made = f"{self.demos.num_demos} demonstrations, {steps} steps; {tried} episodes were tried"
            console.print(made, f"File: {file}")
        render, info = shell("prism", "render", self.out or file), shell("prism", "info", file)
        if is_adapted(self.task):  # its images are there already
            train = shell("prism", "train", "--task", self.task, "--dataset", self.out or file)
            console.print(f"Next: {train}   ({info} says what it holds)")
            return
        console.print(f"Next: {render}   (its images; {info} says what it holds)")


@dataclass(frozen=True)
class Render(Command):
    """Draw the images of recorded demonstrations from their simulator states, this library's or robomimic's.

    Writes an HDF5 file with the images and absolute actions beside the states. From one file of states come all of the
    paper's settings: two cameras or one, 84 or 240 px. The same command goes on where it was stopped. Next: prism train
    --dataset FILE.
    """

    file: Annotated[Path, tyro.conf.Positional]
    """An HDF5 file in robomimic's layout with `states`, or a folder of such files, as of a LIBERO suite."""
    cameras: tuple[str, ...] | None = None
    """Cameras to draw; by default those of the task."""
    render: Annotated[RenderConfig, Flat] = field(default_factory=RenderConfig)
    workers: Workers | None = None
    """Simulator processes; by default one for each core of the job."""
    out: Path | None = None
    """Copy of the file (of a folder: a folder); by default it stays in ~/.cache/prism-policy, or $PRISM_CACHE."""

    def run(self) -> None:
        """Draw the images, and print where they lie."""
        if not self.file.is_dir():
            file = self.draw(self.file, self.out)
            console.print(f"File: {file}", f"Next: {shell('prism', 'info', file)}   (frames on a contact sheet)")
            return
        if not (sources := sorted(self.file.glob("*.hdf5"))):
            raise PrismError(f"{self.file}: expected HDF5 files with demonstrations in this folder, got none")
        for source in sources:
            console.print(f"File: {self.draw(source, self.out / source.name if self.out else None)}")
        if self.out:
            console.print(f"Next: {shell('prism', 'train', '--task', 'SUITE', '--dataset', self.out)}")

    def draw(self, source: Path, out: Path | None) -> Path:
        """Draw one file's images; returns the file with them."""
        from prism_policy.data.recorded_env import read_env_args, recorded_env
        from prism_policy.data.robomimic import open_demos
        from prism_policy.demos.render import render_demos

        with open_demos(source) as demos:
            task = recorded_env(read_env_args(demos)).drawn_task(str(source))
            total = len(demos["data"])
        task = replace(task, cameras=self.cameras or task.cameras, render=self.render)
        check_task(task)
        with Bar("Rendering", total) as bar:
            return render_demos(source, task, workers=self.workers, progress=bar.count, out=out)


@dataclass(frozen=True)
class Import(Command):
    """Convert LIBERO's own demonstration files to robomimic's layout, or a policy that LeRobot trained to a run folder.

    Each action of LIBERO's is paired with the observation before it, images are turned upright, and the instruction is
    checked against the task's name. Next: prism render OUT --out FOLDER. Of a checkpoint of lerobot-train with
    --policy.type=prism the run folder's actions are LeRobot's to the bit. Next: prism evaluate OUT, or prism serve OUT.
    """

    source: Annotated[Path, tyro.conf.Positional]
    """LIBERO's HDF5, or a folder of them; or a checkpoint's folder, pretrained_model."""
    out: Annotated[Path, tyro.conf.Positional]
    """The new file, or a folder for a folder."""
    suite: str | None = None
    """Suite that the files must belong to; by default any."""
    task: str = ""
    """Of a checkpoint, the task that it is rolled out in here, such as lift; by default none, or that of its run."""

    def run(self) -> None:
        """Convert them, and print where they lie."""
        from prism_policy.data.libero import import_libero
        from prism_policy.demos.cache import check_free
        from prism_policy.deploy.lerobot_checkpoint import is_checkpoint, read_checkpoint

        check_free(self.out)
        if is_checkpoint(self.source):
            task = read_checkpoint(self.source, self.out, self.task).task
            verb = "evaluate" if task.spec.simulated else "serve"
            console.print(f"Run: {self.out} ({task.name})", f"Next: {shell('prism', verb, self.out)}")
            return
        if self.task:
            raise PrismError(f"task: expected none, as {self.source} is no checkpoint of LeRobot's; leave out --task")
        folder = self.source.is_dir()
        sources = sorted(self.source.glob("*.hdf5")) if folder else [self.source]
        if not sources:
            raise PrismError(f"{self.source}: expected LIBERO's HDF5 files in this folder, got none")
        with Bar("Importing", len(sources)) as bar:
            for done, source in enumerate(sources, start=1):
                target = self.out / source.name if folder else self.out
                target.parent.mkdir(parents=True, exist_ok=True)
                import_libero(source, target, self.suite)
                bar.count(done, len(sources))
        render = f"{shell('prism', 'render', self.out)} --out ..."
        console.print(
            f"Files: {self.out}", f"Next: {render}   (images as they will be drawn when policies are evaluated)"
        )


@dataclass(frozen=True)
class Export(Command):
    """Write demonstrations, or a trained policy, in another format: LeRobot's, or robomimic's HDF5.

    LeRobot opens and trains on the demonstrations. Images are stored as PNG, equal to the bit; --video makes them
    smaller and not equal. A robomimic file that is exported to LeRobot and back holds the same arrays. A run folder
    becomes a checkpoint that LeRobot's commands take as --policy.path with the plug-in lerobot_policy_prism.
    """

    source: Annotated[str, tyro.conf.Positional]
    """HDF5 file, folder of a LeRobot dataset, hf:USER/NAME on the Hugging Face hub; or a run folder."""
    format: Literal["lerobot", "robomimic"]
    """Format to write."""
    out: Path
    """New folder (lerobot) or HDF5 file (robomimic)."""
    video: Literal["none", "h264", "av1"] = "none"
    """Codec of LeRobot's videos; none stores PNG."""
    episodes: tuple[str, ...] = ()
    """Of a LeRobot dataset, which episodes: numbers and ranges such as 7 and 0:10 (0 to 9). By default all."""
    task: str = ""
    """What to do, in words; by default what the demonstrations say."""
    fps: Annotated[int, Range(1, 1000)] | None = None
    """Frames a second; by default what the demonstrations say."""
    checkpoint: str = "last"
    """Of a run folder, which weights: last, best, or those kept at an update."""

    def run(self) -> None:
        """Write it, and print where it lies."""
        from prism_policy.deploy.lerobot_checkpoint import is_run

        if is_run(Path(self.source)):
            self._export_policy(Path(self.source))
        elif self.checkpoint != "last":
            raise PrismError(f"checkpoint: expected none, as {self.source} is no run folder; leave out --checkpoint")
        else:
            self._export_demos()

    def _export_policy(self, run: Path) -> None:
        from prism_policy.deploy.lerobot_checkpoint import write_checkpoint

        of_demos = (("video", "none"), ("episodes", ()), ("task", ""), ("fps", None), ("format", "lerobot"))
        if other := [name for name, default in of_demos if getattr(self, name) != default]:
            raise PrismError(f"{other[0]}: {run} is a run folder, whose policy is exported; leave out --{other[0]}")
        write_checkpoint(run, self.out, self.checkpoint)
        command = shell("lerobot-eval", f"--policy.path={self.out}")
        console.print(f"Checkpoint: {self.out}", f"Next: {command} --env.type=... (pip install lerobot_policy_prism)")

    def _export_demos(self) -> None:
        from prism_policy.data.source import open_source
        from prism_policy.demos.cache import check_free
        from prism_policy.demos.export import ExportOptions, export
        from prism_policy.utils.hub import local_path

        check_free(self.out)
        if self.video != "none" and self.format != "lerobot":
            raise PrismError("video: robomimic's HDF5 holds images, not videos; leave out --video")
        source = open_source(local_path(self.source, "dataset"), episodes=self.episodes)
        for finding in source.findings:
            console.print(f"note: {finding}", style="yellow")
        options = ExportOptions(None if self.video == "none" else self.video, self.fps, self.task)
        with Bar("Exporting", len(source.names)) as bar:
            notes = export(source, self.out, self.format, options, bar.count)
        for note in notes:
            console.print(f"note: {note}", style="yellow")
        file = "File" if self.format == "robomimic" else "Folder"
        console.print(f"{file}: {self.out}", f"Next: {shell('prism', 'info', self.out)}")


@dataclass(frozen=True)
class Download(Command):
    """Download robomimic's human demonstrations from the Hugging Face hub.

    An interrupted download goes on, a finished one is not repeated, and the checksum is verified. Next: prism info
    FILE.
    """

    name: Annotated[str, tyro.conf.Positional]
    """Dataset such as robomimic/lift/ph: a task; ph (one proficient human) or mh (several humans)."""
    kind: Literal["low_dim", "demo", "image"] = "low_dim"
    """States with low-dimensional observations, states alone, or images drawn here from the states (84 px)."""
    out: Path | None = None
    """Folder; by default ~/.cache/prism-policy/robomimic, or $PRISM_CACHE/robomimic."""

    def run(self) -> None:
        """Download it, and print where it lies."""
        from prism_policy.demos.download import download

        file = download(self.name, self.kind, self.out)
        console.print(f"File: {file}", f"Next: {shell('prism', 'info', file)}")
