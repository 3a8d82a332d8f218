"""Random still scenes of a task, and where things are in them: what `prism probe` asks an encoder for."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from prism_policy.envs.episode import Split, episode_rng
from prism_policy.envs.robosuite import RobosuiteEnv
from prism_policy.envs.simulators import mujoco
from prism_policy.errors import PrismError
from prism_policy.tasks import task_spec
from prism_policy.tasks.spec import Tracked

HAND_ASIDE, HAND_ABOVE, HAND_TURN = 0.12, (0.03, 0.20), 0.6
"""How far the hand is from the middle of the objects along x and y, how high above [m], and how far turned [rad]."""
OVERLAP = 0.002  # scenes where two things overlap by more than this are drawn again [m]


HAND = Tracked("hand", "", 0, 1)  # the grip site between the fingers; its x is the axis along which they close


def tracked(task: str) -> tuple[Tracked, ...]:
    """Everything that is tracked in a task."""
    return (*task_spec(task).tracked, HAND)


def scene(env: RobosuiteEnv, split: Split, seed: int, index: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A still scene: objects scattered over the table at any angle, the hand anywhere above them and pointing down.

    Split, seed and index decide everything. Returned are the state, float64 (S,), and of each tracked thing (x, y, z,
    angle) in the world, float64 (4,) [m, rad].
    """
    rng = episode_rng(split, seed, index, rng_stream=3)
    env.reset(seed=seed, options={"split": split, "episode": index})
    start, model, spec = env.state, env.model, env.task.spec
    bodies = [model.body(thing.body).id for thing in spec.tracked]
    middle = env.sim_env.sim.data._data.xpos[bodies].mean(axis=0)
    for _ in range(1000):
        state = start.copy()
        for body in bodies:
            at = 1 + int(model.jnt_qposadr[model.body_jntadr[body]])  # in the state, where time comes first
            state[at : at + 2] += rng.uniform(-1, 1, 2) * spec.spread
            turn = Rotation.from_euler("z", rng.uniform(-np.pi, np.pi))
            before = Rotation.from_quat(state[at + 3 : at + 7], scalar_first=True)
            state[at + 3 : at + 7] = (turn * before).as_quat(scalar_first=True)
        position = middle + np.append(rng.uniform(-HAND_ASIDE, HAND_ASIDE, 2), rng.uniform(*HAND_ABOVE))
        yaw = np.pi / 2 + rng.uniform(-HAND_TURN, HAND_TURN)
        opening = rng.uniform(0.0, 0.04)
        state[1 + env.fingers] = opening, -opening
        state[1 + model.nq :] = 0
        env.set_state(state)
        if _reach(env, position, Rotation.from_euler("ZX", [yaw, np.pi])) and not _overlap(env, bodies):
            return env.state, {thing.name: _pose(env, thing) for thing in tracked(env.task.name)}
    raise PrismError(f"found no scene of task {env.task.name!r} without overlap (seed {seed}, index {index})")


def _reach(env: RobosuiteEnv, position: np.ndarray, rotation: Rotation) -> bool:
    """Move the arm's joints until the hand is there: damped least squares; False where it does not get there."""
    model, data = env.model, env.sim_env.sim.data._data
    joints, columns = np.array(env.sim_env.robots[0].joint_indexes), env.sim_env.robots[0]._ref_joint_vel_indexes
    jacobian = np.zeros((6, model.nv))
    for _ in range(50):
        now = Rotation.from_matrix(data.site_xmat[env.eef_site].reshape(3, 3))
        error = np.concatenate([position - data.site_xpos[env.eef_site], (rotation * now.inv()).as_rotvec()])
        if np.abs(error).max() < 0.002:
            env.set_state(env.state)
            return True
        mujoco.mj_jacSite(model, data, jacobian[:3], jacobian[3:], env.eef_site)
        j = jacobian[:, columns]
        data.qpos[joints] += j.T @ np.linalg.solve(j @ j.T + 1e-3 * np.eye(6), error)
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
    return False


def _overlap(env: RobosuiteEnv, bodies: list[int]) -> bool:
    """Whether the robot or one of `bodies` is inside anything; what the task has put out of sight may be."""
    model, data = env.model, env.sim_env.sim.data._data
    roots = model.body_rootid[[*bodies, model.site_bodyid[env.eef_site]]]
    deep = data.contact.geom[data.contact.dist < -OVERLAP]  # (n, 2)
    return bool(np.isin(model.body_rootid[model.geom_bodyid[deep]], roots).any())


def _pose(env: RobosuiteEnv, thing: Tracked) -> np.ndarray:
    data = env.sim_env.sim.data
    if thing is HAND:
        position, rotation = data.site_xpos[env.eef_site], data.site_xmat[env.eef_site]
    else:
        body = env.sim_env.sim.model.body_name2id(thing.body)
        position, rotation = data.body_xpos[body], data.body_xmat[body]
    axis = rotation.reshape(3, 3)[:, thing.heading]
    return np.append(position, np.arctan2(axis[1], axis[0]))
