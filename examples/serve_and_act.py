"""Serve a run and act on it, as a robot's computer does: the client needs neither torch nor a simulator.

python examples/serve_and_act.py runs/a
"""

import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

import prism_policy as pp


def main(run: Annotated[Path, tyro.conf.Positional], steps: int = 20, port: int = 8123) -> np.ndarray:
    """Start a server, ask it at every control step, and return the actions (steps, A)."""
    command = [sys.executable, "-m", "prism_policy", "serve", str(run), "--port", str(port), "--device", "cpu"]
    server = subprocess.Popen(command)  # on the machine with the GPU; here the same one
    try:
        with pp.PolicyClient(f"ws://127.0.0.1:{port}", connect_s=120) as policy:
            schema, rate = policy.interface.schema, policy.metadata["control_hz"] or 10
            print(f"cameras {schema.cameras}, state {schema.state_dim} numbers, {rate:g} actions a second")
            policy.reset(seed=0)
            actions = []
            for _ in range(steps):
                started = time.monotonic()
                images = {name: np.zeros((*size, 3), np.uint8) for name, size in schema.cameras.items()}  # your cameras
                state = np.zeros(schema.state_dim, np.float32)  # your robot's state
                try:
                    action = policy.act(images, state)
                except pp.PrismError:  # nothing may be executed: stop the arm, then look
                    print("stop the arm")
                    raise
                actions.append(action)  # robot.move(action)
                time.sleep(max(0.0, 1 / rate - (time.monotonic() - started)))
            print(f"{len(actions)} actions; asked {len(policy.round_trips_s)} times, at most", end=" ")
            print(f"{1000 * max(policy.round_trips_s):.0f} ms each")
            return np.stack(actions)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    tyro.cli(main)
