"""The commands about demonstrations and encoders: collect, render, import, info, download."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from prism_policy.config.presets import demo_config, task_config
from prism_policy.config.settings import DemoConfig, RenderConfig, check_task, single_tasks
from prism_policy.errors import PrismError


@dataclass(frozen=True)
class Collect:
    """Have a scripted expert demonstrate a task in simulation; only successes are kept, as simulator states.

    The same seed gives the same demonstrations whatever the number of workers. Stop it whenever you like: the same
    command goes on where it was. `prism render` then draws the images, at any cameras and resolution.
    """

    task: str = "lift"
    """What the robot has to do: a task, or a LIBERO suite (libero_spatial and libero_10 have experts)."""
    numbers: tuple[int, ...] = ()
    """Of a suite: some of its tasks, by their place in it; by default all."""
    num_demos: int | None = None
    """Successful demonstrations to keep, of each task; by default 200, of a suite's tasks 50."""
    noise: float | None = None
    """Strength of the disturbances the expert has to recover from, as a share of the full action range; by default 0.5,
    with LIBERO 0.25."""
    seed: int = DemoConfig.seed
    """Seed of the demonstrations."""
    workers: int | None = None
    """Simulator processes; by default one for each core."""
    out: Path | None = None
    """Where to copy the file, or of a suite the folder for a file of each task; by default they stay in
    ~/.cache/prism-policy, or $PRISM_CACHE."""

    def run(self) -> None:
        """Do it."""
        from prism_policy.data.robomimic import read_attributes
        from prism_policy.demos.cache import check_free, copy_out
        from prism_policy.demos.collect import collect
        from prism_policy.utils.progress import Bar

        demos = demo_config(self.task, self.seed)
        demos = replace(
            demos,
            num_demos=demos.num_demos if self.num_demos is None else self.num_demos,
            noise=demos.noise if self.noise is None else self.noise,
        )
        if demos.num_demos < 1 or demos.noise < 0 or self.seed < 0:
            raise PrismError(
                f"expected num_demos of 1 or more, noise and seed of 0 or more, got {demos.num_demos}, {demos.noise}, "
                f"{self.seed}"
            )
        check_free(self.out)
        for task in single_tasks(replace(task_config(self.task), numbers=self.numbers)):
            suite = task.spec.suite
            with Bar(f"Demonstrations of {task.name}" if suite else "Demonstrations", demos.num_demos) as bar:
                file = collect(task, demos, workers=self.workers, progress=bar.count)
            about = read_attributes(file)
            if self.out:
                file = copy_out(file, self.out / f"{task.spec.env_name}_demo.hdf5" if suite else self.out)
            print(f"{demos.num_demos} demonstrations, {about['total']} steps; {about['tried']} episodes were tried")
            print(f"File: {file}")
        rendered = self.out if self.out else file
        print(f"Next: prism render {rendered}   (its images; prism info {file} says what it holds)")


@dataclass(frozen=True)
class Render:
    """Draw the images of recorded demonstrations from their simulator states, this library's or robomimic's.

    The same command goes on where it was stopped. From one file of states come all of the paper's settings: two
    cameras or one, 84 or 240 px.
    """

    file: Annotated[Path, tyro.conf.Positional]
    """An HDF5 file in robomimic's layout with `states`, or a folder of such, as of a LIBERO suite."""
    cameras: tuple[str, ...] | None = None
    """Cameras; by default agentview (sideview for tool_hang) and robot0_eye_in_hand."""
    resolution: int = RenderConfig.resolution
    """Width and height of a frame [px]."""
    msaa: int = RenderConfig.msaa
    """Multi-sample anti-aliasing, samples a pixel; 0 is off."""
    shadows: bool = RenderConfig.shadows
    """Draw shadows."""
    reflections: bool = RenderConfig.reflections
    """Draw reflections."""
    workers: int | None = None
    """Simulator processes; by default one for each core."""
    out: Path | None = None
    """Where to copy the file (of a folder: another folder); by default it stays in ~/.cache/prism-policy, or
    $PRISM_CACHE."""

    def run(self) -> None:
        """Do it."""
        from prism_policy.demos.cache import check_free

        check_free(self.out)
        if not self.file.is_dir():
            file = self.draw(self.file, self.out)
            print(f"File: {file}\nNext: prism info {file}   (frames on a contact sheet)")
            return
        if not (sources := sorted(self.file.glob("*.hdf5"))):
            raise PrismError(f"{self.file}: expected HDF5 files with demonstrations in this folder, got none")
        for source in sources:
            print(f"File: {self.draw(source, self.out / source.name if self.out else None)}")
        if self.out:
            print(f"Next: prism train --task SUITE --dataset {self.out}")

    def draw(self, source: Path, out: Path | None) -> Path:
        """One file's images."""
        from prism_policy.data.recorded_env import read_env_args, recorded_env
        from prism_policy.data.robomimic import open_demos
        from prism_policy.demos.cache import copy_out
        from prism_policy.demos.render import render_demos
        from prism_policy.utils.progress import Bar

        with open_demos(source) as demos:
            task = recorded_env(read_env_args(demos)).task_config(str(source), actions=False)
            total = len(demos["data"])
        render = RenderConfig(self.resolution, self.msaa, self.shadows, self.reflections)
        task = replace(task, cameras=self.cameras or task.cameras, render=render)
        check_task(task)
        with Bar("Rendering", total) as bar:
            file = render_demos(source, task, workers=self.workers, progress=bar.count)
        return copy_out(file, out) if out else file


