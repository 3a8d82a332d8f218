"""Environment steps a second: a plain robosuite loop with camera observations against this library's rollouts, in turn.

python benchmarks/rollouts.py [--task lift] [--preset nano] [--rounds 5] [--steps 48]
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from elsewhere import Elsewhere
from timing import in_turn, ratio

from prism_policy.config import presets
from prism_policy.config.settings import RunConfig, TaskConfig
from prism_policy.data.schema import task_schema
from prism_policy.envs.simulators import prepare_opengl
from prism_policy.envs.workers import Request, WorkerPool
from prism_policy.evaluation.rollouts import acting_threads, episode_noise, sample_chunks
from prism_policy.policies import Policy
from prism_policy.run_folder import make_policy
from prism_policy.tasks import probe_tasks

EPISODES = 12  # of one, two and three workers equally many


def plain_loop(task: TaskConfig) -> Generator[None, int, None]:
    """A process with robosuite as its documentation uses it: frames of all cameras at every step, robosuite's look."""
    import robosuite

    env = robosuite.make(
        task.spec.env_name,
        robots="Panda",
        use_camera_obs=True,
        has_offscreen_renderer=True,
        camera_names=list(task.cameras),
        camera_heights=task.render.resolution,
        camera_widths=task.render.resolution,
        control_freq=20,
        ignore_done=True,
        seed=0,
    )
    actions = np.random.default_rng(0).uniform(-0.3, 0.3, (1000, 7))
    steps = yield
    while True:
        env.reset()
        for action in actions[:steps]:
            env.step(action)
        steps = yield


def policy_act(policy: Policy) -> Callable[[Sequence[Request]], list[np.ndarray]]:
    """Acts as `evaluate` does."""

    def act(requests: Sequence[Request]) -> list[np.ndarray]:
        torch.set_num_threads(1)
        noise = [episode_noise("evaluate", 0, r.episode) for r in requests]
        return list(sample_chunks(policy, [r.observation for r in requests], noise, [0], 1)[:, 1:9])

    return act


def random_act(requests: Sequence[Request]) -> list[np.ndarray]:
    """Actions that cost nothing."""
    return [np.random.default_rng(r.episode).uniform(-0.3, 0.3, (8, 7)) for r in requests]


def main() -> None:
    """Print a table of steps a second."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=probe_tasks(), default="lift")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--preset", choices=("nano", "paper"), default="nano")
    parser.add_argument("--steps", type=int, default=48, help="of an episode; nothing ends earlier")
    arguments = parser.parse_args()
    config: RunConfig = getattr(presets, arguments.preset)(arguments.task)
    policy = make_policy(
        config, task_schema(config.task)
    ).eval()  # untrained: it costs the same, and no episode ends early
    task = replace(config.task, max_steps=arguments.steps)
    prepare_opengl()
    cores = sorted(os.sched_getaffinity(0))[:2]

    def pinned(count: int) -> None:
        os.sched_setaffinity(0, cores[:count])

    pinned(1)
    loop = Elsewhere(plain_loop, task, one_thread=True)

    def plain() -> None:
        pinned(1)
        loop(arguments.steps)

    def rollouts(simulators: WorkerPool, cores: int, act: Any, threads: int) -> Callable[[], None]:
        def run() -> None:
            pinned(cores)
            ends = []
            simulators.rollouts(
                task, range(EPISODES), act, ends.append, split="evaluate", seed=0, n_obs_steps=2, threads=threads
            )
            assert all(outcome.steps == arguments.steps for outcome in ends), "an episode ended early"

        return run

    act = policy_act(policy)
    with WorkerPool(1) as one, WorkerPool(2) as two, WorkerPool(3) as three:
        rollouts(one, 1, random_act, 1)()  # its worker starts where it is to stay
        variants = {
            "plain robosuite loop, no policy, one core": (plain, 1, 1),
            "simulators alone, 1 worker, one core": (rollouts(one, 1, random_act, 1), EPISODES, 1),
            "simulators alone, 2 workers, two cores": (rollouts(two, 2, random_act, 1), EPISODES, 2),
            "with the policy, 1 worker, one core": (rollouts(one, 1, act, 1), EPISODES, 1),
            "with the policy, 2 workers, two cores": (rollouts(two, 2, act, acting_threads(policy, 2)), EPISODES, 2),
            "with the policy, 3 workers, two cores": (rollouts(three, 2, act, acting_threads(policy, 3)), EPISODES, 2),
        }
        seconds = in_turn({n: f for n, (f, _, _) in variants.items()}, arguments.rounds, torch.device("cpu"), 1)
    rates = {
        name: [episodes * arguments.steps / s for s in seconds[name]] for name, (_, episodes, _) in variants.items()
    }
    baseline = rates["plain robosuite loop, no policy, one core"]
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(f"{arguments.rounds} rounds in turn, episodes of {arguments.steps} steps; load average {load}\n")
    what = f"{arguments.task}, {arguments.preset}, {task.render.resolution} px, 2 cameras"
    print(f"| {what} | steps/s: median (min to max) | x plain, a core |")
    print("|---|---|---|")
    for name, (_, _, cores_used) in variants.items():
        rate = rates[name]
        text = f"{statistics.median(rate):.0f} ({min(rate):.0f} to {max(rate):.0f})"
        print(f"| {name} | {text} | {ratio([r / cores_used for r in rate], baseline)} |")
    for kind, workers in (("simulators alone", 2), ("with the policy", 2), ("with the policy", 3)):
        text = ratio(rates[f"{kind}, {workers} workers, two cores"], rates[f"{kind}, 1 worker, one core"])
        print(f"\n{workers} workers on two cores against one on one, {kind}: {text}")


if __name__ == "__main__":
    main()
