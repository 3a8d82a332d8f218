"""ToolHang: put the frame into the stand, then hang the tool on the frame's hook."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence

import numpy as np
from scipy.spatial.transform import Rotation

from prism_policy.envs.experts.base import CLOSE, OPEN, POSITION_SCALE, ROTATION_SCALE, Expert, Pose, limit
from prism_policy.envs.experts.base import rotation_vector
from prism_policy.envs.experts.route import Route, absolute, relative, world
from prism_policy.envs.robosuite import RobosuiteEnv

STEP = 0.05  # [s] of a control step
LAG = 24.5 / 150  # [s] by which the arm trails a moving goal: damping over stiffness of robosuite's controller
UP = np.array([0.0, 0.0, 1.0])

HOLE = np.array([0.0, 0.045, 0.079])
"""Upper end of the hole in the stand, in the stand's frame [m]."""
FRAME_GRIP, FRAME_TIP = np.array([0.04375, 0.0, 0.0525]), np.array([0.04375, 0.0, -0.1345])
"""Middle of the frame's grip and the lower end of its rod, in the frame's frame: z up the rod, hook towards -x [m]."""
TOOL_GRIP, TOOL_RING = np.zeros(3), np.array([-0.0943, 0.0, 0.0])
"""Middle of the tool's handle and of the ring that is hung, in the tool's frame: x along the handle [m]."""
UPRIGHT = np.diag([-1.0, -1.0, 1.0])
"""Rotation of the frame in the stand: the hook points away from the robot, where the arm can reach with the tool."""


def at_hook(out: float, up: float, dip: float) -> Pose:
    """Pose of the ring in the frame's frame: out along the hook, up [m], the handle dipping below the hook [degrees]."""
    cos, sin = np.cos(np.radians(dip)), np.sin(np.radians(dip))
    return np.array([-out, 0.0, up]), np.array([[-cos, 0.0, -sin], [0.0, -1.0, 0.0], [-sin, 0.0, cos]])


HANG = tuple(
    at_hook(*way)
    for way in (
        (0.0445, 0.108, 20), (0.0440, 0.097, 20), (0.0435, 0.0925, 30), (0.04275, 0.089, 40),
        (0.0410, 0.0873, 50), (0.0360, 0.0862, 60), (0.0200, 0.085, 68),
    )
)  # fmt: skip
"""The ring over the hook's upright end and around its corner.

A straight slide does not fit; here the ring is nowhere closer than 1.9 mm to the hook.
"""


