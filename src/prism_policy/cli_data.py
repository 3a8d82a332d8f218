"""The commands about demonstrations and encoders: collect, render, info, download."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from prism_policy.config import DemoConfig, RenderConfig, TaskConfig, TaskName, check_cameras
from prism_policy.errors import PrismError


@dataclass(frozen=True)
class Collect:
    """Have a scripted expert demonstrate a task in simulation; only successes are kept, as simulator states.

    The same seed gives the same demonstrations whatever the number of workers. Stop it whenever you like: the same
    command goes on where it was. `prism render` then draws the images, at any cameras and resolution.
    """

    task: TaskName = "lift"
    """What the robot has to do."""
    num_demos: int = DemoConfig.num_demos
    """Successful demonstrations to keep."""
    noise: float = DemoConfig.noise
    """Strength of the disturbances the expert has to recover from, as a share of the full action range."""
    seed: int = DemoConfig.seed
    """Seed of the demonstrations."""
    workers: int | None = None
    """Simulator processes; by default one for each core."""
    out: Path | None = None
    """Where to copy the file; by default it stays in ~/.cache/prism-policy, or $PRISM_CACHE."""

    def run(self) -> None:
        """Do it."""
        from prism_policy.cache import check_free, copy_out
        from prism_policy.collect import collect
        from prism_policy.data.robomimic import read_attributes
        from prism_policy.progress import Bar

        if self.num_demos < 1 or self.noise < 0 or self.seed < 0:
            raise PrismError(
                f"expected num_demos of 1 or more, noise and seed of 0 or more, got {self.num_demos}, {self.noise}, "
                f"{self.seed}"
            )
        check_free(self.out)
        task, demos = TaskConfig(self.task), DemoConfig(self.num_demos, self.noise, self.seed)
        with Bar("Demonstrations", self.num_demos) as bar:
            file = collect(task, demos, workers=self.workers, progress=bar.count)
        about = read_attributes(file)
        file = copy_out(file, self.out) if self.out else file
        print(f"{self.num_demos} demonstrations, {about['total']} steps; {about['tried']} episodes were tried")
        print(f"File: {file}\nNext: prism render {file}   (its images; prism info {file} says what it holds)")


@dataclass(frozen=True)
class Render:
    """Draw the images of recorded demonstrations from their simulator states, this library's or robomimic's.

    The same command goes on where it was stopped. From one file of states come all of the paper's settings: two
    cameras or one, 84 or 240 px.
    """

    file: Annotated[Path, tyro.conf.Positional]
    """An HDF5 file in robomimic's layout with `states`."""
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
    """Where to copy the file; by default it stays in ~/.cache/prism-policy, or $PRISM_CACHE."""

    def run(self) -> None:
        """Do it."""
        from prism_policy.cache import check_free, copy_out
        from prism_policy.collect import render_demos
        from prism_policy.data.robomimic import open_demos
        from prism_policy.data.robomimic_env import read_env_args, recorded_env
        from prism_policy.progress import Bar

        with open_demos(self.file) as demos:
            task = recorded_env(read_env_args(demos)).task_config(str(self.file), actions=False)
            total = len(demos["data"])
        render = RenderConfig(self.resolution, self.msaa, self.shadows, self.reflections)
        task = replace(task, cameras=self.cameras or task.cameras, render=render)
        check_cameras(task)
        check_free(self.out)
        with Bar("Rendering", total) as bar:
            file = render_demos(self.file, task, workers=self.workers, progress=bar.count)
        file = copy_out(file, self.out) if self.out else file
        print(f"File: {file}\nNext: prism info {file}   (frames on a contact sheet)")


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
        from prism_policy.info import print_encoders

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
        from prism_policy.demo_info import print_demos

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
        from prism_policy.download import download

        file = download(self.name, self.kind, self.out)
        print(f"File: {file}\nNext: prism info {file}")
