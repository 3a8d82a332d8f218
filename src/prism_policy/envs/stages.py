"""How far an episode came: the stages of each task, read from the simulator's true state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from prism_policy.tasks.libero import SUITES, LiberoTask, SimTask

if TYPE_CHECKING:
    from prism_policy.envs.libero import LiberoEnv
    from prism_policy.envs.robosuite import RobosuiteEnv

STAGES = {
    "lift": ("reached", "grasped", "lifted"),
    "can": ("reached", "grasped", "lifted", "over the bin", "placed"),
    "square": ("reached", "grasped", "lifted", "aligned", "inserted"),
    "tool_hang": ("frame reached", "frame grasped", "aligned", "inserted", "tool grasped", "hung"),
    **dict.fromkeys(SUITES, ("lifted", "one goal of several", "done")),
}
"""Names of the stages of each task, or of all tasks of a suite, in order. The last one is the simulator's success."""

PHASES = {
    "lift": ("approach", "grasp", "lift"),
    "can": ("approach", "grasp", "lift", "carry", "place"),
    "square": ("approach", "grasp", "lift", "align", "insert"),
    "tool_hang": ("approach", "grasp", "align", "insert", "fetch the tool", "hang"),
    **dict.fromkeys(SUITES, ("take", "bring", "finish")),
}
"""What has to be done until each of `STAGES` is reached."""

NEAR = 0.03  # [m] from the grip site to what shall be grasped
HIGH = 0.03  # [m] above where it lay
ASIDE, TURNED = 0.01, 0.15  # [m], [rad] from where it fits


def furthest_stage(env: Any, states: np.ndarray, success: bool) -> str:
    """The furthest stage that held at any of the states (T, S) of an episode; "" where none did.

    The states are put into the simulation one after the other, which leaves it at the last one.
    """
    names = STAGES[_family(env.task)]
    return names[-1] if success else ("", *names)[_reached(env, states)[-1]]


def phases(env: Any, states: np.ndarray) -> list[str]:
    """What there is to do at each of the states (T, S) of an episode, given how far it has come: one of `PHASES`.

    A phase may be skipped, and does not come back: who drops the cube is still lifting it.
    """
    return [PHASES[_family(env.task)][reached] for reached in _reached(env, states)]


def _family(task: SimTask) -> str:
    """Whose stages a task has: its own, or its suite's."""
    return task.suite if isinstance(task, LiberoTask) else task.name


def _reached(env: Any, states: np.ndarray) -> list[int]:
    """How many stages the furthest one is, up to each of the states; success is not looked for."""
    suite = isinstance(env.task, LiberoTask)
    check, things = (_libero, goal_bodies(env, 1)) if suite else (_CHECKS[env.task.name], OBJECTS[env.task.name])
    seen = [False] * (len(STAGES[_family(env.task)]) - 1)
    heights: list[float] = [0.0]
    reached = []
    for i, state in enumerate(states):
        env.set_state(state)
        if i == 0:
            heights = [_body(env, name)[0][2] for name in things]
        seen = [a or b for a, b in zip(seen, check(env, heights), strict=True)]
        reached.append(max((n for n, held in enumerate(seen, start=1) if held), default=0))
    return reached


def goal_bodies(env: LiberoEnv, last: int = 2) -> list[str]:
    """Bodies that the goals of a LIBERO task name: what is to be moved, and (`last` is 2) where to.

    A place on the table is no body.
    """
    sim = env.sim_env
    names = [name for goal in sim.parsed_problem["goal_state"] for name in goal[1 : 1 + last]]
    known = {**sim.objects_dict, **(sim.fixtures_dict if last > 1 else {})}
    found = (thing for name in names for thing in known if name == thing or name.startswith(f"{thing}_"))
    return [known[thing].root_body for thing in dict.fromkeys(found)]


def _libero(env: LiberoEnv, heights: list[float]) -> tuple[bool, ...]:
    """Whether one of what is to be moved was lifted, and whether one goal of several holds."""
    sim, goals = env.sim_env, env.sim_env.parsed_problem["goal_state"]
    lifted = any(
        _body(env, name)[0][2] > before + HIGH for name, before in zip(goal_bodies(env, 1), heights, strict=True)
    )
    return lifted, len(goals) > 1 and any(sim._eval_predicate(goal) for goal in goals)


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


def _body(env: Any, name: str, offset: np.ndarray | float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Position (3,) [m] of a body, or of a point in its frame, and its rotation (3, 3)."""
    data, index = env.sim_env.sim.data, env.sim_env.sim.model.body_name2id(name)
    rotation = data.body_xmat[index].reshape(3, 3)
    return data.body_xpos[index] + rotation @ np.broadcast_to(offset, 3), rotation


def _near(env: RobosuiteEnv, point: np.ndarray) -> bool:
    return bool(np.linalg.norm(env.sim_env.sim.data.site_xpos[env.eef_site] - point) < NEAR)


def _grasps(env: RobosuiteEnv, thing: Any) -> bool:
    return bool(env.sim_env._check_grasp(gripper=env.sim_env.robots[0].gripper, object_geoms=thing))
