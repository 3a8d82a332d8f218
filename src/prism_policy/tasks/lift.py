"""Lift: take the cube and raise it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prism_policy.tasks.checks import body_pose, grasps, near
from prism_policy.tasks.spec import ROBOSUITE, TaskSpec, Tracked


def check(env: Any, heights: Sequence[float]) -> tuple[bool, ...]:
    """Which of `LIFT.stages` hold now."""
    cube, _ = body_pose(env, "cube_main")
    return near(env, cube), grasps(env, env.sim_env.cube)


LIFT = TaskSpec(
    name="lift",
    simulator=ROBOSUITE,
    env_name="Lift",
    check=check,
    stages=("reached", "grasped", "lifted"),
    phases=("approach", "grasp", "lift"),
    expert="prism_policy.envs.experts.lift:Lift",
    nano_steps=1200,
    lift_bodies=("cube_main",),
    mask_bodies=("cube_main",),
    tracked=(Tracked("cube", "cube_main", heading=0, folds=4),),
    spread=0.08,
)
