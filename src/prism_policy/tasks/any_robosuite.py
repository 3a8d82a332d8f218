"""Any task of robosuite by its own name, `robosuite:Door`: robot, controller and rate are those of a file."""

from __future__ import annotations

from dataclasses import replace

from prism_policy.errors import PrismError
from prism_policy.tasks.spec import ROBOSUITE, TaskSpec

PREFIX = "robosuite:"
ANY_ROBOSUITE = replace(
    ROBOSUITE,
    environment="prism_policy.envs.any_robosuite:AnyRobosuiteEnv",
    cameras=(*ROBOSUITE.cameras, "robot1_robotview", "robot1_eye_in_hand"),
)


def any_robosuite(name: str) -> TaskSpec:
    """What is known of `robosuite:NAME`: what robosuite calls success, and nothing else."""
    env_name = name.removeprefix(PREFIX)
    if not env_name.isidentifier():
        raise PrismError(f"expected robosuite's name of a task after {PREFIX!r}, such as {PREFIX}Door, got {name!r}")
    return TaskSpec(
        name=name,
        simulator=ANY_ROBOSUITE,
        env_name=env_name,
        check=lambda env, heights: (),
        stages=("done",),
        phases=("do it",),
        expert="",
        max_steps=500,
        action_modes=("delta",),
        nano_steps=2000,
        any_robot=True,
    )
