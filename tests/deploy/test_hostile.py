"""What a policy server does about clients that are not robots, over real sockets, beside a robot."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import itertools
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from urllib.parse import urlparse

import msgpack
import numpy as np
import psutil
import pytest
from safetensors.torch import load_file, save_file
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from prism_client.client import PolicyClient
from prism_client.msgpack_numpy import MOST_CONTAINERS, MOST_ENTRIES, pack, unpack
from prism_policy.deploy.connection import MOST_OPENING
from prism_policy.deploy.server import describe, serve
from prism_policy.deploy.session import Adapter, Session
from prism_policy.deploy.turns import Turn, Turns
from prism_policy.errors import PrismError
from prism_policy.run_folder import load_policy
from served_run import frame, served, stacked, write_run
from small_run import small_config

MIB = 2**20


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("hostile") / "run", small_config())


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[tuple[str, int]]:
    with served(run) as (address, process):
        yield address, process.pid


@pytest.fixture
def url(server: tuple[str, int]) -> str:
    return server[0]


def handshake(url: str, *headers: str) -> str:
    """What the server answers to a request with these headers."""
    key = base64.b64encode(bytes(16)).decode()
    lines = ("GET / HTTP/1.1", "Host: a", "Connection: Upgrade", "Upgrade: websocket", f"Sec-WebSocket-Key: {key}",
             "Sec-WebSocket-Version: 13", *headers, "", "")  # fmt: skip
    place = urlparse(url)
    with socket.create_connection((place.hostname, place.port), timeout=10) as connection:
        connection.sendall("\r\n".join(lines).encode("latin-1"))
        answer = b""
        with contextlib.suppress(OSError):
            while b"101 Switching" not in answer and (more := connection.recv(2**16)):
                answer += more
    return answer.decode("latin-1")


@pytest.mark.parametrize("origin", ["http://example.com", "null", "http://127.0.0.1:8000"])
def test_a_page_in_a_browser_is_refused(url: str, origin: str) -> None:
    assert handshake(url, f"Origin: {origin}").startswith("HTTP/1.1 403")


ODD = ("Authorization: \xff\xfe", "Authorization: Api-Key sesame x", "Authorization:")


def test_odd_authorizations_are_refused_not_failed(run: Path) -> None:
    with served(run, key="sesame") as (url, _):
        assert handshake(url, "Authorization: a", "Authorization: Api-Key sesame").startswith("HTTP/1.1 400")
        for given in ODD:
            assert handshake(url, given).startswith("HTTP/1.1 401")
        assert handshake(url, "Authorization: Api-Key sesame").startswith("HTTP/1.1 101")


def test_without_a_key_odd_authorizations_are_admitted(url: str) -> None:
    assert handshake(url, "Authorization: a", "Authorization: Api-Key sesame").startswith("HTTP/1.1 400")
    for given in ODD:
        assert handshake(url, given).startswith("HTTP/1.1 101")


def test_refusals_of_a_handshake_quote_little(url: str) -> None:
    for header in ("Sec-WebSocket-Version: ", "Sec-WebSocket-Key: ", "Upgrade: ", "Connection: "):
        answer = handshake(url, header + "x" * 8000)
        assert not answer.startswith("HTTP/1.1 500")
        if answer.startswith("HTTP/1.1 101"):
            answer = answer.partition("\r\n\r\n")[0]  # the metadata may have come with it
        assert len(answer) < 1200, answer[:100]


def test_many_may_knock_while_the_server_is_busy(server: tuple[str, int]) -> None:
    url, process = server
    place, busy = urlparse(url), psutil.Process(process)
    busy.suspend()
    with contextlib.ExitStack() as stack:
        stack.callback(busy.resume)
        for _ in range(100):  # one that the kernel does not keep waiting would be dropped, and try again after a second
            stack.enter_context(socket.create_connection((place.hostname, place.port), timeout=0.5))
    with PolicyClient(url) as client:
        assert client.infer(frame(0))["actions"].shape == (8, 7)


def test_an_address_of_version_6_is_one_for_clients(run: Path) -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    with served(run, "--host", "::1") as (url, _):
        assert url.startswith("ws://[::1]:")
        with PolicyClient(url) as client:
            assert client.infer(frame(0))["actions"].shape == (8, 7)


@pytest.mark.parametrize(
    "message",
    [
        b"\xdd" + (24 * MIB).to_bytes(4, "big") + b"\x90" * (24 * MIB),
        b"\xdc\x03\xff" * 1000 + b"\x90",
        (b"\xdc\x00\x80" + b"\x80" * 128) * 100,
        b"\x81\xa1a" * 2000,
        b"\xdf\xff\xff\xff\xff",
        b"\xc7\x00\x05",
        b"\xd6\xff\0\0\0\0",
        msgpack.packb({"a": [[[]] * MOST_CONTAINERS]}),
        msgpack.packb({"a": [0] * (MOST_ENTRIES + 1)}),
        msgpack.packb({str(i): 0 for i in range(MOST_ENTRIES + 1)}),
    ],
)
def test_messages_that_ask_for_much_are_refused_before_they_are_built(message: bytes) -> None:
    before, started = psutil.Process().memory_info().rss, time.process_time()
    with pytest.raises(PrismError, match="expected a m"):
        unpack(message)
    assert time.process_time() - started < 0.1
    assert psutil.Process().memory_info().rss - before < 16 * MIB


ARRAY = {b"__ndarray__": True, b"data": bytes(8), b"dtype": "<f8", b"shape": [1]}
NUMBER = {b"__npgeneric__": True, b"data": 1, b"dtype": "<i8"}


@pytest.mark.parametrize(
    "entry",
    [
        {b"shape": [-1]}, {b"shape": [2**63]}, {b"shape": [2**40, 0]}, {b"shape": [True]}, {b"shape": [1.0]},
        {b"shape": [1] * 40}, {b"shape": None}, {b"shape": {"a": 1}}, {b"data": "x" * 8}, {b"data": None},
        {b"dtype": None}, {b"dtype": "(2,)f4"}, {b"dtype": "f4,f4"}, {b"dtype": "<f16"}, {b"dtype": "<c8"},
        {b"dtype": "M8[s]"}, {b"dtype": "x" * 100_000}, {b"dtype": 3}, {b"dtype": ["<f8"]},
    ],
)  # fmt: skip
def test_an_array_is_what_it_says_or_refused(entry: dict[bytes, Any]) -> None:
    with pytest.raises(PrismError, match="expected a msgpack message") as refused:
        unpack(msgpack.packb({"a": ARRAY | entry}))
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    "entry", [{b"data": "1"}, {b"data": None}, {b"dtype": "<u1", b"data": 276}, {b"data": 1.5}, {b"dtype": "U1"}]
)
def test_a_numpy_scalar_is_what_it_says_or_refused(entry: dict[bytes, Any]) -> None:
    with pytest.raises(PrismError, match="expected a msgpack message"):
        unpack(msgpack.packb({"a": NUMBER | entry}))


def test_arrays_of_other_machines_are_read() -> None:
    read = unpack(pack({"a": np.arange(3, dtype=">i2"), "b": np.zeros((0, 4), np.float16), "c": np.int8(-3)}))
    assert read["a"].dtype == np.int16
    assert read["a"].tolist() == [0, 1, 2]
    assert (read["b"].shape, read["c"]) == ((0, 4), -3)


ODD_REQUESTS: list[dict[Any, Any]] = [
    {"x" * 100_000: 1}, {b"\xff" * 5000: 1}, {"seed": "9" * 5000}, {"seed": np.zeros(3)}, {"seed": True},
    {"reset": np.zeros(3)}, {"reset": "yes"}, {"task": np.zeros(3)}, {"task": [1]}, {"prompt": 1.5},
    {"images": {}}, {"images": {"y" * 50_000: np.zeros(3)}}, {"images": {"agentview": np.uint8(3)}},
    {"images": {"agentview": np.zeros((), np.uint8)}}, {"images": {"agentview": np.zeros((1, 2, 3, 4, 5), np.uint8)}},
    {"images": {"agentview": np.zeros((0, 32, 3), np.uint8)}}, {"state": np.zeros((), np.float32)},
    {"state": np.zeros((2, 2, 9))}, {"state": np.full(9, 1e300)}, {"state": np.zeros(9, bool)[:0]},
    {"state": 1.5}, {"state": "z" * 9},
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(ODD_REQUESTS)))
def test_odd_requests_are_one_short_sentence_and_change_nothing(run: Path, number: int) -> None:
    session = Session(load_policy(run), 0)
    session.answer(frame(0))
    with pytest.raises(PrismError) as refused:
        session.answer(frame(1) | ODD_REQUESTS[number])
    assert len(str(refused.value)) <= 500
    assert "\n" not in str(refused.value)
    again = Session(load_policy(run), 0)
    again.answer(frame(0))
    assert np.array_equal(session.answer(frame(2))["actions"], again.answer(frame(2))["actions"])


def test_a_camera_more_than_the_policy_needs_is_ignored(run: Path) -> None:
    session, again = (Session(load_policy(run), 0) for _ in range(2))
    more = frame(0) | {"images": frame(0)["images"] | {"wrist": np.zeros((9, 9, 3), np.float64)}}
    assert np.array_equal(session.answer(more)["actions"], again.answer(frame(0))["actions"])


def test_a_message_longer_than_any_question_is_not_taken(url: str) -> None:
    with connect(url, compression=None) as connection:
        unpack(connection.recv())
        with contextlib.suppress(ConnectionClosed):
            connection.send(bytes(2 * MIB))
        with pytest.raises(ConnectionClosed, match=r"1009"):
            connection.recv()


def test_weights_that_are_no_numbers_are_not_served(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", small_config())
    weights = load_file(folder / "weights.safetensors")
    name = sorted(weights)[3]
    weights[name].view(-1)[0] = float("nan")
    save_file(weights, folder / "weights.safetensors")
    with pytest.raises(PrismError, match=rf"'{name}' holds NaN or infinity; take another checkpoint"):
        serve(folder)


@pytest.mark.parametrize("mode", ["delta", "absolute"])
def test_a_policy_that_computes_nonsense_is_refused_by_its_own_server(tmp_path: Path, mode: str) -> None:
    config = small_config(f"--task.action-mode {mode}")
    policy = load_policy(write_run(tmp_path / "run", config))
    policy.predict_chunk = lambda *_, **__: policy.normalizer["action"].scale.new_full(
        (1, 16, policy.action_dim), np.nan
    )  # type: ignore[method-assign]
    with pytest.raises(PrismError, match=r"expected (finite numbers|two finite rows)"):
        Session(policy, 0, Adapter.of(policy, config)).answer(stacked(0, 1))


@pytest.mark.parametrize("mode", ["delta", "absolute"])
def test_actions_are_in_the_range_that_metadata_say(tmp_path: Path, mode: str) -> None:
    config = small_config(f"--task.action-mode {mode}")
    folder = write_run(tmp_path / "run", config)
    policy = load_policy(folder)
    told = describe(folder, "last", config, policy)
    assert (told["action_low"][6], told["action_high"][6]) == (-1, 1)
    actions = np.concatenate(
        [Session(policy, i, Adapter.of(policy, config)).answer(stacked(0, 1))["actions"] for i in range(9)]
    )
    limited = actions if mode == "delta" else actions[:, 6:]
    assert np.abs(limited).max() == 1  # random weights go beyond, and are clipped
    assert mode == "delta" or np.abs(actions[:, :6]).max() > 1


def test_who_asks_now_and_then_is_not_behind_who_asks_all_the_time_and_who_is_gone_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr("prism_policy.deploy.turns.time", SimpleNamespace(perf_counter=lambda: now[0]))
    turns, order = Turns(), []
    for name in ("robot", *"abc"):
        turns.open(name)

    def ask(name: str) -> Turn:
        def compute() -> bytes:
            order.append(name)
            now[0] += 0.01
            return b""

        return turns.ask(name, compute)

    def take() -> bool:
        if turn := turns.next(0):
            turn.take()
        return turn is not None

    for name in 3 * "abc":
        ask(name)
        assert take()
    waiting = [ask(name) for name in "abc"]
    waiting[1].drop()
    ask("robot")
    while take():
        pass
    assert order[9] == "robot"
    assert sorted(order[10:]) == ["a", "c"]


SLOW = """
import sys, time
from pathlib import Path
from prism_policy.config import config_json
from prism_policy.config.settings import RunConfig
from prism_policy.deploy.server import Server, describe
from prism_policy.run_folder import load_policy
folder = Path(sys.argv[1])
policy = load_policy(folder)
act = policy.act
policy.act = lambda *arguments: time.sleep(2) or act(*arguments)
about = describe(folder, "last", config_json.load(RunConfig, folder / "config.json"), policy)
Server(policy, about).run("127.0.0.1", 0, lambda url: print(url, flush=True))
"""


def test_robots_connect_and_stay_while_the_policy_computes(run: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", SLOW, run], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        url = process.stdout.readline().strip()
        with PolicyClient(url) as asking, connect(url, compression=None) as idle:
            thread = threading.Thread(target=asking.infer, args=(frame(0),))
            thread.start()
            time.sleep(0.2)
            started = time.monotonic()
            with PolicyClient(url, connect_s=1):
                assert idle.ping().wait(1)
            assert time.monotonic() - started < 1
            assert thread.is_alive()
            thread.join()
            assert len(asking.round_trips_s) == 1
        process.terminate()
        assert process.wait(60) == 0


@pytest.fixture(scope="module")
def hostile() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "hostile_clients.py"
    spec = importlib.util.spec_from_file_location("hostile_clients", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["hostile_clients"] = module
    spec.loader.exec_module(module)
    return module


KINDS = (
    "24 MiB of empty lists",
    "questions without waiting",
    "smallest pings",
    "asks and vanishes",
    "silent connections",
)
"""The rest is measured by benchmarks/hostile_clients.py."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_robot_waits_little_longer_beside_a_hostile_client(
    server: tuple[str, int], hostile: ModuleType, kind: str
) -> None:
    waits = hostile.beside(*server, kind, seconds=3)
    assert len(waits.waits_s) > 3
    assert sorted(waits.waits_s)[-2] < 0.2  # the one before the worst: these cores are shared
    assert waits.connect_s
    assert waits.grown < 64 * MIB


