"""LIBERO's suites and their tasks; the number of a task is its place in its suite, in the benchmark's own order."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from typing import Any

from prism_policy.errors import PrismError
from prism_policy.tasks.checks import HIGH, body_pose
from prism_policy.tasks.spec import LIBERO, TaskSpec

_TEXT = files("prism_policy.tasks").joinpath("libero_names.json").read_text(encoding="utf-8")
SUITES: dict[str, tuple[str, ...]] = {suite: tuple(names) for suite, names in json.loads(_TEXT).items()}
"""Suite -> LIBERO's own names of its tasks (Liu et al., 2023), those of its files, in the benchmark's order:
`<name>.bddl`, `<name>_demo.hdf5`."""
MAX_STEPS = {"libero_spatial": 280, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}
"""Limits on a rollout, from the longest human demonstrations [steps]. OpenVLA's evaluation has 220 for libero_spatial,
others 280; the rest is common."""


def check(env: Any, heights: Sequence[float]) -> tuple[bool, ...]:
    """Whether one of what is to be moved was lifted, and whether one goal of several holds."""
    sim, goals = env.sim_env, env.sim_env.parsed_problem["goal_state"]
    lifted = any(
        body_pose(env, name)[0][2] > before + HIGH for name, before in zip(env.lift_bodies, heights, strict=True)
    )
    return lifted, len(goals) > 1 and any(sim._eval_predicate(goal) for goal in goals)


def wordings(title: str) -> tuple[str, ...]:
    """Sentences for the same task: the one in its name, and the one in LIBERO's own files, where that differs.

    Some names begin with the scene, which is not part of the sentence.
    """
    sentence = re.sub(r"^[A-Z_]+SCENE\d+_", "", title).replace("_", " ")
    if title not in SUITES["libero_spatial"]:
        return (sentence,)
    theirs = sentence.replace("the black", "the akita black")
    theirs = theirs.replace("cookie box", "cookies box").replace("top drawer", "top layer")
    return tuple(dict.fromkeys((sentence, theirs)))


def _specs(suite: str, titles: Sequence[str]) -> list[TaskSpec]:
    """The suite, then each of its tasks."""
    whole = TaskSpec(
        name=suite,
        simulator=LIBERO,
        env_name=suite,
        check=check,
        stages=("lifted", "one goal of several", "done"),
        phases=("take", "bring", "finish"),
        expert="prism_policy.envs.experts.libero:LiberoExpert",
        max_steps=MAX_STEPS[suite],
        resolution=128,  # as LIBERO's own demonstrations
        action_modes=("delta",),
        num_demos=50,
        noise=0.25,  # with many things about, its experts take pushes half as strong
        nano_steps=2000,
    )
    tasks = [
        replace(whole, name=f"{suite}_{i}", suite=suite, number=i, env_name=title, wordings=wordings(title))
        for i, title in enumerate(titles)
    ]
    return [replace(whole, members=tuple(task.name for task in tasks)), *tasks]


LIBERO_SPECS = tuple(spec for suite, titles in SUITES.items() for spec in _specs(suite, titles))


def find_task(title: str, suite: str | None = None) -> TaskSpec:
    """The task of LIBERO's name, such as a file bears it; of `suite`, if given."""
    same = {spec.suite: spec for spec in LIBERO_SPECS if spec.env_name == title and spec.suite}
    if not same:
        raise PrismError(f"unknown LIBERO task {title!r}; expected one of the suites {', '.join(SUITES)}")
    if suite is not None and suite not in same:
        raise PrismError(f"expected a task of {suite}, got {title!r} of {next(iter(same))}")
    return same[suite] if suite else next(iter(same.values()))
