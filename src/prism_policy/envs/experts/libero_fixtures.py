"""Skills for what is fixed to the table: knobs, drawers and doors."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from prism_policy.envs.experts.base import CLOSE, OPEN, UP, Expert, down, heading
from prism_policy.envs.experts.libero_skills import USUAL_YAW, Skill, across_grip, nearest

AWAY = 0.12  # the hand withdraws by this when it has done its work [m]


class Turn(Skill):
    """Take the fin of a stove's knob from above and turn it until it is well beyond "on"."""

    stages = ("approach", "descend", "grasp", "turn", "release")
    ON = 0.75  # angle to which it is turned; from 0.5 on it counts as on [rad]

    def __init__(self, expert: Expert, stove: str) -> None:
        super().__init__(expert)
        self.goal = ("turnon", stove)
        self.stove = expert.env.sim_env.get_object(stove)
        self.knob = f"{stove}_button"
        self.address = expert.sim.model.get_joint_qpos_addr(self.stove.joints[0])
        self.grip = across_grip(lambda: expert.body(self.knob), 0, np.array([0.0, 0.0, 0.035]))
        self.finished = False

    def done(self) -> bool:  # noqa: D102 (inherited)
        if not self.holds(*self.goal):
            self.finished = False
        elif not self.finished:
            self.finished = bool(np.linalg.norm(self.expert.hand()[0] - self.grip()[0]) > AWAY)
        return self.finished

    def act(self) -> np.ndarray:  # noqa: D102 (inherited)
        expert = self.expert
        hand, rotation = expert.hand()
        angle = float(expert.sim.data.qpos[self.address])
        if angle > self.ON or (self.holds(*self.goal) and expert.stage == "release"):
            expert.stage = "release"
            rise = 0.2 if expert.opening > 0.05 else 0.0
            return expert.servo((hand + rise * UP, rotation), OPEN)
        if expert.grasps(self.stove) and expert.opening < 0.06:
            expert.stage = "turn"
            position, _ = self.grip()
            return expert.servo((position, down(heading(rotation[:, 0]) + 0.4)), CLOSE)
        return expert.reach(self.grip(), 0.07, wide=0.06)


class Push(Skill):
    """Push something shut with the closed hand: behind it first, then along.

    Subclasses say where the hand belongs: `contact` gives the place on the thing (3,) [m], the direction of the push
    (3,), and the hand's rotation (3, 3).
    """

    stages = ("approach", "push")
    BACK = 0.09  # how far behind the thing the hand comes down [m]
    ABOVE = 0.16  # how high above its work the hand travels [m]

    def __init__(self, expert: Expert, goal: tuple[str, ...]) -> None:
        super().__init__(expert)
        self.goal = goal
        self.pushing = False

    def contact(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where to push now."""
        raise NotImplementedError

    def done(self) -> bool:  # noqa: D102 (inherited)
        return self.holds(*self.goal)

    def act(self) -> np.ndarray:  # noqa: D102 (inherited)
        expert = self.expert
        hand, _ = expert.hand()
        point, along, rotation = self.contact()
        behind = point - self.BACK * along
        gap = hand - point
        aside = float(np.linalg.norm(gap - along * (along @ gap)))
        ready = aside < 0.02 and along @ gap < 0.0
        self.pushing = ready or (self.pushing and aside < 0.04 and along @ gap < 0.03)
        if self.pushing:
            expert.stage = "push"
            return expert.servo((point + 0.03 * along, rotation), CLOSE)
        expert.stage = "approach"
        off = float(np.linalg.norm((hand - behind)[:2]))
        lift = self.ABOVE * np.clip((off - 0.02) / 0.04, 0.0, 1.0)
        goal = behind + lift * UP
        low = hand[2] < behind[2] + 0.8 * self.ABOVE and off > 0.06
        if low:  # up first
            goal = np.append(hand[:2], behind[2] + self.ABOVE + 0.02)
        return expert.servo((goal, rotation), CLOSE)


class CloseDrawer(Push):
    """Push a drawer in by its handle, the hand leaning back so that the handles above stay clear of it."""

    BACK = 0.05
    LEAN = 0.35  # [rad]

    def __init__(self, expert: Expert, goal: tuple[str, ...]) -> None:
        super().__init__(expert, goal)
        cabinet, level, _ = goal[1].rsplit("_", 2)
        self.drawer = f"{cabinet}_cabinet_{level}"
        self.bar = expert.env.sim_env.object_sites_dict[goal[1]].joints[0]
        model = expert.env.model
        body = model.body(self.drawer).id
        geoms = np.flatnonzero((model.geom_bodyid == body) & (model.geom_contype > 0))
        self.handle = geoms[np.argmin(model.geom_pos[geoms, 1])]  # a cabinet's drawers open towards its -y

    def contact(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # noqa: D102 (inherited)
        data = self.expert.sim.data._data
        along = -self.expert.body(self.drawer)[1] @ np.array([0.0, -1.0, 0.0])
        point = data.geom_xpos[self.handle] - 0.016 * along + 0.006 * UP
        across = heading(np.cross(along, UP))
        lean = Rotation.from_rotvec(self.LEAN * np.cross(along, UP))
        return point, along, lean.as_matrix() @ down(nearest(across, USUAL_YAW))


class CloseDoor(Push):
    """Swing a microwave's door shut, pushing its outer face near the handle."""

    OUT, HEIGHT = 0.17, 0.01  # where it is pushed: distance from the hinge, and above the middle of the door [m]
    BACK = 0.07
    ABOVE = 0.20

    def contact(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # noqa: D102 (inherited)
        env = self.expert.env
        model, data = env.model, self.expert.sim.data._data
        joint = model.joint(f"{self.goal[1]}_microjoint").id
        hinge = data.xanchor[joint]
        door = np.flatnonzero(
            (model.geom_bodyid == model.jnt_bodyid[joint]) & (model.geom_type == 6) & (model.geom_conaffinity > 0)
        )[0]
        out = data.geom_xpos[door] - hinge
        out[2] = 0.0
        shut = np.array([-out[1], out[0], 0.0])  # it closes counter-clockwise
        out, shut = out / np.linalg.norm(out), shut / np.linalg.norm(shut)
        point = hinge + self.OUT * out - 0.040 * shut
        point[2] = data.geom_xpos[door][2] + self.HEIGHT
        return point, shut, down(nearest(heading(out), USUAL_YAW))