@dataclass(frozen=True)
class Import:
    """Write LIBERO's own demonstration files in the layout that the rest of the library reads.

    Each action beside what was seen before it, images upright, the instruction checked against the task's name.
    """

    source: Annotated[Path, tyro.conf.Positional]
    """LIBERO's HDF5, or a folder of them."""
    out: Annotated[Path, tyro.conf.Positional]
    """Where to: a file, or a folder for a folder."""
    suite: str | None = None
    """The suite that they must be of; by default any."""

    def run(self) -> None:
        """Do it."""
        from prism_policy.data.libero import import_libero
        from prism_policy.demos.cache import check_free
        from prism_policy.utils.progress import Bar

        check_free(self.out)
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
        print(f"Files: {self.out}")
        print(f"Next: prism render {self.out} --out ...   (images as they will be drawn when policies are evaluated)")


@dataclass(frozen=True)
class InfoEncoders:
    """What each encoder costs: numbers a camera, parameters, operations and milliseconds of a forward."""

    resolutions: tuple[int, ...] = (84, 240)
    """Widths and heights of the image [px]; the encoder crops it (84 px to 76, 240 px to 216)."""
    width: int = 64
    """Channels of the trunk's first stage."""
    batch_size: int = 1
    """Images in the forward that is timed."""
    threads: int | None = None
    """CPU threads of that forward; by default as many as torch chooses."""
    json: bool = False
    """Print JSON and nothing else."""

    def run(self) -> None:
        """Do it."""
        from prism_policy.probe.encoder_cost import print_encoders

        print_encoders(self.resolutions, self.width, self.batch_size, self.threads, self.json)


@dataclass(frozen=True)
class InfoDemos:
    """What a file of demonstrations in robomimic's layout holds, and whether they still succeed in the simulator here.

    Steps, cameras, observations, action statistics, masks and what recorded it; then some demonstrations are replayed
    open loop, and a contact sheet of their frames is written.
    """

    file: Annotated[Path, tyro.conf.Positional]
    """An HDF5 file."""
    replay: int | None = None
    """Demonstrations to replay; by default 3 where the file has states and the simulator is installed, else none."""
    out: Path | None = None
    """The contact sheet; by default FILE's name with -contact.png, in the current folder."""
    json: bool = False
    """Print JSON and nothing else."""

    def run(self) -> None:
        """Do it."""
        from prism_policy.demos.inspect import print_demos

        print_demos(self.file, self.replay, self.out, self.json)


@dataclass(frozen=True)
class Info:
    """What a file of demonstrations holds (`prism info FILE`, or `prism info demos FILE`), or what encoders cost."""

    topic: Annotated[
        Annotated[InfoDemos, tyro.conf.subcommand("demos")] | Annotated[InfoEncoders, tyro.conf.subcommand("encoders")],
        tyro.conf.arg(name=""),
    ]
    """What to tell."""

    def run(self) -> None:
        """Do it."""
        self.topic.run()


@dataclass(frozen=True)
class Download:
    """Fetch robomimic's published demonstrations from the Hugging Face hub.

    What was interrupted goes on, what was fetched before is not fetched again, and the hub's checksum is verified.
    """

    name: Annotated[str, tyro.conf.Positional]
    """Such as robomimic/lift/ph: lift, can, square or tool_hang; ph, by one proficient human, or mh, by several."""
    kind: Literal["low_dim", "demo", "image"] = "low_dim"
    """States with low-dimensional observations, states alone, or images drawn here from the states (84 px)."""
    out: Path | None = None
    """Folder; by default ~/.cache/prism-policy/robomimic, or $PRISM_CACHE/robomimic."""

    def run(self) -> None:
        """Do it."""
        from prism_policy.demos.download import download

        file = download(self.name, self.kind, self.out)
        print(f"File: {file}\nNext: prism info {file}")
