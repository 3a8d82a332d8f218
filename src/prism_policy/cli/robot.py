"""The commands on a robot: robot, record, rollout, trials."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from prism_policy.cli.command import Command, Flat
from prism_policy.config.options import RecordOptions, TrialOptions
from prism_policy.config.ranges import NonNegative, Number, Positive, Seed
from prism_policy.errors import PrismError
from prism_policy.utils.terminal import console, shell


@dataclass(frozen=True)
class Robot(Command):
    """Check a robot before a policy runs on it: rates, latencies, age and drops of frames, and what a policy sees.

    The arm holds, unless --move is given. Exit code 1 where something is wrong. docs/robot.md has robot files.
    """

    what: Annotated[Literal["check"], tyro.conf.Positional]
    """What to do: check."""
    file: Annotated[Path, tyro.conf.Positional]
    """The robot file, TOML or JSON."""
    seconds: Positive = 5.0
    """How long to watch [s]."""
    move: bool = False
    """Also move the hand 1 cm up and back, and measure after what time the state shows it."""
    picture: Path = Path("robot.png")
    """Where the picture of what the policy sees goes."""

    def run(self) -> None:
        """Check, print, and draw."""
        from prism_client.control.check import check_robot
        from prism_client.control.words import about_checkup
        from prism_client.robots.robot_file import make_robot, read_robot_file
        from prism_policy.deploy.picture import draw_frame

        file = read_robot_file(self.file)
        robot = make_robot(file)
        robot.connect()
        try:
            checkup = check_robot(robot, file.limits, self.seconds, self.move)
        finally:
            robot.close()
        assert checkup.frame is not None
        console.print(*about_checkup(checkup))
        console.print(f"Picture: {draw_frame(checkup.frame, robot.schema, self.picture)}")
        if checkup.problems:
            sys.exit(1)
        console.print(f"Next: prism rollout {self.file} ws://SERVER:8000")


@dataclass(frozen=True)
class Record(Command):
    """Record demonstrations on a robot by keyboard or SpaceMouse, or on a simulated one by its scripted expert.

    Enter keeps a demonstration, Delete discards it (and you record it again), q leaves. Each is whole on the disk
    before the next begins; what is going on when the power goes is discarded. The same command goes on there.
    Next: prism train --dataset OUT/demos.hdf5.
    """

    robot: Annotated[Path, tyro.conf.Positional]
    """The robot file, TOML or JSON."""
    out: Path
    """Folder of the recordings, and of the dataset made of them."""
    options: Annotated[RecordOptions, Flat] = field(default_factory=RecordOptions)

    def run(self) -> None:
        """Record what is missing, write the dataset, and print where it lies."""
        from prism_client.robots.robot_file import read_robot_file
        from prism_policy.robots.record import record

        recorded = record(read_robot_file(self.robot), self.options, self.out)
        console.print(f"{recorded.kept} demonstrations kept, {recorded.discarded} discarded")
        if recorded.dataset is None:
            console.print(f"No dataset yet; the same command goes on in {self.out}")
            return
        info, train = shell("prism", "info", recorded.dataset), shell("prism", "train", "--dataset", recorded.dataset)
        console.print(f"Dataset: {recorded.dataset}", f"Next: {train}   ({info} says what it holds)")


@dataclass(frozen=True)
class Rollout(Command):
    """Run a served policy on a robot: guarded, without waiting for the network, every step on the disk.

    Space, q, Enter or Escape ends an episode; Ctrl-C ends it as void. The arm holds then, and whenever the server or a
    camera fails. PRISM_API_KEY is sent to a server that needs it. docs/robot.md says what is in an episode's folder.
    """

    robot: Annotated[Path, tyro.conf.Positional]
    """The robot file, TOML or JSON."""
    server: Annotated[str, tyro.conf.Positional]
    """Address of `prism serve`, such as ws://gpu-box:8000."""
    out: Path = Path("rollouts")
    """Folder of the episodes; those that are there stay."""
    episodes: Number = 1
    """How many, one after the other."""
    max_steps: Number = 400
    """Control steps after which an episode ends."""
    instruction: str = ""
    """What to do, in words, for a policy of several tasks."""
    seed: Seed = 0
    """Of the policy's noise in the first episode."""
    blocking: bool = False
    """Wait for each chunk, holding, instead of asking for the next one ahead."""
    reconnect_s: NonNegative = 10.0
    """How long the arm holds for a server that is gone before the episode ends [s]."""
    answer_s: Positive = 5.0
    """How long an answer may take before the server counts as gone [s]."""
    home_at_end: bool = False
    """Move home when an episode has ended."""
    latency_s: NonNegative = 0.0
    """Of a simulation in lock-step: how far away the server seems to be [s]."""
    ca: str = ""
    """Of wss://, a file of the certificates to trust, such as the server's own."""

    def run(self) -> None:
        """Run the episodes, and print how each went."""
        from prism_client.control.loop import LoopOptions, Outcome
        from prism_client.control.rollout import RolloutOptions, rollout
        from prism_client.control.words import about_outcome
        from prism_client.robots.robot_file import make_robot, read_robot_file

        file = read_robot_file(self.robot)
        robot = make_robot(file)
        if self.latency_s and robot.clock.real:
            raise PrismError("--latency-s is for a simulation in lock-step alone (settings.realtime = false)")
        loop = LoopOptions(self.max_steps, not self.blocking, self.reconnect_s, self.home_at_end)
        options = RolloutOptions(
            self.server, self.out, self.episodes, self.instruction or None, self.seed,
            os.environ.get("PRISM_API_KEY"), self.ca or None, self.answer_s, self.latency_s, loop,
        )  # fmt: skip

        def done(folder: Path, outcome: Outcome) -> None:
            console.print(f"{folder}: {about_outcome(outcome)}")

        outcomes = rollout(file, options, done=done, robot=robot)
        void = sum(bool(outcome.void) for outcome in outcomes)
        ended = ", ".join(
            f"{sum(outcome.ended == how for outcome in outcomes)} {how}"
            for how in ("success", "done", "stopped", "fault")
            if any(outcome.ended == how for outcome in outcomes)
        )
        console.print(f"Episodes: {ended or 'none'}" + f"; {void} void" * bool(void), f"Result: {self.out}")


