"""ToolHang: put the frame into the stand, then hang the tool on the frame's hook."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from prism_policy.envs.experts.base import CLOSE, OPEN, POSITION_SCALE, ROTATION_SCALE, UP, Expert, Pose, limit
from prism_policy.envs.experts.route import Route, absolute, relative
from prism_policy.envs.robosuite import RobosuiteEnv
from prism_policy.tasks.tool_hang import FRAME_GRIP, FRAME_TIP, HOLE, Point

STEP = 0.05  # [s] of a control step
LAG = 24.5 / 150  # [s] by which the arm trails a moving goal: damping over stiffness of robosuite's controller

TOOL_GRIP = Point("tool_root", (0.0, 0.0, 0.0))  # middle of the tool's handle, which is along the tool's x
TOOL_RING = Point("tool_root", (-0.0943, 0.0, 0.0))
"""The ring that is hung: 0.8 mm outwards from its middle, where the route around the hook has most room."""
UPRIGHT = np.diag([-1.0, -1.0, 1.0])
"""Rotation of the frame in the stand: the hook points away from the robot, where the arm can reach it with the tool."""
DEPTH = 0.147  # [m] from the hole's upper end to its bottom, nearly
DRIFT = np.array([[0.012], [0.12]])  # [m], [rad] that the integral may reach
LOST = 0.03  # [m] from the hand to the grip that it should hold


def at_hook(out: float, up: float, dip: float) -> Pose:
    """Pose of the ring in the frame's frame: out along the hook, up [m], handle dipping below the hook [degrees]."""
    cos, sin = np.cos(np.radians(dip)), np.sin(np.radians(dip))
    return np.array([-out, 0.0, up]), np.array([[-cos, 0.0, -sin], [0.0, -1.0, 0.0], [-sin, 0.0, cos]])


ABOVE_HOOK = at_hook(0.0445, 0.130, 20)
ROUND_HOOK = [
    at_hook(0.0445, 0.108, 20),
    at_hook(0.0440, 0.097, 20),
    at_hook(0.0435, 0.0925, 30),
    at_hook(0.04275, 0.089, 40),
    at_hook(0.0410, 0.0873, 50),
    at_hook(0.0360, 0.0862, 60),
    at_hook(0.0200, 0.085, 68),
]
"""The ring over the hook's upright end and around its corner, where a straight slide does not fit: 1.6 mm are free."""


class Pace(NamedTuple):
    """How a route is followed; the speeds are those of a person of middle speed."""

    speed: float  # [m/s]
    turn: float  # [rad/s]
    gate: float  # how far the lead may be ahead [m]
    close: float  # distance from the end that counts as there [m]
    square: float  # angle from the end's that counts as there [rad]
    creep: float = 0.0  # share of its speed that the lead keeps when it waits


FREE = Pace(0.29, 1.65, gate=0.04, close=0.04, square=0.3)
CARRY = Pace(0.29, 1.65, gate=0.03, close=0.01, square=0.08)
ALIGN = Pace(0.07, 1.0, gate=0.003, close=0.0014, square=0.02)
INSERT = Pace(0.09, 1.0, gate=0.004, close=0.006, square=0.1)
# Around the hook the arm is nearly stretched: it may never come back to a lead that waits.
HANG = Pace(0.03, 0.5, gate=0.003, close=0.015, square=0.3, creep=0.2)
PATIENCE = 40  # [steps] that the lead stands still before the next stage is tried all the same, or the task anew


