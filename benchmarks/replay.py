"""Do recorded demonstrations still succeed: from their states, their actions, and their absolute actions.

python benchmarks/replay.py [--task lift] [--demos 20] [--seed 0]

Absolute actions go the way a policy's would: read from the controller's goals, turned into ten float32 numbers and
back, and executed open loop by an environment of absolute actions.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np

from prism_policy.config import presets
from prism_policy.config.settings import DemoConfig
from prism_policy.data.actions import decode_absolute, encode_absolute
from prism_policy.data.robomimic import read_demos
from prism_policy.demos.collect import collect
from prism_policy.envs.robosuite import RobosuiteEnv
from prism_policy.tasks import probe_tasks


def replay(env: RobosuiteEnv, states: np.ndarray, actions: np.ndarray) -> tuple[bool, float]:
    """Whether actions (T, 7) end in success from the first of states (T, S), and the hand's largest deviation [m]."""
    env.reset(options={"state": states[0]})
    for action in actions:
        success = env.advance(action)
    hands = [np.stack([env.observe(state)["state"][:3] for state in path]) for path in (env.states[:-1], states)]
    return success, float(np.linalg.norm(hands[0] - hands[1], axis=1).max())


def main() -> None:
    """Print a row a task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=probe_tasks(), nargs="+", default=probe_tasks())
    parser.add_argument("--demos", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print("| task | demos | from states | from actions | hand off by | from absolute actions | hand off by |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name in arguments.task:
        task = presets.task_config(name)
        episodes = read_demos(collect(task, DemoConfig(arguments.demos, seed=arguments.seed)), cameras=())
        delta = RobosuiteEnv(task, render_images=False)
        absolute = RobosuiteEnv(replace(task, action_mode="absolute"), render_images=False)
        held, results = 0, []
        for episode in episodes:
            goals = []
            for state, action in zip(episode.sim_states, episode.actions, strict=True):
                delta.set_state(state)
                goals.append(delta.absolute(action))
            delta.set_state(episode.sim_states[-1])
            held += delta.success
            learned = encode_absolute(np.stack(goals)).astype(np.float32)
            moves = ((delta, episode.actions), (absolute, decode_absolute(learned)))
            results.append([replay(env, episode.sim_states, actions) for env, actions in moves])
        columns = []
        for kind in zip(*results, strict=True):
            columns += [f"{sum(s for s, _ in kind)}", f"{1000 * max(d for _, d in kind):.2g} mm"]
        print(f"| {name} | {len(episodes)} | {held} | {' | '.join(columns)} |", flush=True)
        delta.close()
        absolute.close()


if __name__ == "__main__":
    main()
