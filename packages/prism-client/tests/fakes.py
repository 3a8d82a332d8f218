"""A robot that is a point, and a policy server that is a script, for the control loop's tests."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from typing import Any, Iterator

import numpy as np

from prism_client.control.clock import Clock
from prism_client.control.limits import Limits, Workspace
from prism_client.interface import Interface
from prism_client.robots.robot import Frame
from prism_client.robots.robot_file import RobotFile
from prism_client.schema import Part, Schema

HZ = 50.0
BOX = Workspace([-0.1, -0.1, 0.0], [0.1, 0.1, 0.2])
LIMITS = Limits(
    step=0.01, speed=0.4, frame_age_s=0.2, frozen_frames=8, stall_s=0.5, recover_s=0.4
)  # 8 mm in a step at 50 Hz
SCHEMA = Schema(
    {"front": (16, 16)},
    (Part("hand", 3, "position"), Part("grip", 1, "joint")),
    (Part("goal", 3, "position"), Part("grip", 1, "gripper", shares=True)),
    HZ,
)
INTERFACE = Interface(SCHEMA, 2, 8, (-1.0,) * 4, (1.0,) * 4, 15)


class Steps(Clock):
    """Time that goes on when somebody waits."""

    real = False

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def wait(self, until: float, stop: threading.Event) -> None:
        self.time = max(self.time, until)


class Point:
    """A hand that is where it was last sent; its camera sees noise. `fault` breaks it, from `since` on."""

    schema = SCHEMA

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.hand = np.array([0.0, 0.0, 0.1])
        self.fault = ""
        self.events: list[tuple[str, float, Any]] = []
        self.rng = np.random.default_rng(0)
        self._frame: Frame | None = None

    def did(self, what: str, after: float = 0.0) -> list[float]:
        """When it acted or held, after some time."""
        return [when for name, when, _ in self.events if name == what and when >= after]

    @property
    def goals(self) -> np.ndarray:
        """Where it was sent, (n, 3)."""
        return np.array([goal[:3] for name, _, goal in self.events if name == "act"]).reshape(-1, 3)

    def connect(self) -> None:
        pass

    def observe(self) -> Frame:
        now = self.clock.now()
        if self.fault == "unplugged":
            raise OSError("No device connected")
        if self.fault == "hangs":
            time.sleep(0.8)
        if self.fault == "frozen" and self._frame is not None:  # the driver gives its last image again, and says so
            return Frame(images=self._frame["images"], state=self._state(), time={"state": now, "front": self._taken})
        if self.fault == "stuck" and self._frame is not None:  # it says that it is new
            return Frame(images=self._frame["images"], state=self._state(), time={"state": now, "front": now})
        image = self.rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
        self._taken = now
        jump = {"ahead": 3600.0, "behind": -3600.0}.get(self.fault, 0.0)
        self._frame = Frame(images={"front": image}, state=self._state(), time={"state": now, "front": now + jump})
        return self._frame

    def _state(self) -> np.ndarray:
        return np.array([*self.hand, 0.0], np.float32)

    def act(self, action: np.ndarray) -> None:
        if self.fault == "refuses":
            raise RuntimeError("libfranka: reflex")
        self.events.append(("act", self.clock.now(), np.array(action, float)))
        self.hand = np.array(action[:3], float)

    def hold(self) -> None:
        self.events.append(("hold", self.clock.now(), None))

    def home(self) -> None:
        self.events.append(("home", self.clock.now(), None))
        self.hand = np.array([0.0, 0.0, 0.1])

    def close(self) -> None:
        self.events.append(("close", self.clock.now(), None))


FILE = RobotFile("fake", rate_hz=HZ, workspace=BOX, limits=LIMITS)


class Wave:
    """A policy whose goals move by `step` along x in each step, from where the hand is; continues what is known."""

    def __init__(self, step: float = 0.002, interface: Interface = INTERFACE) -> None:
        self.step, self.interface = step, interface
        self.requests: list[dict[str, Any]] = []

    def infer(self, request: dict[str, Any]) -> dict[str, Any]:
        self.requests.append(request)
        known = np.asarray(request.get("known", np.zeros((0, 4))), np.float32)
        n = self.interface.n_chunk_steps if "known" in request else self.interface.n_action_steps
        actions = np.zeros((n, 4), np.float32)
        actions[: len(known)] = known
        x, y, z = known[-1][:3] if len(known) else request["state"][-1][:3]
        ahead = np.arange(1, n - len(known) + 1)
        actions[len(known) :, 0] = np.clip(x + self.step * ahead, -0.9, 0.9)
        actions[len(known) :, 1:3] = y, z
        return {"actions": actions}


SERVER = """
import sys, time
import numpy as np
from websockets.sync.server import serve
from fakes import INTERFACE, Wave
from prism_client.msgpack_numpy import pack, unpack
mode, port, first, delay = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
asked = 0
def handle(connection):
    global asked
    policy = Wave(0.03 if mode == "far" else 0.001)
    connection.send(pack({**INTERFACE.metadata(), "weights": "w", "instructions": []}))
    for data in connection:
        asked += 1
        answer = policy.infer(unpack(data))
        if mode == "nan" and asked > first:
            answer["actions"][3] = np.nan
        if mode == "beyond" and asked > first:
            answer["actions"][:, 0] = 7.0
        if mode == "shape" and asked > first:
            answer["actions"] = answer["actions"][:3]
        time.sleep(delay)
        connection.send("out of memory" if mode == "sentence" and asked > first else pack(answer))
with serve(handle, "127.0.0.1", port, compression=None, max_size=None) as server:
    print(server.socket.getsockname()[1], flush=True)
    server.serve_forever()
"""


@contextlib.contextmanager
def policy_server(
    mode: str = "good", port: int = 0, first: int = 2, delay_s: float = 0.0
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server in a process of its own, and its address. `mode` says what is wrong after `first` answers."""
    command = [sys.executable, "-c", SERVER, mode, str(port), str(first), str(delay_s)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout
            line = process.stdout.readline().strip()
            assert line, "the server did not start"
            yield f"ws://127.0.0.1:{line}", process
        finally:
            process.kill()
