"""A simulated task as a robot: in real time, or in steps of its control loop where rendering is slower than that."""

from __future__ import annotations

import concurrent.futures
import queue
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from scipy.spatial.transform import Rotation

from prism_client.control.clock import Clock
from prism_client.robots.robot import Frame
from prism_client.robots.robot_file import RobotFile
from prism_client.schema import Schema
from prism_policy.config.presets import task_config
from prism_policy.config.settings import check_task
from prism_policy.config.typed_json import conform
from prism_policy.data.schema import slices, task_schema
from prism_policy.deploy.session import ABSOLUTE
from prism_policy.envs.episode import episode_rng, furthest_stage
from prism_policy.envs.gym.env import describe
from prism_policy.envs.make import make_env
from prism_policy.errors import PrismError

T = TypeVar("T")


class LockStep(Clock):
    """A simulated robot's own time: it goes on when the control loop waits."""

    real = False

    def __init__(self, step: Callable[[], None], period_s: float) -> None:
        self._step, self._period, self._steps = step, period_s, 0

    def now(self) -> float:
        """Simulated seconds."""
        return self._steps * self._period

    def wait(self, until: float, stop: threading.Event) -> None:
        """Simulate until then."""
        while self.now() < until - 1e-6 and not stop.is_set():
            self._steps += 1
            self._step()


