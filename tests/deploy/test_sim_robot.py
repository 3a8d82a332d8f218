"""A simulated task as a robot: in lock-step it does what its environment does, bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from prism_client.control.asking import DelayedAsking
from prism_client.control.limits import Limits, Workspace
from prism_client.control.log import EpisodeLog, read_episode
from prism_client.control.loop import ControlLoop, LoopOptions
from prism_client.robots.robot_file import RobotFile, make_robot

pytest.importorskip("robosuite", reason="needs prism-policy[sim]")

from prism_policy.deploy.session import Adapter, Session
from prism_policy.deploy.sim_robot import SimRobot
from prism_policy.errors import PrismError
from prism_policy.run_folder import load_policy
from served_run import write_run
from small_run import small_config

LIMITS = Limits(frozen_frames=0, step=0, speed=0, turn=0, turn_speed=0)


@pytest.fixture(scope="module")
def robot() -> Iterator[SimRobot]:
    made: Any = make_robot(RobotFile("sim", settings={"task": "key_pick", "realtime": False, "resolution": 32}))
    made.connect()
    yield made
    made.close()


class Random:
    """A policy that moves anyhow."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def infer(self, request: dict[str, Any]) -> dict[str, Any]:
        actions = self.rng.uniform(-1, 1, (15 if "known" in request else 8, 7)).astype(np.float32)
        if "known" in request:
            actions[: len(request["known"])] = request["known"]
        return {"actions": actions}


def interface(robot: SimRobot) -> Any:
    from prism_client.interface import Interface

    return Interface(robot.schema, 2, 8, (-1.0,) * 7, (1.0,) * 7, 15)


def test_a_logged_episode_replayed_in_the_environment_is_the_same_to_the_last_bit(
    robot: SimRobot, tmp_path: Path
) -> None:
    robot.begin("evaluate", 3, 1)
    asking = DelayedAsking(Random(0), robot.clock, 0.1)
    with EpisodeLog(tmp_path / "a", {}) as log:
        loop = ControlLoop(robot, asking, interface(robot), LIMITS, Workspace(), LoopOptions(30), log=log)
        assert loop.run().pauses == 0
    steps = read_episode(tmp_path / "a").steps
    env = robot.env
    seen, _ = env.reset(seed=3, options={"split": "evaluate", "episode": 1})
    hold = np.array([0, 0, 0, 0, 0, 0, -1.0])
    for step in steps:
        np.testing.assert_array_equal(step["state"], seen["state"])
        for camera, image in seen["images"].items():
            np.testing.assert_array_equal(step["images"][camera], image)
        env.advance(step.get("sent", hold))
        seen = env.observe()


def test_holding_it_stays_and_home_is_where_it_began(robot: SimRobot) -> None:
    robot.begin("evaluate", 0, 0)
    begun, never = robot.observe()["state"], threading.Event()
    for _ in range(10):
        robot.act(np.array([0, 0, -1.0, 0, 0, 0, 1.0]))
        robot.clock.wait(robot.clock.now() + 0.05, never)
    moved = robot.observe()["state"]
    assert moved[2] < begun[2] - 0.1
    for _ in range(20):
        robot.hold()
        robot.clock.wait(robot.clock.now() + 0.05, never)
    held = robot.observe()["state"]
    assert np.abs(held[:3] - moved[:3]).max() < 0.03  # it swings out
    assert abs(held[7]) < 0.01  # the gripper stays closed
    robot.home()
    np.testing.assert_allclose(robot.observe()["state"], begun, atol=1e-6)


@pytest.mark.slow
def test_holding_with_absolute_actions_is_staying_where_the_hand_is() -> None:
    settings = {"task": "lift", "realtime": False, "resolution": 32, "action_mode": "absolute"}
    robot: Any = make_robot(RobotFile("sim", settings=settings))
    robot.connect()
    never, begun = threading.Event(), robot.observe()["state"]

    def steps(number: int) -> np.ndarray:
        for _ in range(number):
            robot.clock.wait(robot.clock.now() + 0.05, never)
        return robot.observe()["state"]

    assert np.abs(steps(20)[:7] - begun[:7]).max() < 0.005
    site = robot.env.sim_env.sim.data.site_xmat[robot.env.eef_site].reshape(3, 3)
    goal = np.array([*(begun[:3] - [0, 0, 0.1]), *Rotation.from_matrix(site).as_rotvec(), 1.0])
    for _ in range(30):
        robot.act(goal)
        moved = steps(1)
    np.testing.assert_allclose(moved[:3], goal[:3], atol=0.01)
    turn = robot.env.sim_env.sim.data.site_xmat[robot.env.eef_site].reshape(3, 3)
    np.testing.assert_allclose(robot.where(moved)[:3], moved[:3])
    np.testing.assert_allclose(Rotation.from_rotvec(robot.where(moved)[3:6]).as_matrix(), turn, atol=1e-4)
    held = steps(20)
    np.testing.assert_allclose(held[:3], moved[:3], atol=0.005)
    assert abs(held[7]) < 0.01
    robot.close()


