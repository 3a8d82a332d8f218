"""Any gymnasium environment: `gym:ID` with an adapter, or `module:function`, which returns an adapted one."""

from __future__ import annotations

import re
from dataclasses import replace

from prism_policy.errors import PrismError
from prism_policy.tasks.any_robosuite import PREFIX
from prism_policy.tasks.spec import Simulator, TaskSpec
from prism_policy.utils.text import quoted

GYM = "gym:"
GYMNASIUM = Simulator("gymnasium", "prism_policy.envs.gym.env:GymEnv", "gymnasium", "gym", ("gymnasium",), ())
KNOWN = {
    r"FetchPickAndPlace-v\d+": (
        "prism_policy.envs.gym.fetch:ADAPTER",
        ("gymnasium-robotics", "mujoco"),
    ),
    r"gym_pusht/PushT-v\d+": ("prism_policy.envs.gym.pusht:ADAPTER", ("gym-pusht", "pymunk", "opencv-python")),
}
"""Ids of gymnasium whose adapter comes with this library (as "module:name"), and what decides how they behave."""

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def known_adapter(name: str) -> tuple[str, tuple[str, ...]]:
    """The adapter of a task `gym:ID` that comes with this library, and the packages behind it; empty if none does."""
    wanted = name.removeprefix(GYM)
    return next((known for pattern, known in KNOWN.items() if re.fullmatch(pattern, wanted)), ("", ()))


def is_adapted(name: str) -> bool:
    """Whether a task's name is that of a gymnasium environment."""
    return ":" in name and not name.startswith(PREFIX)


def adapted(name: str) -> TaskSpec:
    """What is known of a task by its name alone: what it shows, takes and calls success, its adapter says."""
    if not name.startswith(GYM) and not _NAME.fullmatch(name):
        raise PrismError(
            f"expected {GYM}ID, such as {GYM}FetchPickAndPlace-v4, or MODULE:FUNCTION, which returns an AdaptedEnv, "
            f"got {quoted(name)}"
        )
    adapter, packages = known_adapter(name)
    return TaskSpec(
        name=name,
        simulator=replace(GYMNASIUM, distributions=packages) if adapter else GYMNASIUM,
        env_name=name,
        check=lambda env, heights: (),
        stages=("done",),
        phases=("do it",),
        expert="",
        cameras=(),
        action_modes=("delta",),
        nano_steps=2000,
        any_robot=True,
    )