class ToolHang(Expert):
    """Mounts the frame, then hangs the tool; after a loss it begins again with whatever is not done.

    Both leave a millimetre or two of room, so what is held is led along a route by its own pose, not by the hand's.
    """

    stages = (
        "reach frame", "grasp frame", "carry frame", "align", "insert", "leave frame",
        "reach tool", "grasp tool", "carry tool", "line up", "hang", "leave tool",
    )  # fmt: skip
    tolerance = {  # noqa: RUF012 (declared so by Expert)
        "grasp frame": 0.5, "carry frame": 0.8, "align": 0.1, "insert": 0.05, "leave frame": 0.3,
        "grasp tool": 0.5, "carry tool": 0.8, "line up": 0.1, "hang": 0.05, "leave tool": 0.2,
    }  # fmt: skip
    max_steps = 1200

    def __init__(self, env: RobosuiteEnv, rng: np.random.Generator) -> None:
        super().__init__(env, rng)
        self.drift = np.zeros((2, 3))  # integral of the error of what is held [m, rad]
        self.hover = rng.uniform(0.05, 0.08)  # [m] in front of a grasp while off to the side
        self.frame_offset = rng.uniform(-0.006, 0.006)  # [m] of the grasp along the frame's grip
        self.tool_offset = rng.uniform(-0.008, 0.008)  # [m] of the grasp along the tool's handle
        self.tilt = np.radians(rng.uniform(8, 12))  # of the hand from the vertical when it takes the tool
        self.sway = rng.uniform(-0.02, 0.02, (4, 3))  # [m] of what is passed on the way

    def script(self) -> Iterator[np.ndarray]:  # noqa: D102 (inherited)
        env = self.env.sim_env
        while True:
            if not env._check_frame_assembled():
                yield from self.mount()
            elif not env._check_tool_on_frame():
                yield from self.hang()
            else:
                self.stage = "leave tool"
                yield self.servo(self.hand(), OPEN)

    def mount(self) -> Iterator[np.ndarray]:
        """Put the frame into the stand; ends early where it is lost or stuck."""
        self.drift = np.zeros((2, 3))
        if not self.holds(FRAME_GRIP, self.env.sim_env.frame):
            self.stage = "reach frame"
            grasp, rotation = self.frame_grasp()
            # Where an episode starts the wrist is nearly singular: it leaves before it turns.
            out = np.array([-0.02, -0.20, 0.98]) + self.sway[0], self.hand()[1]
            yield from self.follow(None, [out, (grasp - self.hover * rotation[:, 2], rotation)], FREE)
        while not self.holds(FRAME_GRIP, self.env.sim_env.frame):
            stages = ("reach frame", "grasp frame", "grasp frame")
            yield self.reach(self.frame_grasp(), self.hover, wide=0.05, stages=stages)
        self.stage = "carry frame"
        hole, (grip, rotation) = self.pose(HOLE)[0], self.pose(FRAME_GRIP)
        over = hole + FRAME_GRIP.offset - FRAME_TIP.offset
        way = [
            (grip + 0.06 * UP, rotation),
            (np.array([0.0, -0.22, 1.04]) + self.sway[1], turned("x", 60) @ UPRIGHT),  # first the yaw, then the pitch
            (np.array([-0.03, -0.10, over[2] + 0.05]), UPRIGHT),
            (over + 0.015 * UP, UPRIGHT),
        ]
        held = yield from self.follow(FRAME_GRIP, way, CARRY)
        while held and not self.env.sim_env._check_frame_assembled():
            self.stage = "align"
            held = yield from self.follow(FRAME_TIP, [(hole + 0.008 * UP, UPRIGHT)], ALIGN)
            if held:
                self.stage = "insert"
                held = yield from self.follow(FRAME_TIP, [(hole - DEPTH * UP, UPRIGHT)], INSERT)
        if held:
            self.stage = "leave frame"
            yield from self.let_go()
            hand, rotation = self.hand()
            yield from self.follow(None, [(hand - 0.10 * rotation[:, 2], rotation)], FREE)

    def hang(self) -> Iterator[np.ndarray]:
        """Hang the tool on the frame; ends early where it is lost or stuck."""
        self.drift = np.zeros((2, 3))
        rotation = self.hand()[1]
        if rotation[2, 2] > -0.8 and not self.holds(TOOL_GRIP, self.env.sim_env.tool):
            self.stage = "reach tool"  # from the stand the wrist unwinds above everything
            facing = np.stack([(-0.958, 0.287, 0), (0.287, 0.958, 0), (0, 0, -1)], axis=1)
            unwind = (np.array([-0.12, 0.10, 1.22]), rotation @ turned("x", -40))
            yield from self.follow(None, [unwind, (np.array([-0.10, -0.05, 1.20]) + self.sway[2], facing)], FREE)
        while not self.holds(TOOL_GRIP, self.env.sim_env.tool):
            stages = ("reach tool", "grasp tool", "grasp tool")
            yield self.reach(self.tool_grasp(), self.hover, wide=0.05, stages=stages)
        self.stage = "carry tool"
        grip, rotation = self.pose(TOOL_GRIP)
        ring, ring_rotation = absolute(ABOVE_HOOK, self.body("frame_root"))
        yaw = np.degrees(np.arctan2(rotation[1, 0], rotation[0, 0]))
        way = [
            (grip + 0.10 * UP, rotation),
            (np.array([0.03, -0.17, 1.05]) + self.sway[3], turned("z", yaw) @ turned("y", 15)),
            (np.array([0.07, -0.08, 1.10]), turned("z", -40) @ turned("y", 20)),
            (ring - ring_rotation @ TOOL_RING.offset, ring_rotation),
        ]
        held = yield from self.follow(TOOL_GRIP, way, CARRY)
        if held:
            self.stage = "line up"
            held = yield from self.follow(TOOL_RING, ROUND_HOOK[:1], ALIGN, base="frame_root")
        if held:
            self.stage = "hang"
            held = yield from self.follow(TOOL_RING, ROUND_HOOK, HANG, base="frame_root")
        if held:
            self.stage = "leave tool"
            yield from self.let_go()
            hand, rotation = self.hand()
            away = hand + np.array([0.04, 0.0, 0.10]), rotation @ turned("x", 15)
            yield from self.follow(None, [away], FREE)

    def follow(
        self, point: Point | None, poses: Sequence[Pose], pace: Pace, base: str | None = None
    ) -> Generator[np.ndarray, None, bool]:
        """Lead a point of what is held along poses, from where it is; returns whether it is held and got to the end.

        The lead runs at the route's speed and slows down where the point falls behind, so a push only delays.
        Feed-forward makes up for the arm's lag, the integral of the error for the weight of what is held.

        Args:
            point: None is the open hand.
            base: body whose frame the poses are in, wherever it is at the time; None is the world's.
        """
        share = self.speed / 0.75  # of the pace: people differ
        route = Route([relative(self.pose(point), self.pose_of(base)), *poses], pace.speed * share, pace.turn * share)
        time, rate, waited = 0.0, 0.0, 0
        while not self.lost(point):
            position, rotation = self.pose(point)
            goal, goal_rotation, velocity, spin = route.at(time, self.pose_of(base))
            error, twist = goal - position, Rotation.from_matrix(goal_rotation @ rotation.T).as_rotvec()
            distance, angle = float(np.linalg.norm(error)), float(np.linalg.norm(twist))
            there = time >= route.duration
            if there and distance < pace.close and angle < pace.square:
                return True
            waited = waited + 1 if there or rate < 0.05 else 0
            if waited > PATIENCE:
                return there
            wait = 1.5 - max(distance, angle / 25) / pace.gate
            brake = (route.duration - time) / 0.25 + 0.1
            rate = min(rate + 0.25, max(wait, pace.creep), brake, 1.0)
            if point and distance < 0.015 and angle < 0.15:
                self.drift = np.clip(self.drift + np.stack([error, twist]) * STEP, -DRIFT, DRIFT)
            turning = twist + self.drift[1] + LAG * rate * spin
            lever = np.cross(turning, self.hand()[0] - position)
            moving = error + self.drift[0] + LAG * rate * velocity + lever
            yield np.concatenate(
                [limit(moving / POSITION_SCALE, 1.0), limit(turning / ROTATION_SCALE, 1.0), [CLOSE if point else OPEN]]
            )
            time = min(time + rate * STEP, route.duration)
        return False

    def let_go(self) -> Iterator[np.ndarray]:
        """Open the hand where it is."""
        self.drift = np.zeros((2, 3))
        while self.opening < 0.065:
            yield np.array([0, 0, 0, 0, 0, 0, OPEN])

    def pose(self, point: Point | None) -> Pose:
        """Pose of a point; None is the hand."""
        return self.body(*point) if point else self.hand()

    def pose_of(self, body: str | None) -> Pose:
        """Pose of a body; None is the world."""
        return self.body(body) if body else (np.zeros(3), np.eye(3))

    def holds(self, grip: Point, thing: object) -> bool:
        """Whether the fingers have closed on one of robosuite's objects, and at its grip."""
        return self.opening < 0.045 and not self.lost(grip) and self.grasps(thing)

    def lost(self, point: Point | None) -> bool:
        """Whether what should be held is no longer in the hand."""
        grips = {grip.body: grip for grip in (FRAME_GRIP, TOOL_GRIP)}
        return point is not None and float(np.linalg.norm(self.hand()[0] - self.pose(grips[point.body])[0])) > LOST

    def frame_grasp(self) -> Pose:
        """The hand at the frame as it lies: from above, 30 degrees towards the rod's tip, across the grip."""
        position, rotation = self.pose(FRAME_GRIP)
        x, y, z = rotation.T
        approach = np.cos(np.pi / 6) * y - np.sin(np.pi / 6) * z
        return position + self.frame_offset * z, np.stack([x, np.cross(approach, x), approach], axis=1)

    def tool_grasp(self) -> Pose:
        """The hand at the tool as it lies: nearly from above, across the handle, the way round the wrist can do."""
        position, rotation = self.pose(TOOL_GRIP)
        along = rotation[:, 0] * (1 - UP)
        along = along / np.linalg.norm(along)
        across = -np.cross(UP, along)
        approach = np.sin(self.tilt) * along - np.cos(self.tilt) * UP
        grasp = np.stack([across, np.cross(approach, across), approach], axis=1)
        return position + self.tool_offset * rotation[:, 0], grasp


def turned(axis: str, angle: float) -> np.ndarray:
    """Rotation (3, 3) about an axis by an angle [degrees]."""
    return np.asarray(Rotation.from_euler(axis, angle, degrees=True).as_matrix())