@dataclass(frozen=True)
class Trials(Command):
    """Compare policies on a robot by trials: blinded, paired, resumable, with an answer that holds whenever you stop.

    Every policy starts from the same placements, in an order that is drawn and not shown. You match a picture, press
    Enter, watch, and press s (success), f (failure), n (note) or v (void). After each start it says how strong the
    evidence is, not for whom. The results read like simulated ones: prism compare OUT/A OUT/B --split trials.
    """

    robot: Annotated[Path, tyro.conf.Positional]
    """The robot file, TOML or JSON."""
    options: Annotated[TrialOptions, Flat]
    out: Path = Path("trials")
    """Folder of the trials; the same command goes on there."""
    unblind: bool = False
    """Say what the trials show although some are missing; then you know which policy is which."""

    def run(self) -> None:
        """Run the trials that are missing, and print what all of them say."""
        from prism_client.robots.robot_file import read_robot_file
        from prism_policy.robots.trials import run_trials
        from prism_policy.robots.verdict import finished, print_summary

        if not (self.options.region[0] < self.options.region[2] and self.options.region[1] < self.options.region[3]):
            raise PrismError(f"--region: expected left < right and top < bottom, got {self.options.region}")
        folder = run_trials(
            read_robot_file(self.robot), self.options, self.out, api_key=os.environ.get("PRISM_API_KEY")
        )
        valid = len(folder.valid())
        if valid and (self.unblind or finished(folder, self.options.starts, self.options.until)):
            print_summary(folder, self.out)
        else:
            console.print(f"{valid} trials count so far; when all are done it says which is which (--unblind: now)")
            console.print(f"The same command goes on in {self.out}")
