"""Whether a robot is ready for a policy: rates, latencies, age and drops of its frames."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np

from prism_client.control.limits import Limits
from prism_client.errors import PrismError
from prism_client.robots.robot import Frame, Robot
from prism_client.text import one_line

STILL = 1e-4
"""Change of a number of the state from which the arm counts as moving."""


@dataclass
class Source:
    """What was seen of a camera, or of the state."""

    rate_hz: float
    """New ones a second."""
    age_s: tuple[float, float]
    """Median, and the oldest, when it was observed [s]."""
    dropped: int
    """How many are missing between those that came, by their times."""


@dataclass
class Checkup:
    """What was measured."""

    seconds: float
    rate_hz: float
    """Control steps a second that were reached."""
    wanted_hz: float
    observe_s: tuple[float, float]
    """Median, and the longest, of a call of `observe` [s]."""
    hold_s: tuple[float, float]
    """The same of a command [s]."""
    moved_after_s: float | None = None
    """From a command to the first change of the state [s]; None where it was not tried."""
    sources: dict[str, Source] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    frame: Frame | None = None
    """The last one: what the policy would see."""


def check_robot(robot: Robot, limits: Limits, seconds: float = 5.0, move: bool = False) -> Checkup:
    """Observe a connected robot for some seconds, holding it; with `move`, also move it a little and back.

    Raises:
        PrismError: it gives no frame at all.
    """
    clock, period = robot.clock, 1 / (robot.schema.fps or 20.0)
    steps, never = max(int(seconds / period), 2), threading.Event()
    observe_s: list[float] = []
    hold_s: list[float] = []
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in ("state", *robot.schema.cameras)}
    problems: list[str] = []
    frame: Frame | None = None
    start = due = clock.now()
    for _ in range(steps):
        before = clock.now()
        try:
            frame = robot.observe()
            now = clock.now()
            observe_s.append(now - before)
            for name, times in seen.items():
                times.append((now, frame["time"][name]))
        except Exception as error:
            problem = one_line(error, 200)
            if problem not in problems:
                problems.append(problem)
        before = clock.now()
        robot.hold()
        hold_s.append(clock.now() - before)
        due += period
        clock.wait(due, never)
    took = clock.now() - start
    if frame is None:
        raise PrismError(f"the robot gives no frame: {problems[0] if problems else 'it says nothing'}")
    checkup = Checkup(took, steps / took, 1 / period, _spread(observe_s), _spread(hold_s), problems=problems)
    checkup.sources = {name: _source(times, took) for name, times in seen.items()}
    checkup.frame = frame
    checkup.problems += _problems(checkup, robot, limits)
    if move:
        checkup.moved_after_s = _reaction(robot, period)
        if checkup.moved_after_s is None:
            checkup.problems.append("the state did not change within 2 s of a command to move")
    return checkup


def _spread(values: list[float]) -> tuple[float, float]:
    return (float(np.median(values)), max(values)) if values else (0.0, 0.0)


def _source(times: list[tuple[float, float]], seconds: float) -> Source:
    taken = np.unique([when for _, when in times])
    gaps = np.diff(taken)
    usual = float(np.median(gaps)) if len(gaps) else 0.0
    dropped = int(np.sum(np.maximum(np.round(gaps / usual) - 1, 0))) if usual > 0 else 0
    return Source(len(taken) / seconds, _spread([now - when for now, when in times]), dropped)


def _problems(checkup: Checkup, robot: Robot, limits: Limits) -> list[str]:
    problems = []
    if checkup.rate_hz < 0.95 * checkup.wanted_hz:
        problems.append(f"only {checkup.rate_hz:.1f} of {checkup.wanted_hz:g} control steps a second")
    for name, (height, width) in robot.schema.cameras.items():
        assert checkup.frame is not None
        image = checkup.frame["images"].get(name)
        if image is None or image.shape != (height, width, 3) or image.dtype != np.uint8:
            got = "nothing" if image is None else f"{image.dtype} {image.shape}"
            problems.append(f"{name}: expected uint8 ({height}, {width}, 3), got {got}")
        elif int(image.max()) - int(image.min()) < 8:
            problems.append(f"{name}: one colour all over; is its lens covered?")
    for name, source in checkup.sources.items():
        if source.age_s[1] > limits.frame_age_s > 0:
            problems.append(f"{name}: up to {source.age_s[1]:.2f} s old, expected at most {limits.frame_age_s:g} s")
        if source.rate_hz < 0.8 * checkup.wanted_hz:
            problems.append(f"{name}: {source.rate_hz:.1f} new ones a second, fewer than control steps")
    state = checkup.frame["state"] if checkup.frame else np.zeros(0)
    if state.shape != (robot.schema.state_dim,) or not np.isfinite(state).all():
        problems.append(f"state: expected {robot.schema.state_dim} finite numbers, got {one_line(state, 100)}")
    return problems


def _reaction(robot: Robot, period: float) -> float | None:
    """Seconds from a command to the first change of the state: a fifth of a share, or 1 cm, up; then back."""
    frame, never = robot.observe(), threading.Event()
    start = frame["state"]
    up, down = np.zeros(robot.schema.action_dim), np.zeros(robot.schema.action_dim)
    part = robot.schema.action[0]
    if part.kind != "position" or part.size != 3:
        raise PrismError("--move needs actions that begin with the hand's position; leave it out")
    if part.shares:
        up[2], down[2] = 0.2, -0.2
    elif hasattr(robot, "where"):
        up, down = robot.where(start) + 0.01 * (np.arange(len(up)) == 2), robot.where(start)
    else:
        raise PrismError("--move needs actions that are steps, or a robot that says `where` it is; leave it out")
    began = robot.clock.now()
    moved = None
    while moved is None and robot.clock.now() - began < 2.0:
        robot.act(up)
        robot.clock.wait(robot.clock.now() + period / 5 if robot.clock.real else robot.clock.now() + period, never)
        frame = robot.observe()
        if np.abs(frame["state"] - start).max() > STILL:
            moved = frame["time"]["state"] - began
    robot.act(down)
    robot.clock.wait(robot.clock.now() + period, never)
    robot.hold()
    return moved
