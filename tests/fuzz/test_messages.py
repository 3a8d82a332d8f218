"""Malformed messages: to a session, to a server over real sockets, and from a server to the client."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve

from fuzz.harness import LONGEST_MESSAGE, cases, clean, flipped
from prism_client.client import PolicyClient
from prism_client.interface import Interface
from prism_client.msgpack_numpy import pack, unpack
from prism_policy.deploy.session import Session
from prism_policy.policies import Policy
from prism_policy.run_folder import load_policy
from served_run import frame, served, stacked, write_run
from small_run import small_config

METADATA: dict[str, Any] = {
    "cameras": {"agentview": [32, 32, 3]}, "state_dim": 9, "n_obs_steps": 2, "n_action_steps": 8, "action_dim": 7,
    "action_low": [-1] * 7, "action_high": [1] * 7, "instructions": [], "control_hz": 20,
}  # fmt: skip
ANSWER = {"actions": np.linspace(-1, 1, 56, dtype=np.float32).reshape(8, 7), "server_timing": {"infer_ms": 33.1}}
TEXTS = ("", "images", "agentview", "\0", "é" * 400, "nan", "[/red]", "x" * 3000, "line\nbreak", "<f8")
DTYPES = ("<f4", ">f8", "|u1", "|b1", "<i8", "<u2", "<f2", "|O", "<U3", "<c16", "<f16", "M8[s]", "(2,)f4", "f4,f4", "")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("messages") / "run", small_config())


@pytest.fixture(scope="module")
def policy(run: Path) -> Policy:
    return load_policy(run)


def thing(rng: np.random.Generator, depth: int = 0) -> Any:
    """Anything that msgpack can say: numbers and text of all sizes, lists, maps, and what looks like an array."""
    kind = int(rng.integers(12 if depth < 4 else 7))
    if kind == 0:
        return rng.choice([None, True, False])
    if kind == 1:
        return int(rng.choice([0, 1, -1, 2, 9, 32, 2**31, -(2**63), 2**63]))
    if kind == 2:
        return float(rng.choice([0.0, -1.5, 1e300, np.nan, np.inf]))
    if kind == 3:
        return str(rng.choice(TEXTS))
    if kind == 4:
        return rng.bytes(int(rng.integers(100)))
    if kind == 5:
        return msgpack.ExtType(int(rng.integers(128)), rng.bytes(int(rng.integers(9))))
    if kind == 6:
        return {b"__npgeneric__": True, b"dtype": str(rng.choice(DTYPES)), b"data": int(rng.integers(-300, 300))}
    if kind < 10:
        return array(rng, depth)
    if kind == 10:
        return [thing(rng, depth + 1) for _ in range(rng.integers(5))]
    return {name: thing(rng, depth + 1) for name in rng.choice(TEXTS[:6], size=rng.integers(4))}


def array(rng: np.random.Generator, depth: int) -> dict[bytes, Any]:
    """An array's map that is sound, or almost."""
    shape = [int(n) for n in rng.choice([0, 1, 2, 3, 7, 8, 9, 32], size=rng.integers(5))]
    dtype = np.dtype(str(rng.choice(DTYPES[:7])))
    made = {b"__ndarray__": True, b"dtype": dtype.str, b"shape": shape,
            b"data": rng.bytes(min(int(np.prod(shape)) * dtype.itemsize, 20_000))}  # fmt: skip
    if rng.random() < 0.4:
        key = [b"dtype", b"shape", b"data"][int(rng.integers(3))]
        made[key] = str(rng.choice(DTYPES)) if key == b"dtype" else thing(rng, depth + 1)
    return made


def malformed(rng: np.random.Generator, sound: dict[str, Any]) -> bytes:
    """A sound message with other entries, other bytes, or nothing sound at all."""
    plain: dict[Any, Any] = msgpack.unpackb(pack(sound))
    kind = rng.integers(4)
    if kind == 0:
        return flipped(rng, pack(sound))
    if kind == 1:
        return bytes(msgpack.packb(thing(rng)))
    for _ in range(rng.integers(1, 4)):
        place = plain
        while (inner := [x for x in place.values() if isinstance(x, dict) and x]) and rng.random() < 0.6:
            place = inner[int(rng.integers(len(inner)))]
        key = list(place)[int(rng.integers(len(place)))] if place and rng.random() < 0.8 else str(rng.choice(TEXTS))
        if rng.random() < 0.2:
            place.pop(key, None)
        else:
            place[key] = thing(rng)
    data: bytes = msgpack.packb(plain)
    return flipped(rng, data) if kind == 2 and rng.random() < 0.3 else data


def questions(rng: np.random.Generator) -> dict[str, Any]:
    options = [{}, {"seed": 3}, {"reset": True}, {"task": "lift"}, {"seed": np.int32(4), "prompt": "lift"}]
    return (frame(1) if rng.random() < 0.5 else stacked(1, 2)) | options[int(rng.integers(len(options)))]


def test_a_session_answers_or_refuses(policy: Policy) -> None:
    interface = Interface.of(METADATA)
    session = Session(policy, 0)
    for case, rng in cases("messages to a session", 0.14):
        data = malformed(rng, questions(rng))

        def ask(data: bytes = data) -> None:
            interface.actions(unpack(pack(session.answer(unpack(data))))["actions"])

        clean(case, ask)
    assert Session(policy, 0).answer(frame(0))["actions"].shape == (8, 7)


def test_a_server_answers_or_refuses(run: Path) -> None:
    with served(run) as (url, _):
        for case, rng in cases("messages to a server", 0.03):
            with connect(url, compression=None, max_size=2**20) as connection, contextlib.suppress(ConnectionClosed):
                unpack(connection.recv(timeout=10))
                connection.send(malformed(rng, questions(rng)))
                answer = connection.recv(timeout=10)
                if isinstance(answer, str):
                    assert 0 < len(answer) <= LONGEST_MESSAGE, f"case {case}: {answer[:600]}"
                    assert "\n" not in answer, f"case {case}: {answer}"
                    assert answer != "the server failed; its log says where", f"case {case}"
                else:
                    Interface.of(METADATA).actions(unpack(answer)["actions"])
        with PolicyClient(url) as client:
            assert client.infer(frame(0))["actions"].shape == (8, 7)


@contextlib.contextmanager
def saying(*messages: bytes) -> Iterator[str]:
    """A server that says these, one when a client comes and one after each question."""

    def handle(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            for message in messages:
                connection.send(message)
                connection.recv()

    with serve(handle, "127.0.0.1", 0, compression=None, close_timeout=0.1) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_the_client_acts_or_refuses() -> None:
    for case, rng in cases("messages to the client", 0.03):
        metadata = malformed(rng, METADATA) if rng.random() < 0.4 else pack(METADATA)
        with saying(metadata, malformed(rng, ANSWER)) as url:

            def act(url: str = url) -> None:
                with PolicyClient(url, connect_s=5, answer_s=5) as client:
                    images = {
                        camera: np.zeros((*size, 3), np.uint8)
                        for camera, size in client.interface.schema.cameras.items()
                    }
                    action = client.act(images, np.zeros(client.interface.schema.state_dim))
                    assert action.dtype == np.float32
                    assert np.isfinite(action).all()

            clean(case, act)
