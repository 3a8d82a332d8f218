"""From demonstrations to a comparison on a robot, without one: record, train, serve, rollout, trials, report.

python benchmarks/robot_end_to_end.py --out runs/robot            # real time: a machine that draws 20 frames a second
python benchmarks/robot_end_to_end.py --lock-step --out runs/robot

An operator's script stands in for the person: the scripted expert demonstrates on `SimRobot` and the simulator judges.
By default the policies get so few updates that they cannot do the task: what is shown is the path. `--updates 2000`
makes them the preset nano's.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROBOT = """robot = "sim"
rate_hz = 20
settings = {{task = "{task}", realtime = {realtime}}}
workspace = {{low = [-0.4, -0.4, 0.7], high = [0.4, 0.4, 1.4]}}
limits = {{frozen_frames = 0, frame_age_s = 2.0, stall_s = 10, step = 0.1, speed = 2.0, turn = 0.6, turn_speed = 12.0}}
"""


def prism(folder: Path, *words: object) -> str:
    """Run a command in a folder as a person does, show what it says, and return it."""
    print("$ prism", *words, flush=True)
    began = time.monotonic()
    command = [sys.executable, "-m", "prism_policy", *map(str, words)]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout, f"[{time.monotonic() - began:.0f} s]", sep="", flush=True)
    if done.returncode:
        sys.exit(f"prism {words[0]} ended with {done.returncode}")
    return done.stdout


def serve(folder: Path, run: str) -> tuple[str, subprocess.Popen[str]]:
    """Start `prism serve` on a free port; its address and the process."""
    command = [sys.executable, "-m", "prism_policy", "serve", run, "--port", "0"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r" at (ws://\S+)", line):
            print(f"$ prism serve {run}\n{line}", end="", flush=True)
            return found[1], process
    sys.exit("prism serve did not start")


def end_to_end(out: Path, options: argparse.Namespace) -> dict[str, object]:
    """The whole path in a folder; returns what the trials said."""
    out.mkdir(parents=True, exist_ok=True)
    realtime = "false" if options.lock_step else "true"
    (out / "robot.toml").write_text(ROBOT.format(task=options.task, realtime=realtime))
    prism(out, "robot", "check", "robot.toml", "--seconds", "2") if options.check else None
    record = ("record", "robot.toml", "--out", "recorded", "--by", "expert", "--episodes", options.demos)
    prism(out, *record)
    for encoder in ("sspool", "prism"):
        train = ("--encoder", encoder, "--train.steps", options.updates, "--train.rollout-every", "0", "--out", encoder)
        prism(out, "train", "--dataset", "recorded/demos.hdf5", *train)
    url, server = serve(out, "prism")
    try:
        prism(out, "rollout", "robot.toml", url, "--episodes", "1", "--max-steps", options.max_steps, "--out", "rolled")
    finally:
        server.terminate()
    trials = ("--policies", "sspool=sspool", "prism=prism", "--judge", "simulator", "--starts", options.starts)
    prism(out, "trials", "robot.toml", *trials, "--max-steps", options.max_steps, "--out", "trials")
    prism(out, "compare", "trials/sspool", "trials/prism", "--split", "trials")
    prism(out, "report", "trials/prism")
    prism(out, "reproduce", "table7", "--trials", "trials", "--out", "table7")
    summary: dict[str, object] = json.loads((out / "trials" / "summary.json").read_text())
    return summary


def main() -> None:
    """Run it, and print what the trials said."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/robot-end-to-end"))
    parser.add_argument("--task", default="stack", choices=("stack", "key_pick"))
    parser.add_argument("--demos", type=int, default=20)
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--starts", type=int, default=10)
    parser.add_argument("--max-steps", type=int, default=200)
    parser.add_argument("--lock-step", action="store_true", help="simulated time that waits for the policy")
    parser.add_argument("--check", action="store_true", help="also `prism robot check`, which a busy machine fails")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    began = time.monotonic()
    summary = end_to_end(options.out, options)
    print(json.dumps(summary["policies"], indent=1))
    print(f"{time.monotonic() - began:.0f} s; with {options.updates} updates the rates say nothing of the policies")


if __name__ == "__main__":
    main()
