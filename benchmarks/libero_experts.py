"""LIBERO's scripted experts: how often they succeed from starts of their own, in how many steps, at what cost.

python benchmarks/libero_experts.py [--suite libero_10] [--task 3] [--episodes 20] [--seed 0] [--noise 0.5] [--replay 5]
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise

import numpy as np

from prism_policy.config.presets import task_config
from prism_policy.config.settings import DemoConfig
from prism_policy.envs.experts.demonstration import Demonstration, demonstrate
from prism_policy.envs.experts.libero import LiberoExpert
from prism_policy.envs.libero import LiberoEnv
from prism_policy.evaluation.statistics import wilson_interval
from prism_policy.tasks.libero import SUITES

COLUMNS = ("task", "success", "Wilson 95%", "steps: median", "most", "within the limit", "s an episode", "replayed")


def main() -> None:
    """Print a row a task and one for the suite; a failure with the stages it went through last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", choices=list(SUITES), default="libero_spatial")
    parser.add_argument("--task", type=int, action="append")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--replay", type=int, default=5, help="demonstrations to run again from their actions")
    arguments = parser.parse_args()
    demos = DemoConfig(noise=arguments.noise, seed=arguments.seed)
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    total = successes = 0
    for number in arguments.task or range(len(SUITES[arguments.suite])):
        task = task_config(f"{arguments.suite}_{number}")
        env = LiberoEnv(task, render_images=False)
        steps, failures, replayed, again = [], [], 0, 0
        started = time.perf_counter()
        for episode in range(arguments.episodes):
            demo = demonstrate(env, demos, episode)
            if not demo.success:
                failures.append(f"  {task.name} {episode}: {len(demo.actions)} steps, {' > '.join(path(demo)[-6:])}")
                continue
            steps.append(len(demo.actions))
            if replayed < arguments.replay:
                replayed, again = replayed + 1, again + replay(env, demo)
        seconds = time.perf_counter() - started
        n = arguments.episodes
        total, successes = total + n, successes + len(steps)
        within = np.mean(np.array(steps) <= task.max_steps) if steps else 0.0
        row = (
            f"{number} {task.spec.instruction}", f"{len(steps)}/{n}", interval(len(steps), n),
            f"{np.median(steps):.0f}" if steps else "", max(steps, default=0), f"{within:.0%}", f"{seconds / n:.1f}",
            f"{again}/{replayed}",
        )  # fmt: skip
        print(f"| {' | '.join(map(str, row))} |", *failures, sep="\n", flush=True)
        env.close()
    print(f"| all | {successes}/{total} | {interval(successes, total)} | | | | | |", flush=True)


def interval(successes: int, n: int) -> str:
    """Wilson's 95% interval in words."""
    low, high = wilson_interval(successes, n)
    return f"{low:.0%} to {high:.0%}"


def replay(env: LiberoEnv, demo: Demonstration) -> bool:
    """Whether its actions, executed from its first state without looking, give the same states and success."""
    env.reset(options={"state": demo.states[0]})
    succeeded = [env.advance(action) for action in demo.actions]
    return succeeded[-1] and np.array_equal(np.stack(env.states[:-1]), demo.states)


def path(demo: Demonstration) -> list[str]:
    """Names of the stages in the order they were gone through."""
    changes = [0, *(i for i, (a, b) in enumerate(pairwise(demo.stages), start=1) if a != b)]
    return [LiberoExpert.stages[demo.stages[i]] for i in changes]


if __name__ == "__main__":
    main()
