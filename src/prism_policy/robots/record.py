"""`prism record`: demonstrations on a robot, each whole on the disk before the next begins.

FOLDER/episodes/episode_000 holds every step as it is made, forced onto the disk twice a second, and, once somebody has
decided, outcome.json. What was going on when the power went has none: it is discarded, and everything before is there.
The dataset is written from the kept ones, in the end or by the next call.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prism_client.control.clock import Clock
from prism_client.control.guard import Guard
from prism_client.control.log import EpisodeLog, read_episode, read_steps, write_json
from prism_client.control.rollout import next_folder
from prism_client.control.sight import Sight
from prism_client.control.stop import Stop
from prism_client.interface import Interface
from prism_client.robots.robot import Robot
from prism_client.robots.robot_file import RobotFile, make_robot
from prism_client.schema import Schema
from prism_policy.config.options import RecordOptions
from prism_policy.config.typed_json import conform
from prism_policy.data.recorded_env import ROBOT_TYPE
from prism_policy.data.source import open_source
from prism_policy.demos.export import ExportOptions, export
from prism_policy.demos.record import Recorder
from prism_policy.errors import PrismError
from prism_policy.robots.operator import ENTER, QUIT, Keys
from prism_policy.robots.spacemouse import open_spacemouse
from prism_policy.robots.teleop import HELP, Demonstrator, Expert, Jog, Keyboard, SpaceMouse
from prism_policy.utils.files import disk_errors, folder_lock, scratch
from prism_policy.utils.progress import console
from prism_policy.utils.text import one_line

MOST_FAILURES = 5
"""Discarded demonstrations of the expert in a row."""


@dataclass(frozen=True)
class Recorded:
    """What is in the folder."""

    kept: int
    discarded: int
    dataset: Path | None
    """None where nothing was kept."""


def record(file: RobotFile, options: RecordOptions, out: Path, keys: Keys | None = None) -> Recorded:
    """Record the demonstrations that are missing, and write the dataset of all that were kept.

    Raises:
        PrismError: the robot cannot be recorded in this way, or the folder holds something else.
    """
    robot = make_robot(file)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    if other := [one.name for one in out.iterdir() if one.name not in ("episodes", ".lock", *DATASETS.values())]:
        raise PrismError(f"{out} holds {one_line(other[0], 60)} and is no folder of recordings; choose another --out")
    if getattr(getattr(robot, "task", None), "action_mode", "delta") == "absolute":
        raise PrismError("settings.action_mode: simulated demonstrations are recorded as steps; leave it out")
    with folder_lock(out, "recording into"):
        session = _Session(robot, file, options, out)
        try:
            session.run(keys or Keys())
        finally:
            with suppress(Exception):
                robot.close()
        kept = kept_episodes(out)
        dataset = write_dataset(kept, out, options) if kept else None
    return Recorded(len(kept), len(list((out / "episodes").glob("*"))) - len(kept), dataset)


class _Session:
    """Demonstrations from one call of the command."""

    def __init__(self, robot: Robot, file: RobotFile, options: RecordOptions, out: Path) -> None:
        self.robot, self.file, self.options, self.out = robot, file, options, out
        self.guard = Guard(robot.schema, file.limits, file.workspace, getattr(robot, "where", None))
        self.simulated = hasattr(robot, "begin")

    def _demonstrator(self, keys: Keys) -> Demonstrator:
        options, limits = self.options, self.file.limits
        if options.by == "expert":
            return Expert(self.robot, options.noise, options.max_steps)
        jog = Jog(self.robot.schema, options.speed, options.turn_speed, limits.share_m, limits.share_rad)
        if options.by == "spacemouse":
            return SpaceMouse(open_spacemouse(), keys, jog)
        return Keyboard(keys, jog)

    def run(self, keys: Keys) -> None:
        """Demonstration after demonstration."""
        interrupted(self.out)
        missing = self.options.episodes - len(kept_episodes(self.out))
        if missing <= 0:
            return
        self.robot.connect()
        with keys:
            demonstrate = self._demonstrator(keys)
            if self.options.by != "expert":
                console.print(HELP, "Enter keeps the demonstration, Delete discards it, q leaves")
            failures = 0
            while missing > 0:
                folder = next_folder(self.out / "episodes")
                self._place(int(folder.name.rpartition("_")[2]))
                if self.options.by != "expert":
                    question = f"{missing} to go; put the objects anyhow."
                    if keys.choose(question, {ENTER: "begins", QUIT: "leaves"}) == QUIT:
                        return
                ending, steps, why = self._demonstration(demonstrate, folder)
                missing -= ending == "keep"
                failures = 0 if ending == "keep" else failures + 1
                console.print(f"{folder.name}: {ENDINGS[ending]} after {steps} steps{f' ({why})' * bool(why)}")
                if ending == "leave":
                    return
                if self.options.by == "expert" and failures == MOST_FAILURES:
                    raise PrismError(f"the expert failed {failures} times in a row; choose a smaller --noise")

    def _place(self, number: int) -> None:
        """Put the arm, and in simulation the objects, where a demonstration begins."""
        if self.simulated:
            self.robot.begin("collect", self.options.seed, number)  # type: ignore[attr-defined]
        else:
            self.robot.home()

    def _demonstration(self, demonstrate: Demonstrator, folder: Path) -> tuple[str, int, str]:
        """Record one; returns how it ended, after how many steps, and why where something was wrong."""
        jog: Any = getattr(demonstrate, "jog", demonstrate)
        jog.reset()
        self.guard.reset()
        about = {
            "format": "prism episode 1", "robot": self.file.as_json(), "schema": dataclasses.asdict(self.robot.schema),
            "by": self.options.by, "task": self.options.task, "env_args": getattr(self.robot, "env_args", ""),
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }  # fmt: skip
        with EpisodeLog(folder, about) as log:
            try:
                ending, steps, why = self._loop(demonstrate, log)
            except KeyboardInterrupt:
                ending, steps, why = "leave", None, "Ctrl-C"
            finally:
                with suppress(Exception):
                    self.robot.hold()
            log.end({"kept": ending == "keep", "why": why, **({} if steps is None else {"steps": steps})})
        return ending, steps or 0, why

    def _loop(self, demonstrate: Demonstrator, log: EpisodeLog) -> tuple[str, int, str]:
        clock: Clock = self.robot.clock
        schema, never = self.robot.schema, Stop()
        unlimited = (-np.inf,) * schema.action_dim, (np.inf,) * schema.action_dim
        sight = Sight(Interface(schema, 1, 1, *unlimited), self.file.limits, clock)
        due, step = clock.now(), 0
        while True:
            now = clock.now()
            try:
                frame = self.robot.observe()
                seen = sight.checked(frame)
                command = demonstrate(frame)
                sent, changes = self.guard.safe(command.action, seen["state"])
                self.robot.act(sent)
                if (jog := getattr(demonstrate, "jog", None)) is not None:
                    jog.follow(sent)
            except Exception as error:  # a camera, a driver, or an action that is none
                return "discard", step, one_line(error, 200)
            times = {name: float(when) for name, when in frame["time"].items()}
            log.step({
                "step": step, "time": now, "images": seen["images"], "state": seen["state"], "taken": times,
                "sent": sent, "changes": changes, "forced": command.forced,
            })  # fmt: skip
            step += 1
            if log.error is not None:
                return "discard", step, one_line(log.error, 200)
            if command.ending:
                return command.ending, step, ""
            if step >= self.options.max_steps and self.options.by != "expert":
                return "discard", step, f"longer than {self.options.max_steps} steps; see --max-steps"
            due = max(due + self.guard.period_s, clock.now() - self.guard.period_s)
            clock.wait(due, never)


ENDINGS = {"keep": "kept", "discard": "discarded", "leave": "discarded"}
DATASETS = {"robomimic": "demos.hdf5", "lerobot": "lerobot"}


def interrupted(out: Path) -> None:
    """Mark recordings that a crash or a power cut ended as discarded, and say so."""
    for folder in sorted((out / "episodes").glob("episode_*")):
        if (folder / "outcome.json").exists():
            continue
        steps = sum(1 for _ in read_steps(folder)) if (folder / "steps.bin").exists() else 0
        write_json(folder / "outcome.json", {"kept": False, "why": "interrupted", "steps": steps})
        console.print(f"{folder.name} was interrupted after {steps} steps, and is discarded; those before it are whole")


def kept_episodes(out: Path) -> list[Path]:
    """Folders of the demonstrations that were kept, in order."""
    kept = []
    for path in sorted((out / "episodes").glob("episode_*/outcome.json")):
        try:
            if json.loads(path.read_text(encoding="utf-8")).get("kept") is True:
                kept.append(path.parent)
        except (ValueError, OSError, AttributeError) as error:
            raise PrismError(f"{path} is damaged ({one_line(error, 100)}); restore it or move it away") from error
    return kept


def write_dataset(
    kept: list[Path], out: Path, options: RecordOptions, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Write the kept demonstrations as one dataset, instead of an older one; returns its path."""
    target = out / DATASETS[options.format]
    with scratch(out) as place:
        file = place / DATASETS["robomimic"]
        _write_hdf5(kept, file, options.task, progress or (lambda done, total: None))
        made = file
        if options.format == "lerobot":
            made = place / "lerobot"
            export(open_source(file), made, "lerobot", ExportOptions(task=options.task))
        if target.is_dir():
            target.rename(place / "before")
        made.replace(target) if made.is_file() else made.rename(target)
    return target


def _write_hdf5(kept: list[Path], path: Path, task: str, progress: Callable[[int, int], None]) -> None:
    header = read_episode(kept[0]).header
    schema: Schema = conform(Schema, header["schema"])
    # A robot is no environment that anybody could make again; what is simulated says itself what it is.
    name = str(header["robot"]["robot"]).rpartition(":")[2]
    robot = {"env_name": name, "type": ROBOT_TYPE, "env_kwargs": {"control_freq": schema.fps}}
    attributes = {"env_args": str(header.get("env_args") or json.dumps(robot))}
    attributes |= {"instruction": task} if task else {}
    with Recorder(path, schema, attributes=attributes) as recorder:
        for done, folder in enumerate(kept, start=1):
            episode = read_episode(folder)
            if conform(Schema, episode.header["schema"]) != schema:
                raise PrismError(f"{folder} is of another robot than {kept[0]}; record it into another --out")
            for step in episode.steps:
                seen = {"images": step["images"], "state": step["state"]}
                recorder.step(seen, step["sent"], step["forced"], step["time"])
            recorder.end()
            progress(done, len(kept))
