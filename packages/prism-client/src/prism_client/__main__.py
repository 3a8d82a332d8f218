"""`prism-client check` and `prism-client rollout`, for a robot's computer that has nothing else of prism."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from prism_client.control.check import check_robot
from prism_client.control.loop import LoopOptions
from prism_client.control.rollout import RolloutOptions, rollout
from prism_client.control.words import about_checkup, about_outcome
from prism_client.errors import PrismError
from prism_client.robots.robot_file import make_robot, read_robot_file


def main() -> None:
    """Run a command: exit code 0 on success, 1 where a check found a problem, 2 on bad input."""
    parser = argparse.ArgumentParser(prog="prism-client", description="A policy on a robot; docs/robot.md.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="measure rates, latencies, age and drops of frames")
    check.add_argument("robot", type=Path, help="the robot file")
    check.add_argument("--seconds", type=float, default=5.0)
    check.add_argument("--move", action="store_true", help="also move the arm a little")
    run = commands.add_parser("rollout", help="run a served policy")
    run.add_argument("robot", type=Path, help="the robot file")
    run.add_argument("server", help="address of `prism serve`, such as ws://gpu-box:8000")
    run.add_argument("--out", type=Path, default=Path("rollouts"), help="folder of the episodes")
    run.add_argument("--episodes", type=int, default=1)
    run.add_argument("--max-steps", type=int, default=400, help="control steps of an episode")
    run.add_argument("--instruction", help="what to do, for a policy of several tasks")
    run.add_argument("--seed", type=int, help="of the policy's noise")
    run.add_argument("--blocking", action="store_true", help="wait for each chunk instead of asking ahead")
    run.add_argument("--ca", help="of wss://, a file of the certificates to trust")
    arguments = parser.parse_args()
    try:
        sys.exit(_check(arguments) if arguments.command == "check" else _rollout(arguments))
    except PrismError as error:
        print(f"prism-client: {error}", file=sys.stderr)
        sys.exit(2)


def _check(arguments: argparse.Namespace) -> int:
    file = read_robot_file(arguments.robot)
    robot = make_robot(file)
    robot.connect()
    try:
        checkup = check_robot(robot, file.limits, arguments.seconds, arguments.move)
    finally:
        robot.close()
    print("\n".join(about_checkup(checkup)))
    return 1 if checkup.problems else 0


def _rollout(arguments: argparse.Namespace) -> int:
    options = RolloutOptions(
        arguments.server,
        arguments.out,
        arguments.episodes,
        arguments.instruction,
        arguments.seed,
        os.environ.get("PRISM_API_KEY"),
        arguments.ca,
        loop=LoopOptions(arguments.max_steps, overlap=not arguments.blocking),
    )
    rollout(
        read_robot_file(arguments.robot),
        options,
        done=lambda folder, outcome: print(f"{folder}: {about_outcome(outcome)}", flush=True),
    )
    return 0


if __name__ == "__main__":
    main()
