"""Faults of a real server over real sockets, and of the operator, in real time; PRISM_FAULTS=200 makes more of them.

Whatever happens, the arm gets no unsound action and holds within a control step of the last sound one, the episode is
void and its steps are on the disk, and those before it are untouched.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, Iterator

import numpy as np
import pytest
from fakes import FILE, HZ, LIMITS, Point, policy_server

from prism_client.client import PolicyClient
from prism_client.control.asking import ThreadedAsking
from prism_client.control.log import EpisodeLog, read_episode
from prism_client.control.loop import ControlLoop, LoopOptions, Outcome
from prism_client.control.rollout import RolloutOptions, check_rate, rollout
from prism_client.control.stop import Stop, operator
from prism_client.errors import PrismError

PERIOD = 1 / HZ
STEPS = 60
KINDS = (
    "killed", "stopped", "nan", "beyond", "shape", "sentence", "far", "frozen", "stuck", "unplugged", "ahead", "behind",
    "hangs", "refuses", "Ctrl-C", "SIGTERM", "resumed",
)  # fmt: skip
FROZEN_S = float(os.environ.get("PRISM_FROZEN_S", "1"))
"""How long a server that is `resumed` was stopped [s]."""
SERVERS = ("nan", "beyond", "shape", "sentence", "far")
"""What is wrong with what the server says; `far` is a policy that runs away within what is announced."""


@contextlib.contextmanager
def watched(robot: Point, seconds: float, work: Any) -> Iterator[None]:
    timer = threading.Timer(seconds, work)
    timer.daemon = True
    timer.start()
    yield
    timer.cancel()


def episode(kind: str, folder: Path, rng: np.random.Generator) -> tuple[Point, Outcome, float]:
    """An episode with a fault at a random moment; the robot, how it went, and when the fault came."""
    robot, when = Point(), float(rng.uniform(0.25, 0.7))
    mode = kind if kind in SERVERS else "good"
    began = [float("inf")]

    def strike(process: Any) -> None:
        began[0] = robot.clock.now()
        if kind == "killed":
            process.kill()
        elif kind in ("stopped", "resumed"):
            process.send_signal(signal.SIGSTOP)
            if kind == "resumed":
                time.sleep(FROZEN_S)
                process.send_signal(signal.SIGCONT)
        elif kind == "Ctrl-C":
            os.kill(os.getpid(), signal.SIGINT)
        elif kind == "SIGTERM":
            os.kill(os.getpid(), signal.SIGTERM)
        elif kind not in SERVERS:
            robot.fault = kind

    with policy_server(mode, first=int(rng.integers(1, 4)), delay_s=float(rng.uniform(0, 0.06))) as (url, process):
        client = PolicyClient(url, answer_s=0.4, connect_s=1.0, reconnect=True)
        stop, asking = Stop(), ThreadedAsking(client)
        longer = FROZEN_S + 2 if kind == "resumed" else 0.0
        steps = STEPS + round(longer * HZ)
        options = LoopOptions(steps, reconnect_s=longer or 0.3, home_at_end=bool(rng.integers(2)))
        with EpisodeLog(folder, {"kind": kind}) as log, operator(stop):
            loop = ControlLoop(robot, asking, client.interface, LIMITS, FILE.workspace, options, log=log, stop=stop)
            with watched(robot, when, lambda: strike(process)):
                outcome = loop.run()
        client.close()
    return robot, outcome, began[0]


def check(kind: str, robot: Point, outcome: Outcome, began: float, folder: Path) -> None:
    """What has to hold of an episode with a fault."""
    assert bool(outcome.void) == (kind != "far"), (kind, outcome)
    names = [name for name, _, _ in robot.events]
    assert names[-1] in ("hold", "home")
    goals = robot.goals
    assert np.isfinite(goals).all()
    assert (goals >= np.array(FILE.workspace.low) - 1e-6).all()
    assert (goals <= np.array(FILE.workspace.high) + 1e-6).all()
    assert np.linalg.norm(np.diff(goals, axis=0), axis=1).max(initial=0) <= LIMITS.speed * PERIOD + 1e-6
    steps = read_episode(folder).steps
    assert [step["step"] for step in steps] == list(range(outcome.steps))
    sent = [step["sent"] for step in steps if "sent" in step]
    np.testing.assert_allclose(np.array(sent)[:, :3], goals, atol=1e-6)
    if kind in ("Ctrl-C", "SIGTERM", "unplugged", "ahead", "behind", "refuses"):
        assert not robot.did("act", began + 2 * PERIOD)  # it holds within a step of the fault
    if kind == "resumed":  # it holds meanwhile, and goes on
        assert outcome.steps > STEPS
        assert robot.did("hold", began)
        assert robot.did("act", began + FROZEN_S)
    if kind == "hangs":
        holds = robot.did("hold", began)
        assert holds
        assert min(holds) <= began + 6 * PERIOD  # the watchdog, while the driver hangs
    if kind in ("killed", "stopped", "nan", "beyond", "shape", "sentence"):
        for step in steps:
            if str(step.get("event", "")).startswith(("the server", "ws://", "actions:")):
                assert "sent" not in step


FAST = ("killed", "nan", "unplugged", "Ctrl-C")


@pytest.mark.parametrize(
    "kind", [kind if kind in FAST else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_a_fault_is_survived(kind: str, tmp_path: Path) -> None:
    robot, outcome, began = episode(kind, tmp_path / "a", np.random.default_rng(KINDS.index(kind)))
    check(kind, robot, outcome, began, tmp_path / "a")


@pytest.mark.slow
def test_many_faults_are_survived_and_lose_nothing_that_was_recorded(tmp_path: Path) -> None:
    count, rng = int(os.environ.get("PRISM_FAULTS", "40")), np.random.default_rng(int(os.environ.get("SEED", "1")))
    before: dict[Path, bytes] = {}
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        folder = tmp_path / f"episode_{number:03d}"
        robot, outcome, began = episode(kind, folder, rng)
        check(kind, robot, outcome, began, folder)
        for path in folder.iterdir():
            before[path] = path.read_bytes()
        sys.stdout.write(f"{number} {kind}: {outcome.ended} {outcome.void[:1]}\n")
    assert all(path.read_bytes() == data for path, data in before.items())


@pytest.mark.parametrize(("key", "stops"), [(b"q", True), (b" ", True), (b"x", False)])
def test_a_key_stops_the_arm_where_there_is_a_terminal(
    key: bytes, stops: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyboard, terminal = os.openpty()
    with open(terminal, "rb", buffering=0, closefd=False) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        stop = Stop()
        with operator(stop):
            os.write(keyboard, key)
            assert stop.wait(2.0 if stops else 0.3) == stops
        assert (stop.reason, stop.voids) == ("the stop key" if stops else "", False)
    os.close(keyboard)
    os.close(terminal)


def test_a_robot_of_another_rate_is_refused() -> None:
    with pytest.raises(PrismError, match="the policy acts at 20 Hz, the robot at 50; give rate_hz = 20"):
        check_rate(Point(), 20.0)
    check_rate(Point(), 50)
    check_rate(Point(), None)


@pytest.mark.slow
def test_a_server_that_comes_back_is_used_again(tmp_path: Path) -> None:
    with policy_server() as (url, process):
        port = int(url.rpartition(":")[2])
        robot = Point()
        client = PolicyClient(url, answer_s=1.0, reconnect=True)
        loop = ControlLoop(
            robot, ThreadedAsking(client), client.interface, LIMITS, FILE.workspace, LoopOptions(250, reconnect_s=5)
        )

        def again() -> None:
            process.kill()
            process.wait()
            with policy_server(port=port):
                finished.wait(10)

        finished = threading.Event()
        with watched(robot, 0.5, again):
            outcome = loop.run()
            finished.set()
        client.close()
    assert (outcome.ended, len(outcome.void) > 0) == ("done", True)
    assert robot.did("act")[-1] > robot.did("hold", robot.did("act")[0])[0]  # it went on after it held
    assert np.linalg.norm(np.diff(robot.goals, axis=0), axis=1).max() <= LIMITS.speed * PERIOD + 1e-6


def test_rollouts_are_episodes_in_folders(tmp_path: Path) -> None:
    robot, said = Point(), []
    with policy_server(delay_s=0.03) as (url, _):
        options = RolloutOptions(url, tmp_path, episodes=2, loop=LoopOptions(25), seed=None)
        outcomes = rollout(FILE, options, done=lambda folder, outcome: said.append(folder.name), robot=robot)
        rollout(FILE, options, done=lambda folder, outcome: said.append(folder.name), robot=robot)
    assert [outcome.ended for outcome in outcomes] == ["done", "done"]
    assert said == [f"episode_{number:03d}" for number in range(4)]
    assert read_episode(tmp_path / "episode_001").header["robot"]["limits"]["step"] == 0.01
    assert [name for name, _, _ in robot.events if name in ("home", "close")] == ["home", "home", "close"] * 2


def test_the_arm_never_waits_for_a_server_150_ms_away_but_with_a_blocking_client_it_does() -> None:
    with policy_server(delay_s=0.15) as (url, _):
        pauses = {}
        for overlap in (True, False):
            robot = Point()
            robot.schema = type(robot.schema)(robot.schema.cameras, robot.schema.state, robot.schema.action, 20.0)
            with PolicyClient(url) as client:
                options = LoopOptions(36, overlap=overlap)
                loop = ControlLoop(robot, ThreadedAsking(client), client.interface, LIMITS, FILE.workspace, options)
                pauses[overlap] = loop.run().pauses
        with PolicyClient(url) as client:  # as robots have done so far
            robot, late = Point(), 0
            for _ in range(17):
                started = time.monotonic()
                frame = robot.observe()
                robot.act(client.act(frame["images"], frame["state"]))
                late += time.monotonic() - started > 0.05
    assert pauses[True] == 0
    assert pauses[False] >= 2 * 3
    assert late >= 2
