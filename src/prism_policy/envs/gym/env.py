"""A user's gymnasium environment as workers run it: starts by (split, seed, episode), episodes that are shown again."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, ClassVar, get_args

import gymnasium
import numpy as np

from prism_client.schema import Schema
from prism_policy.config.settings import TaskConfig
from prism_policy.envs.episode import Split, episode_rng
from prism_policy.envs.gym.adapter import AdaptedEnv, ObservationAdapter
from prism_policy.errors import PrismError
from prism_policy.tasks.adapted import GYM, known_adapter
from prism_policy.utils.observations import Observation
from prism_policy.utils.text import listed, one_line, quoted

_TRIAL = 6
"""Steps after which the same start and actions must have led to the same state."""
_ALIKE = 1e-6


def load(task: TaskConfig) -> AdaptedEnv:
    """The environment of a task `gym:ID` or `module:function`, with its adapter.

    Raises:
        PrismError: it or its adapter is missing, cannot be made, or is none.
    """
    if not task.name.startswith(GYM):
        function = _named(task.name, f"task {task.name!r}")
        with _raising(f"task {task.name!r}: the function"):
            made = function()
        if not isinstance(made, AdaptedEnv):
            got = type(made).__name__
            raise PrismError(f"task {task.name!r}: expected AdaptedEnv(env, adapter) from the function, got {got}")
        return made
    place = task.adapter or known_adapter(task.name)[0]
    if not place:
        raise PrismError(
            f"task {task.name!r}: no adapter is known for it; say where its images, state and success are with "
            "--task.adapter MODULE:NAME (docs/your-own-simulator.md)"
        )
    adapter = _named(place, f"task.adapter {place!r}")
    if not isinstance(adapter, ObservationAdapter):
        raise PrismError(f"task.adapter {place!r}: expected an ObservationAdapter, got {type(adapter).__name__}")
    wanted = task.name.removeprefix(GYM)
    with _importable_here(), _raising(f"task {task.name!r}: gymnasium"):
        module = adapter.imports or wanted.partition("/")[0] * ("/" in wanted and ":" not in wanted)
        if module:
            with redirect_stderr(io.StringIO()):  # Farama's packages print news there
                importlib.import_module(module)
        env = gymnasium.make(wanted, disable_env_checker=True, **adapter.make)
    return AdaptedEnv(env, adapter)


@contextmanager
def _importable_here() -> Iterator[None]:
    """Modules of the current folder can be imported within, as those of a script can."""
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        yield
    finally:
        if added:
            sys.path.remove(here)


@contextmanager
def _raising(what: str) -> Iterator[None]:
    """Whatever others' code raises is one sentence."""
    try:
        yield
    except PrismError:
        raise
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else ""
        advice = f"; install {missing}, or run where it lies" if missing else ""
        raise PrismError(f"{what} raised {one_line(f'{type(error).__name__}: {error}', 200)}{advice}") from error


def _named(place: str, what: str) -> Any:
    """What lies at `module:name`."""
    module, _, name = place.partition(":")
    if not module or not name:
        raise PrismError(f"{what}: expected MODULE:NAME, got {quoted(place)}")
    with _importable_here(), _raising(f"{what}: importing {module}"):
        found = importlib.import_module(module)
    if not hasattr(found, name):
        there = [one for one in vars(found) if not one.startswith("_")]
        raise PrismError(f"{what}: {module} has no {name!r}; it has {listed(there, 8)}")
    return getattr(found, name)


def describe(task: TaskConfig) -> Schema:
    """What a task shows and takes, having tried it: one image of each camera, and that an episode repeats itself.

    Raises:
        PrismError: what is wrong with the environment or its adapter.
    """
    env = load(task)
    try:
        with _raising(f"task {task.name!r}: the environment"):
            schema = env.schema()
            for camera in schema.cameras:
                env.image(camera)
            low, high = (
                np.nan_to_num(x, posinf=1.0, neginf=-1.0) for x in (env.action_space.low, env.action_space.high)
            )
            actions = np.random.default_rng(0).uniform(low, high, (_TRIAL, env.size))
            first, again = (_states(env, actions) for _ in range(2))
    finally:
        env.close()
    if first.shape != again.shape or not np.allclose(first, again, atol=_ALIKE):
        raise PrismError(
            f"task {task.name!r}: after reset(seed=1) the same actions led elsewhere the second time; the "
            "environment has to take all its random numbers from self.np_random and reset all that it remembers"
        )
    return schema


def _states(env: AdaptedEnv, actions: np.ndarray) -> np.ndarray:
    """What is felt from the start with seed 1 on, float32 (T, S)."""
    env.advance_from(1)
    states = [env.state()]
    for action in actions:
        _, over = env.advance(action)
        states.append(env.state())
        if over:
            break
    return np.stack(states)


