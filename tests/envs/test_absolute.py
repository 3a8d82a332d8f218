"""An environment of absolute actions does what one of delta actions does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from prism_policy.config.settings import DemoConfig, TaskConfig
from prism_policy.data.actions import decode_absolute, encode_absolute
from prism_policy.errors import PrismError

pytest.importorskip("robosuite", reason="needs prism-policy[sim]")

from prism_policy.envs.experts import demonstrate
from prism_policy.envs.robosuite import RobosuiteEnv


@pytest.mark.parametrize("task", ["lift", "square"])
def test_absolute_actions_of_recorded_states_repeat_the_motion(task: str) -> None:
    delta = RobosuiteEnv(TaskConfig(task), render_images=False)
    rng = np.random.default_rng(0)
    if task == "lift":
        demo = demonstrate(delta, DemoConfig(), 2)
        states, actions = demo.states, demo.actions
    else:
        delta.reset(seed=1)
        actions = rng.uniform(-1.2, 1.2, (40, 7))  # beyond the range, which the environment clips
        for action in actions:
            delta.advance(action)
        states = np.stack(delta.states[:-1])
    absolute = []
    for t in rng.permutation(len(states)):  # in any order: only the state counts
        delta.set_state(states[t])
        absolute.append((t, delta.absolute(actions[t])))
    learned = encode_absolute(np.stack([action for _, action in sorted(absolute, key=lambda pair: pair[0])]))
    env = RobosuiteEnv(replace(delta.task, action_mode="absolute"), render_images=False)
    env.reset(options={"state": states[0]})
    for action in decode_absolute(learned):
        env.advance(action)
    np.testing.assert_allclose(np.stack(env.states[:-1])[:, 1:8], states[:, 1:8], atol=1e-4)  # the arm's joints
    if task == "lift":
        assert env.success
    delta.close()
    env.close()


def test_an_absolute_action_that_asks_for_where_the_hand_is_keeps_it_there() -> None:
    env = RobosuiteEnv(TaskConfig("lift", action_mode="absolute"), render_images=False)
    env.reset(seed=0)
    start = env.observe()["state"]
    site = env.sim_env.sim.data.site_xmat[env.eef_site].reshape(3, 3)
    here = decode_absolute(np.concatenate([start[:3], site[:2].ravel(), [-1.0]]))
    for _ in range(10):
        env.advance(here)
    np.testing.assert_allclose(env.observe()["state"][:3], start[:3], atol=2e-3)
    there = here + np.array([0, 0.05, 0.05, 0, 0, 0, 0])
    for _ in range(30):
        env.advance(there)
    np.testing.assert_allclose(env.observe()["state"][:3], there[:3], atol=5e-3)
    with pytest.raises(PrismError, match=r"finite action of shape \(7,\)"):
        env.advance(np.zeros(10))
    env.close()
