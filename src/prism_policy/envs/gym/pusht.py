"""gym-pusht: push a T onto its outline; the adapter, and a scripted pusher that tries pushes in a copy."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from prism_client.schema import Part
from prism_policy.envs.gym.adapter import Camera, ObservationAdapter, StatePart

RADIUS, CLEAR = 15.0, 8.0
"""Of the pusher, and between it and the T where a push begins [px]."""
AROUND = 110.0
"""Distance from the T's middle at which the pusher walks around it [px]."""
NEAR = 14.0
"""Distance of the T from its place from which it is pushed finely [px]."""
COARSE, FINE = 9.0, 4.0
"""Steps of the pusher's goal while it pushes, far from the T's place and near it [px]."""
LONGEST = 14
"""Steps of a push that is tried."""


def _outline(env: Any, shares: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 2) [px] on the T's outline where one can push, and the directions (N, 2) out of it."""
    points, normals = [], []
    shapes = [
        [np.array(v.rotated(env.block.angle) + env.block.position) for v in s.get_vertices()] for s in env._block_shapes
    ]
    middles = [np.mean(shape, axis=0) for shape in shapes]
    for i, shape in enumerate(shapes):
        for a, b in zip(shape, shape[1:] + shape[:1], strict=True):
            normal = np.array([b[1] - a[1], a[0] - b[0]]) / np.linalg.norm(b - a)
            normal *= np.sign(normal @ ((a + b) / 2 - middles[i]))
            for share in shares:
                point = a + share * (b - a)
                start = point + normal * (RADIUS + CLEAR)
                if all(
                    query.distance > RADIUS + 1 for query in (s.point_query(tuple(start)) for s in env._block_shapes)
                ):
                    points.append(point)
                    normals.append(normal)
    return np.array(points), np.array(normals)


def _apart(env: Any) -> float:
    """Mean distance of the T's corners from where they belong [px]."""
    goal = env.get_goal_pose_body(env.goal_pose)
    corners = [v for shape in env._block_shapes for v in shape.get_vertices()]
    return float(np.mean([(env.block.local_to_world(v) - goal.local_to_world(v)).length for v in corners]))


def _pushed(copy: Any, env: Any, start: np.ndarray, direction: np.ndarray) -> tuple[float, int]:
    """How far off the T is after the best number of steps of a push, and that number."""
    copy._set_state([*start, *env.block.position, env.block.angle])
    copy.agent.velocity = (0, 0)
    best = (_apart(copy), 0)
    for step in range(1, LONGEST + 1):
        _move(copy, start + direction * step)
        if (now := _apart(copy)) < best[0] - 0.05:
            best = (now, step)
        elif step > best[1] + 3:
            break
    return best


def _move(copy: Any, goal: np.ndarray) -> None:
    """One step of the copy, without what an observation would cost."""
    for _ in range(int(1 / (copy.dt * copy.control_hz))):
        copy.agent.velocity += (copy.k_p * (goal - copy.agent.position) - copy.k_v * copy.agent.velocity) * copy.dt
        copy.space.step(copy.dt)


def push(env: Any, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Goals (2,) of the pusher [px]: one push after the other, each the best of those that a copy tries."""
    copy = type(env)(obs_type="state")
    copy.reset(seed=0)
    pace = rng.uniform(22, 30)  # [px a step] beside the T; people differ
    while True:
        near = _apart(env) < NEAR
        points, normals = _outline(env, (0.1, 0.3, 0.5, 0.7, 0.9) if near else (0.15, 0.5, 0.85))
        agent = np.array(env.agent.position)
        starts = points + normals * (RADIUS + CLEAR)
        inside = ((starts > 30) & (starts < 482)).all(axis=1)
        tried = [
            (*_pushed(copy, env, start, move), start, move)
            for start, move in zip(starts[inside], -normals[inside] * (FINE if near else COARSE), strict=True)
        ]
        far = [np.linalg.norm(start - agent) for *_, start, _ in tried]
        costs = [one[0] + 0.01 * way + (1e3 if one[1] == 0 else 0.0) for one, way in zip(tried, far, strict=True)]
        _, steps, start, direction = tried[int(np.argmin(costs))]
        middle = np.array(env.block.local_to_world(env.block.center_of_gravity))
        yield from _around(agent, start, middle, pace)
        for step in range(1, steps + 1):
            yield start + direction * step
        yield np.array(env.agent.position)  # let it come to rest
        yield start


def _around(agent: np.ndarray, start: np.ndarray, middle: np.ndarray, pace: float) -> Iterator[np.ndarray]:
    """Goals of a walk from the pusher to where a push begins, around the T."""
    angles = [np.arctan2(*(point - middle)[::-1]) for point in (agent, start)]
    turn = (angles[1] - angles[0] + np.pi) % (2 * np.pi) - np.pi
    way = [agent]
    if abs(turn) > 0.3 or np.linalg.norm(start - agent) > 60:
        for share in np.linspace(0, 1, max(int(abs(turn) / 0.5), 1) + 1):
            angle = angles[0] + share * turn
            point = middle + AROUND * np.array([np.cos(angle), np.sin(angle)])
            way.append(np.clip(point, 22, 490))
    way.append(start)
    for a, b in itertools.pairwise(way):
        count = max(int(np.linalg.norm(b - a) / pace), 1)
        yield from (a + (b - a) * (i / count) for i in range(1, count + 1))
    yield start


ADAPTER = ObservationAdapter(
    cameras={"top": Camera(lambda env, observation: observation["pixels"], 96, 96)},
    state={"agent": StatePart(lambda env, observation: observation["agent_pos"], "position", ("x", "y"))},
    action=(Part("target", 2, "position", ("x", "y")),),
    make={"obs_type": "pixels_agent_pos", "render_mode": "rgb_array"},
    imports="gym_pusht",
    expert=push,
)
