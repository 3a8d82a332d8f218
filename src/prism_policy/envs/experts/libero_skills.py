"""What LIBERO's experts are composed of: skills that read the state anew at every step and know when they are done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np

from prism_policy.envs.experts.base import OPEN, RESET_YAW, UP, Expert, Pose, down, heading, wrap

PALM, FINGER = 0.10, 0.045
"""Height of the palm above the grip site, and how far open fingers stand off it, along the closing axis [m]."""
ENOUGH, STRETCH = 0.025, 0.4
"""Room beyond which more is no better [m], and what a metre of stretching the arm is worth in metres of it."""
FOLDED = 0.38  # distance from the base within which the elbow soon is as bent as it goes when the hand rises [m]
USUAL_YAW = RESET_YAW - 0.3
"""Yaw that closing axes are turned towards [rad]. Things stand square to the table, and at a right angle both ways
would be as near: a hand that cannot decide does not arrive."""
Grip = Callable[[], Pose]  # where the hand takes hold now: it follows the thing


class Skill:
    """A piece of a task: `act` until `done`; what was done may come undone, and is then done again."""

    stages: tuple[str, ...] = ()

    def __init__(self, expert: Expert) -> None:
        self.expert = expert

    def done(self) -> bool:
        """Whether it holds, and the hand is out of the way."""
        raise NotImplementedError

    def act(self) -> np.ndarray:
        """The next action (7,)."""
        raise NotImplementedError

    def holds(self, *goal: str) -> bool:
        """Whether one of LIBERO's goals holds, such as ("in", "bowl_1", "drawer_region")."""
        return bool(self.expert.env.sim_env._eval_predicate(goal))

    def thing(self, name: str) -> Pose:
        """Pose of an object of the task."""
        return self.expert.body(self.expert.env.sim_env.get_object(name).root_body)


@dataclass(eq=False)
class PickAndPlace(Skill):
    """Take a thing, carry it over everything to its place, let go low above it and withdraw."""

    expert: Expert
    name: str
    goal: tuple[str, ...]
    grips: list[Grip]  # where it can be taken; one that slips is followed by the next
    place: Callable[[], np.ndarray]  # where the thing's origin belongs, (3,) [m]
    _: KW_ONLY
    near: float = 0.012  # it is let go within this of its place, along the table [m]
    drop: float = 0.02  # height above `place` at which it is let go [m]
    over: float = 0.10  # height above `place`, and above where it lay, at which it is carried [m]
    yaw: float | None = None  # of the closing axis while it is carried [rad]; none keeps the grip's
    hover: float = 0.08  # height of the hand above the grip while it is off to the side [m]
    slope: float = 0.06  # distance from the place, beyond `fine`, over which it is lowered [m]
    fine: float = 0.02  # distance from the place within which it is all the way down [m]
    early: bool = True  # let go as soon as the goal holds, too
    keep: bool = False  # never let go, for a goal that no longer holds when the thing lies

    stages = ("approach", "descend", "grasp", "carry", "lower", "release")
    PATIENCE, CLOSING = 45, 20
    """Steps at a grip without a hold after which the next one is tried, and how many more the fingers are given."""
    STALLED = 60  # steps without getting nearer after which it is let go: with this grip the arm does not get there

    def __post_init__(self) -> None:
        self.object = self.expert.env.sim_env.get_object(self.name)
        self.finished = self.releasing = False
        self.tried, self.ranked, self.hold, self.floor = 0, False, 0.0, np.inf
        self.nearest, self.stalled = np.inf, 0
        self.let_go = 0.0  # height at which the hand last held it [m]
        self.lay = self.thing(self.name)[0][2]  # height at which it last lay [m]

    def done(self) -> bool:
        """It is where it belongs, and the hand has left it."""
        if self.keep:
            return self.holds(*self.goal) and self.thing(self.name)[0][2] - self.place()[2] < self.drop
        if not self.holds(*self.goal):
            self.finished = False
        elif not self.finished:
            away = self.expert.hand()[0][2] > self.let_go + 0.08
            self.finished = bool(away and self.expert.opening > 0.05 and not self.held)
        return self.finished

    @property
    def held(self) -> bool:
        """Whether both fingers touch it."""
        return self.expert.grasps(self.object)

    def act(self) -> np.ndarray:  # noqa: D102 (inherited)
        expert = self.expert
        position, _ = self.thing(self.name)
        hand, rotation = expert.hand()
        place = self.place()
        aside = float(np.hypot(*(position - place)[:2]))
        height = position[2] - place[2]
        slack = 0.012 if self.releasing else 0.0
        low = aside < self.near + slack and height < self.drop + slack
        self.releasing = low or (self.early and aside < 0.03 and self.holds(*self.goal))
        self.floor = min(self.floor, place[2])
        stuck = self.held and place[2] > self.floor + 0.05  # the plate hangs on the bowl
        if (self.releasing and not self.keep) or stuck or self.stalled > self.STALLED:
            expert.stage = "release"
            self.let_go = hand[2] if self.held else self.let_go
            rise = 0.15 if expert.opening > 0.06 and not self.held else 0.0
            if self.stalled > self.STALLED and rise:
                self.next_grip()
            return expert.servo((hand + rise * UP, rotation), OPEN)
        if self.held:
            self.tried, self.let_go = 0, hand[2]
            cruise = max(place[2] + self.over, self.lay + self.over)
            arc = (cruise - place[2] - self.drop + 0.01) * np.clip((aside - self.fine) / self.slope, 0.0, 1.0)
            expert.stage = "lower" if aside < 0.08 else "carry"
            goal = place + (self.drop - 0.01 + arc) * UP
            yaw = self.hold if self.yaw is None else nearest(self.yaw, heading(rotation[:, 0]))
            self.watch(float(np.linalg.norm(goal - position)))
            risen = 1.0 - (goal[2] - position[2]) / 0.03 > 0.0  # only then it turns, and sweeps nothing away
            return expert.carry((position, rotation), (goal, down(yaw) if risen else rotation))
        self.lay, self.hold = position[2], heading(rotation[:, 0])
        if not self.ranked and np.linalg.norm(hand - position) < 0.2:
            self.ranked = True  # no sooner: in some scenes things are still in the air when an episode begins
            self.grips = best_first(expert, self.name, self.grips, place)
        self.tried += bool(np.linalg.norm(hand - self.grips[0]()[0]) < 0.12)
        if self.tried > self.PATIENCE + self.CLOSING * expert.closing:
            self.next_grip()
        return expert.reach(self.grips[0](), self.hover, wide=0.06)

    def next_grip(self) -> None:
        """Try another one."""
        self.tried, self.expert.closing = 0, False
        self.nearest, self.stalled = np.inf, 0
        self.grips.append(self.grips.pop(0))

    def watch(self, distance: float) -> None:
        """Count the steps that bring it no nearer to where it shall go [m]; `keep` waits there for good."""
        if distance < self.nearest - 0.003:
            self.nearest, self.stalled = distance, 0
        elif not self.keep:
            self.stalled += 1


