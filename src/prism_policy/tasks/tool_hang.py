"""ToolHang: put the frame into the stand, then hang the tool on the frame's hook."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from prism_policy.tasks.checks import ASIDE, TURNED, body_pose, grasps, near
from prism_policy.tasks.spec import ROBOSUITE, TaskSpec, Tracked


class Point(NamedTuple):
    """A point of a body."""

    body: str
    offset: tuple[float, float, float]  # in the body's frame [m]


HOLE = Point("stand_root", (0.0, 0.045, 0.079))  # upper end of the hole in the stand
FRAME_GRIP = Point("frame_root", (0.04375, 0.0, 0.0525))
"""Middle of the frame's grip; the frame's z is up the rod, the hook towards -x."""
FRAME_TIP = Point("frame_root", (0.04375, 0.0, -0.1345))  # lower end of the frame's rod


def check(env: Any, heights: Sequence[float]) -> tuple[bool, ...]:
    """Which of `TOOL_HANG.stages` hold now."""
    sim = env.sim_env
    (grip, upright), (tip, _), (hole, _) = (body_pose(env, *point) for point in (FRAME_GRIP, FRAME_TIP, HOLE))
    held, inserted = grasps(env, sim.frame), bool(sim._check_frame_assembled())
    aligned = held and upright[2, 2] > math.cos(TURNED) and math.hypot(*(tip - hole)[:2]) < ASIDE
    return near(env, grip), held, aligned, inserted, inserted and grasps(env, sim.tool)


TOOL_HANG = TaskSpec(
    name="tool_hang",
    simulator=ROBOSUITE,
    env_name="ToolHang",
    check=check,
    stages=("frame reached", "frame grasped", "aligned", "inserted", "tool grasped", "hung"),
    phases=("approach", "grasp", "align", "insert", "fetch the tool", "hang"),
    expert="prism_policy.envs.experts.tool_hang:ToolHang",
    cameras=("sideview", "robot0_eye_in_hand"),
    max_steps=700,
    mask_bodies=("stand_root", "frame_root", "tool_root"),
    # The tool's two rings differ by 5 mm in diameter, half a pixel at 84 px: half a turn is not to be seen.
    tracked=(Tracked("frame", "frame_root", heading=2, folds=1), Tracked("tool", "tool_root", heading=0, folds=2)),
    spread=0.04,
)
