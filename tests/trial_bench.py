"""A bench for trials without a simulator: a robot that is a point in simulated time, servers in threads, a person."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fakes import FILE, INTERFACE, Point, Steps, Wave
from websockets.sync.server import ServerConnection, serve

from prism_client.control.limits import Limits
from prism_client.msgpack_numpy import pack, unpack
from prism_client.robots.robot_file import RobotFile
from prism_policy.robots.operator import Keys

BENCH = RobotFile("bench", rate_hz=FILE.rate_hz, limits=Limits(frame_age_s=0, frozen_frames=0, speed=0, step=0, turn=0))


class Bench(Point):
    """The point, whose time goes on with the loop alone."""

    def __init__(self, file: RobotFile = BENCH) -> None:
        super().__init__(Steps())


@contextlib.contextmanager
def server(weights: str, step: float = 0.001, **metadata: Any) -> Iterator[str]:
    """The address of a policy that moves the point by `step` [m] along x."""

    def handle(connection: ServerConnection) -> None:
        policy = Wave(step)
        about = {"weights": weights, "task": "push", "encoder": "none", "policy": "wave", "instructions": []}
        connection.send(pack({**INTERFACE.metadata(), **about, **metadata}))
        for data in connection:
            assert isinstance(data, bytes)
            connection.send(pack(policy.infer(unpack(data))))

    with serve(handle, "127.0.0.1", 0, compression=None, max_size=None) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{listening.socket.getsockname()[1]}"
        finally:
            listening.shutdown()
            thread.join(5)


@contextlib.contextmanager
def person(lines: str, folder: Path) -> Iterator[Keys]:
    """An operator who presses these keys, a line each."""
    path = folder / "keys.txt"
    path.write_text(lines)
    number = os.open(path, os.O_RDONLY)
    with open(number, encoding="utf-8") as stream:
        yield Keys(stream)
