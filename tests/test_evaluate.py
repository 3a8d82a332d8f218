"""Rollouts: the same outcome however they run, journaled as they end; intervals as another library computes them."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from scipy.stats import binomtest

from prism_policy.config import RunConfig
from prism_policy.errors import PrismError
from prism_policy.evaluate import episode_noise, evaluate, states_path, wilson_interval
from prism_policy.run_folder import make_policy


@pytest.mark.parametrize(("successes", "n"), [(0, 20), (1, 20), (19, 20), (20, 20), (7, 11), (500, 1000)])
def test_wilson_interval_is_scipys(successes: int, n: int) -> None:
    expected = binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson_interval(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_episode_noise_depends_on_split_seed_and_episode_alone() -> None:
    def draw(*key: Any) -> float:
        return float(torch.randn(1, generator=episode_noise(*key)))

    assert draw("evaluate", 0, 3) == draw("evaluate", 0, 3)
    others = [("validate", 0, 3), ("evaluate", 1, 3), ("evaluate", 0, 4)]
    assert len({draw(*key) for key in [("evaluate", 0, 3), *others]}) == 4


@pytest.fixture(scope="module")
def short(tiny_config: RunConfig) -> RunConfig:
    return replace(tiny_config, evaluate=replace(tiny_config.evaluate, n_episodes=3))


def run(folder: Path, config: RunConfig, **arguments: Any) -> list[np.ndarray]:
    torch.manual_seed(0)
    policy = make_policy(config, 9, 7).eval()
    records = evaluate(folder, config, policy, **arguments)
    assert [r["episode"] for r in records] == [0, 1, 2]
    return [np.load(states_path(folder, i)) for i in range(3)]


@pytest.fixture(scope="module")
def alone(short: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    return run(tmp_path_factory.mktemp("alone"), short, workers=1)


def test_one_and_two_workers_give_the_same_trajectories(
    tmp_path: Path, short: RunConfig, alone: list[np.ndarray]
) -> None:
    together = run(tmp_path, short, workers=2)
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))
    assert all(len(states) == short.task.max_steps + 1 for states in together)


def test_a_killed_worker_is_replaced_and_its_episode_run_again(
    tmp_path: Path, short: RunConfig, alone: list[np.ndarray]
) -> None:
    killed = []

    def kill_one(records: list[dict[str, Any]]) -> None:
        if not killed:
            workers = [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]
            killed.append(workers[-1].pid)
            os.kill(workers[-1].pid, signal.SIGKILL)

    again = run(tmp_path, short, workers=2, on_episode=kill_one)
    assert killed
    assert all(np.array_equal(a, b) for a, b in zip(alone, again, strict=True))


def test_a_stopped_evaluation_goes_on_with_the_missing_episodes(
    tmp_path: Path, short: RunConfig, alone: list[np.ndarray]
) -> None:
    class Stopped(Exception):
        pass

    def stop(records: list[dict[str, Any]]) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        run(tmp_path, short, workers=1, on_episode=stop)
    with (tmp_path / "results" / "episodes.jsonl").open("a") as file:
        file.write('{"episode": 1, "succ')  # a line cut off by the kill
    seen = []
    states = run(tmp_path, short, workers=1, on_episode=lambda records: seen.append(len(records)))
    assert seen == [2, 3]
    assert all(np.array_equal(a, b) for a, b in zip(alone, states, strict=True))


def test_zero_episodes_and_an_unknown_camera_are_refused(tmp_path: Path, short: RunConfig) -> None:
    with pytest.raises(PrismError, match="at least one episode, got 0"):
        evaluate(tmp_path, replace(short, evaluate=replace(short.evaluate, n_episodes=0)), make_policy(short, 9, 7))
    blind = replace(short, task=replace(short.task, cameras=("front",)))
    with pytest.raises(PrismError, match=r"unknown camera 'front'; this task has .*'agentview'"):
        evaluate(tmp_path, blind, make_policy(blind, 9, 7))
