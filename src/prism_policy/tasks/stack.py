"""Stack: put the small red cube on the larger green one (StackCube of the paper's Table 7, as robosuite has it)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prism_policy.tasks.checks import HIGH, body_pose, grasps, near
from prism_policy.tasks.spec import ROBOSUITE, TaskSpec, Tracked


def check(env: Any, heights: Sequence[float]) -> tuple[bool, ...]:
    """Which of `STACK.stages` hold now."""
    cube, _ = body_pose(env, "cubeA_main")
    held = grasps(env, env.sim_env.cubeA)
    return near(env, cube), held, held and cube[2] > heights[0] + HIGH


STACK = TaskSpec(
    name="stack",
    simulator=ROBOSUITE,
    env_name="Stack",
    check=check,
    stages=("reached", "grasped", "lifted", "stacked"),
    phases=("approach", "grasp", "lift", "place"),
    expert="prism_policy.envs.experts.stack:Stack",
    nano_steps=3000,
    lift_bodies=("cubeA_main",),
    mask_bodies=("cubeA_main", "cubeB_main"),
    tracked=(Tracked("cube", "cubeA_main", heading=0, folds=4), Tracked("base", "cubeB_main", heading=0, folds=4)),
    spread=0.04,
)
