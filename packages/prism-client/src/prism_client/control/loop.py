"""The control loop: frames to the policy, guarded actions to the robot, at the robot's rate.

The next chunk is asked for while the present one is executed, and the actions that will be executed until its answer
comes are handed over as known, so that it continues them: the arm does not wait (real-time chunking by inpainting).
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prism_client.control.asking import Asking
from prism_client.control.clock import Clock
from prism_client.control.guard import Guard
from prism_client.control.limits import Limits, Workspace
from prism_client.control.log import EpisodeLog
from prism_client.control.sight import Sight
from prism_client.control.stop import Stop
from prism_client.control.watchdog import Watchdog
from prism_client.errors import PrismError
from prism_client.interface import Interface
from prism_client.observations import Observation, stack_history
from prism_client.robots.robot import Robot
from prism_client.text import one_line, quoted

LATEST = 16
"""Answers whose slowest says how many actions are executed until the next one comes."""


@dataclass(frozen=True)
class LoopOptions:
    """How an episode is executed."""

    max_steps: int = 400
    """Control steps after which it ends."""
    overlap: bool = True
    """Ask for the next chunk while this one is executed; else ask when none is left, and hold meanwhile."""
    reconnect_s: float = 10.0
    """How long the arm holds for a server that failed to come back before the episode ends [s]."""
    home_at_end: bool = False
    """Move home when the episode has ended, however it did."""


@dataclass
class Outcome:
    """How an episode went."""

    ended: str = ""
    """`done` (all steps), `success` (of a simulation), `stopped` (by the operator), or `fault`."""
    reason: str = ""
    void: list[str] = field(default_factory=list)
    """Faults during it, first ones first; with any the episode does not count."""
    steps: int = 0
    """Control steps, with those in which the arm held."""
    pauses: int = 0
    """Control steps in which the arm held for want of an action, after the first one."""
    longest_pause: int = 0
    questions: int = 0
    guarded: dict[str, int] = field(default_factory=dict)
    """How many actions the guard changed, by the limit that did."""
    latency_steps: list[int] = field(default_factory=list)
    """Control steps from each question to its answer."""
    late_steps: int = 0
    """Control steps that began more than half a step late."""
    held_late: int = 0
    """Control steps that took longer than they may, so that the watchdog held the arm."""


class ControlLoop:
    """An episode of a policy on a robot: `ControlLoop(robot, asking, interface).run()`.

    The robot is connected and where the episode shall begin. Whatever fails, the arm holds within a control step: a
    camera or the server may come back, and the episode goes on, but void; else it ends, holding.

    Args:
        interface: of the policy, as its client has it.
        options: of the policy's questions, such as `task` and `seed`; the seed goes with the first one.
        log: where each step goes.
        stop: set by the operator, see `Stop`.
    """

    def __init__(
        self,
        robot: Robot,
        asking: Asking,
        interface: Interface,
        limits: Limits = Limits(),  # noqa: B008 (frozen)
        workspace: Workspace = Workspace(),  # noqa: B008
        options: LoopOptions = LoopOptions(),
        request: dict[str, Any] | None = None,
        log: EpisodeLog | None = None,
        stop: Stop | None = None,
    ) -> None:
        check_match(robot, interface)
        self.robot, self.asking, self.interface, self.limits = robot, asking, interface, limits
        self.options, self.log, self.stop = options, log, stop or Stop()
        self.clock: Clock = robot.clock
        self.guard = Guard(robot.schema, limits, workspace, getattr(robot, "where", None))
        self.sight = Sight(interface, limits, self.clock)
        self.outcome = Outcome()
        self._request = dict(request or {})
        self._period = self.guard.period_s
        self._frames: deque[Observation] = deque(maxlen=interface.n_obs_steps)
        self._chunk: np.ndarray | None = None  # (n, A)
        self._start = 0  # of the chunk, in executed actions
        self._executed = 0
        self._asked = (0, 0)  # control step and executed actions at the question that waits
        self._valid = False  # whether its answer still counts
        self._latencies: deque[int] = deque(maxlen=LATEST)
        self._holding_since: float | None = None  # for a fault
        self._holding_for = 0.0
        self._pause = 0

    def run(self) -> Outcome:
        """Execute the episode, and return when the arm holds (or is home).

        Raises:
            PrismError: the episode could not be written; it is void.
        """
        with Watchdog(self.robot, self._period, self.clock) as watchdog:
            try:
                self._run(watchdog)
            except KeyboardInterrupt:
                self._end("stopped", "Ctrl-C")
                self.outcome.void.append("Ctrl-C")
            except BaseException as error:
                self._end("fault", one_line(f"{type(error).__name__}: {error}", 200))
                self.outcome.void.append(self.outcome.reason)
                raise
            finally:
                self._hold()
                self._finish()
        return self.outcome

    def _run(self, watchdog: Watchdog) -> None:
        due = self.clock.now()
        while not self.outcome.ended:
            if self.stop.is_set():
                self._end("stopped", self.stop.reason)
                if self.stop.voids:
                    self.outcome.void.append(self.stop.reason)
                return
            late = self.clock.now() - due
            self.outcome.late_steps += late > self._period / 2
            if late > self.limits.stall_s > 0:
                self._fault(f"the loop was kept from running for {late:.1f} s", self.limits.recover_s)
            if late > self._period:
                due = self.clock.now()  # what was missed is not made up for
            began = self.clock.now()
            with watchdog.step():
                self._step()
            if watchdog.fired():  # the arm holds; where it was for a moment, it goes on from there
                self.guard.reset()
                self.outcome.held_late += 1
                took = self.clock.now() - began
                if took > self.limits.stall_s > 0:
                    self._fault(f"the robot's driver did not return for {took:.1f} s", self.limits.recover_s)
            due += self._period
            self.clock.wait(due, self.stop)

    def _step(self) -> None:
        """One control step: look, ask, act or hold."""
        now, step = self.clock.now(), self.outcome.steps
        record: dict[str, Any] = {"step": step, "time": now}
        try:
            frame = self.robot.observe()
            observation = self.sight.checked(frame)
        except Exception as error:  # whatever a driver raises
            self._frames.clear()
            self._fault(one_line(error, 200), self.limits.recover_s)
            record["event"] = one_line(error, 200)
            self._act(None, None, record)
        else:
            times = {name: float(when) for name, when in frame["time"].items()}
            record.update(images=observation["images"], state=observation["state"], taken=times)
            self._frames.append(observation)
            while len(self._frames) < self.interface.n_obs_steps:
                self._frames.append(observation)
            try:
                self._receive()
                self._ask()
                self._receive()
            except PrismError as error:
                self._fault(one_line(error, 200), self.options.reconnect_s)
                record["event"] = one_line(error, 200)
            self._act(self._next(), observation["state"], record)
        if self.log is not None:
            self.log.step(record)
            if self.log.error is not None and not self.outcome.ended:
                self._end("fault", one_line(self.log.error, 200))
                self.outcome.void.append(self.outcome.reason)
        self.outcome.steps += 1
        if self._holding_since is not None and now - self._holding_since > self._holding_for:
            self._end("fault", self.outcome.void[-1])
        elif self.outcome.steps >= self.options.max_steps:
            self._end("done", "all control steps")
        elif getattr(self.robot, "success", False):
            self._end("success", "the simulation says so")

    def _ask(self) -> None:
        """Ask for the next chunk when it is time to."""
        if self.asking.busy:
            return
        known = self._known_steps()
        if self._chunk is not None:
            left = len(self._chunk) - (self._executed - self._start)
            used = self._executed - self._start
            if self.options.overlap:
                # Asking earlier, so that no later actions of a chunk are executed than without latency, asks more often
                # and helped nothing (benchmarks/RESULTS.md).
                if used < self.interface.n_action_steps and left > max(known, 1):
                    return
            elif left > 0:
                return
        request = {**stack_history(list(self._frames)), **self._request}
        self._request.pop("seed", None)
        if self.options.overlap and self.interface.n_chunk_steps:
            rest = np.zeros((0, self.interface.schema.action_dim), np.float32)
            if self._chunk is not None:
                rest = self._chunk[self._executed - self._start :][:known]
            request["known"] = rest
        self._asked, self._valid = (self.outcome.steps, self._executed), True
        self.outcome.questions += 1
        self.asking.ask(request)

    def _known_steps(self) -> int:
        """Actions that will be executed until an answer comes, of those that there are beside the ones it is for."""
        if not self.options.overlap:
            return 0
        own = self.interface.n_action_steps
        most = self.interface.n_chunk_steps - own if self.interface.n_chunk_steps else own - 1
        return min(max(self._latencies, default=0), max(most, 0))

    def _receive(self) -> None:
        """Take the answer if it has come; raises as `Asking.poll`."""
        actions = self.asking.poll()
        if actions is None:
            return
        if not self._valid:  # asked before a fault
            return
        latency = self.outcome.steps - self._asked[0]
        self.outcome.latency_steps.append(latency)
        self._latencies.append(latency)
        self._chunk, self._start = actions, self._asked[1]

    def _next(self) -> np.ndarray | None:
        """The action that is due, (A,), or None."""
        if self._chunk is None:
            return None
        place = self._executed - self._start
        return self._chunk[place] if place < len(self._chunk) else None

    def _act(self, action: np.ndarray | None, state: np.ndarray | None, record: dict[str, Any]) -> None:
        """Send an action through the guard, or hold."""
        if action is not None and state is not None:
            record["wanted"] = action
            try:
                sent, changes = self.guard.safe(action, state)
                for change in changes:
                    self.outcome.guarded[change] = self.outcome.guarded.get(change, 0) + 1
                self.robot.act(sent)
            except Exception as error:  # of a robot that stopped by itself, too
                self._fault(one_line(error, 200), self.limits.recover_s)
                record["event"] = one_line(error, 200)
            else:
                record.update(sent=sent, changes=changes)
                self._executed += 1
                self._pause, self._holding_since = 0, None
                return
        self._hold()
        if self._executed:
            self.outcome.pauses += 1
            self._pause += 1
            self.outcome.longest_pause = max(self.outcome.longest_pause, self._pause)

    def _hold(self) -> None:
        self.guard.reset()
        try:
            self.robot.hold()
        except Exception as error:
            self._end("fault", f"the robot cannot hold ({one_line(error, 200)})")
            self.outcome.void.append(self.outcome.reason)

    def _fault(self, reason: str, recover_s: float) -> None:
        """Hold, forget the chunk, and give it time to recover: until an action of a later answer is executed."""
        self._chunk, self._valid = None, False
        same = [re.sub(r"\d+", "", one) for one in (*self.outcome.void[-1:], reason)]  # but for how long it lasts
        if self._holding_since is None or len(set(same)) == len(same):
            self.outcome.void.append(reason)
        if self._holding_since is None:
            self._holding_since, self._holding_for = self.clock.now(), recover_s
        self._hold()

    def _end(self, ended: str, reason: str) -> None:
        if not self.outcome.ended:
            self.outcome.ended, self.outcome.reason = ended, reason

    def _finish(self) -> None:
        if self.options.home_at_end:
            try:
                self.robot.home()
            except Exception as error:
                self.outcome.void.append(f"the robot did not come home ({one_line(error, 200)})")
        if self.log is not None:
            self.log.end(vars(self.outcome))


def check_match(robot: Robot, interface: Interface) -> None:
    """Refuse a robot that does not show or take what the policy was trained with.

    Raises:
        PrismError: the first difference.
    """
    has, needs = robot.schema, interface.schema
    for camera, size in needs.cameras.items():
        if camera not in has.cameras:
            there = ", ".join(has.cameras) or "none"
            raise PrismError(f"the policy sees camera {quoted(camera)}, the robot has {there}; name it so in its file")
        if tuple(has.cameras[camera]) != tuple(size):
            sizes = " and ".join("{} x {}".format(*one) for one in (size, has.cameras[camera]))
            raise PrismError(f"camera {quoted(camera)}: policy and robot have images of {sizes} (height x width)")
    for what in ("state", "action"):
        theirs, ours = getattr(needs, f"{what}_dim"), getattr(has, f"{what}_dim")
        if theirs != ours:
            raise PrismError(f"{what}: the policy has {theirs} numbers, the robot {ours}")
        kinds = [[(p.kind, p.size, p.shares) for p in getattr(one, what)] for one in (needs, has)]
        if len(kinds[0]) > 1 and kinds[0] != kinds[1]:
            parts = " and ".join(", ".join(map(str, getattr(one, what))) for one in (needs, has))
            raise PrismError(f"{what}: policy and robot have different parts: {one_line(parts, 300)}")
