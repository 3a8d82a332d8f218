"""Can: take the can over into its bin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prism_policy.tasks.checks import HIGH, body_pose, grasps, near
from prism_policy.tasks.spec import ROBOSUITE, TaskSpec, Tracked


def check(env: Any, heights: Sequence[float]) -> tuple[bool, ...]:
    """Which of `CAN.stages` hold now."""
    sim = env.sim_env
    can, _ = body_pose(env, "Can_main")
    held = grasps(env, sim.objects[sim.object_id])
    inside = not sim.not_in_bin((can[0], can[1], sim.bin2_pos[2] + 0.05), sim.object_id)
    lifted = held and can[2] > heights[0] + HIGH
    return near(env, can), held, lifted, lifted and inside


CAN = TaskSpec(
    name="can",
    simulator=ROBOSUITE,
    env_name="PickPlaceCan",
    check=check,
    stages=("reached", "grasped", "lifted", "over the bin", "placed"),
    phases=("approach", "grasp", "lift", "carry", "place"),
    expert="prism_policy.envs.experts.can:Can",
    lift_bodies=("Can_main",),
    mask_bodies=("Can_main",),
    tracked=(Tracked("can", "Can_main", heading=0, folds=0),),
    spread=0.0,  # its bin leaves no room
)