class GymEnv:
    """The environment of one task, as workers run it.

    A state says where an episode is: (split, seed, episode, step, the action that led there, what was felt), float64.
    It is shown again by repeating the episode from its start, so those before it have to be known; `set_state` takes
    note of them one after the other.
    """

    render_images: bool
    lift_bodies: ClassVar[Sequence[str]] = ()

    def __init__(self, task: TaskConfig, render_images: bool = True) -> None:
        self.task, self.render_images = task, render_images
        self.env = load(task)
        adapter = self.env.adapter
        for what, names, there in (
            ("camera", task.cameras, adapter.cameras),
            ("part of the state", task.state, adapter.state),
        ):
            if unknown := [name for name in names if name not in there]:
                raise PrismError(
                    f"task {task.name!r}: unknown {what} {unknown[0]!r}; its adapter has {listed(list(there), 12)}"
                )
        self.cameras = task.cameras or tuple(adapter.cameras)
        self.metadata = self.env.metadata
        self.states: list[np.ndarray] = []
        self.success = self.over = False
        self._at = -1  # step of the episode of `states` at which the environment is; -1 is none of it

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start the episode `options["episode"]` of the split `options["split"]`."""
        options = options or {}
        self.start(options.get("split", "evaluate"), seed or 0, options.get("episode", 0))
        return self.observe(), {"success": False}

    def start(self, split: str, seed: int, episode: int) -> None:
        """Start an episode, without looking."""
        key = np.array([get_args(Split).index(split), seed, episode], np.float64)
        self._begin(key)
        self.states = [np.concatenate([key, [0.0], np.zeros(self.env.size), self._felt()])]
        self.success = self.over = False

    def _begin(self, key: np.ndarray) -> None:
        split, seed, episode = (int(x) for x in key)
        word = episode_rng(get_args(Split)[split], seed, episode).integers(2**31)
        with self._named():
            self.env.advance_from(int(word))
        self._at = 0

    def _felt(self) -> np.ndarray:
        with self._named():
            return self.env.state(self.task.state).astype(np.float64)

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            with _raising("the environment"):
                yield
        except PrismError as error:
            raise PrismError(f"task {self.task.name!r}: {error}") from error

    def advance(self, action: np.ndarray) -> bool:
        """One step without looking; returns success."""
        with self._named():
            self.success, self.over = self.env.advance(action)
        head = [*self.states[-1][:3], len(self.states)]
        self.states.append(np.concatenate([head, np.asarray(action, np.float64), self._felt()]))
        self._at += 1
        return self.success

    def step_chunk(self, actions: np.ndarray, n_obs: int) -> tuple[list[Observation], bool, int]:
        """Execute actions (Ta, A) until success, the environment's own end or `task.max_steps`.

        Returns:
            The last observations, at most n_obs, of a chunk after which the episode goes on; success; the steps done.
        """
        actions = actions[: self.task.max_steps - len(self.states) + 1]
        seen: list[Observation] = []
        for done, action in enumerate(actions, start=1):
            if self.advance(action) or self.over:
                return seen, self.success, done
            if len(actions) - done < n_obs:
                seen.append(self.observe())
        return seen, False, len(actions)

    def observe(self, state: np.ndarray | None = None) -> Observation:
        """The observation of now, or of a state whose predecessors are known."""
        if state is not None:
            self._show(state)
        with self._named():
            return self.env.observe(self.cameras, self.task.state)

    def render(
        self, camera: str | None = None, resolution: int | None = None, state: np.ndarray | None = None
    ) -> np.ndarray:
        """A frame uint8 (H, W, 3) of a camera, `resolution` high, of now or of a state whose predecessors are known."""
        if state is not None:
            self._show(state)
        name = camera or self.cameras[0]
        one = self.env.adapter.cameras[name]
        height = resolution or one.height
        width = 2 * round(height * one.width / one.height / 2) if resolution else one.width
        with self._named():
            return self.env.image(name, (height, width))

    def set_state(self, state: np.ndarray) -> None:
        """Take note of the next state of an episode, which is shown when it is looked at."""
        step = int(state[3])
        if step > len(self.states) or (step and (state[:3] != self.states[0][:3]).any()):
            raise PrismError(f"task {self.task.name!r}: step {step} of an episode whose steps before it are not known")
        if step < len(self.states) and np.array_equal(state, self.states[step]):
            return
        del self.states[step:]
        self.states.append(np.asarray(state, np.float64))
        if self._at >= step:
            self._at = -1

    def _show(self, state: np.ndarray) -> None:
        """Repeat the episode up to a state."""
        self.set_state(state)
        step = int(state[3])
        if not 0 <= self._at <= step:
            self._begin(self.states[0][:3])
        while self._at < step:
            self._at += 1
            with self._named():
                self.env.advance(self.states[self._at][4 : 4 + self.env.size])
        if not np.allclose(self._felt(), state[4 + self.env.size :], rtol=1e-3, atol=1e-3):
            raise PrismError(
                f"task {self.task.name!r}: step {step} of episode {int(state[2])} looks otherwise when the episode is "
                "repeated; drawing an image must not move anything, and reset(seed=...) has to decide the whole start"
            )

    def whole_states(self, states: np.ndarray, model_file: str, source: str) -> np.ndarray:
        """Refuse recorded states: demonstrations are shown by their images."""
        raise PrismError(f"{source}: {self.task.name} has no simulator states that could be restored")

    def close(self) -> None:
        """Close the environment."""
        self.env.close()
