"""LIBERO's experts: the goal that the task itself states, taken apart into skills."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from prism_policy.envs.experts.base import OPEN, Expert
from prism_policy.envs.experts.libero_skills import PickAndPlace, Skill, best_first, rim_grips
from prism_policy.envs.libero import LiberoEnv


class LiberoExpert(Expert):
    """Does one goal after the other, whichever does not hold; when all hold, the hand rests where it is."""

    stages = (*PickAndPlace.stages, "rest")
    max_steps: ClassVar[int] = 500

    def __init__(self, env: LiberoEnv, rng: np.random.Generator) -> None:
        super().__init__(env, rng)
        self.speed = rng.uniform(0.75, 1.0)
        self.skills: list[Skill] = []
        geoms = env.sim_env.robots[0].gripper["right"].important_geoms
        self.finger_geoms = [[env.model.geom(n).id for n in geoms[f"{side}_finger"]] for side in ("left", "right")]

    def script(self) -> Iterator[np.ndarray]:  # noqa: D102 (inherited)
        self.skills = self.plan()
        while True:
            skill = next((skill for skill in self.skills if not skill.done()), None)
            if skill is None:
                self.stage = "rest"
                yield np.append(np.zeros(6), OPEN)
            else:
                yield skill.act()

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
        """Skills for the task's goals, in the order in which they are to be done."""
        goals = [tuple(goal) for goal in self.env.sim_env.parsed_problem["goal_state"]]
        return [self.skill(goal) for goal in goals]

    def skill(self, goal: tuple[str, ...]) -> Skill:
        """The skill that brings a goal about."""
        thing = goal[1]
        body = self.env.sim_env.get_object(thing).root_body
        plate = self.env.sim_env.get_object(goal[2]).root_body
        grips = best_first(self, thing, rim_grips(lambda: self.body(body), 0.048, 0.03), self.body(plate)[0])
        return PickAndPlace(self, thing, goal, grips, lambda: self.body(plate)[0], drop=0.016, over=0.10)
