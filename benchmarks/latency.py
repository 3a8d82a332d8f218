"""What a policy's success owes to a server near by: episodes at several latencies, with overlap and blocking.

python benchmarks/latency.py RUN --out latency.jsonl [--episodes 50] [--seed 100] [--latencies 0 100 200]

A robot of the run's task in lock-step (simulated time, so that the machine's speed plays no part), the policy in this
process, its answers kept back by each latency [ms]. Every episode is executed in every way before the next one; stopped
and called again, the script goes on. It ends with a table: successes with Wilson's 95% interval, pauses, limits.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from prism_client.control.asking import DelayedAsking
from prism_client.control.limits import Limits, Workspace
from prism_client.control.loop import ControlLoop, LoopOptions
from prism_client.robots.robot_file import RobotFile, make_robot
from prism_policy.deploy.session import Adapter, Session
from prism_policy.evaluation.statistics import wilson_interval
from prism_policy.run_folder import load_policy, read_data, read_run

STEPS = 400
LIMITS = Limits(frozen_frames=0, step=0.06, speed=1.2, turn=0.6, turn_speed=12.0)  # nothing that the expert does not do


class Near:
    """A session as a client: questions are answered in this process."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def infer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer a question."""
        return self.session.answer(request)


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--latencies", type=int, nargs="+", default=[0, 100, 200])
    arguments = parser.parse_args()
    ways = [(latency, mode) for latency in arguments.latencies for mode in ("overlap", "blocking")]
    lines = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    done = {(line["episode"], line["latency"], line["mode"]) for line in lines}
    config = read_run(arguments.run)
    policy = load_policy(arguments.run)
    adapter = Adapter.of(policy, config, read_data(arguments.run))
    robot: Any = make_robot(RobotFile("sim", settings={"task": config.task.name, "realtime": False}, limits=LIMITS))
    robot.connect()
    for episode in range(arguments.episodes):
        for latency, mode in ways:
            if (episode, latency, mode) in done:
                continue
            robot.begin("evaluate", arguments.seed, episode)
            session = Session(policy, episode, adapter)
            asking = DelayedAsking(Near(session), robot.clock, latency / 1000)
            options = LoopOptions(STEPS, overlap=mode == "overlap")
            outcome = ControlLoop(robot, asking, adapter.interface, LIMITS, Workspace(), options).run()
            line = {"episode": episode, "latency": latency, "mode": mode, **vars(outcome)}
            lines.append({**line, "latency_steps": max(outcome.latency_steps, default=0)})
            with open(arguments.out, "a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
    robot.close()
    print(
        "| latency | mode | successes | Wilson 95% | pauses an episode | limited actions |\n|---|---|---|---|---|---|"
    )
    for latency, mode in ways:
        own = [x for x in lines if (x["latency"], x["mode"]) == (latency, mode)]
        wins = sum(x["ended"] == "success" for x in own)
        low, high = wilson_interval(wins, len(own))
        pauses = np.mean([x["pauses"] for x in own])
        limited = np.mean([sum(x["guarded"].values()) for x in own])
        print(
            f"| {latency} ms | {mode} | {wins} of {len(own)} | {low:.0%} to {high:.0%} | {pauses:.1f} | {limited:.1f} |"
        )


if __name__ == "__main__":
    main()
