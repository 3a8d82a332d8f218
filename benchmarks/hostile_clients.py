"""How long a robot waits for a policy server beside a hostile client of each kind, and what memory that costs.

python benchmarks/hostile_clients.py [--seconds 10] [--size nano] [kind ...]

The hostile client is a process of its own, with the lowest priority: its own appetite for the cores is not the server's
fault. "Waits" is the time of a request through the client less what the policy computed, `computes` what it computed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from urllib.parse import urlparse

import numpy as np
import psutil

from prism_client.client import PolicyClient
from prism_client.msgpack_numpy import pack
from prism_policy.config import presets
from prism_policy.data.schema import task_schema
from prism_policy.errors import PrismError
from prism_policy.run_folder import make_policy, open_run, save_normalizer, save_weights

HANDSHAKE = "GET / HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{}\r\n"
KEY = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
BINARY, PING = 2, 9


class Hostile:
    """Raw sockets to a server: what no library would send. Attacks run until the time `end`."""

    def __init__(self, url: str, end: float) -> None:
        place = urlparse(url)
        assert place.hostname
        assert place.port
        self.url, self.address, self.end = url, (place.hostname, place.port), end
        with PolicyClient(url) as client:
            about = client.metadata
        steps = about["n_obs_steps"]
        images = {camera: np.zeros((steps, *size), np.uint8) for camera, size in about["cameras"].items()}
        self.question = frame(pack({"images": images, "state": np.zeros((steps, about["state_dim"]))}))

    def rounds(self) -> Iterator[socket.socket]:
        """A fresh connection each time, until the end; what the server does about it is no failure."""
        while time.monotonic() < self.end:
            with contextlib.suppress(OSError), socket.create_connection(self.address, timeout=5) as connection:
                yield connection

    def robots(self) -> Iterator[socket.socket]:
        """Connections through the handshake."""
        for connection in self.rounds():
            connection.sendall(HANDSHAKE.format("x", KEY).encode())
            connection.recv(2**16)
            yield connection

    def repeat(self, data: bytes, connections: int = 1) -> None:
        """Send `data` again and again over each connection, as fast as it is taken, and drop what comes back."""
        while time.monotonic() < self.end:
            with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
                left = {stack.enter_context(contextlib.closing(self.robot())): data for _ in range(connections)}
                while time.monotonic() < self.end:
                    for each in left:
                        with contextlib.suppress(BlockingIOError):
                            left[each] = left[each][each.send(left[each]) :] or data
                        with contextlib.suppress(BlockingIOError):
                            if not each.recv(2**16):
                                raise ConnectionResetError
                    time.sleep(0.0005)

    def robot(self) -> socket.socket:
        """A connection through the handshake, that does not block."""
        connection = socket.create_connection(self.address, timeout=5)
        connection.sendall(HANDSHAKE.format("x", KEY).encode())
        connection.recv(2**16)
        connection.setblocking(False)
        return connection


def frame(data: bytes, opcode: int = BINARY, claim: int | None = None) -> bytes:
    """A masked frame of `data`, or the beginning of one that claims to be longer; the mask is zero."""
    length = len(data) if claim is None else claim
    size = struct.pack("!B", 128 | length) if length < 126 else struct.pack("!BQ", 255, length)
    return bytes([128 | opcode]) + size + bytes(4) + data


def empty_lists(hostile: Hostile, count: int) -> None:
    """Messages of that many empty lists."""
    message = frame(b"\xdd" + struct.pack("!I", count) + b"\x90" * count)
    for connection in hostile.robots():
        connection.sendall(message)
        connection.recv(2**16)


def never_reads(hostile: Hostile) -> None:
    """Pings, whose answers nobody reads."""
    pings = frame(bytes(125), PING) * 1000
    for connection in hostile.robots():
        connection.settimeout(1)
        while time.monotonic() < hostile.end:
            try:
                connection.sendall(pings)
            except TimeoutError:
                continue


def silent(hostile: Hostile, data: bytes) -> None:
    """Hundreds of connections that say nothing, or do not come to their point."""
    held: list[socket.socket] = []
    while time.monotonic() < hostile.end:
        with contextlib.suppress(OSError):
            held.append(socket.create_connection(hostile.address, timeout=1))
            held[-1].sendall(data)
        if len(held) > 300:
            held.pop(0).close()
        time.sleep(0.002)


def vanishes(hostile: Hostile) -> None:
    """Asks, and leaves before the answer."""
    for connection in hostile.robots():
        connection.sendall(hostile.question)


def garbage(hostile: Hostile) -> None:
    """Random bytes, a connection each."""
    rng = np.random.default_rng(0)
    for connection in hostile.robots():
        connection.sendall(frame(rng.bytes(int(rng.integers(1, 500)))))
        connection.recv(2**16)


def half_messages(hostile: Hostile) -> None:
    """Dozens of the longest messages that are taken, less their last byte."""
    held: list[socket.socket] = []
    body = bytes(len(hostile.question))
    for connection in hostile.robots():
        held.append(connection.dup())
        held[-1].sendall(frame(body[:-1], claim=len(body)))
        if len(held) > 60:
            held.pop(0).close()


ATTACKS: dict[str, Callable[[Hostile], object]] = {
    "nobody": lambda hostile: time.sleep(max(0, hostile.end - time.monotonic())),
    "24 MiB of empty lists": lambda hostile: empty_lists(hostile, 24 * 2**20),
    "empty lists of a question's size": lambda hostile: empty_lists(hostile, len(hostile.question)),
    "questions without waiting": lambda hostile: hostile.repeat(hostile.question),
    "four times questions without waiting": lambda hostile: hostile.repeat(hostile.question, 4),
    "smallest pings": lambda hostile: hostile.repeat(frame(b"", PING) * 5000),
    "pings whose answers nobody reads": never_reads,
    "half messages": half_messages,
    "asks and vanishes": vanishes,
    "garbage": garbage,
    "silent connections": lambda hostile: silent(hostile, b""),
    "endless headers": lambda hostile: silent(hostile, b"GET / HTTP/1.1\r\n" + b"a: " + b"b" * 8000 + b"\r\n"),
    "two keys": lambda hostile: silent(hostile, HANDSHAKE.format("x", KEY + "Authorization: a\r\n" * 2).encode()),
    "a page's Origin": lambda hostile: silent(hostile, HANDSHAKE.format("x", KEY + "Origin: http://a\r\n").encode()),
}
"""By kind: the first for comparison."""


@dataclass
class Waits:
    """What a robot went through beside a hostile client."""

    waits_s: list[float]
    """Of each request: through the client, less what the policy computed."""
    computes_s: list[float]
    connect_s: list[float]
    """Of another robot, that connects, asks once and leaves."""
    grown: int
    """The server's memory above what it had before [bytes]."""


