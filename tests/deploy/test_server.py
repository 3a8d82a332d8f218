"""`prism serve` and its client over real sockets, against the policy itself; messages against openpi's own."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.sync.client import connect

from prism_client.client import PolicyClient
from prism_client.msgpack_numpy import pack, unpack
from prism_policy.config.settings import RunConfig, single_tasks
from prism_policy.data.actions import decode_absolute
from prism_policy.deploy.session import Adapter, Session
from prism_policy.envs.episode import episode_rng
from prism_policy.envs.make import make_env
from prism_policy.envs.workers import WorkerPool
from prism_policy.errors import PrismError
from prism_policy.evaluation.rollouts import NOISE_STREAM, evaluate, states_path
from prism_policy.policies import Policy
from prism_policy.run_folder import load_policy
from served_run import frame, served, stacked, write_run
from small_run import small_config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("serve") / "run", small_config())


@pytest.fixture(scope="module")
def policy(run: Path) -> Policy:
    return load_policy(run)


@pytest.fixture(scope="module")
def url(run: Path) -> Iterator[str]:
    with served(run) as (address, _):
        yield address


def expected(policy: Policy, seed: int, *pairs: tuple[int, int]) -> list[np.ndarray]:
    """What the policy does at each pair of frames, one after the other, in the controller's range if it has one."""
    generator, chunks = torch.Generator().manual_seed(seed), []
    for pair in pairs:
        frames = stacked(*pair)
        observation = {
            "images": {c: torch.from_numpy(x)[None] for c, x in frames["images"].items()},
            "state": torch.from_numpy(frames["state"])[None],
        }
        actions = policy.act(observation, generator)[0].numpy()
        chunks.append(np.clip(actions, -1, 1) if policy.action_dim == 7 else actions)
    return chunks


def test_messages_are_those_of_openpi() -> None:
    array, scalar = np.arange(6, dtype=np.uint8).reshape(2, 3), np.float32(1.5)
    written = msgpack.unpackb(pack({"a": array, "b": {"c": scalar}, "d": "text"}))
    assert written == {
        "a": {b"__ndarray__": True, b"data": bytes(range(6)), b"dtype": "|u1", b"shape": [2, 3]},
        "b": {"c": {b"__npgeneric__": True, b"data": 1.5, b"dtype": "<f4"}},
        "d": "text",
    }
    read = unpack(msgpack.packb(written))
    assert read["a"].dtype == np.uint8
    assert np.array_equal(read["a"], array)
    assert (read["b"]["c"], read["b"]["c"].dtype, read["d"]) == (1.5, np.float32, "text")
    read["a"][0, 0] = 7  # may be written to


def test_openpis_own_packer_and_this_one_understand_each_other() -> None:
    message = {"images": {"a": np.ones((2, 4, 4, 3), np.uint8)}, "state": np.linspace(0, 1, 9), "task": "push"}
    for actual in (unpack(msgpack_numpy.packb(message)), msgpack_numpy.unpackb(pack(message))):
        assert np.array_equal(actual["images"]["a"], message["images"]["a"])
        assert np.array_equal(actual["state"], message["state"])
        assert actual["task"] == "push"


def test_openpis_own_client_is_served(url: str, policy: Policy) -> None:
    client = WebsocketClientPolicy(url)
    assert client.get_server_metadata()["n_obs_steps"] == 2
    actual = client.infer({**frame(0), "seed": 4})
    np.testing.assert_allclose(actual["actions"], expected(policy, 4, (0, 0))[0], rtol=0, atol=1e-5)
    assert actual["server_timing"]["infer_ms"] > 0
    with pytest.raises(RuntimeError, match="unknown key 'pose'"):
        client.infer({"pose": np.zeros(9)})


