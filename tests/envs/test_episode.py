"""How far an episode came, against what the scripted experts say they are doing."""

from __future__ import annotations

import numpy as np
import pytest

from prism_policy.config import presets
from prism_policy.config.settings import DemoConfig

pytest.importorskip("robosuite", reason="needs prism-policy[sim]")

from prism_policy.envs.episode import furthest_stage
from prism_policy.envs.experts import demonstrate, expert_type
from prism_policy.envs.robosuite import RobosuiteEnv
from prism_policy.tasks import task_spec

BEGINNINGS: dict[str, dict[str, str]] = {
    "lift": {"approach": "", "lift": "grasped"},
    "can": {"approach": "", "carry": "grasped", "release": "over the bin"},
    "square": {"approach": "", "carry": "grasped", "insert": "aligned"},
    "tool_hang": {
        "reach frame": "",
        "carry frame": "frame grasped",
        "insert": "aligned",
        "reach tool": "inserted",
        "carry tool": "tool grasped",
    },
}
"""What has been reached when the expert begins one of its own stages for the first time."""


@pytest.mark.parametrize(
    "task", [pytest.param(t, marks=pytest.mark.slow) if t == "tool_hang" else t for t in BEGINNINGS]
)
def test_stages_are_those_of_the_expert(task: str) -> None:
    env = RobosuiteEnv(presets.task_config(task), render_images=False)
    expert, stages = expert_type(env.task.spec), env.task.spec.stages
    demo = demonstrate(env, DemoConfig(noise=0.0), 0)
    assert demo.success
    for begun, reached in BEGINNINGS[task].items():
        first = int(np.argmax(demo.stages == expert.stages.index(begun)))
        assert furthest_stage(env, demo.states[: first + 1], False) == reached, begun
    # An episode that is not done has all but the last one; one that is has the last.
    assert furthest_stage(env, demo.states, False) == stages[-2]
    assert furthest_stage(env, demo.states[:1], True) == stages[-1]
    env.close()


def test_looking_again_at_states_does_not_depend_on_what_the_simulation_did_before() -> None:
    env = RobosuiteEnv(presets.task_config("lift"), render_images=False)
    demo = demonstrate(env, DemoConfig(noise=0.0), 0)
    cut = demo.states[: int(np.argmax(demo.stages == expert_type(task_spec("lift")).stages.index("lift"))) + 1]
    env.reset(seed=9)
    assert furthest_stage(env, cut, False) == "grasped"
    env.close()
