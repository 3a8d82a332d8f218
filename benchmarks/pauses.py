"""How often an arm waits for a server that is 150 ms away: asking ahead, blocking, and with the plain client.

python benchmarks/pauses.py [--ms 150] [--steps 400] [--run RUN]

`prism serve` in a process of its own (by default a nano policy with random weights), behind a TCP relay that keeps each
byte back by half the time either way; a robot without a simulation, so that the cores are the loop's; 20 Hz, real time.
A pause is a control step in which the arm had no action. The three run one after the other against the same server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from prism_client import PolicyClient
from prism_client.control.asking import ThreadedAsking
from prism_client.control.clock import Clock
from prism_client.control.limits import Limits, Workspace
from prism_client.control.loop import ControlLoop, LoopOptions
from prism_client.robots.robot import Frame
from prism_client.schema import Schema
from prism_policy.config import presets
from prism_policy.data.schema import task_schema
from prism_policy.run_folder import make_policy, open_run, save_normalizer, save_weights


class Still:
    """A robot that sees noise and goes nowhere."""

    def __init__(self, schema: Schema) -> None:
        self.schema, self.clock, self.rng = schema, Clock(), np.random.default_rng(0)

    def observe(self) -> Frame:
        """Noise."""
        images = {c: self.rng.integers(0, 256, (*s, 3), np.uint8) for c, s in self.schema.cameras.items()}
        state = np.array([0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.04, -0.04], np.float32)
        return Frame(images=images, state=state, time=dict.fromkeys(("state", *images), self.clock.now()))

    def connect(self) -> None:
        """Nothing to do, here and below."""

    act = hold = home = close = lambda self, *action: None  # type: ignore[assignment]


@contextlib.contextmanager
def relay(port: int, delay_s: float) -> Iterator[str]:
    """The address of a relay to a port of this machine that keeps bytes back by `delay_s` each way."""
    loop, ready = asyncio.new_event_loop(), threading.Event()
    address: list[str] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(2**16):
            loop.call_later(delay_s, writer.write, data)
        loop.call_later(delay_s, writer.close)

    async def admit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, other[1]), pump(other[0], writer), return_exceptions=True)

    async def start() -> None:
        server = await asyncio.start_server(admit, "127.0.0.1", 0)
        address.append(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        ready.set()

    loop.create_task(start())
    threading.Thread(target=loop.run_forever, daemon=True).start()
    ready.wait()
    yield address[0]

    def leave() -> None:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.call_later(0.1, loop.stop)

    loop.call_soon_threadsafe(leave)
    time.sleep(0.3)


@contextlib.contextmanager
def served(run: Path) -> Iterator[int]:
    """The port of `prism serve`."""
    command = [sys.executable, "-m", "prism_policy", "serve", str(run), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}) as p:
        assert p.stdout
        said = ""
        while "Ctrl-C" not in said and (line := p.stdout.readline()):
            said += line
        yield int(re.search(r"ws://[^:]+:(\d+)", said)[1])  # type: ignore[index]
        p.terminate()


def plain(robot: Still, url: str, steps: int) -> tuple[int, int, float]:
    """The plain client in a loop at 20 Hz: steps that were late, the longest wait in steps, median of the questions."""
    waits = []
    with PolicyClient(url) as client:
        for _ in range(steps):
            started = time.monotonic()
            frame = robot.observe()
            client.act(frame["images"], frame["state"])
            waits.append(int((time.monotonic() - started) / 0.05))
            time.sleep(max(started + 0.05 - time.monotonic(), 0))
        return sum(waits), max(waits), client.latency_s() or 0.0


def main() -> None:
    """Print a row for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ms", type=float, default=150)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--run", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = arguments.run or nano(Path(folder) / "run")
        with served(run) as port, relay(port, arguments.ms / 2000) as url:
            print(f"| way | pauses of {arguments.steps} steps | longest | answer after |\n|---|---|---|---|")
            for name, overlap in (("asks ahead", True), ("blocking", False)):
                with PolicyClient(url) as client:
                    robot: Any = Still(Schema(**{**vars(client.interface.schema), "fps": 20.0}))
                    options = LoopOptions(arguments.steps, overlap=overlap)
                    limits = Limits(frozen_frames=0)
                    asking = ThreadedAsking(client)
                    outcome = ControlLoop(robot, asking, client.interface, limits, Workspace(), options).run()
                    assert not outcome.void, outcome.void
                    took = (
                        f"{1000 * (client.latency_s() or 0):.0f} ms, longest {1000 * (client.latency_s(1.0) or 0):.0f}"
                    )
                    print(f"| {name} | {outcome.pauses} | {outcome.longest_pause} | {took} |", flush=True)
            pauses, longest, median = plain(robot, url, arguments.steps)
            print(f"| `PolicyClient.act` | {pauses} | {longest} | {1000 * median:.0f} ms |")


def nano(folder: Path) -> Path:
    """A run of a nano policy with random weights."""
    config = presets.nano()
    open_run(folder, config)
    policy = make_policy(config, task_schema(config.task))
    save_normalizer(folder, policy, config.task)
    save_weights(folder, {name: t for name, t in policy.state_dict().items() if not name.startswith("normalizer.")})
    return folder


if __name__ == "__main__":
    main()
