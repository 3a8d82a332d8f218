"""What an episode holds: cameras with a size each, parts of state and action, rate.

It is read from the demonstrations, kept in the run folder, and is all that policies, server and reports know of a
robot: nothing downstream counts on nine numbers of state or seven of action.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from prism_client.schema import Part as Part
from prism_client.schema import PartKind as PartKind
from prism_client.schema import Schema as Schema
from prism_policy.config.settings import TaskConfig
from prism_policy.tasks.spec import CONTROL_HZ

STATE = (
    Part("robot0_eef_pos", 3, "position", ("x", "y", "z")),
    Part("robot0_eef_quat", 4, "rotation", ("qx", "qy", "qz", "qw")),
    Part("robot0_gripper_qpos", 2, "joint", ("left", "right")),
)
"""What a policy feels of a simulated arm, by robomimic's names: [m], -, [m]."""
DELTA_ACTION = (
    Part("position", 3, "position", ("dx", "dy", "dz"), shares=True),
    Part("rotation", 3, "rotation", ("drx", "dry", "drz"), shares=True),
    Part("gripper", 1, "gripper", ("gripper",), shares=True),
)
"""Steps of a simulated hand."""
ABSOLUTE_ACTION = (
    Part("position", 3, "position", ("x", "y", "z")),
    Part("rotation", 6, "rotation", ("xx", "xy", "xz", "yx", "yy", "yz")),
    Part("gripper", 1, "gripper", ("gripper",), shares=True),
)
"""Its pose in the world [m], rotation 6D, as policies learn it."""


def task_schema(task: TaskConfig) -> Schema:
    """What an environment of a simulated task shows and takes."""
    size = (task.render.resolution, task.render.resolution)
    action = DELTA_ACTION if task.action_mode == "delta" else ABSOLUTE_ACTION
    return Schema(dict.fromkeys(task.cameras, size), STATE, action, float(CONTROL_HZ))


def numbers_of(parts: Sequence[Part], *kinds: PartKind) -> list[int]:
    """Which of the numbers of all parts are of these kinds."""
    kinds_of = [part.kind for part in parts for _ in range(part.size)]
    return [i for i, kind in enumerate(kinds_of) if kind in kinds]


def slices(parts: Sequence[Part]) -> dict[str, slice]:
    """Where each part lies among the numbers of all."""
    ends = list(accumulate(part.size for part in parts))
    return {part.name: slice(end - part.size, end) for part, end in zip(parts, ends, strict=True)}
