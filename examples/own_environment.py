"""An environment of your own, with its expert: demonstrations, training and success with an interval.

python examples/own_environment.py
"""

from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import tyro

from prism_policy.config import presets
from prism_policy.config.options import EvalOptions
from prism_policy.demos.collect import collect
from prism_policy.envs.gym import AdaptedEnv, Camera, ObservationAdapter, StatePart
from prism_policy.reports.evaluate import evaluate_runs, print_summary
from prism_policy.training.run import train_run


class Reach(gymnasium.Env):  # a red dot has to be moved to a blue square
    metadata = {"render_fps": 10}  # noqa: RUF012
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.dot, self.goal = self.np_random.uniform(0.1, 0.9, (2, 2))  # the whole start follows from the seed
        return self.dot.copy(), {}

    def step(self, action):
        self.dot = np.clip(self.dot + 0.1 * action, 0, 1)
        return self.dot.copy(), 0.0, False, False, {"is_success": np.linalg.norm(self.dot - self.goal) < 0.08}

    def render(self):
        image = np.full((64, 64, 3), 255, np.uint8)
        for (x, y), colour in ((self.goal, (0, 0, 255)), (self.dot, (255, 0, 0))):
            image[int(y * 58) : int(y * 58) + 6, int(x * 58) : int(x * 58) + 6] = colour
        return image


ADAPTER = ObservationAdapter(
    cameras={"top": Camera(lambda env, observation: env.render(), height=64, width=64)},
    state={"dot": StatePart(lambda env, observation: observation, "position", ("x", "y"))},
    expert=lambda env, rng: (np.clip(5 * (env.goal - env.dot), -1, 1) for _ in range(100)),  # an action a step
)


def make() -> AdaptedEnv:  # prism train --task own_environment:make
    return AdaptedEnv(gymnasium.wrappers.TimeLimit(Reach(), 30), ADAPTER)


def main(out: Path = Path("runs/reach"), steps: int = 400, demos: int = 100, episodes: int = 20) -> None:
    config = presets.nano("own_environment:make", encoder_name="sspool")
    file = collect(config.task, replace(config.demos, num_demos=demos))
    train_run(out, replace(config, dataset=str(file), train=replace(config.train, steps=steps, batch_size=32)))
    print_summary(out, *evaluate_runs([out], EvalOptions(n_episodes=episodes)))


if __name__ == "__main__":
    tyro.cli(main)
