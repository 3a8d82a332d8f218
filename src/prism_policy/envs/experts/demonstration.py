"""An episode of an expert under disturbance."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

import numpy as np

from prism_policy.config.settings import DemoConfig
from prism_policy.envs.episode import episode_rng
from prism_policy.envs.experts.base import Expert
from prism_policy.envs.robosuite import RobosuiteEnv
from prism_policy.tasks.spec import TaskSpec


class Disturbance:
    """Pushes that take over from the expert for a few steps: the hand drifts off, turns, and may open or shut.

    What the expert does afterwards demonstrates recovery. The pushed steps themselves are marked, for nobody should
    learn to push: an action noise on every step would leave no action chunk that shows what the expert meant.
    """

    RATE = 0.07  # chance that a push begins at an undisturbed step; it is five times as likely at the first one

    def __init__(self, strength: float, rng: np.random.Generator) -> None:
        self.strength = strength
        self.rng = rng
        self.rate = 5 * self.RATE
        self.push, self.flip, self.left = np.zeros(6), False, 0

    def __call__(self, action: np.ndarray, tolerance: float = 1.0) -> tuple[np.ndarray, bool]:
        """The action to execute (7,), in [-1, 1], and whether it is a push.

        `tolerance` is the share of the push that the expert's stage takes; below 1 the grip stays as it wants it.
        """
        rng = self.rng
        if self.left == 0 and self.strength > 0 and rng.random() < self.rate:
            direction = rng.standard_normal(6) * (1, 1, 1, 0.3, 0.3, 0.6)
            self.push = direction / np.linalg.norm(direction[:3]) * rng.uniform(0.4, 2.0) * self.strength
            self.flip = rng.random() < 0.2
            self.left = int(rng.integers(1, 6))
        self.rate = self.RATE
        if self.left == 0 or tolerance == 0:
            return action, False
        self.left -= 1
        grip = -action[6] if self.flip and tolerance == 1 else action[6]
        return np.clip(np.append(self.push * tolerance, grip), -1.0, 1.0), True


@dataclass(frozen=True)
class Demonstration:
    """One episode of an expert; T steps, everything at the start of its step."""

    states: np.ndarray  # simulator states, float64 (T, S)
    actions: np.ndarray  # what was executed, float64 (T, 7): replaying it gives the same states
    disturbed: np.ndarray  # where that was a push and not the expert's choice, bool (T,)
    rewards: np.ndarray  # 1 where the step ended in success, float64 (T,)
    stages: np.ndarray  # index into the expert's `stages`, uint8 (T,)
    success: bool  # the task was done, and stayed done to the last step


def expert_type(spec: TaskSpec) -> type[Expert]:
    """The expert of a task."""
    module, _, name = spec.expert.partition(":")
    return getattr(importlib.import_module(module), name)


def demonstrate(env: RobosuiteEnv, demos: DemoConfig, episode: int) -> Demonstration:
    """One episode of the task's expert, which goes on for a few steps when it is done: a policy should see that."""
    rng = episode_rng("collect", demos.seed, episode, rng_stream=2)
    expert = expert_type(env.task.spec)(env, rng)
    disturbance = Disturbance(demos.noise, rng)
    env.reset(seed=demos.seed, options={"split": "collect", "episode": episode})
    linger = int(rng.integers(5, 11))
    executed, disturbed, rewards, stages = [], [], [], []
    for wanted in expert.script():
        action, pushed = disturbance(wanted, expert.tolerance.get(expert.stage, 1.0))
        executed.append(action)
        disturbed.append(pushed)
        stages.append(expert.stages.index(expert.stage))
        rewards.append(float(env.advance(action)))
        linger -= expert.done()
        if linger == 0 or len(executed) == expert.max_steps:
            break
    return Demonstration(
        states=np.stack(env.states[:-1]),
        actions=np.stack(executed),
        disturbed=np.array(disturbed),
        rewards=np.array(rewards),
        stages=np.array(stages, np.uint8),
        success=linger == 0 and rewards[-1] == 1,
    )