def best_first(expert: Expert, thing: str, grips: Sequence[Grip], place: np.ndarray) -> list[Grip]:
    """Grips in the order of the room that the open hand has there now, and of how the arm must stretch or fold.

    `place` is where the thing goes, (3,) [m]: far from the base the arm no longer gets there with the hand down.
    """
    env = expert.env.sim_env
    position, _ = expert.body(env.get_object(thing).root_body)

    def worth(grip: Grip) -> float:
        hand = grip()
        offset, base = hand[0] - position, env.robots[0].base_pos
        here, there = (float(np.linalg.norm((offset + to - base)[:2])) for to in (position, place))
        return min(room(expert, thing, hand), ENOUGH) - STRETCH * max(here, there) - max(FOLDED - here, 0.0)

    return sorted(grips, key=worth, reverse=True)


def room(expert: Expert, thing: str, grip: Pose) -> float:
    """Distance between the open hand at `grip` and what stands around the thing [m]; negative where it is inside."""
    env = expert.env.sim_env
    model, data = expert.env.model, expert.sim.data._data
    along, aside, back = grip[1][:, 0], grip[1][:, 1], -grip[1][:, 2]
    points = [grip[0] + s * along + h * back for s in (-FINGER, FINGER) for h in np.linspace(0.0, PALM, 6)]
    points += [
        grip[0] + s * along + w * aside + PALM * back for s in np.linspace(-0.1, 0.1, 7) for w in (-0.03, 0, 0.03)
    ]
    own = model.body(env.get_object(thing).root_body).id
    robot = model.body_rootid[model.site_bodyid[expert.env.eef_site]]
    others = (model.geom_contype + model.geom_conaffinity > 0) & (model.body_rootid[model.geom_bodyid] != own)
    others &= (model.body_rootid[model.geom_bodyid] != robot) & (model.geom_type != 0)
    rotations = data.geom_xmat[others].reshape(-1, 3, 3)
    offsets = np.stack(points)[:, None] - data.geom_xpos[others]  # (P, G, 3)
    local = np.einsum("pgi,gij->pgj", offsets, rotations) - model.geom_aabb[others, :3]
    outside = np.abs(local) - model.geom_aabb[others, 3:]
    distance = np.linalg.norm(np.maximum(outside, 0), axis=-1) + np.minimum(outside.max(-1), 0)
    return float(distance.min())


def rim_grips(
    pose: Callable[[], Pose], radius: float, above: float, angles: Sequence[float] | None = None
) -> list[Grip]:
    """Grips on the rim of a round thing, one finger inside, `above` its origin [m].

    They are at `angles` from the thing's x axis [rad]; by default at the four sides of the table.
    """

    def grip(angle: float, turning: bool) -> Grip:
        def at() -> Pose:
            position, rotation = pose()
            side = angle + heading(rotation[:, 0]) if turning else angle
            outward = np.array([np.cos(side), np.sin(side), 0.0])
            return position + radius * outward + above * UP, down(nearest(side, USUAL_YAW))

        return at

    sides = (np.pi / 2, -np.pi / 2, 0.0, np.pi)
    return [grip(angle, angles is not None) for angle in (sides if angles is None else angles)]


def across_grip(pose: Callable[[], Pose], axis: int, point: np.ndarray) -> Grip:
    """The grip from above that closes along one of the thing's axes (0 to 2), at a point (3,) in its frame [m]."""

    def grip() -> Pose:
        position, rotation = pose()
        return position + rotation @ point, down(nearest(heading(rotation[:, axis]), USUAL_YAW))

    return grip


def turned_grips(pose: Callable[[], Pose], above: float, yaws: Sequence[float]) -> list[Grip]:
    """Grips from above that take a standing can at its middle: any direction will do."""
    return [lambda yaw=yaw: (pose()[0] + above * UP, down(yaw)) for yaw in yaws]  # type: ignore[misc]


def nearest(yaw: float, reference: float) -> float:
    """The same direction of the closing axis, which half a turn does not change, nearest to a reference [rad]."""
    return reference + wrap(yaw - reference, np.pi)
