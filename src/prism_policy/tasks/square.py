"""Square: put the square nut on its peg."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from prism_policy.tasks.checks import ASIDE, HIGH, TURNED, body_pose, grasps, near
from prism_policy.tasks.spec import ROBOSUITE, TaskSpec, Tracked


def check(env: Any, heights: Sequence[float]) -> tuple[bool, ...]:
    """Which of `SQUARE.stages` hold now."""
    sim = env.sim_env
    (nut, rotation), (peg, _) = body_pose(env, "SquareNut_main"), body_pose(env, "peg1")
    held = grasps(env, sim.nuts[sim.nut_id])
    lifted = held and nut[2] > heights[0] + HIGH
    yaw = math.atan2(rotation[1, 0], rotation[0, 0])
    turned = abs((yaw + math.pi / 4) % (math.pi / 2) - math.pi / 4)  # the hole is the same after a quarter of a turn
    flat = abs(rotation[2, 2]) > math.cos(TURNED)
    aligned = lifted and flat and turned < TURNED and math.hypot(*(nut - peg)[:2]) < ASIDE
    return near(env, nut + 0.054 * rotation[:, 0]), held, lifted, aligned  # the handle is 54 mm from the hole


SQUARE = TaskSpec(
    name="square",
    simulator=ROBOSUITE,
    env_name="NutAssemblySquare",
    check=check,
    stages=("reached", "grasped", "lifted", "aligned", "inserted"),
    phases=("approach", "grasp", "lift", "align", "insert"),
    expert="prism_policy.envs.experts.square:Square",
    lift_bodies=("SquareNut_main",),
    mask_bodies=("SquareNut_main", "peg1"),
    tracked=(Tracked("nut", "SquareNut_main", heading=0, folds=1),),
    spread=0.08,
)
