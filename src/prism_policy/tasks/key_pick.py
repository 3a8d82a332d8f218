"""KeyPick: take a thin key that lies on the table anyhow, and raise it (a counterpart of the paper's Table 7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prism_policy.tasks.checks import body_pose, grasps, near
from prism_policy.tasks.spec import ROBOSUITE, TaskSpec, Tracked


def check(env: Any, heights: Sequence[float]) -> tuple[bool, ...]:
    """Which of `KEY_PICK.stages` hold now."""
    key, _ = body_pose(env, "key_root")
    return near(env, key), grasps(env, env.sim_env.cube)


KEY_PICK = TaskSpec(
    name="key_pick",
    simulator=ROBOSUITE,
    env_name="KeyPick",
    scene="prism_policy.envs.objects.key:register",
    check=check,
    stages=("reached", "grasped", "lifted"),
    phases=("approach", "grasp", "lift"),
    expert="prism_policy.envs.experts.key_pick:KeyPick",
    nano_steps=2000,
    lift_bodies=("key_root",),
    mask_bodies=("key_root",),
    tracked=(Tracked("key", "key_root", heading=0, folds=1),),
    spread=0.05,
)
