"""The control loop in simulated time: what is executed when, and what each fault does."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
from fakes import BOX, HZ, INTERFACE, LIMITS, SCHEMA, Point, Steps, Wave

from prism_client.control.asking import DelayedAsking
from prism_client.control.limits import Limits
from prism_client.control.loop import ControlLoop, LoopOptions, Outcome, check_match
from prism_client.control.stop import Stop
from prism_client.errors import PrismError
from prism_client.interface import Interface
from prism_client.schema import Part, Schema


def loop(
    latency_steps: float = 0,
    policy: Any = None,
    limits: Limits = LIMITS,
    interface: Interface = INTERFACE,
    stop: Stop | None = None,
    **options: Any,
) -> tuple[Point, ControlLoop]:
    robot = Point(Steps())
    asking = DelayedAsking(policy or Wave(interface=interface), robot.clock, latency_steps / HZ)
    made = ControlLoop(robot, asking, interface, limits, BOX, LoopOptions(**{"max_steps": 60, **options}), stop=stop)
    return robot, made


def inject(robot: Point, fault: str, step: int, until: int = 10**9) -> None:
    """Break it at a control step."""
    observe = robot.observe

    def broken() -> Any:
        now = round(robot.clock.now() * HZ)
        robot.fault = fault if step <= now < until else ""
        return observe()

    robot.observe = broken  # type: ignore[method-assign]


@pytest.mark.parametrize("latency", [0, 1, 2.5, 4, 7])
def test_with_overlap_the_arm_never_waits_and_never_jumps(latency: float) -> None:
    robot, made = loop(latency, Wave(0.001))
    outcome = made.run()
    first = int(np.ceil(latency))
    assert (outcome.ended, outcome.pauses, outcome.void) == ("done", 0, [])
    assert len(robot.goals) == 60 - first
    steps = np.diff(robot.goals[:, 0], prepend=0.0)
    np.testing.assert_allclose(steps, 0.001, atol=1e-6)  # one line, across all chunks


@pytest.mark.parametrize("latency", [1, 3, 7])
def test_blocking_the_arm_waits_for_each_chunk(latency: int) -> None:
    robot, made = loop(latency, Wave(0.001), overlap=False)
    outcome = made.run()
    chunks = (60 - latency) // (8 + latency)  # of 8 actions, each with a wait behind it
    assert outcome.pauses == 60 - latency - len(robot.goals)
    assert outcome.pauses >= (chunks - 1) * latency
    np.testing.assert_allclose(np.diff(robot.goals[:, 0]), 0.001, atol=1e-6)


def test_known_actions_are_those_that_are_executed_until_the_answer_comes() -> None:
    policy = Wave(0.001)
    robot, made = loop(3, policy)
    made.run()
    place = 0
    for request in policy.requests[1:]:
        assert request["known"].shape == (3, 4)
        place += 8
        done = robot.goals[place : place + 3]
        np.testing.assert_allclose(request["known"][: len(done), :3], done, atol=1e-7)
        assert request["state"].shape == (2, 4)


def test_a_server_that_takes_no_known_actions_is_asked_in_time() -> None:
    openpi = dataclasses.replace(INTERFACE, n_chunk_steps=0)
    policy = Wave(0.001, openpi)
    _, made = loop(3, policy, interface=openpi)
    outcome = made.run()
    assert outcome.pauses == 0
    assert all("known" not in request for request in policy.requests)


def test_a_server_that_becomes_slower_makes_the_arm_hold_and_go_on() -> None:
    robot, made = loop(2, Wave(0.001))
    asking: Any = made.asking
    robot.clock.wait = lambda until, stop: (  # type: ignore[assignment]
        setattr(robot.clock, "time", until),
        setattr(asking, "latency_s", (20 if 0.3 < until < 0.6 else 2) / HZ),
    )
    outcome = made.run()
    assert (outcome.ended, outcome.void) == ("done", [])
    assert 0 < outcome.pauses < 40
    assert np.abs(np.diff(robot.goals[:, 0])).max() <= 0.008 + 1e-6


def test_a_wild_policy_stays_in_the_box_and_in_its_limits() -> None:
    robot, made = loop(1, Wave(0.3))
    outcome = made.run()
    assert outcome.guarded["step"] > 5
    assert outcome.guarded["workspace"] > 5
    moves = np.linalg.norm(np.diff(robot.goals, axis=0), axis=1)
    assert moves.max() <= 0.008 + 1e-6
    assert robot.goals[:, 0].max() == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("fault", "sentence", "delay"),
    [
        ("unplugged", "No device connected", 0),
        ("frozen", "camera 'front': 0.[0-9]+ s old|it is frozen", 8),
        ("stuck", "camera 'front': .* alike to the last bit; it is frozen", 8),
        ("ahead", "camera 'front': taken 3600.00 s from now", 0),
        ("behind", "camera 'front': 36[0-9.]+ s old", 0),
        ("refuses", "libfranka: reflex", 0),
    ],
)
def test_a_fault_holds_the_arm_in_its_step_and_ends_the_episode_as_void(fault: str, sentence: str, delay: int) -> None:
    robot, made = loop(2)
    inject(robot, fault, step=20)
    outcome = made.run()
    assert outcome.ended == "fault"
    assert len(outcome.void) == 1 + (fault == "frozen"), outcome.void  # which is alike first, then old
    assert re.search(sentence, outcome.reason)
    assert max(robot.did("act")) < (20 + delay) / HZ + 1e-9
    assert min(robot.did("hold", 15 / HZ)) <= (20 + delay) / HZ + 1e-9
    assert outcome.steps / HZ <= 20 / HZ + delay / HZ + LIMITS.recover_s + 0.1


@pytest.mark.parametrize("fault", ["unplugged", "frozen", "stuck", "ahead", "behind", "refuses"])
def test_a_fault_that_passes_lets_the_arm_go_on_but_the_episode_is_void(fault: str) -> None:
    robot, made = loop(2)
    inject(robot, fault, step=20, until=34)
    outcome = made.run()
    assert outcome.ended == "done"
    assert outcome.void
    assert len(robot.did("act", 36 / HZ)) > 10
    assert np.linalg.norm(np.diff(robot.goals, axis=0), axis=1).max() <= 0.008 + 1e-6


def test_the_operator_stops_it_at_the_next_step() -> None:
    for voids in (True, False):
        stop = Stop()
        robot, made = loop(1, stop=stop, home_at_end=True)
        act = robot.act
        robot.act = lambda action, robot=robot, act=act, stop=stop, voids=voids: (  # type: ignore[method-assign]
            act(action),
            len(robot.goals) == 10 and stop.request("Ctrl-C", voids),
        )
        outcome = made.run()
        assert (outcome.ended, outcome.void, len(robot.goals)) == ("stopped", ["Ctrl-C"] * voids, 10)
        assert [name for name, _, _ in robot.events][-2:] == ["hold", "home"]


class Failing(Wave):
    def infer(self, request: dict[str, Any]) -> dict[str, Any]:
        if len(self.requests) >= 3:
            raise PrismError("the server is gone")
        return super().infer(request)


def test_a_server_that_fails_is_waited_for_and_then_given_up() -> None:
    for reconnect_s in (0.0, 0.2):
        robot, made = loop(0, Failing(), reconnect_s=reconnect_s)
        outcome = made.run()
        assert (outcome.ended, outcome.void) == ("fault", ["the server is gone"])
        assert len(robot.goals) == 24
        assert outcome.steps == pytest.approx(24 + reconnect_s * HZ, abs=3)
    robot, made = loop(0, Failing(), reconnect_s=5)
    assert made.run().ended == "done"  # all steps, most of them holding


@pytest.mark.parametrize(
    ("schema", "sentence"),
    [
        (dataclasses.replace(SCHEMA, cameras={"top": (16, 16)}), "camera 'front', the robot has top"),
        (dataclasses.replace(SCHEMA, cameras={"front": (48, 64)}), "images of 16 x 16 and 48 x 64"),
        (dataclasses.replace(SCHEMA, state=(Part("s", 9),)), "state: the policy has 4 numbers, the robot 9"),
        (dataclasses.replace(SCHEMA, action=SCHEMA.action[::-1]), "action: policy and robot have different parts"),
    ],
)
def test_a_robot_that_does_not_fit_the_policy_is_refused(schema: Schema, sentence: str) -> None:
    robot = Point(Steps())
    robot.schema = schema
    with pytest.raises(PrismError, match=sentence):
        check_match(robot, INTERFACE)


def test_an_outcome_says_in_a_line_what_happened() -> None:
    from prism_client.control.words import about_outcome

    assert about_outcome(Outcome("done", steps=9, latency_steps=[1, 2, 3])) == (
        "done: 9 steps, no pause, answers after 2 steps"
    )
    outcome = Outcome("fault", "b", ["a", "b"], 9, 4, guarded={"step": 2})
    assert about_outcome(outcome) == "fault: 9 steps, 4 steps of waiting, limited: step 2; VOID: a and 1 more"
