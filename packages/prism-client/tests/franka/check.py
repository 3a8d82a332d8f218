"""What is measured of `FrankyRobot` against server.py: `check.py ADDRESS FOLDER POLICY` prints JSON.

POLICY is the address of a policy server (`policy.py`), which is killed by whoever called this when it prints "moving".
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from simulated import SimulatedFranka, simulated_time

from prism_client.client import PolicyClient
from prism_client.control.asking import ThreadedAsking
from prism_client.control.limits import Limits, Workspace
from prism_client.control.loop import ControlLoop, LoopOptions
from prism_client.robots.robot_file import CameraFile, RobotFile

CHUNK = 16
SETTLE_S = 1.0
"""Of simulated time after the last goal of a chunk."""


def main(address: str, folder: Path, policy: str) -> None:
    """Connect, observe, execute a chunk, lose the policy's server, go home."""
    cameras = {"front": CameraFile(str(folder), 160, 120, 10.0)}
    limits = Limits(frame_age_s=0, frozen_frames=0, stall_s=0)
    file = RobotFile("franka", address, 20.0, cameras, Workspace(), limits, {"realtime": False})
    robot = SimulatedFranka(file)
    robot.connect()
    result: dict[str, Any] = {}
    try:
        frame = robot.observe()
        result["image"] = [*frame["images"]["front"].shape, float(frame["images"]["front"].std())]
        red, green = (frame["images"]["front"][..., i].astype(int) for i in (0, 1))
        result["cubes"] = [int((red - green > 60).sum()), int((green - red > 60).sum())]
        result["chunk_mm"], result["turn_rad"], result["width_m"] = _chunk(robot, folder)
        result.update(_server_dies(robot, folder, file, policy))
        robot.home()
        result["home"] = robot.observe()["state"].tolist()
    finally:
        robot.close()
    print(json.dumps(result), flush=True)


def _wait(folder: Path, seconds: float) -> None:
    end = simulated_time(folder) + seconds
    while simulated_time(folder) < end:
        time.sleep(0.01)


def _chunk(robot: SimulatedFranka, folder: Path) -> tuple[float, float, float]:
    """A chunk of poses, one a control step of simulated time; how far the hand ends from the last goal [mm]."""
    goal = robot.observe()["state"].astype(float)
    for _ in range(CHUNK):
        goal[:3] += (0.002, 0.002, -0.003)
        goal[5] += 0.01
        goal[6] = 0.03
        robot.act(goal)
        _wait(folder, 0.05)
    _wait(folder, SETTLE_S)
    error = robot.observe()["state"] - goal
    return (
        1000 * float(np.linalg.norm(error[:3])),
        float(np.linalg.norm(error[3:6])),
        float(robot.observe()["state"][6]),
    )


def _server_dies(robot: SimulatedFranka, folder: Path, file: RobotFile, policy: str) -> dict[str, Any]:
    """An episode whose policy's server is killed while the arm moves: how far it goes on afterwards [mm]."""
    with PolicyClient(policy, answer_s=5.0) as client:
        options = LoopOptions(2000, reconnect_s=2.0)
        loop = ControlLoop(robot, ThreadedAsking(client), client.interface, file.limits, file.workspace, options)

        def announce() -> None:
            while loop.outcome.questions < 2:
                time.sleep(0.01)
            print("moving", flush=True)

        threading.Thread(target=announce, daemon=True).start()
        outcome = loop.run()
    _wait(folder, SETTLE_S)
    before = robot.observe()["state"][:3]
    _wait(folder, SETTLE_S)
    drift = 1000 * float(np.linalg.norm(robot.observe()["state"][:3] - before))
    return {"ended": outcome.ended, "void": outcome.void, "drift_mm": drift, "steps": outcome.steps}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