class ToolHang(Expert):
    """Mounts the frame, then hangs the tool; after a loss it begins again with whatever is not done.

    Both tasks leave a millimetre or two, so what is held is led along a route by its own pose, not the hand's.
    """

    stages = (
        "reach frame", "grasp frame", "carry frame", "align", "insert", "leave frame",
        "reach tool", "grasp tool", "carry tool", "line up", "hang", "leave tool",
    )  # fmt: skip
    tolerance = {  # noqa: RUF012 (declared so by Expert)
        "carry frame": 0.8, "align": 0.1, "insert": 0.1, "leave frame": 0.3,
        "carry tool": 0.8, "line up": 0.1, "hang": 0.05, "leave tool": 0.2,
    }  # fmt: skip
    max_steps = 1200

    def __init__(self, env: RobosuiteEnv, rng: np.random.Generator) -> None:
        super().__init__(env, rng)
        self.drift = np.zeros((2, 3))
        self.hover = rng.uniform(0.05, 0.08)  # [m] in front of a grasp while off to the side
        self.frame_offset = rng.uniform(-0.006, 0.006)  # [m] of the grasp along the frame's grip
        self.tool_offset = rng.uniform(-0.008, 0.008)  # [m] of the grasp along the tool's handle
        self.tilt = np.radians(rng.uniform(8, 12))  # of the hand from the vertical when it takes the tool

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
        """Put the frame into the stand; ends early where it is lost."""
        env, free = self.env.sim_env, {"speed": 0.38 * self.speed, "turn": 2.2 * self.speed}
        self.stage = "reach frame"
        grasp, rotation = self.frame_grasp()
        yield from self.follow(
            self.hand,
            [(np.array([-0.02, -0.20, 0.98]), self.hand()[1]), (grasp - self.hover * rotation[:, 2], rotation)],
            **free, gate=0.04, close=(0.04, 0.2), grip=OPEN,
        )  # fmt: skip
        while not (self.opening < 0.04 and self.grasps(env.frame)):
            stages = ("reach frame", "reach frame", "grasp frame")
            yield self.reach(self.frame_grasp(), self.hover, wide=0.05, stages=stages)
        self.drift[:] = 0
        hole = self.body("stand_root", HOLE)[0]
        above = hole + FRAME_GRIP - FRAME_TIP
        position, rotation = self.frame_grip()
        halfway = turned((1, 0, 0), np.pi / 3) @ UPRIGHT  # the hand upright, its yaw already that of the end
        self.stage = "carry frame"
        carried = yield from self.follow(
            self.frame_grip,
            [
                (position + 0.06 * UP, rotation),
                (np.array([0.0, -0.22, 1.04]), halfway),
                (np.array([-0.03, -0.10, above[2] + 0.05]), UPRIGHT),
                (above + 0.015 * UP, UPRIGHT),
            ],
            **free, gate=0.03, close=(0.01, 0.08), lost=self.frame_lost,
        )  # fmt: skip
        if not carried:
            return
        self.stage = "align"
        aligned = yield from self.follow(
            self.frame_tip, [(hole + 0.008 * UP, UPRIGHT)], 0.07, 1.0, 0.003, (0.0013, 0.02), self.frame_lost
        )
        if not aligned:
            return
        self.stage = "insert"
        yield from self.follow(
            self.frame_tip, [(hole - 0.147 * UP, UPRIGHT)], 0.12 * self.speed, 1.0, 0.004, (0.006, 0.1), self.frame_lost
        )
        self.stage = "leave frame"
        yield from self.let_go()
        hand, rotation = self.hand()
        yield from self.follow(
            self.hand, [(hand - 0.10 * rotation[:, 2], rotation)], **free, gate=0.04, close=(0.03, 0.3), grip=OPEN
        )

    def hang(self) -> Iterator[np.ndarray]:
        """Hang the tool on the frame; ends early where it is lost."""
        env, free = self.env.sim_env, {"speed": 0.38 * self.speed, "turn": 2.2 * self.speed}
        self.stage = "reach tool"
        hand, rotation = self.hand()
        if rotation[2, 2] > -0.8:  # from the stand the wrist has to unwind above everything
            facing = np.stack([(-0.958, 0.287, 0), (0.287, 0.958, 0), (0, 0, -1)], axis=1)
            yield from self.follow(
                self.hand,
                [
                    (np.array([-0.12, 0.10, 1.22]), rotation @ turned((1, 0, 0), np.radians(-40))),
                    (np.array([-0.10, -0.05, 1.20]), facing),
                ],
                **free, gate=0.05, close=(0.05, 0.5), grip=OPEN,
            )  # fmt: skip
        while not (self.opening < 0.045 and self.grasps(env.tool)):
            stages = ("reach tool", "reach tool", "grasp tool")
            yield self.reach(self.tool_grasp(), self.hover, wide=0.05, stages=stages)
        self.drift[:] = 0
        position, rotation = self.tool_grip()
        yaw = np.arctan2(rotation[1, 0], rotation[0, 0])
        self.stage = "carry tool"
        ring, ring_rotation = absolute(at_hook(0.0445, 0.130, 20), self.frame())
        carried = yield from self.follow(
            self.tool_grip,
            [
                (position + 0.10 * UP, rotation),
                (np.array([0.03, -0.17, 1.05]), handle(yaw, np.radians(15))),
                (np.array([0.07, -0.08, 1.10]), handle(np.radians(-40), np.radians(20))),
                (ring - ring_rotation @ TOOL_RING, ring_rotation),
            ],
            **free, gate=0.03, close=(0.01, 0.08), lost=self.tool_lost,
        )  # fmt: skip
        if not carried:
            return
        self.stage = "line up"
        ready = yield from self.follow(
            self.tool_ring, HANG[:1], 0.07, 1.0, 0.003, (0.0015, 0.02), self.tool_lost, base=self.frame
        )
        if not ready:
            return
        self.stage = "hang"
        yield from self.follow(
            self.tool_ring, HANG, 0.03, 0.5, 0.003, (0.01, 0.3), self.tool_lost, base=self.frame, reached=self.hung
        )
        self.stage = "leave tool"
        yield from self.let_go()
        hand, rotation = self.hand()
        away = hand + (0.04, 0.0, 0.10), rotation @ turned((1, 0, 0), np.radians(15))
        yield from self.follow(self.hand, [away], **free, gate=0.04, close=(0.03, 0.3), grip=OPEN)

    def follow(
        self,
        held: Callable[[], Pose],
        poses: Sequence[Pose],
        speed: float,
        turn: float,
        gate: float,
        close: tuple[float, float],
        lost: Callable[[], bool] = lambda: False,
        grip: float = CLOSE,
        base: Callable[[], Pose] = world,
        reached: Callable[[], bool] = lambda: False,
    ) -> Generator[np.ndarray, None, bool]:
        """Lead what is held from where it is along poses; the lead waits when it is more than `gate` [m] ahead."""
        route = Route([relative(held(), base()), *poses], speed, turn)
        time, rate, waited = 0.0, 0.0, 0
        while not lost():
            position, rotation = held()
            goal, goal_rotation, velocity, spin = route.world(time, base())
            error, twist = goal - position, rotation_vector(goal_rotation @ rotation.T)
            behind = max(np.linalg.norm(error) / gate, np.linalg.norm(twist) / (25 * gate))
            if reached():
                return True
            if time >= route.duration:
                if np.linalg.norm(error) < close[0] and np.linalg.norm(twist) < close[1] or waited > 40:
                    return True
                waited += 1
            brake = (route.duration - time) / 0.25 + 0.1
            rate = min(rate + 0.25, float(np.clip(1.5 - behind, 0, 1)), brake)
            if grip == CLOSE and np.linalg.norm(error) < 0.015 and np.linalg.norm(twist) < 0.15:
                self.drift += np.stack([error, twist]) * STEP
                self.drift = np.clip(self.drift, [[-0.012], [-0.12]], [[0.012], [0.12]])
            turning = twist + self.drift[1] + LAG * rate * spin
            lever = np.cross(turning, self.hand()[0] - position)
            moving = error + self.drift[0] + LAG * rate * velocity + lever
            yield np.concatenate([limit(moving / POSITION_SCALE, 1.0), limit(turning / ROTATION_SCALE, 1.0), [grip]])
            time = min(time + rate * STEP, route.duration)
        return False

    def let_go(self) -> Iterator[np.ndarray]:
        """Open the hand where it is."""
        while self.opening < 0.065:
            yield np.array([0, 0, 0, 0, 0, 0, OPEN])

    def frame_grip(self) -> Pose:
        """The middle of the frame's grip."""
        return self.body("frame_root", FRAME_GRIP)

    def frame_tip(self) -> Pose:
        """The lower end of the frame's rod."""
        return self.body("frame_root", FRAME_TIP)

    def tool_grip(self) -> Pose:
        """The middle of the tool's handle."""
        return self.body("tool_root", TOOL_GRIP)

    def tool_ring(self) -> Pose:
        """The middle of the tool's ring."""
        return self.body("tool_root", TOOL_RING)

    def frame_lost(self) -> bool:
        """Whether the frame is no longer in the hand."""
        return bool(np.linalg.norm(self.hand()[0] - self.frame_grip()[0]) > 0.03)

    def tool_lost(self) -> bool:
        """Whether the tool is no longer in the hand."""
        return bool(np.linalg.norm(self.hand()[0] - self.tool_grip()[0]) > 0.03)

    def frame_grasp(self) -> Pose:
        """The hand at the frame as it lies: from above, 30 degrees towards the rod's tip, across the grip."""
        position, rotation = self.body("frame_root", FRAME_GRIP + (0, 0, self.frame_offset))
        x, y, z = rotation.T
        approach = np.cos(np.pi / 6) * y - np.sin(np.pi / 6) * z
        return position, np.stack([x, np.cross(approach, x), approach], axis=1)

    def tool_grasp(self) -> Pose:
        """The hand at the tool as it lies: nearly from above, across the handle, on the side the wrist can turn from."""
        position, rotation = self.body("tool_root", TOOL_GRIP + (self.tool_offset, 0, 0))
        along = rotation[:, 0] * (1, 1, 0)
        along /= np.linalg.norm(along)
        across = -np.cross(UP, along)
        approach = np.sin(self.tilt) * along - np.cos(self.tilt) * UP
        return position, np.stack([across, np.cross(approach, across), approach], axis=1)

    def hung(self) -> bool:
        """Whether the ring is around the hook's corner."""
        return relative(self.tool_ring(), self.frame())[0][0] > -0.026

    def frame(self) -> Pose:
        """The frame."""
        return self.body("frame_root")


def turned(axis: tuple[float, float, float], angle: float) -> np.ndarray:
    """Rotation (3, 3) about an axis of length 1 by an angle [rad]."""
    return np.asarray(Rotation.from_rotvec(angle * np.array(axis)).as_matrix())


def handle(yaw: float, dip: float) -> np.ndarray:
    """Rotation (3, 3) of the tool with its handle towards `yaw`, dipping below the horizontal [rad]."""
    return turned((0, 0, 1), yaw) @ turned((0, 1, 0), dip)
