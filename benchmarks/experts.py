"""The scripted experts under disturbance: how often they succeed, in how many steps, at what cost; one process.

python benchmarks/experts.py [--task can] [--episodes 100] [--seed 0] [--noise 0.5] [--sheet folder]
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from prism_policy.config import presets
from prism_policy.config.settings import DemoConfig
from prism_policy.envs.experts import Demonstration, demonstrate, expert_type
from prism_policy.envs.robosuite import RobosuiteEnv
from prism_policy.evaluation.statistics import wilson_interval
from prism_policy.tasks import probe_tasks, task_spec

COLUMNS = (
    "task", "success", "Wilson 95%", "steps: median", "90%", "limit of a rollout", "within it", "s an episode",
    "demonstrations a minute and core",
)  # fmt: skip


def main() -> None:
    """Print a row a task, the failures with the stages they went through last, and draw what `--sheet` asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=probe_tasks(), action="append")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noise", type=float, default=DemoConfig().noise)
    parser.add_argument("--sheet", type=Path, help="folder for a picture of the first demonstration's stages")
    arguments = parser.parse_args()
    demos = DemoConfig(noise=arguments.noise, seed=arguments.seed)
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    for task in arguments.task or probe_tasks():
        config = presets.paper(task).task
        env = RobosuiteEnv(config, render_images=False)
        steps, failures = [], []
        started = time.perf_counter()
        for episode in range(arguments.episodes):
            demo = demonstrate(env, demos, episode)
            if demo.success:
                steps.append(len(demo.actions))
            else:
                failures.append(f"  {task} {episode}: {len(demo.actions)} steps, {' > '.join(path(task, demo)[-6:])}")
            if episode == 0 and arguments.sheet:
                sheet(env, demo, config.cameras[0]).save(arguments.sheet / f"{task}.png")
        seconds = time.perf_counter() - started
        n, within = arguments.episodes, np.mean(np.array(steps) <= config.max_steps)
        low, high = wilson_interval(len(steps), n)
        row = (
            task, f"{len(steps)}/{n}", f"{low:.0%} to {high:.0%}", f"{np.median(steps):.0f}",
            f"{np.quantile(steps, 0.9):.0f}", config.max_steps, f"{within:.0%}", f"{seconds / n:.2f}",
            f"{60 * len(steps) / seconds:.0f}",
        )  # fmt: skip
        print(f"| {' | '.join(map(str, row))} |", *failures, sep="\n", flush=True)
        env.close()


def path(task: str, demo: Demonstration) -> list[str]:
    """Names of the stages in the order they were gone through."""
    changes = np.flatnonzero(np.diff(demo.stages.astype(int), prepend=-1))
    return [expert_type(task_spec(task)).stages[demo.stages[i]] for i in changes]


def sheet(env: RobosuiteEnv, demo: Demonstration, camera: str, columns: int = 6, size: int = 256) -> Image.Image:
    """Frames at the beginning and the middle of the stages, at most 36, with the step and the stage's name."""
    changes = np.flatnonzero(np.diff(demo.stages.astype(int), prepend=-1, append=-1))
    times = sorted({int(t) for a, b in pairwise(changes) for t in (a, (a + b) // 2)})
    times = [times[i] for i in np.unique(np.linspace(0, len(times) - 1, 36).astype(int))] + [len(demo.states) - 1]
    rows = -(-len(times) // columns)
    picture = Image.new("RGB", (columns * size, rows * size))
    for i, t in enumerate(times):
        frame = Image.fromarray(env.render(camera, size, demo.states[t]))
        ImageDraw.Draw(frame).text((4, 4), f"{t} {expert_type(env.task.spec).stages[demo.stages[t]]}", fill="red")
        picture.paste(frame, (i % columns * size, i // columns * size))
    return picture


if __name__ == "__main__":
    main()