def test_the_box_holds_in_the_simulation_too(robot: SimRobot) -> None:
    robot.begin("evaluate", 0, 2)
    low, high = robot.observe()["state"][:3] - 0.05, robot.observe()["state"][:3] + 0.05
    asking = DelayedAsking(Random(1), robot.clock, 0.0)
    limits = Limits(frozen_frames=0, step=0.03, speed=0.6)
    box = Workspace(low.tolist(), high.tolist())
    loop = ControlLoop(robot, asking, interface(robot), limits, box, LoopOptions(60))
    hands = []
    act = robot.act
    robot.act = lambda action: (hands.append(robot.observe()["state"][:3]), act(action))  # type: ignore[method-assign,assignment,func-returns-value]
    outcome = loop.run()
    del robot.act  # type: ignore[method-assign]
    assert outcome.guarded
    assert (np.array(hands) >= low - 0.02).all()  # the controller overshoots a goal in the box by so much
    assert (np.array(hands) <= high + 0.02).all()


def test_known_actions_come_back_from_the_policy_and_shape_the_others(tmp_path: Path) -> None:
    policy = load_policy(write_run(tmp_path / "run", small_config()))
    session = Session(policy, 0, Adapter.of(policy, small_config()))
    from served_run import stacked

    known = np.linspace(-1, 1, 28, dtype=np.float32).reshape(4, 7)
    free = session.answer({**stacked(0, 1), "seed": 1, "known": known[:0]})["actions"]
    plain = session.answer({**stacked(0, 1), "seed": 1})["actions"]
    given = session.answer({**stacked(0, 1), "seed": 1, "known": known})["actions"]
    horizon = policy.config.horizon - policy.config.n_obs_steps + 1
    assert free.shape == given.shape == (horizon, 7)
    np.testing.assert_allclose(free[:8], plain, atol=1e-5)
    np.testing.assert_allclose(given[:4], known, atol=1e-5)
    assert np.abs(given[4:] - free[4:]).max() > 1e-3
    for bad in (
        np.zeros((horizon + 1, 7)),
        np.zeros((2, 6)),
        np.full((2, 7), np.nan),
        [[0.0] * 7],
        np.full((1, 7), 3.0),
    ):
        with pytest.raises(PrismError, match=r"known: expected|actions: expected"):
            session.answer({**stacked(0, 1), "known": bad})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "settings.task is missing"),
        ({"task": "stack", "speed": 1}, "unknown field 'settings.speed'; SimRobot has task"),
        ({"task": "nothing"}, "unknown task 'nothing'"),
        ({"task": 3}, "settings.task: expected str, got 3"),
    ],
)
def test_bad_settings_are_one_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PrismError, match=sentence):
        make_robot(RobotFile("sim", settings=settings))
    with pytest.raises(PrismError, match="rate_hz: expected the simulation's 20, got 10"):
        make_robot(RobotFile("sim", rate_hz=10, settings={"task": "lift"}))


@pytest.mark.slow
def test_the_commands_check_and_run_a_robot_in_real_time(tmp_path: Path) -> None:
    said = {
        "robot": "sim", "rate_hz": 20, "settings": {"task": "stack", "resolution": 32}, "limits": {"frozen_frames": 0},
        "workspace": {"low": [-0.4, -0.4, 0.8], "high": [0.4, 0.4, 1.3]},
    }  # fmt: skip
    (tmp_path / "robot.json").write_text(json.dumps(said))

    def prism(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "prism_policy", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)

    checked = prism("robot", "check", "robot.json", "--seconds", "2", "--move")
    assert "control steps a second" in checked.stdout, checked.stderr
    assert "state moves after" in checked.stdout
    assert Image.open(tmp_path / "robot.png").size[1] > 336
    refused = prism("rollout", "robot.json", "ws://127.0.0.1:9")
    assert (refused.returncode, "no policy server" in refused.stderr) == (2, True)
    assert prism("robot", "check", "none.json").returncode == 2
