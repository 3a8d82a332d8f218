"""gymnasium-robotics' Fetch: its adapter, with two cameras that stand still, and a scripted expert that picks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from prism_client.schema import Part
from prism_policy.config.settings import RenderConfig
from prism_policy.envs.gym.adapter import Camera, ObservationAdapter, StatePart
from prism_policy.envs.rendering import Renderer
from prism_policy.envs.simulators import mujoco

DRAWN, SEEN = 128, 64
"""Size of a frame as it is drawn, and as the policy sees it [px]."""
CENTRE, ANGLE = np.array([1.34, 0.75, 0.62]), 36.0
"""What both cameras look at, the middle of where blocks and goals are [m], and their vertical angle [deg]."""
VIEWS = {"front": (1.34, -0.20, 1.00), "side": (2.29, 0.75, 1.00)}
"""Where each stands [m]."""
GOAL = 0.035
"""Radius of the mark of the goal as we draw it; the environment's of 20 mm disappears in the block near it [m]."""
REACHED, LOST = 0.022, 0.035
"""Distance from grip to block at which the fingers close, and at which a closing hand gives up [m]."""
CLOSED = 0.056
"""Width between fingers that hold the block, which is 50 mm wide [m]."""


def _renderer(env: Any) -> Renderer:
    """A renderer of the environment's model with cameras of our own: `env.render` would touch the simulation."""
    if "_prism_renderer" not in vars(env):
        spec = mujoco.MjSpec.from_file(env.fullpath)
        for name, position in VIEWS.items():
            spec.worldbody.add_camera(name=name, pos=position, quat=_towards(CENTRE - position), fovy=ANGLE)
        spec.site("target0").size[:] = GOAL
        model = spec.compile()
        model.geom_group[:] = 1  # the one that is drawn
        env._prism_renderer = Renderer(model, RenderConfig(DRAWN))
    renderer: Renderer = env._prism_renderer
    return renderer


def _towards(direction: np.ndarray) -> np.ndarray:
    """Quaternion (4,) of a camera, upright, that looks along a direction (3,)."""
    z = -direction / np.linalg.norm(direction)
    x = np.cross([0.0, 0.0, 1.0], z)
    x /= np.linalg.norm(x)
    quat = np.zeros(4)
    mujoco.mju_mat2Quat(quat, np.column_stack([x, np.cross(z, x), z]).ravel())
    return quat


def _view(name: str) -> Camera:
    def read(env: Any, observation: Any) -> np.ndarray:
        renderer = _renderer(env)
        model = renderer.model
        site = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, "target0")
        model.site_pos[site] = env.goal - model.body_pos[model.site_bodyid[site]]
        renderer.pose(env.data.qpos)
        return renderer.draw(name)

    return Camera(read, SEEN, SEEN)


def pick_and_place(env: Any, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Actions (4,) that take the block to the goal: over it, down, close, carry; anew where it is lost."""
    gain, most = rng.uniform(10, 14), rng.uniform(0.7, 1.0)  # people differ
    hover = rng.uniform(0.04, 0.07)  # [m] over the block while off to the side
    holding = False
    while True:
        seen = env._get_obs()["observation"]
        grip, block, width = seen[:3], seen[3:6], float(seen[9] + seen[10])
        off = block - grip
        aside = float(np.linalg.norm(off[:2]))
        holding = float(np.linalg.norm(off)) < (LOST if holding else REACHED)
        if holding:
            move = env.goal - block if width < CLOSED else off
        else:
            funnel = hover * min(max(aside - 0.008, 0.0) / 0.02 + (width < 0.08), 1.0)
            move = off + np.array([0.0, 0.0, funnel])
        move = move * gain
        yield np.append(move * min(1.0, most / max(np.abs(move).max(), 1e-9)), -1.0 if holding else 1.0)


ADAPTER = ObservationAdapter(
    cameras={name: _view(name) for name in VIEWS},
    state={
        "grip_pos": StatePart(lambda env, observation: observation["observation"][:3], "position", ("x", "y", "z")),
        "gripper_width": StatePart(lambda env, observation: observation["observation"][9:11].sum(), "joint"),
    },
    action=(Part("position", 3, "position", ("dx", "dy", "dz"), True), Part("gripper", 1, "gripper", (), True)),
    make={},
    imports="gymnasium_robotics",
    expert=pick_and_place,
)