class SimRobot:
    """A robot whose arm and cameras are one of our environments.

    In real time a thread simulates and draws a control step at each command; without one it does so, too, holding. In
    lock-step, time is that of the control loop: nothing moves while it computes, so an episode is the same anywhere.

    Args:
        file: of which `settings` has `task`, and may have `action_mode` (delta), `resolution` (84), `realtime` (true),
            `seed` (0), `episode` (0) and `split` (evaluate) of the start.
    """

    def __init__(self, file: RobotFile) -> None:
        allowed = {
            "task": str, "action_mode": str, "reference_frame": str, "resolution": int, "realtime": bool, "seed": int,
            "episode": int, "split": str,
        }  # fmt: skip
        if unknown := [name for name in file.settings if name not in allowed]:
            raise PrismError(f"unknown field 'settings.{unknown[0]}'; SimRobot has {', '.join(allowed)}")
        settings = {name: conform(allowed[name], value, f"settings.{name}") for name, value in file.settings.items()}
        if "task" not in settings:
            raise PrismError("settings.task is missing; it says what is simulated, such as stack")
        plain = task_config(settings["task"])
        mode, frame = settings.get("action_mode", "delta"), settings.get("reference_frame", "base")
        render = replace(plain.render, resolution=settings.get("resolution", plain.render.resolution))
        self.task = replace(plain, action_mode=mode, reference_frame=frame, render=render, max_steps=10**6)
        check_task(self.task)
        self.start = (settings.get("split", "evaluate"), settings.get("seed", 0), settings.get("episode", 0))
        """Where an episode starts: split, seed, number."""
        self.realtime: bool = settings.get("realtime", True)
        self.success = False
        """Whether the task was done since the start."""
        schema = task_schema(self.task) if self.task.spec.own_robot else describe(self.task)
        action = ABSOLUTE if mode == "absolute" else schema.action
        self._schema = Schema(schema.cameras, schema.state, action, file.rate_hz)
        if schema.fps and abs(file.rate_hz - schema.fps) > 0.01 * schema.fps:
            raise PrismError(f"rate_hz: expected the simulation's {schema.fps:g}, got {file.rate_hz:g}")
        self.clock: Clock = Clock() if self.realtime else LockStep(self._simulate, 1 / file.rate_hz)
        self._action: np.ndarray | None = None  # due at the next simulated step; None holds
        self._last: np.ndarray | None = None  # that was executed
        self._held, self._goal = False, np.zeros(6)  # whether the last step held, and where the hand then stays
        self._env: Any = None
        self._frame: Frame | None = None
        self._work: queue.Queue[tuple[Callable[[], Any], concurrent.futures.Future[Any]]] = queue.Queue()
        self._closing, self._commanded = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def schema(self) -> Schema:
        """Of the task."""
        return self._schema

    @property
    def env(self) -> Any:
        """The environment; in real time it belongs to another thread."""
        return self._env

    def connect(self) -> None:
        """Make the simulation and begin an episode."""
        if self.realtime:
            self._thread = threading.Thread(target=self._live, name="simulation", daemon=True)
            self._thread.start()
        self._call(self._begin)

    def begin(self, split: str = "evaluate", seed: int = 0, episode: int = 0) -> None:
        """Begin another episode, with the objects where they start in it."""
        self.start = (split, seed, episode)
        self._call(self._begin)

    def progress(self) -> tuple[str, np.ndarray]:
        """The furthest stage that the episode reached, and its simulator states, float64 (T, S)."""
        return self._call(self._progress)

    @property
    def env_args(self) -> str:
        """What makes the environment, as JSON: robomimic's `env_args`; "" of gymnasium's, which says nothing."""
        return str(self._call(lambda: self._env.metadata_json())) if self.task.spec.own_robot else ""

    def demonstrator(self, noise: float = 0.5) -> Callable[[], tuple[np.ndarray, bool, bool]]:
        """The task's scripted expert, for an episode that has just begun.

        Returns:
            A function that looks at the simulation as it is now, and gives the action (A,), whether it is a push that
            was forced on the expert and shall not be learned, and whether nothing is left to do.

        Raises:
            PrismError: the task has no script.
        """
        if not self.task.spec.expert:
            raise PrismError(f"task {self.task.name!r} has no scripted expert that acts in steps; record another way")
        from prism_policy.envs.experts import Disturbance, expert_type

        split, seed, episode = self.start
        rng = episode_rng(split, seed, episode, rng_stream=2)
        expert: Any = expert_type(self.task.spec)(self._env, rng)
        disturbance, script, left = Disturbance(noise, rng), expert.script(), [int(rng.integers(5, 11))]

        def act() -> tuple[np.ndarray, bool, bool]:
            action, pushed = disturbance(next(script), expert.tolerance.get(expert.stage, 1.0))
            left[0] -= expert.done()
            if self.task.action_mode == "absolute":
                action = self._env.absolute(action)
            return action, pushed, left[0] < 0

        return lambda: self._call(act)

    def observe(self) -> Frame:
        """The latest frame."""
        if self._frame is None:
            raise PrismError("the simulation is not connected")
        return self._frame

    def act(self, action: np.ndarray) -> None:
        """Execute an action (7,) in the next simulated step, once."""
        self._action = np.array(action, float)
        self._commanded.set()

    def hold(self) -> None:
        """Stay, from the next simulated step on."""
        self._action = None
        self._commanded.set()

    def home(self) -> None:
        """Put the arm where it was at the start; objects stay. A gymnasium environment begins its episode anew."""
        self._call(self._home)

    def close(self) -> None:
        """End the simulation."""
        if self._thread is not None:
            self._closing.set()
            self._thread.join(10)
        elif self._env is not None:
            self._env.close()
        self._env = self._frame = None

    def _call(self, work: Callable[[], T]) -> T:
        """Have the simulation's thread do something between two steps."""
        if self._thread is None:
            return work()
        done: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._work.put((work, done))
        return done.result()

    def _live(self) -> None:
        """The simulation's thread: OpenGL belongs to the one that made it."""
        period = 1 / (self.schema.fps or 1.0)
        last = self.clock.now()
        while not self._closing.is_set():
            while not self._work.empty():
                work, done = self._work.get()
                try:
                    done.set_result(work())
                except Exception as error:
                    done.set_exception(error)
            if self._frame is not None:
                self._simulate()
            self.clock.wait(last + period / 2, self._closing)  # two commands within a step are one
            self._commanded.wait(max(last + 1.5 * period - self.clock.now(), 0.0))
            self._commanded.clear()
            last = self.clock.now()
        if self._env is not None:
            self._env.close()

    def _begin(self) -> None:
        if self._env is None:
            self._env = make_env(self.task)
        split, seed, episode = self.start
        observation, _ = self._env.reset(seed=seed, options={"split": split, "episode": episode})
        self._home_state = self._env.state if self.task.spec.own_robot else None
        self._action, self._last, self._held, self.success = None, None, False, False
        if self.task.action_mode == "absolute":
            site = self._env.sim_env.sim.data.site_xmat[self._env.eef_site].reshape(3, 3)
            self._site_in_hand = Rotation.from_quat(observation["state"][3:7]).inv() * Rotation.from_matrix(site)
        self._see(observation)

    def _progress(self) -> tuple[str, np.ndarray]:
        states, spec = np.stack(self._env.states), self.task.spec
        if not spec.own_robot:  # its states cannot be looked at one after the other
            return spec.stages[-1] if self.success and spec.stages else "", states
        return furthest_stage(self._env, states, self.success), states

    def _simulate(self) -> None:
        """One control step."""
        action, self._action = self._action, None
        if action is None:
            action = self._holding()
        else:
            self._held = False
        self._last = action
        self.success |= bool(self._env.advance(action))
        self._see(self._env.observe())

    def _holding(self) -> np.ndarray:
        """The action that moves nothing: steps of zero, or where the hand is; else, and for grippers, the last one."""
        action = np.zeros(self.schema.action_dim) if self._last is None else self._last.copy()
        absolute = self.task.action_mode == "absolute"
        for part, place in zip(self.schema.action, slices(self.schema.action).values(), strict=True):
            if part.kind == "gripper" and self._last is None:
                action[place] = -1.0
            elif part.kind != "gripper" and part.shares:
                action[place] = 0.0
        if absolute and not self._held:
            data, site = self._env.sim_env.sim.data, self._env.eef_site
            turn = Rotation.from_matrix(data.site_xmat[site].reshape(3, 3)).as_rotvec()
            self._goal = np.concatenate([data.site_xpos[site], turn])
        if absolute:
            action[:6] = self._goal
        self._held = True
        return action

    @property
    def where(self) -> Callable[[np.ndarray], np.ndarray] | None:
        """Of absolute actions, which turn the grip site, where the state has the hand's body."""
        return self._where if self.task.action_mode == "absolute" else None

    def _where(self, state: np.ndarray) -> np.ndarray:
        turn = (Rotation.from_quat(state[3:7]) * self._site_in_hand).as_rotvec() if np.any(state[3:7]) else np.zeros(3)
        return np.concatenate([state[:3], turn, [0.0]])

    def _see(self, observation: dict[str, Any]) -> None:
        now = self.clock.now()
        times = dict.fromkeys(("state", *self.schema.cameras), now)
        self._frame = Frame(images=observation["images"], state=observation["state"], time=times)

    def _home(self) -> None:
        env = self._env
        if self._home_state is None:
            self._begin()
            return
        robot = env.sim_env.robots[0]
        joints = np.array([*robot._ref_joint_pos_indexes, *env.fingers])
        speeds = np.array([*robot._ref_joint_vel_indexes, *robot._ref_gripper_joint_vel_indexes["right"]])
        state, nq = env.state.copy(), int(env.model.nq)
        state[1 + joints] = self._home_state[1 + joints]
        state[1 + nq + speeds] = 0.0
        env.set_state(state)
        self._action, self._last, self._held = None, None, False
        self._see(env.observe())