def array_message(**entries: Any) -> bytes:
    whole = {b"__ndarray__": True, b"data": bytes(8), b"dtype": "<f8", b"shape": [1]}
    return msgpack.packb({"state": whole | {key.encode(): value for key, value in entries.items()}})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"nonsense",
        msgpack.packb([1, 2]),
        array_message(dtype="|O"),
        array_message(dtype="|V8"),
        array_message(dtype="no type"),
        array_message(shape=[2]),
        array_message(shape="x"),
        array_message(data=bytes(7)),
        array_message(data=8),
        pack({"a": np.ones(9)})[:-3],
    ],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(PrismError, match="expected a"):
        unpack(data)


def test_objects_are_not_sent() -> None:
    with pytest.raises(TypeError, match="expected numbers or text"):
        pack({"a": np.array([{}], object)})


def test_the_server_says_what_it_expects(url: str) -> None:
    with PolicyClient(url) as client:
        told = client.metadata
    assert told["cameras"] == {"agentview": [32, 32, 3]}
    assert (told["state_dim"], told["n_obs_steps"], told["n_action_steps"]) == (9, 2, 8)
    assert (told["policy"], told["encoder"], told["action_mode"]) == ("flow_matching", "sspool", "delta")
    assert (told["run"], told["task"], told["instructions"]) == ("run", "lift", [])


def test_the_client_asks_once_a_chunk_with_frames_one_step_apart(url: str, policy: Policy) -> None:
    with PolicyClient(url) as client:
        client.reset(seed=5)
        actions = np.stack([client.act(**frame(step)) for step in range(20)])
        assert len(client.round_trips_s) == 3
        client.reset(seed=5)
        camera, again = frame(0)["images"]["agentview"], []
        for step in range(20):
            camera[:] = frame(step)["images"]["agentview"]  # as drivers do that have one buffer
            again.append(client.act({"agentview": camera}, frame(step)["state"]))
    want = np.concatenate(expected(policy, 5, (0, 0), (7, 8), (15, 16)))[:20]
    np.testing.assert_allclose(actions, want, rtol=0, atol=1e-5)
    assert np.array_equal(actions, again)


def test_the_server_keeps_the_frames_of_each_connection_apart(url: str, policy: Policy) -> None:
    with PolicyClient(url) as one, PolicyClient(url) as two:
        first = [one.infer({**frame(0), "seed": 1})["actions"], one.infer(frame(1))["actions"]]
        other = two.infer({**frame(2), "seed": 2})["actions"]
        first.append(one.infer(frame(3))["actions"])
        begun = two.infer({**frame(4), "reset": True})["actions"]
    for actual, want in zip(first, expected(policy, 1, (0, 0), (0, 1), (1, 3)), strict=True):
        np.testing.assert_allclose(actual, want, rtol=0, atol=1e-5)
    for actual, want in zip((other, begun), expected(policy, 2, (2, 2), (4, 4)), strict=True):
        np.testing.assert_allclose(actual, want, rtol=0, atol=1e-5)


def test_each_connection_has_noise_of_its_own(url: str) -> None:
    with PolicyClient(url) as one, PolicyClient(url) as two:
        a, b = (client.infer(stacked(0, 1))["actions"] for client in (one, two))
    assert np.abs(a - b).max() > 0.1


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ({}, "expected 'images', a map of a camera's name to its frame, and 'state', an array"),
        ({"images": {"agentview": [1]}, "state": np.zeros(9)}, "camera 'agentview': expected an array, got list"),
        (frame(0) | {"image": 1}, "unknown key 'image'; expected images, known, prompt, state"),
        (frame(0) | {"seed": -1}, "seed: expected an integer from 0"),
        (frame(0) | {"task": 3}, "task: expected an instruction, got int"),
        (frame(0) | {"images": {"wrist": np.zeros((32, 32, 3), np.uint8)}}, "agentview"),
        (frame(0) | {"images": {"agentview": np.zeros((48, 64, 3), np.uint8)}}, "agentview"),
        (frame(0) | {"images": {"agentview": np.zeros((32, 32, 3), np.float32)}}, "uint8"),
        (frame(0) | {"state": np.zeros(8)}, r"state: expected \(B, 2, 9\), got \(1, 2, 8\)"),
        (frame(0) | {"state": np.full(9, np.nan)}, "state"),
        (stacked(0, 1, 2), r"state: expected \(B, 2, 9\), got \(1, 3, 9\)"),
    ],
)
def test_bad_requests_are_one_sentence_and_the_server_goes_on(url: str, message: dict[str, Any], sentence: str) -> None:
    with PolicyClient(url) as client:
        with pytest.raises(PrismError, match=sentence) as refused:
            client.infer(message)
        assert "Traceback" not in str(refused.value)
        with pytest.raises(PrismError, match=r"is gone .*; make a new PolicyClient"):
            client.infer(frame(0))
    with PolicyClient(url) as client:
        assert client.infer(frame(0))["actions"].shape == (8, 7)