def beside(url: str, server: int, kind: str, seconds: float) -> Waits:
    """Ask a server as a robot does, a few times a second, beside a hostile client of this kind."""
    memory = psutil.Process(server)
    before = memory.memory_info().rss
    waits, computes, connects, most = [], [], [], before
    command = ["nice", "-n", "19", sys.executable, __file__, "--attack", url, "--seconds", str(seconds + 60), kind]
    with PolicyClient(url) as robot, subprocess.Popen(command, stdout=subprocess.PIPE) as hostile:
        assert hostile.stdout
        hostile.stdout.readline()  # it begins
        about = robot.metadata
        images = {camera: np.zeros(size, np.uint8) for camera, size in about["cameras"].items()}
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                answer = robot.infer({"images": images, "state": np.zeros(about["state_dim"])})
                computes.append(answer["server_timing"]["infer_ms"] / 1000)
                waits.append(robot.round_trips_s[-1] - computes[-1])
                started = time.monotonic()
                with contextlib.suppress(PrismError), PolicyClient(url, connect_s=5):
                    connects.append(time.monotonic() - started)
                most = max(most, memory.memory_info().rss)
                time.sleep(0.3)
        finally:
            hostile.kill()
    return Waits(waits, computes, connects, most - before)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[tuple[str, int]]:
    """`prism serve` in a process of its own: address and process id."""
    command = [sys.executable, "-m", "prism_policy", "serve", str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        found = re.search(r"at (ws://\S+)", server.stdout.readline())
        assert found
        yield found[1], server.pid
        server.terminate()


def main() -> None:
    """Print a row a kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--size", choices=("tiny", "nano", "paper"), default="nano")
    parser.add_argument("--attack", help="be the hostile client of this address")
    options = parser.parse_args()
    if options.attack:
        hostile = Hostile(options.attack, time.monotonic() + options.seconds)
        print("begins", flush=True)
        ATTACKS[options.kinds[0]](hostile)
        return
    config = presets.paper("lift", "flow_matching", "prism") if options.size == "paper" else presets.nano()
    if options.size == "tiny":  # it computes for so short that what the server adds stands out
        config = replace(config, policy=replace(config.policy, down_dims=(16, 32), step_embed_dim=16))
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS')}")
    print("| hostile client | requests | waits: median, most | computes: median, most | connects: most | memory |")
    print("|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        open_run(run, config)
        policy = make_policy(config, task_schema(config.task))
        save_normalizer(run, policy, config.task)
        save_weights(run, {n: t for n, t in policy.state_dict().items() if not n.startswith("normalizer.")})
        with served(run) as (url, server):
            for kind in options.kinds or ATTACKS:
                row(kind, beside(url, server, kind, options.seconds))


def row(kind: str, found: Waits) -> None:
    """Print what was measured."""
    waits, computes = ([1000 * x for x in xs] for xs in (found.waits_s, found.computes_s))
    connects = f"{1000 * max(found.connect_s):.0f} ms" if found.connect_s else "none"
    print(
        f"| {kind} | {len(waits)} | {median(waits):.0f}, {max(waits):.0f} ms | {median(computes):.0f}, "
        f"{max(computes):.0f} ms | {connects} | {found.grown / 2**20:+.0f} MiB |",
        flush=True,
    )


if __name__ == "__main__":
    main()
