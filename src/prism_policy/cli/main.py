"""The command `prism`. Torch and the simulator are imported only by the command that needs them."""

from __future__ import annotations

import importlib.util
import math
import os
import signal
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from prism_policy.cli.demos import Collect, Download, Import, Info, Render
from prism_policy.cli.paper import Reproduce
from prism_policy.cli.saliency import Saliency
from prism_policy.config import presets
from prism_policy.config.settings import (
    ActionMode,
    AnyTask,
    Device,
    PolicyKind,
    Precision,
    ProbeConfig,
    TaskName,
    Tracker,
)
from prism_policy.errors import PrismError

EncoderName = Literal[
    "avgpool", "maxpool", "nopool", "sspool", "ms_avgpool", "ms_maxpool", "ms_nopool", "ms_sspool", "prism"
]


@dataclass(frozen=True)
class Quickstart:
    """Demonstrations, policy, measured success and a report, from nothing: on Lift in ten minutes on two CPU cores.

    A scripted expert collects demonstrations in simulation (kept in ~/.cache/prism-policy, or $PRISM_CACHE), a small
    policy learns from their images, and 20 unseen episodes measure it. Stop it whenever you like: the same command goes
    on where it was.
    """

    task: TaskName = "lift"
    """What the robot has to do. The settings are made for Lift; on the other tasks nothing was measured."""
    policy: PolicyKind = "flow_matching"
    """Generative model of the action chunk."""
    encoder: EncoderName = "prism"
    """Visual encoder: the paper's PRISM, its baseline sspool, or one of the ablations."""
    cameras: tuple[str, ...] | None = None
    """Cameras the policy sees; by default agentview (sideview for tool_hang) and robot0_eye_in_hand."""
    action_mode: ActionMode = "delta"
    """Actions that say how far the hand shall move, or where in the world it shall be."""
    seed: int = 0
    """Seed of demonstrations, training and evaluation (three separate random streams)."""
    out: Path | None = None
    """Run folder; by default runs/quickstart-TASK-POLICY-ENCODER-sSEED."""
    smoke: bool = False
    """The same path at the smallest size, in about a minute; says nothing about success."""

    def run(self) -> None:
        """Do it."""
        from prism_policy.cli.quickstart import quickstart
        from prism_policy.reports.evaluate import print_summary

        config = presets.nano(self.task, self.policy, self.encoder, self.seed)
        task = replace(config.task, cameras=self.cameras or config.task.cameras, action_mode=self.action_mode)
        config = replace(config, task=task)
        if self.smoke:
            config = presets.smoke(config)
        name = f"{'smoke' if self.smoke else 'quickstart'}-{self.task}-{self.policy}-{self.encoder}-s{self.seed}"
        folder = self.out or Path("runs") / (name + "-absolute" * (self.action_mode == "absolute"))
        print_summary(folder, quickstart(folder, config, "smoke" if self.smoke else "nano"))


@dataclass(frozen=True)
class Train:
    """Train a policy on demonstrations: a file's, or the scripted expert's, which are made where they are missing.

    Nine of ten demonstrations are learned (the file's mask `train`), the others measure loss and action error on the
    way. Stop it whenever you like: the same command goes on where it was, and ends with the same weights.
    """

    task: AnyTask = "lift"
    """What the robot has to do: a task, or a LIBERO suite, of which one policy learns all tasks."""
    numbers: tuple[int, ...] = ()
    """Of a suite: some of its tasks, by their place in it; by default all."""
    policy: PolicyKind = "flow_matching"
    """Generative model of the action chunk."""
    encoder: EncoderName = "prism"
    """Visual encoder: the paper's PRISM, its baseline sspool, or one of the ablations."""
    dataset: Path | None = None
    """File of demonstrations with images, such as `prism render` writes, or of a suite a folder with one for each task;
    by default the scripted expert's."""
    preset: Literal["nano", "small", "paper"] = "nano"
    """Sizes and schedule: what two CPU cores do in minutes, the paper's networks with a tenth of its windows, or all of
    the paper's (Tables 8 to 12); the latter two need a GPU."""
    set: tuple[str, ...] = ()
    """Any other fields of config.json: --set train.steps=3000 policy.encoder.width=32 task.action_mode=absolute."""
    precision: Precision | None = None
    """Arithmetic of the network; by default the preset's (nano float32, paper bfloat16)."""
    compile: bool | None = None
    """Fuse operations with torch.compile; by default the preset's (only paper does, for a GPU)."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU where there is one."""
    processes: int = 1
    """Processes (GPUs) of this machine that share each batch; several machines: start the command with torchrun."""
    track: tuple[Tracker, ...] = ()
    """Figures also for TensorBoard (RUN/tensorboard) or Weights & Biases."""
    seed: int = 0
    """Seed of the weights, the batches and the noise (and of the scripted demonstrations)."""
    max_minutes: float | None = None
    """Stop after so long, with a checkpoint to go on from."""
    out: Path | None = None
    """Run folder; by default runs/train-TASK-POLICY-ENCODER-PRESET-sSEED."""

    def run(self) -> None:
        """Do it."""
        from prism_policy.config.config_json import override
        from prism_policy.config.settings import check
        from prism_policy.demos.dataset import fit_to_dataset
        from prism_policy.training.distributed import is_launched, launch
        from prism_policy.training.run import train_run

        if self.processes > 1 and not is_launched():
            launch(self.processes, sys.argv[1:])
            return
        preset = {"nano": presets.nano, "small": presets.small, "paper": presets.paper}[self.preset]
        config = preset(self.task, self.policy, self.encoder, self.seed)
        precision = config.train.precision if self.precision is None else self.precision
        compiled = config.train.compile if self.compile is None else self.compile
        config = replace(config, train=replace(config.train, precision=precision, compile=compiled))
        config = replace(config, task=replace(config.task, numbers=self.numbers))
        config = override(config, self.set)
        check(config)
        if self.dataset:
            config = fit_to_dataset(replace(config, dataset=str(self.dataset.absolute())))
        name = f"train-{self.task}-{self.policy}-{self.encoder}-{self.preset}-s{self.seed}"
        limit = math.inf if self.max_minutes is None else 60 * self.max_minutes
        folder = self.out or Path("runs") / name
        train_run(folder, config, device=self.device, track=self.track, max_s=limit)