def test_garbage_is_answered_in_text_and_closes_as_openpi_has_it(url: str) -> None:
    for garbage in (b"nonsense", "text"):
        with connect(url, compression=None) as connection:
            unpack(connection.recv())
            connection.send(garbage)
            assert str(connection.recv()).startswith("expected a ")
            with pytest.raises(Exception, match="1011"):
                connection.recv()


def test_frames_that_change_their_size_are_refused(policy: Policy) -> None:
    session = Session(policy, 0)
    session.answer(frame(0))
    with pytest.raises(PrismError, match="expected the cameras and sizes of the frames before"):
        session.answer(frame(0) | {"images": {"agentview": np.zeros((48, 48, 3), np.uint8)}})


def test_absolute_actions_are_sent_as_a_controller_takes_them(tmp_path: Path) -> None:
    config = small_config("--task.action-mode absolute")
    absolute = load_policy(write_run(tmp_path / "run", config))
    actual = Session(absolute, 3, Adapter.of(absolute, config)).answer(stacked(0, 1))["actions"]
    want = decode_absolute(expected(absolute, 3, (0, 1))[0])
    want[:, 6] = np.clip(want[:, 6], -1, 1)  # the gripper has no metres
    np.testing.assert_allclose(actual, want, rtol=0, atol=1e-5)
    assert actual.shape == (8, 7)


def test_who_does_not_know_the_key_is_not_admitted(run: Path) -> None:
    with served(run, key="open sesame") as (url, _):
        with pytest.raises(PrismError, match=r"refuses the connection .*401.*; is PRISM_API_KEY the server's"):
            PolicyClient(url)
        with pytest.raises(PrismError, match="refuses"):
            PolicyClient(url, api_key="open")
        with PolicyClient(url, api_key="open sesame") as client:
            assert client.infer(frame(0))["actions"].shape == (8, 7)
        with urllib.request.urlopen(url.replace("ws", "http", 1) + "/healthz") as page:  # watchdogs need no key
            assert page.read() == b"OK\n"


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_stopped_it_says_what_it_did_and_a_client_that_it_is_gone(run: Path, number: signal.Signals) -> None:
    with served(run) as (url, process), PolicyClient(url) as client:
        for _ in range(3):
            client.infer(stacked(0, 1))
        process.send_signal(number)
        out, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (0, "")
        assert re.search(r"Served 3 chunks: median \d+ ms, 95% within \d+ ms", out)
        with pytest.raises(PrismError, match="is gone"):
            client.infer(stacked(0, 1))


def test_a_robot_that_vanishes_does_not_stop_the_server(url: str) -> None:
    client = PolicyClient(url)
    client._connection.send(pack(stacked(0, 1)))
    client._connection.socket.close()
    with PolicyClient(url) as other:
        assert other.infer(stacked(0, 1))["actions"].shape == (8, 7)


