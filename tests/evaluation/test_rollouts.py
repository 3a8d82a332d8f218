"""Rollouts: the same outcome however they run, whatever happens to a worker, journaled as they end."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from journals import read_lines
from prism_policy.config.settings import RunConfig
from prism_policy.data.schema import task_schema
from prism_policy.envs.workers import WorkerPool
from prism_policy.errors import PrismError
from prism_policy.evaluation.rollouts import episode_noise, evaluate, sample_chunks, states_path
from prism_policy.policies import Policy
from prism_policy.run_folder import make_policy


def test_episode_noise_depends_on_split_seed_and_episode_alone() -> None:
    def draw(*key: Any) -> float:
        return float(torch.randn(1, generator=episode_noise(*key)))

    assert draw("evaluate", 0, 3) == draw("evaluate", 0, 3)
    others = [("validate", 0, 3), ("evaluate", 1, 3), ("evaluate", 0, 4)]
    assert len({draw(*key) for key in [("evaluate", 0, 3), *others]}) == 4


@pytest.fixture(scope="module")
def short(tiny_config: RunConfig) -> RunConfig:
    return replace(tiny_config, evaluate=replace(tiny_config.evaluate, n_episodes=3))


def tiny_policy(config: RunConfig) -> Policy:
    torch.manual_seed(0)
    return make_policy(config, task_schema(config.task)).eval()


def run(folder: Path, config: RunConfig, workers: int = 1, patience: float = 120.0, **more: Any) -> list[np.ndarray]:
    with WorkerPool(workers, patience) as simulators:
        records = evaluate(folder, config, tiny_policy(config), simulators=simulators, **more)
        assert simulators.peak_rss_mib > 100
    assert [r["episode"] for r in records] == [0, 1, 2]
    return [np.load(states_path(folder, i)) for i in range(3)]


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def alone(short: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    return run(tmp_path_factory.mktemp("alone"), short)


@pytest.mark.parametrize("workers", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_any_number_of_workers_gives_the_same_trajectories(
    tmp_path: Path, short: RunConfig, alone: list[np.ndarray], workers: int
) -> None:
    together = run(tmp_path, short, workers)
    assert same(alone, together)
    assert all(len(states) == short.task.max_steps + 1 for states in together)


def simulator_processes() -> list[psutil.Process]:
    return [
        p
        for p in psutil.Process().children()
        if p.status() != psutil.STATUS_ZOMBIE and "spawn_main" in " ".join(p.cmdline())
    ]


@pytest.mark.usefixtures("own_simulators")
@pytest.mark.parametrize("blow", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_a_worker_that_dies_or_hangs_is_replaced_and_its_episode_run_again(
    tmp_path: Path, short: RunConfig, alone: list[np.ndarray], blow: signal.Signals
) -> None:
    hit: list[psutil.Process] = []

    def strike(records: list[dict[str, Any]]) -> None:
        if not hit:
            hit.append(simulator_processes()[-1])
            os.kill(hit[0].pid, blow)

    again = run(tmp_path, short, workers=2, patience=15.0, on_episode=strike)
    assert hit
    assert not hit[0].is_running()
    assert same(alone, again)
    assert len(read_lines(tmp_path / "episodes.jsonl")) == 3


@pytest.mark.usefixtures("own_simulators")
@pytest.mark.slow
def test_an_episode_that_loses_every_worker_is_named(tmp_path: Path, short: RunConfig) -> None:
    task = replace(short.task, max_steps=4)

    def kill_all(requests: Any) -> Any:
        for process in simulator_processes():
            process.kill()
        return [np.zeros((8, 7)) for _ in requests]

    with WorkerPool(1) as simulators, pytest.raises(PrismError, match="worker of episode 7 died 3 times"):
        simulators.rollouts(task, [7], kill_all, print, split="evaluate", seed=0, n_obs_steps=2)
    assert not simulator_processes()


@pytest.mark.usefixtures("own_simulators")
def test_workers_are_kept_between_streams_and_nothing_of_one_leaks_into_the_next(
    tmp_path: Path, short: RunConfig, alone: list[np.ndarray]
) -> None:
    policy = tiny_policy(short)
    with WorkerPool(1) as simulators:
        evaluate(tmp_path / "s1", short, policy, replace(short.evaluate, seed=1), simulators)
        before = [p.pid for p in simulator_processes()]
        evaluate(tmp_path / "s0", short, policy, None, simulators)
        assert [p.pid for p in simulator_processes()] == before
    assert same(alone, [np.load(states_path(tmp_path / "s0", i)) for i in range(3)])
    assert not same(alone, [np.load(states_path(tmp_path / "s1", i)) for i in range(3)])


def test_a_stopped_evaluation_goes_on_with_the_missing_episodes(
    tmp_path: Path, short: RunConfig, alone: list[np.ndarray]
) -> None:
    class Stopped(Exception):
        pass

    def stop(records: list[dict[str, Any]]) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        run(tmp_path, short, on_episode=stop)
    with (tmp_path / "episodes.jsonl").open("a") as file:
        file.write('{"episode": 1, "succ')  # a line cut off by the kill
    seen: list[int] = []
    states = run(tmp_path, short, on_episode=lambda records: seen.append(len(records)))
    assert seen == [2, 3]
    assert same(alone, states)


def test_more_episodes_run_only_what_is_new(tmp_path: Path, short: RunConfig) -> None:
    policy, counts = tiny_policy(short), []
    with WorkerPool(1) as simulators:
        for n in (1, 3, 2):
            stream, ended = replace(short.evaluate, n_episodes=n), []
            records = evaluate(tmp_path, short, policy, stream, simulators, lambda actual, ended=ended: ended.append(1))
            counts.append((len(records), len(ended)))
    assert counts == [(1, 1), (3, 2), (2, 0)]


def test_results_of_other_weights_are_not_mixed(tmp_path: Path, short: RunConfig) -> None:
    one = replace(short.evaluate, n_episodes=1)
    policy = tiny_policy(short)
    evaluate(tmp_path, short, policy, one)
    with torch.no_grad():
        next(policy.parameters()).add_(0.1)
    with pytest.raises(PrismError, match="another evaluation: weights was"):
        evaluate(tmp_path, short, policy, one)


def test_rows_beside_an_episode_do_not_change_its_actions(short: RunConfig) -> None:
    """What a GPU does: a batch of fixed size, filled up where fewer episodes wait."""
    policy, rng = tiny_policy(short), np.random.default_rng(0)
    seen = [
        {
            "images": {c: rng.integers(0, 256, (2, 84, 84, 3), np.uint8) for c in short.task.cameras},
            "state": rng.normal(size=(2, 9)).astype(np.float32),
        }
        for _ in range(5)
    ]

    def chunks(episodes: list[int], rows: int) -> np.ndarray:
        noise = [episode_noise("evaluate", 0, e) for e in episodes]
        return sample_chunks(policy, [seen[e % 5] for e in episodes], noise, episodes, rows)

    alone = chunks([0], 16)
    np.testing.assert_array_equal(alone[0], chunks([0, 1, 2, 3, 4], 16)[0])
    # Two that have the same row take turns, and the order in which they wait does not matter.
    turns = chunks([16, 3, 0], 16)
    np.testing.assert_array_equal(turns[2], alone[0])
    np.testing.assert_array_equal(turns[0], chunks([16], 16)[0])
    # One row is another batch size: other kernels, the same to rounding; and what `act` does.
    single = chunks([0], 1)
    np.testing.assert_allclose(single, alone, atol=1e-5)
    batch = {
        "images": {c: torch.from_numpy(x)[None] for c, x in seen[0]["images"].items()},
        "state": torch.from_numpy(seen[0]["state"])[None],
    }
    acted = policy.act(batch, episode_noise("evaluate", 0, 0)).numpy()
    np.testing.assert_array_equal(single[:, 1:9], acted)


def test_bad_input_is_refused(tmp_path: Path, short: RunConfig) -> None:
    policy = tiny_policy(short)
    with pytest.raises(PrismError, match="at least one episode, got 0"):
        evaluate(tmp_path, short, policy, replace(short.evaluate, n_episodes=0))
    with pytest.raises(PrismError, match="at least one worker, got 0"):
        WorkerPool(0)
    absolute = replace(short, task=replace(short.task, action_mode="absolute"))
    with pytest.raises(PrismError, match=r"expected a policy of 10 numbers an action.*got one of 7"):
        evaluate(tmp_path, absolute, policy)
    assert not any(tmp_path.iterdir())
    blind = replace(short, task=replace(short.task, cameras=("front",)))
    with pytest.raises(PrismError, match=r"unknown camera 'front'; this task has .*'agentview'"):
        evaluate(tmp_path, blind, make_policy(blind, task_schema(blind.task)))


def test_a_training_that_repeats_its_updates_drops_the_episodes_of_before(tmp_path: Path, short: RunConfig) -> None:
    one = replace(short.evaluate, n_episodes=1)
    policy, seen = tiny_policy(short), []
    with WorkerPool(1) as simulators:
        for change in (0.0, 0.0, 0.1):
            with torch.no_grad():
                next(policy.parameters()).add_(change)
            before = len(seen)
            evaluate(tmp_path, short, policy, one, simulators, seen.append, other_weights="drop")
            assert len(seen) - before == (0 if before and not change else 1)
    assert len(read_lines(tmp_path / "episodes.jsonl")) == 1