@dataclass(frozen=True)
class Evaluate:
    """Roll trained policies out in unseen episodes: success with its interval, videos, a report.

    An episode's outcome depends on its seed and number alone, whatever runs beside it. Stop it whenever you like:
    finished episodes are kept, and more episodes, seeds and checkpoints can be added later.
    """

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders. Of several, the mean over them is printed, too."""
    n_episodes: int | None = None
    """Episodes of each seed; by default as in the run's config.json."""
    checkpoints: tuple[str, ...] = ("last",)
    """Which weights: last, best (in the rollouts during training), the number of updates of kept ones such as 12500, or
    last10, the last ten that were kept. The first one is the report's headline."""
    seeds: tuple[int, ...] | None = None
    """Seeds of the episodes' starts and noise; by default as in the run's config.json."""
    split: Literal["evaluate", "validate"] | None = None
    """Stream of episodes: validate is for choosing settings, evaluate for the result; by default as in config.json."""
    workers: int | None = None
    """Simulator processes; by default one for each core."""
    video_every: int | None = None
    """A video of every so-many-th episode of the first checkpoint; 0 is none; by default at most 20 a seed."""
    rerun: bool = False
    """Also write recordings for Rerun, of at most 5 episodes a seed (needs prism-policy[rerun])."""

    def run(self) -> None:
        """Do it."""
        from prism_policy.reports.evaluate import Asked, evaluate_runs, print_runs, print_summary

        asked = Asked(self.n_episodes, self.checkpoints, self.seeds, self.split, self.video_every, self.rerun)
        summaries = evaluate_runs(self.folders, asked, self.workers)
        for folder, summary in zip(self.folders, summaries, strict=True):
            print_summary(folder, summary)
        if len(summaries) > 1:
            print_runs(self.folders, summaries)


@dataclass(frozen=True)
class Compare:
    """Compare two evaluated runs episode by episode, on the starts that both have met.

    Prints the difference with its 95% interval and McNemar's exact test, and writes them as JSON.
    """

    run_a: Annotated[Path, tyro.conf.Positional]
    """A run folder."""
    run_b: Annotated[Path, tyro.conf.Positional]
    """Another one, or the same one with another checkpoint."""
    checkpoints: tuple[str, str] = ("last", "last")
    """Whose episodes, of A and of B."""
    split: Literal["evaluate", "validate"] = "evaluate"
    """Stream of the episodes."""
    out: Path | None = None
    """The JSON file; by default in A's results."""

    def run(self) -> None:
        """Do it."""
        from prism_policy.evaluation.compare import compare

        print(f"Result: {compare(self.run_a, self.run_b, self.checkpoints, self.split, self.out)}")


