"""Lift: take the cube and raise it; and a ladder of variations that show less of it, so that precision counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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
    nano_steps=700,
    lift_bodies=("cube_main",),
    mask_bodies=("cube_main",),
    tracked=(Tracked("cube", "cube_main", heading=0, folds=4),),
    spread=0.08,
)


def _variation(name: str, edge: float | None = None, fovy: float | None = None) -> TaskSpec:
    """Lift with a cube of another edge [m] (its own is 42 mm), or agentview opened from 45 to `fovy` degrees.

    A wider angle shrinks everything in the image, as a camera further away does, and changes nothing else.
    """
    changes = []
    if edge is not None:
        size = " ".join([f"{edge / 2:.4g}"] * 3)
        changes += [("cube_g0", "size", size), ("cube_g0_vis", "size", size)]
    if fovy is not None:
        changes += [("agentview", "fovy", f"{fovy:g}")]
    env_name = "".join(part.capitalize() for part in name.split("_"))
    return replace(LIFT, name=name, env_name=env_name, varies=LIFT.env_name, changes=tuple(changes))


LIFT_LADDER = (
    _variation("lift_3cm", edge=0.03),
    _variation("lift_2cm", edge=0.02),
    _variation("lift_far", fovy=75),
    _variation("lift_2cm_far", edge=0.02, fovy=75),
)
"""Lift step by step harder to see; the first step is Lift itself."""