@pytest.mark.slow
def test_bad_input_to_the_command_is_one_sentence(run: Path, tmp_path: Path, url: str) -> None:
    def complaint(*arguments: str) -> str:
        command = [sys.executable, "-m", "prism_policy", "serve", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    assert "config.json not found" in complaint(str(tmp_path))
    assert "has no checkpoint 'best'; it has last" in complaint(str(run), "--checkpoint", "best")
    port = url.rpartition(":")[2]
    assert f"cannot listen at 127.0.0.1:{port}" in complaint(str(run), "--port", port)
    assert "port: expected 0 to 65535, got 99999" in complaint(str(run), "--port", "99999")
    for seed in ("-1", str(2**70)):
        assert "seed: expected" in complaint(str(run), "--seed", seed)


def test_nobody_there_and_no_address_are_told() -> None:
    with pytest.raises(PrismError, match=r"no policy server at ws://127.0.0.1:9 .*start one with `prism serve RUN`"):
        PolicyClient("ws://127.0.0.1:9", connect_s=0.2)
    with pytest.raises(PrismError, match="expected an address such as ws://"):
        PolicyClient("127.0.0.1:8000")


def test_an_episode_through_the_server_is_that_of_evaluate(tiny_config: RunConfig, tmp_path: Path) -> None:
    config = replace(tiny_config, task=replace(tiny_config.task, max_steps=20))
    folder = write_run(tmp_path / "run", config)
    (task,) = single_tasks(config.task)
    torch.set_num_threads(1)
    with WorkerPool(1) as simulators:
        stream = replace(config.evaluate, n_episodes=2)
        evaluate(tmp_path / "results", config, load_policy(folder), stream, simulators)
    env = make_env(task)
    with served(folder) as (url, _), PolicyClient(url) as client:
        for episode in range(2):
            word = episode_rng(stream.split, stream.seed, episode, NOISE_STREAM).integers(2**63)
            client.reset(seed=int(word))
            observation, _ = env.reset(seed=stream.seed, options={"split": stream.split, "episode": episode})
            states = [env.state]
            for _ in range(20):
                observation, _, done, _, _ = env.step(client.act(observation["images"], observation["state"]))
                states.append(env.state)
                assert not done
            assert np.array_equal(np.stack(states), np.load(states_path(tmp_path / "results", episode)))
    env.close()


BAD_FRAMES: dict[str, tuple[Any, Any]] = {
    "images: expected a dict of agentview, got list": ([1], np.zeros(9)),
    "camera 'agentview' is missing; the policy needs agentview": ({"wrist": np.zeros(3)}, np.zeros(9)),
    r"camera 'agentview': expected uint8 \(32, 32, 3\), got uint8 \(3, 32, 32\)": (
        {"agentview": np.zeros((3, 32, 32), np.uint8)},
        np.zeros(9),
    ),
    r"camera 'agentview': expected uint8 .*, got float64": ({"agentview": np.zeros((32, 32, 3))}, np.zeros(9)),
    r"state: expected \(9,\) finite numbers, got \(8,\)": (frame(0)["images"], np.zeros(8)),
    r"state: expected \(9,\) finite numbers, got \(9,\).*nan": (frame(0)["images"], np.full(9, np.nan)),
    "expected arrays of numbers .*here": (frame(0)["images"], "here"),
    "expected arrays of numbers .*inhomogeneous": ({"agentview": [[1], [1, 2]]}, np.zeros(9)),
}


def test_frames_that_the_client_refuses_are_named_and_forgotten(url: str, policy: Policy) -> None:
    with PolicyClient(url) as client:
        client.reset(seed=5)
        for sentence, (images, state) in BAD_FRAMES.items():
            with pytest.raises(PrismError, match=sentence):
                client.act(images, state)
        actual = client.act(frame(0)["images"], frame(0)["state"])
        np.testing.assert_allclose(actual, expected(policy, 5, (0, 0))[0][0], rtol=0, atol=1e-5)
        with pytest.raises(PrismError, match="cannot send this request: expected numbers or text, got object"):
            client.infer({"task": object()})


def test_the_client_loads_neither_torch_nor_a_simulator() -> None:
    code = "import prism_policy as pp, sys; pp.PolicyClient; print({'torch', 'robosuite', 'mujoco'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
