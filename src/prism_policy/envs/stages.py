"""How far an episode came: the stages of each task, read from the simulator's true state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from prism_policy.envs.robosuite import RobosuiteEnv

STAGES = {
    "lift": ("reached", "grasped", "lifted"),
    "can": ("reached", "grasped", "lifted", "over the bin", "placed"),
    "square": ("reached", "grasped", "lifted", "aligned", "inserted"),
    "tool_hang": ("frame reached", "frame grasped", "aligned", "inserted", "tool grasped", "hung"),
}
"""Names of each task's stages, in order. The last one is robosuite's success."""

PHASES = {
    "lift": ("approach", "grasp", "lift"),
    "can": ("approach", "grasp", "lift", "carry", "place"),
    "square": ("approach", "grasp", "lift", "align", "insert"),
    "tool_hang": ("approach", "grasp", "align", "insert", "fetch the tool", "hang"),
}
"""What has to be done until each of `STAGES` is reached."""

NEAR = 0.03  # [m] from the grip site to what shall be grasped
HIGH = 0.03  # [m] above where it lay
ASIDE, TURNED = 0.01, 0.15  # [m], [rad] from where it fits


def furthest_stage(env: RobosuiteEnv, states: np.ndarray, success: bool) -> str:
    """The furthest stage that held at any of the states (T, S) of an episode; "" where none did.

    The states are put into the simulation one after the other, which leaves it at the last one.
    """
    names = STAGES[env.task.name]
    return names[-1] if success else ("", *names)[_reached(env, states)[-1]]


def phases(env: RobosuiteEnv, states: np.ndarray) -> list[str]:
    """What there is to do at each of the states (T, S) of an episode, given how far it has come: one of `PHASES`.

    A phase may be skipped, and does not come back: who drops the cube is still lifting it.
    """
    return [PHASES[env.task.name][reached] for reached in _reached(env, states)]


def _reached(env: RobosuiteEnv, states: np.ndarray) -> list[int]:
    """How many stages the furthest one is, up to each of the states; success is not looked for."""
    seen = [False] * (len(STAGES[env.task.name]) - 1)
    heights, reached = [0.0], []
    for i, state in enumerate(states):
        env.set_state(state)
        if i == 0:
            heights = [_body(env, name)[0][2] for name in OBJECTS[env.task.name]]
        seen = [a or b for a, b in zip(seen, _CHECKS[env.task.name](env, heights), strict=True)]
        reached.append(max((n for n, held in enumerate(seen, start=1) if held), default=0))
    return reached


OBJECTS = {"lift": ("cube_main",), "can": ("Can_main",), "square": ("SquareNut_main",), "tool_hang": ()}
"""MuJoCo's names of the bodies that are to be lifted."""


def _lift(env: RobosuiteEnv, heights: list[float]) -> tuple[bool, ...]:
    cube, _ = _body(env, "cube_main")
    return _near(env, cube), _grasps(env, env.sim_env.cube)


def _can(env: RobosuiteEnv, heights: list[float]) -> tuple[bool, ...]:
    sim = env.sim_env
    can, _ = _body(env, "Can_main")
    held = _grasps(env, sim.objects[sim.object_id])
    inside = not sim.not_in_bin(np.array([can[0], can[1], sim.bin2_pos[2] + 0.05]), sim.object_id)
    lifted = held and can[2] > heights[0] + HIGH
    return _near(env, can), held, lifted, lifted and inside


def _square(env: RobosuiteEnv, heights: list[float]) -> tuple[bool, ...]:
    sim = env.sim_env
    (nut, rotation), (peg, _) = _body(env, "SquareNut_main"), _body(env, "peg1")
    held = _grasps(env, sim.nuts[sim.nut_id])
    lifted = held and nut[2] > heights[0] + HIGH
    yaw = np.arctan2(rotation[1, 0], rotation[0, 0])
    turned = abs((yaw + np.pi / 4) % (np.pi / 2) - np.pi / 4)  # the hole is the same after a quarter of a turn
    flat = abs(rotation[2, 2]) > np.cos(TURNED)
    aligned = lifted and flat and turned < TURNED and np.hypot(*(nut - peg)[:2]) < ASIDE
    return _near(env, nut + 0.054 * rotation[:, 0]), held, lifted, aligned  # the handle is 54 mm from the hole


def _tool_hang(env: RobosuiteEnv, heights: list[float]) -> tuple[bool, ...]:
    from prism_policy.envs.experts.tool_hang import FRAME_GRIP, FRAME_TIP, HOLE

    sim = env.sim_env
    (grip, upright), (tip, _), (hole, _) = (_body(env, *point) for point in (FRAME_GRIP, FRAME_TIP, HOLE))
    held, inserted = _grasps(env, sim.frame), bool(sim._check_frame_assembled())
    aligned = held and upright[2, 2] > np.cos(TURNED) and np.hypot(*(tip - hole)[:2]) < ASIDE
    return _near(env, grip), held, aligned, inserted, inserted and _grasps(env, sim.tool)


_CHECKS = {"lift": _lift, "can": _can, "square": _square, "tool_hang": _tool_hang}


def _body(env: RobosuiteEnv, name: str, offset: np.ndarray | float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Position (3,) [m] of a body, or of a point in its frame, and its rotation (3, 3)."""
    data, index = env.sim_env.sim.data, env.sim_env.sim.model.body_name2id(name)
    rotation = data.body_xmat[index].reshape(3, 3)
    return data.body_xpos[index] + rotation @ np.broadcast_to(offset, 3), rotation


def _near(env: RobosuiteEnv, point: np.ndarray) -> bool:
    return bool(np.linalg.norm(env.sim_env.sim.data.site_xpos[env.eef_site] - point) < NEAR)


def _grasps(env: RobosuiteEnv, thing: Any) -> bool:
    return bool(env.sim_env._check_grasp(gripper=env.sim_env.robots[0].gripper, object_geoms=thing))
