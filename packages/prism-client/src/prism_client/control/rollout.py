"""Episodes of a served policy on a robot, each in a folder of its own."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import Any, Callable

from prism_client.client import PolicyClient
from prism_client.control.asking import Asking, DelayedAsking, ThreadedAsking
from prism_client.control.log import EpisodeLog
from prism_client.control.loop import ControlLoop, LoopOptions, Outcome
from prism_client.control.stop import Stop, operator
from prism_client.errors import PrismError
from prism_client.robots.robot import Robot
from prism_client.robots.robot_file import RobotFile, make_robot


@dataclasses.dataclass(frozen=True)
class RolloutOptions:
    """Which episodes, of which server."""

    url: str
    out: Path
    """Folder of the episodes' folders, episode_000 and so on; those that are there stay."""
    episodes: int = 1
    instruction: str | None = None
    seed: int | None = None
    """Of the policy's noise in the first episode; the next ones count on."""
    api_key: str | None = None
    ca: str | None = None
    answer_s: float = 5.0
    """How long an answer may take before the server counts as failed [s]."""
    latency_s: float = 0.0
    """Of a simulation in lock-step: how far away the server seems to be [s]."""
    loop: LoopOptions = dataclasses.field(default_factory=LoopOptions)


def rollout(
    file: RobotFile,
    options: RolloutOptions,
    ready: Callable[[int], bool] = lambda number: True,
    done: Callable[[Path, Outcome], None] = lambda folder, outcome: None,
    robot: Robot | None = None,
) -> list[Outcome]:
    """Execute episodes, and return how they went.

    Args:
        ready: called before each episode, with the arm at home; False ends.
        done: called after each one.
        robot: by default the file's.

    Raises:
        PrismError: there is no server, the robot does not fit the policy, or an episode cannot be written.
    """
    robot = make_robot(file) if robot is None else robot
    outcomes: list[Outcome] = []
    client = connected(options)
    try:
        check_rate(robot, client.metadata.get("control_hz"))
        robot.connect()
    except BaseException:
        client.close()
        raise
    try:
        for number in range(options.episodes):
            simulated = getattr(robot, "begin", None)
            if simulated is not None:
                split, seed, first = getattr(robot, "start")  # noqa: B009 (no part of the protocol)
                simulated(split, seed, first + (number > 0))
            else:
                robot.home()
            if not ready(number):
                break
            folder = next_folder(options.out)
            outcome = run_episode(robot, file, client, options, number, folder)
            outcomes.append(outcome)
            done(folder, outcome)
            if outcome.ended == "stopped" and outcome.void:
                break
            if outcome.ended == "fault" and number + 1 < options.episodes:
                client.close()
                client = connected(options)
    finally:
        try:
            robot.close()
        finally:
            client.close()
    return outcomes


def check_rate(robot: Robot, control_hz: Any) -> None:
    """Refuse a robot whose rate is not that of the demonstrations, where they say one."""
    rate = robot.schema.fps
    if isinstance(control_hz, (int, float)) and rate and abs(control_hz - rate) > 0.01 * rate:
        raise PrismError(f"the policy acts at {control_hz:g} Hz, the robot at {rate:g}; give rate_hz = {control_hz:g}")


def connected(options: RolloutOptions) -> PolicyClient:
    """A client that comes back by itself."""
    limits = {"connect_s": 10.0, "answer_s": options.answer_s}
    return PolicyClient(options.url, options.api_key, reconnect=True, ca=options.ca, **limits)


def next_folder(out: Path) -> Path:
    """The first of episode_000, episode_001, ... that is not there."""
    number = 0
    while (out / f"episode_{number:03d}").exists():
        number += 1
    return out / f"episode_{number:03d}"


def header(file: RobotFile, robot: Robot, client: PolicyClient, options: RolloutOptions) -> dict[str, Any]:
    """What an episode's header says."""
    about: dict[str, Any] = {
        "format": "prism episode 1",
        "robot": file.as_json(),
        "schema": dataclasses.asdict(robot.schema),
        "policy": client.metadata,
        "server": options.url,
        "instruction": options.instruction,
        "seed": options.seed,
        "loop": dataclasses.asdict(options.loop),
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    if hasattr(robot, "start"):
        about["start"] = list(robot.start)
    return about


def run_episode(
    robot: Robot, file: RobotFile, client: PolicyClient, options: RolloutOptions, number: int, folder: Path
) -> Outcome:
    """Execute an episode of a robot that is where it shall begin; the policy's seed is the options' and `number`."""
    request: dict[str, Any] = {}
    if options.instruction:
        request["task"] = options.instruction
    if options.seed is not None:
        request["seed"] = options.seed + number
    asking: Asking = ThreadedAsking(client)
    if not robot.clock.real:
        asking = DelayedAsking(client, robot.clock, options.latency_s)
    elif options.latency_s:
        raise PrismError("a latency can be chosen for a simulation in lock-step alone (settings.realtime = false)")
    stop = Stop()
    with EpisodeLog(folder, header(file, robot, client, options)) as log, operator(stop):
        loop = ControlLoop(
            robot, asking, client.interface, file.limits, file.workspace, options.loop, request, log, stop
        )
        return loop.run()