def test_hundreds_of_silent_connections_keep_nobody_out(server: tuple[str, int]) -> None:
    place, before = urlparse(server[0]), psutil.Process(server[1]).memory_info().rss
    with contextlib.ExitStack() as stack:
        for number in range(5 * MOST_OPENING):
            connection = stack.enter_context(socket.create_connection((place.hostname, place.port), timeout=10))
            with contextlib.suppress(OSError):
                connection.sendall(b"GET / HTTP/1.1\r\na: " + bytes(4000) if number % 2 else b"")
        with PolicyClient(server[0]) as client:
            assert client.infer(frame(0))["actions"].shape == (8, 7)
        assert psutil.Process(server[1]).memory_info().rss - before < 64 * MIB


def test_who_does_not_wait_is_answered_in_order(url: str) -> None:
    questions = [stacked(i, i + 1) for i in range(20)]
    with connect(url, compression=None) as fast, PolicyClient(url) as one_by_one:
        unpack(fast.recv())
        for question in itertools.chain([questions[0] | {"seed": 3}], questions[1:]):
            fast.send(pack(question))
        quick = [unpack(fast.recv())["actions"] for _ in questions]
        slow = [one_by_one.infer(q | ({"seed": 3} if i == 0 else {}))["actions"] for i, q in enumerate(questions)]
    assert np.array_equal(quick, slow)