@dataclass(frozen=True)
class Probe:
    """Ask encoders where things are, and compare their errors in millimetres and radians.

    Each encoder learns, with one linear layer on top, the poses of the objects and the hand in random still scenes of a
    task, and is measured on other scenes, from several seeds. Minutes instead of a policy's hours: a way to choose an
    encoder for a camera, a resolution or a task. Stop it whenever you like: the same command goes on where it was, and
    more encoders, resolutions and seeds can be added to a folder later.
    """

    task: TaskName = "lift"
    """Whose scenes."""
    camera: str | None = None
    """Camera that looks at them; by default sideview for tool_hang, else agentview."""
    encoders: tuple[str, ...] = tuple(presets.ENCODERS)
    """Presets, such as prism or sspool; sspool@2 reads the second stage; or JSON files with an EncoderConfig."""
    resolutions: tuple[int, ...] = (84,)
    """Sizes of the frames [px]."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the trainings; the interval is over them."""
    width: int = ProbeConfig.width
    """Channels of the trunk's first stage: 16 is what two cores train in seconds, 64 the paper's."""
    steps: int = ProbeConfig.steps
    """Updates of each encoder."""
    batch_size: int = ProbeConfig.batch_size
    """Frames an update."""
    frames: int = ProbeConfig.train_frames
    """Scenes to learn from; a quarter as many others measure."""
    workers: int | None = None
    """Trainings at a time; by default one for each core. A GPU does one at a time."""
    out: Path | None = None
    """Folder of the results; by default runs/probe-TASK-CAMERA-wWIDTH."""

    def run(self) -> None:
        """Do it."""
        from prism_policy.probe.train import print_probe

        camera = self.camera or ("sideview" if self.task == "tool_hang" else "agentview")
        config = ProbeConfig(
            self.task, camera, self.width, self.steps, self.batch_size, ProbeConfig.lr, self.frames, self.frames // 4
        )
        folder = self.out or Path("runs") / f"probe-{self.task}-{camera}-w{self.width}"
        print_probe(folder, config, self.encoders, self.resolutions, self.seeds, self.workers)


@dataclass(frozen=True)
class Serve:
    """Let robots ask a trained policy over the network, in the protocol of openpi's policy servers.

    A robot's control loop uses prism_policy.deploy.client, which needs neither torch nor a simulator, or openpi's own
    client. With PRISM_API_KEY set, only who sends it is admitted. docs/serving.md has the messages.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    checkpoint: str = "last"
    """Which weights: last, best, or the number of updates of kept ones."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 lets other machines ask."""
    port: int = 8000
    """0 is any that is free."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU where there is one."""
    seed: int = 0
    """Seed of the policy's noise."""

    def run(self) -> None:
        """Do it."""
        for package in ("msgpack", "websockets"):
            if importlib.util.find_spec(package) is None:
                raise PrismError(f"{package} is not installed; run `pip install prism-policy[serve]`")
        from prism_policy.deploy.server import serve

        key = os.environ.get("PRISM_API_KEY")
        serve(self.folder, self.checkpoint, self.host, self.port, self.device, self.seed, key)


@dataclass(frozen=True)
class Report:
    """Write report.html of a run folder anew."""

    folder: Annotated[Path, tyro.conf.Positional]
    """The run folder."""

    def run(self) -> None:
        """Do it."""
        from prism_policy.reports.report import write_report

        print(f"Report: {write_report(self.folder)}")


Command = (
    Annotated[Quickstart, tyro.conf.subcommand("quickstart")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
    | Annotated[Collect, tyro.conf.subcommand("collect")]
    | Annotated[Render, tyro.conf.subcommand("render")]
    | Annotated[Saliency, tyro.conf.subcommand("saliency")]
    | Annotated[Serve, tyro.conf.subcommand("serve")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Probe, tyro.conf.subcommand("probe")]
    | Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Import, tyro.conf.subcommand("import")]
    | Annotated[Download, tyro.conf.subcommand("download")]
)


def _arguments(arguments: list[str]) -> list[str]:
    """What was typed, with `info FILE` written out as `info demos FILE`."""
    if arguments[:1] == ["info"] and len(arguments) > 1 and ({".", "/"} & set(arguments[1])):
        return ["info", "demos", *arguments[1:]]
    return arguments


def heed_lost_interrupt(lost: sys.UnraisableHookArgs) -> None:
    """Python drops an exception that is raised while an object is destroyed, Ctrl-C's too: have that come again."""
    if issubclass(lost.exc_type, KeyboardInterrupt):
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(lost)


def main() -> None:
    """Entry point: exit code 0 on success, 2 on bad input, 130 on Ctrl-C."""
    sys.unraisablehook = heed_lost_interrupt
    command = tyro.cli(
        Command,
        args=_arguments(sys.argv[1:]),
        prog="prism",
        description="Robot demonstrations into visuomotor policies, measured honestly.",
    )
    launched = "TORCHELASTIC_ERROR_FILE" in os.environ  # one of several processes
    try:
        command.run()
    except PrismError as error:
        _tell(f"prism: {error}", error, launched)
        sys.exit(2)
    except KeyboardInterrupt as error:
        _tell("prism: stopped; the same command goes on from here", error, launched)
        sys.exit(130)
    except Exception as error:
        if not launched:
            raise
        _tell("", error, launched)
        sys.exit(1)


def _tell(message: str, error: BaseException, launched: bool) -> None:
    if not launched:
        print(message, file=sys.stderr)
        return
    from prism_policy.training.distributed import record_failure

    record_failure(error)


if __name__ == "__main__":
    main()
