"""Every wait of the client ends at its limit, and only sound actions reach the robot, whatever the server does."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from websockets.sync.server import ServerConnection, serve

from prism_client.client import CLOSE_S, PolicyClient
from prism_client.errors import PrismError
from prism_client.msgpack_numpy import pack

LATE_S = 0.1
METADATA: dict[str, Any] = {
    "cameras": {"front": [32, 32, 3]}, "state_dim": 9, "n_obs_steps": 2, "n_action_steps": 8, "action_dim": 7,
    "action_low": [-1] * 7, "action_high": [1] * 7,
}  # fmt: skip
FRAME = {"front": np.zeros((32, 32, 3), np.uint8)}, np.zeros(9)
GOOD = np.linspace(-1, 1, 56, dtype=np.float32).reshape(8, 7)

FROZEN = """
import sys
from websockets.sync.server import serve
from prism_client.msgpack_numpy import pack
def handle(connection):
    connection.send(pack(eval(sys.argv[1])))
    connection.recv()
with serve(handle, "127.0.0.1", 0, compression=None, max_size=None) as server:
    print(server.socket.getsockname()[1], flush=True)
    server.serve_forever()
"""


@contextlib.contextmanager
def frozen(metadata: dict[str, Any] = METADATA, **limits: float) -> Iterator[PolicyClient]:
    """A client whose server's process has stopped after the handshake."""
    command = [sys.executable, "-c", FROZEN, repr(metadata)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            client = PolicyClient(f"ws://127.0.0.1:{process.stdout.readline().strip()}", **limits)
            process.send_signal(signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)
            yield client
        finally:
            process.kill()


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """The block ends by then, and not long before. On busy cores all is late; a thread beside it says by how much."""
    over, late = threading.Event(), [0.0]

    def sample() -> None:
        while not over.is_set():
            began = time.monotonic()
            time.sleep(0.005)
            late[0] = max(late[0], time.monotonic() - began - 0.005)

    sampler = threading.Thread(target=sample)
    sampler.start()
    started = time.monotonic()
    yield
    took = time.monotonic() - started
    over.set()
    sampler.join()
    assert seconds - 0.05 <= took <= seconds + LATE_S + 4 * late[0]


@contextlib.contextmanager
def answering(handle: Callable[[ServerConnection], object]) -> Iterator[str]:
    """A server in this process, of any behaviour."""
    with serve(handle, "127.0.0.1", 0, compression=None, max_size=None, close_timeout=0.1) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join()


def replying(*answers: bytes | str) -> Callable[[ServerConnection], object]:
    """Metadata, and these answers to the first question."""

    def handle(connection: ServerConnection) -> None:
        connection.send(pack(METADATA))
        with contextlib.suppress(Exception):
            connection.recv()
            for answer in answers:
                connection.send(answer)
            connection.recv()

    return handle


@pytest.mark.parametrize("megabytes", [0, 1, 20])
def test_a_frozen_server_is_left_at_the_limit_at_any_size_of_question(megabytes: int) -> None:
    side = 32 if not megabytes else int((megabytes * 1e6 / 6) ** 0.5)
    image = np.zeros((side, side, 3), np.uint8)
    with frozen({**METADATA, "cameras": {"front": [side, side, 3]}}, answer_s=0.8) as client:
        with within(0.8), pytest.raises(PrismError, match=r"did not answer within 0.8 s; the connection is closed"):
            client.act({"front": image}, np.zeros(9))
        with pytest.raises(PrismError, match="is gone"):
            client.act({"front": image}, np.zeros(9))
        with within(0):
            client.close()


def test_leaving_a_frozen_server_has_a_limit() -> None:
    with frozen() as client, within(CLOSE_S):
        client.close()


def test_a_question_that_no_policy_needs_is_not_even_packed() -> None:
    with frozen(answer_s=5) as client:
        with within(0), pytest.raises(PrismError, match=r"cannot send this request: expected at most [\d,]+ bytes"):
            client.infer({"images": {"front": np.zeros((1000, 1000, 1000), np.uint8)}})
        with within(0), pytest.raises(PrismError, match=r"cannot send this request: expected at most [\d,]+ bytes"):
            client.infer({"task": "x" * 10**6})


@contextlib.contextmanager
def raw(say: bytes = b"", backlog: int = 5, accept: bool = True) -> Iterator[str]:
    """A socket that says this much to whoever comes, and no more."""
    with socket.create_server(("127.0.0.1", 0), backlog=backlog) as listener:
        held = []

        def admit() -> None:
            with contextlib.suppress(OSError):
                while accept:
                    held.append(listener.accept()[0])
                    held[-1].sendall(say)

        thread = threading.Thread(target=admit, daemon=True)
        thread.start()
        yield f"ws://127.0.0.1:{listener.getsockname()[1]}"
        for each in held:
            each.close()


@pytest.mark.parametrize("say", [b"", b"HTTP/1.1 101 Switching", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"])
def test_who_admits_and_never_answers_is_left_at_the_limit(say: bytes) -> None:
    with raw(say) as url, within(0.5), pytest.raises(PrismError, match=f"no policy server at {url} .*prism serve RUN"):
        PolicyClient(url, connect_s=0.5)


def test_a_name_that_nobody_resolves_is_left_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(3))
    with within(0.4), pytest.raises(PrismError, match="no policy server at ws://box:8000"):
        PolicyClient("ws://box:8000", connect_s=0.4)


def test_metadata_that_never_come_are_left_at_the_shorter_limit() -> None:
    with answering(lambda connection: time.sleep(2)) as url:
        for limits in ({"connect_s": 0.3}, {"answer_s": 0.3}):
            with within(0.3), pytest.raises(PrismError, match=r"did not answer within 0.3 s"):
                PolicyClient(url, **limits)


def test_an_answer_that_drips_has_the_same_limit() -> None:
    def handle(connection: ServerConnection) -> None:
        connection.send(pack(METADATA))
        connection.recv()

        def bits() -> Iterator[bytes]:
            for _ in range(40):
                yield b"x"
                time.sleep(0.05)

        with contextlib.suppress(Exception):
            connection.send(bits())

    with answering(handle) as url:
        client = PolicyClient(url, answer_s=0.5)
        with within(0.5), pytest.raises(PrismError, match="did not answer within"):
            client.act(*FRAME)


BAD_ACTIONS: dict[str, Any] = {
    "nan": np.full((8, 7), np.nan, np.float32), "inf": np.full((8, 7), -np.inf), "huge": np.full((8, 7), 1e300),
    "columns": GOOD[:, :3], "rows": GOOD[:7], "many": np.zeros((10_000, 7), np.float32), "one": GOOD[0],
    "beyond": GOOD * np.float32(1.319), "list": [[0.0] * 7] * 8, "text": "move", "none": None, "number": 3,
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_ACTIONS)
def test_no_unsound_action_reaches_the_robot(kind: str) -> None:
    with answering(replying(pack({"actions": BAD_ACTIONS[kind]}))) as url, PolicyClient(url) as client:
        with pytest.raises(PrismError, match=r"actions: expected .*; nothing may be executed"):
            client.act(*FRAME)
        with pytest.raises(PrismError, match="is gone"):
            client.act(*FRAME)


@pytest.mark.parametrize("dtype", ["f8", "f2", ">f4"])
def test_sound_actions_of_any_float_are_float32(dtype: str) -> None:
    sent = pack({"actions": GOOD.astype(dtype)})
    with answering(replying(sent)) as url, PolicyClient(url) as client:
        action = client.act(*FRAME)
    assert (action.dtype, action.tolist()) == (np.float32, GOOD.astype(dtype)[0].astype(np.float32).tolist())


@pytest.mark.parametrize("answer", [b"", b"\xc1", b"\x90", pack({}), "busy\nnow " * 200, b"\xdd\xff\xff\xff\xff"])
def test_an_answer_that_is_none_is_one_sentence(answer: bytes | str) -> None:
    with answering(replying(answer)) as url, PolicyClient(url) as client:
        with pytest.raises(PrismError) as refused:
            client.act(*FRAME)
        assert len(str(refused.value)) <= 500
        assert "\n" not in str(refused.value)


def test_an_answer_that_nobody_asked_for_is_not_executed() -> None:
    good = pack({"actions": GOOD})
    with answering(replying(good, good)) as url, PolicyClient(url) as client:
        client.infer({"seed": 1})
        time.sleep(0.2)  # the second one comes
        with pytest.raises(PrismError, match="an answer that nobody asked for"):
            client.infer({"seed": 2})


def test_an_answer_to_an_interrupted_question_is_not_that_to_the_next_one() -> None:
    with answering(
        lambda c: (c.send(pack(METADATA)), c.recv(), time.sleep(0.5), c.send(pack({"actions": GOOD})))
    ) as url:
        client = PolicyClient(url)
        threading.Timer(0.2, signal.raise_signal, (signal.SIGINT,)).start()
        with pytest.raises(KeyboardInterrupt):
            client.act(*FRAME)
        time.sleep(0.5)
        with pytest.raises(PrismError, match="is gone"):
            client.act(*FRAME)


def test_two_threads_do_not_take_each_others_answers() -> None:
    with answering(
        lambda c: (c.send(pack(METADATA)), c.recv(), time.sleep(0.4), c.send(pack({"actions": GOOD})))
    ) as url:
        client = PolicyClient(url)
        other = threading.Thread(target=client.infer, args=({},))
        other.start()
        time.sleep(0.1)
        with pytest.raises(PrismError, match="another thread waits for an answer"):
            client.infer({})
        other.join()
        client.close()


BAD_METADATA: dict[str, dict[str, Any]] = {
    "cameras": {"cameras": [1]}, "camera 'front'": {"cameras": {"front": [32, 32]}}, "state_dim": {"state_dim": -1},
    "n_obs_steps": {"n_obs_steps": 10**9}, "n_action_steps": {"n_action_steps": "8"}, "action_dim": {"action_dim": 7.0},
    "action_low": {"action_low": 3}, "n_chunk_steps": {"n_chunk_steps": -2}, r"action\[0\]": {"action": [{"name": 3}]},
    "'action'": {"action": 3},
}  # fmt: skip


@pytest.mark.parametrize("named", BAD_METADATA)
def test_metadata_that_make_no_sense_are_named(named: str) -> None:
    bad = pack({**METADATA, **BAD_METADATA[named]})
    refused = pytest.raises(PrismError, match=f"^metadata: .*{named}")
    with answering(lambda connection: connection.send(bad)) as url, refused:
        PolicyClient(url)


def test_a_client_that_may_reconnect_does_so_for_the_next_question_to_the_same_policy() -> None:
    lives = iter([("a", 1), ("a", 3), ("b", 9)])

    def handle(connection: ServerConnection) -> None:
        weights, answers = next(lives)
        connection.send(pack({**METADATA, "weights": weights}))
        with contextlib.suppress(Exception):
            for _ in range(answers):
                connection.recv()
                connection.send(pack({"actions": GOOD}))
            connection.recv()

    with answering(handle) as url, PolicyClient(url, reconnect=True) as client:
        client.infer({})
        with pytest.raises(PrismError, match="is gone"):
            client.infer({})
        for _ in range(3):
            assert client.infer({})["actions"].shape == (8, 7)
        assert 0 < client.latency_s() <= client.latency_s(1.0)
        with pytest.raises(PrismError, match="is gone"):
            client.infer({})
        with pytest.raises(PrismError, match="serves another policy than before"):
            client.infer({})


@pytest.mark.parametrize(
    "arguments",
    [
        {"url": "ws://127.0.0.1:99999"},
        {"url": "ws://127.0.0.1:x"},
        {"url": "ws://" + "a" * 300 + ".b"},
        {"url": "http://127.0.0.1"},
        {"url": "ws://[::1"},
        {"url": "ws://a b"},
        {"url": "ws://a\nb"},
        {"url": 3},
        {"url": ""},
        {"api_key": "a\r\nb: c"},
        {"api_key": "é"},
        {"ca": "/nowhere/ca.pem"},
        {"answer_s": 0},
        {"answer_s": float("nan")},
        {"connect_s": "1"},
        {"connect_s": float("inf")},
    ],
)
def test_arguments_out_of_range_are_one_sentence(arguments: dict[str, Any]) -> None:
    with pytest.raises(PrismError, match=r"expected (an address|seconds|letters|a file of cert)|no policy server at"):
        PolicyClient(**{"url": "ws://127.0.0.1:9", "connect_s": 0.2, **arguments})


@pytest.mark.parametrize("options", [{"seed": -1}, {"seed": 2**63}, {"seed": 1.5}, {"seed": "1"}, {"instruction": 3}])
def test_options_of_an_episode_are_checked_before_they_are_sent(options: dict[str, Any]) -> None:
    with answering(replying(pack({"actions": GOOD}))) as url, PolicyClient(url) as client:
        with pytest.raises(PrismError, match=r"^(seed|instruction): expected"):
            client.reset(**options)
        assert client.act(*FRAME).shape == (7,)  # the connection still serves
