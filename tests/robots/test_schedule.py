"""Schedules of trials: paired, balanced by chance, and the same again from their seed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from prism_policy.robots.schedule import marks, schedule


def test_every_policy_meets_every_start_once_and_start_after_start() -> None:
    plan = schedule(["a", "b", "c"], 20, 0)
    assert [trial.number for trial in plan] == list(range(60))
    assert Counter((trial.start, trial.policy) for trial in plan) == {(s, p): 1 for s in range(20) for p in "abc"}
    assert [trial.start for trial in plan] == sorted(trial.start for trial in plan)


def test_who_is_first_is_drawn_evenly_and_follows_the_seed() -> None:
    plan = schedule(["a", "b"], 400, 1)
    first = sum(trial.policy == "a" for trial in plan[::2])
    assert 160 < first < 240  # four standard deviations of a fair coin
    assert plan == schedule(["a", "b"], 400, 1)
    assert plan != schedule(["a", "b"], 400, 2)


def test_a_longer_schedule_begins_with_the_shorter_one() -> None:
    assert schedule(["a", "b"], 30, 3)[:20] == schedule(["a", "b"], 10, 3)


@pytest.mark.parametrize("objects", [1, 2, 4])
def test_marks_lie_in_their_region_and_apart(objects: int) -> None:
    region = (0.2, 0.4, 0.8, 0.9)
    for start in range(50):
        placed = marks(objects, region, 0, start)
        points = np.array([(one.x, one.y) for one in placed])
        assert (points >= region[:2]).all()
        assert (points <= region[2:]).all()
        gaps = [np.linalg.norm(a - b) for i, a in enumerate(points) for b in points[:i]]
        assert all(gap >= 0.25 * 0.5 for gap in gaps)
    assert marks(objects, region, 0, 0) == marks(objects, region, 0, 0) != marks(objects, region, 0, 1)
