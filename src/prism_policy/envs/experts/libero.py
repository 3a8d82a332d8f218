"""LIBERO's experts: the goal that the task itself states, taken apart into skills."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar

import numpy as np

from prism_policy.envs.experts.base import CLOSE, OPEN, Expert, Pose
from prism_policy.envs.experts.libero_fixtures import CloseDoor, CloseDrawer, Push, Turn
from prism_policy.envs.experts.libero_skills import Grip, PickAndPlace, Skill, across_grip, rim_grips, turned_grips
from prism_policy.envs.libero import LiberoEnv
from prism_policy.errors import PrismError


class LiberoExpert(Expert):
    """Does one goal after the other, whichever does not hold; when all hold, the hand rests where it is."""

    stages = (*PickAndPlace.stages, *Turn.stages[-2:-1], *Push.stages[1:2], "rest")
    max_steps: ClassVar[int] = 600
    # What falls here seldom lies so that it can be taken again, and what is done may come undone.
    tolerance: ClassVar[dict[str, float]] = {
        "grasp": 0.5, "carry": 0.9, "lower": 0.4, "release": 0.4, "turn": 0.4, "push": 0.5, "rest": 0.0
    }  # fmt: skip

    def __init__(self, env: LiberoEnv, rng: np.random.Generator) -> None:
        super().__init__(env, rng)
        self.speed = rng.uniform(0.75, 1.0)
        self.skills: list[Skill] = []
        geoms = env.sim_env.robots[0].gripper["right"].important_geoms
        self.finger_geoms = [[env.model.geom(n).id for n in geoms[f"{side}_finger"]] for side in ("left", "right")]

    def script(self) -> Iterator[np.ndarray]:  # noqa: D102 (inherited)
        self.skills = self.plan()
        self.keeps = any(isinstance(skill, PickAndPlace) and skill.keep for skill in self.skills)
        while self.falling():
            self.stage = "rest"
            yield np.append(np.zeros(6), OPEN)
        while True:
            skill = next((skill for skill in self.skills if not skill.done()), None)
            if skill is None:
                self.stage = "rest"
                yield np.append(np.zeros(6), CLOSE if isinstance(self.skills[-1], Push) or self.keeps else OPEN)
            else:
                yield skill.act()

    def falling(self) -> bool:
        """Whether something is still on its way down: LIBERO's bottles begin in the air."""
        data = self.sim.data._data
        speeds = [data.cvel[self.env.model.body(t.root_body).id, 3:] for t in self.env.sim_env.objects]
        return bool(np.abs(speeds).max() > 0.2)

    def done(self) -> bool:
        """The task is done and nothing is in the hand."""
        return self.env.success and all(skill.done() for skill in self.skills)

    def grasps(self, thing: Any) -> bool:
        """Whether both fingers touch an object; LIBERO's are thin, and often not the pads but the fingers hold them."""
        model, contact = self.env.model, self.sim.data._data.contact
        roots = model.body_rootid[model.geom_bodyid[contact.geom]]  # (n, 2)
        touching = contact.geom[(roots == model.body(thing.root_body).id).any(axis=1)]
        return all(np.isin(finger, touching).any() for finger in self.finger_geoms)

    def plan(self) -> list[Skill]:
        """Skills for the task's goals, in the order in which they are to be done: what is open is shut last."""
        goals = [tuple(goal) for goal in self.env.sim_env.parsed_problem["goal_state"]]
        order = {"turnon": 0, "in": 1, "on": 1, "close": 2}
        if unknown := {goal[0] for goal in goals} - order.keys():
            raise PrismError(f"{self.env.task.name}: no expert knows how to bring about {', '.join(sorted(unknown))!r}")
        # What lies flat before what stands up: the palm would knock it over.
        goals.sort(key=lambda goal: (order[goal[0]], goal[-1] in self.env.sim_env.objects_dict))
        places = Counter(goal[2] for goal in goals if len(goal) == 3)
        used: Counter[str] = Counter()
        skills: list[Skill] = []
        for goal in goals:
            if len(goal) == 3:
                skills.append(self.placing(goal, used[goal[2]], places[goal[2]]))
                used[goal[2]] += 1
            elif goal[0] == "turnon":
                skills.append(Turn(self, goal[1]))
            else:
                skills.append(CloseDrawer(self, goal) if goal[1].endswith("_region") else CloseDoor(self, goal))
        return skills

    def placing(self, goal: tuple[str, ...], index: int, count: int) -> Skill:
        """The skill for a goal such as ("on", "bowl_1", "plate_1"), thing `index` of `count` that share the place."""
        env = self.env.sim_env
        thing, place = goal[1], goal[2]
        skill = partial(PickAndPlace, self, thing, goal)

        def pose() -> Pose:
            return self.body(env.get_object(thing).root_body)

        def at(x: float, y: float, z: float) -> Callable[[], np.ndarray]:
            """A point in the world's axes from the middle of the place, wherever that is now."""
            x += (index - (count - 1) / 2) * SPACING.get(place.rpartition("_1_")[2], 0.0)
            offset = np.array([x, y, z])
            return lambda: self.sim.data.get_site_xpos(place) + offset

        grips = self.grips(thing.rsplit("_", 1)[0], pose)
        if place in env.objects_dict:
            plate = env.get_object(place).root_body
            return skill(grips, lambda: self.body(plate)[0] + self.foot(thing), drop=0.016)
        match place.rpartition("_1_")[2]:
            case "contain_region":  # a basket, which the hand reaches from above the bottles that stand around
                return skill(grips, at(0, 0, 0), near=0.02, drop=0.03, over=0.17, slope=0.03, hover=0.16)
            case "cook_region":  # a pot's origin is its middle
                return skill(grips, at(0, 0, 0.093), near=0.015, drop=0.008, early=False)
            case "back_contain_region":  # a book's origin is below its spine, off its middle; it no longer counts as in
                # the compartment when it stands on the floor of it, so it is held just above
                site = at(0, 0, -0.05)
                over: dict[str, Any] = {"over": 0.21, "slope": 0.01, "fine": 0.006, "yaw": 0.0, "keep": True}
                return skill(grips, lambda: site() - pose()[1] @ np.array([0.0, -0.012, 0.0]), **over)
            case "heating_region":  # held by the handle alone, just inside: the palm stays in front of the oven's roof
                return skill(grips[:1], at(-0.02, -0.065, -0.07), drop=0.012, over=0.035, slope=0.2, early=False)
            case "bottom_region":  # near the front of the drawer, from its sides, clear of the handles above
                return skill(grips[2:], at(-0.03, -0.019, -0.027), near=0.02, over=0.12, slope=0.03, early=False)
        if place.endswith("plate_right_region"):  # of the table, on the side that is away from the plate
            lies = pose()[0][2] - float(self.sim.data.get_site_xpos(place)[2])
            return skill(grips, at(0, 0.03, lies), near=0.015, drop=0.012, over=0.08, early=False)
        raise PrismError(f"{self.env.task.name}: no expert knows how to put something into {place}")

    def foot(self, thing: str) -> np.ndarray:
        """Where a thing's origin is from where its middle should be, (3,) [m]: a mug's is beside its axis."""
        middle = MIDDLES.get(thing.rsplit("_", 1)[0])
        if middle is None:
            return np.zeros(3)
        rotation = self.body(self.env.sim_env.get_object(thing).root_body)[1]
        return 0.5 * (rotation @ np.array([-middle, 0.0, 0.0]))

    def grips(self, kind: str, pose: Callable[[], Pose]) -> list[Grip]:
        """Ways to take hold of a kind of thing, the best first."""
        match kind:
            case "akita_black_bowl":
                return rim_grips(pose, 0.048, 0.03)
            case "white_yellow_mug" | "porcelain_mug":
                side = np.sign(-MIDDLES[kind])  # of the handle

                def axis() -> Pose:
                    position, rotation = pose()
                    return position + rotation @ np.array([MIDDLES[kind], 0.0, 0.0]), rotation

                opposite = 0.0 if side < 0 else np.pi
                rim = rim_grips(axis, 0.041, 0.09, (opposite, np.pi / 2, -np.pi / 2))
                return [across_grip(pose, 1, np.array([0.061 * side, 0.0, 0.06])), *rim]
            case "alphabet_soup" | "tomato_sauce":
                return turned_grips(pose, 0.01, (np.pi / 2, np.pi / 2 + 0.6, np.pi / 2 - 0.6))
            case "cream_cheese" | "butter" | "chocolate_pudding":
                return [across_grip(pose, 1, np.array([x, 0.0, 0.002])) for x in (0.0, 0.025, -0.025)]
            case "moka_pot":
                return [across_grip(pose, 0, np.array([0.0, 0.068, 0.045]))]
            case "black_book":
                return [across_grip(pose, 0, np.array([0.0, -0.012, 0.115]))]
        raise PrismError(f"{self.env.task.name}: no expert knows how to take hold of {kind!r}")


MIDDLES = {"white_yellow_mug": -0.018, "porcelain_mug": 0.018}
"""x of a mug's axis in its frame [m]; the handle is on the other side."""
SPACING = {"contain_region": 0.06, "cook_region": 0.085}
"""Places that things share, and how far apart they are put along x [m]."""
