"""Demonstrations from anybody's environment or robot, into robomimic's HDF5."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from prism_policy.config.settings import DemoConfig
from prism_policy.data.recorded_env import GYM_TYPE
from prism_policy.data.robomimic import split_masks, write_demo
from prism_policy.data.schema import Schema, numbers_of, slices
from prism_policy.demos.cache import check_free
from prism_policy.envs.episode import episode_rng
from prism_policy.envs.gym.env import GymEnv
from prism_policy.errors import PrismError
from prism_policy.utils.files import atomic, disk_errors
from prism_policy.utils.observations import Observation
from prism_policy.utils.text import listed, one_line


class Recorder:
    """Writes demonstrations, step by step, into an HDF5 file that `prism train --dataset` reads.

    The file appears when the block ends, also when an error ends it: with all demonstrations that ended before.

    Usage::

        with Recorder(Path("demos.hdf5"), env.schema(), "my_simulator:make") as recorder:
            for seed in range(100):
                observation, _ = env.reset(seed=seed)
                done = False
                while not done:
                    action = teleoperation(observation)
                    recorder.step(observation, action)
                    observation, _, success, truncated, _ = env.step(action)
                    done = success or truncated
                recorder.end(success)
    """

    def __init__(
        self, path: Path | str, schema: Schema, environment: str = "", attributes: Mapping[str, str] | None = None
    ) -> None:
        """Begin a file.

        Args:
            schema: what is seen, felt and done, such as `AdaptedEnv.schema()` gives.
            environment: what recorded it, in the file for readers to see.
            attributes: of the file, instead of those that follow from the two.

        Raises:
            PrismError: `path` is taken.
        """
        self.path, self.schema, self.environment = Path(path), schema, environment
        self.attributes = dict(attributes or {})
        self.count = 0
        """Demonstrations in the file."""
        check_free(self.path)
        self._steps: list[tuple[Observation, np.ndarray, bool]] = []
        self._times: list[float] = []
        self._stack = ExitStack()
        self._file: h5py.File | None = None

    def __enter__(self) -> Recorder:
        self._stack.enter_context(disk_errors(self.path))
        temporary = self._stack.enter_context(atomic(self.path))
        self._file = self._stack.enter_context(h5py.File(temporary, "w", libver="latest"))
        self._data = self._file.create_group("data")
        return self

    def step(
        self, observation: Observation, action: np.ndarray, disturbed: bool = False, time: float | None = None
    ) -> None:
        """What is there, and what is done about it.

        Args:
            observation: `{"images": {camera: uint8 (H, W, 3)}, "state": (S,)}`.
            action: (A,), as it is executed.
            disturbed: it was forced on the demonstrator, and shall not be learned.
            time: when, by a clock of the robot's [s]; of all steps or of none.

        Raises:
            PrismError: it is not what the schema says.
        """
        schema = self.schema
        images = {name: np.array(observation["images"].get(name)) for name in schema.cameras}
        for name, size in schema.cameras.items():
            if images[name].shape != (*size, 3) or images[name].dtype != np.uint8:
                got = f"{images[name].dtype} {images[name].shape}"
                raise PrismError(f"camera {name!r}: expected uint8 {(*size, 3)}, got {one_line(got)}")
        state, done = np.array(observation["state"], np.float32), np.array(action, np.float32)
        for what, array, width in (("state", state, schema.state_dim), ("action", done, schema.action_dim)):
            if array.shape != (width,) or not np.isfinite(array).all():
                raise PrismError(f"{what}: expected {width} finite numbers, got {one_line(array)}")
        self._steps.append(({"images": images, "state": state}, done, disturbed))
        self._times += [] if time is None else [float(time)]

    def end(self, success: bool = True, keep: bool | None = None) -> None:
        """End a demonstration; one that did not succeed is dropped, unless `keep` says otherwise."""
        (steps, self._steps), (times, self._times) = (self._steps, []), (self._times, [])
        if not steps or not (success if keep is None else keep):
            return
        assert self._file is not None
        arrays = arrays_of(self.schema, steps, success)
        if times:
            if len(times) != len(steps) or not np.isfinite(times).all():
                raise PrismError(f"time: expected one of each of {len(steps)} steps, all finite, got {len(times)}")
            arrays["timestamps"] = np.array(times, np.float64) - times[0]
        write_demo(self._data.create_group(f"demo_{self.count}"), arrays, {})
        self.count += 1
        self._data.attrs["total"] = int(self._data.attrs.get("total", 0)) + len(steps)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.count:
            if kind is None:
                self._stack.__exit__(PrismError, PrismError(""), None)
                raise PrismError(f"{self.path}: expected at least one successful demonstration, got none; no file")
            self._stack.__exit__(kind, error, trace)
            return
        assert self._file is not None
        self._data.attrs.update({**attributes_of(self.schema, self.environment), **self.attributes})
        split_masks(self._file)
        self._stack.close()


def attributes_of(schema: Schema, environment: str) -> dict[str, str]:
    """What a file says of its robot: robomimic's `env_args`, and the whole schema."""
    settings = {"control_freq": schema.fps} if schema.fps else {}
    about = {"env_name": environment, "type": GYM_TYPE, "env_kwargs": settings}
    return {"env_args": json.dumps(about), "schema": json.dumps(asdict(schema))}


def arrays_of(
    schema: Schema, steps: list[tuple[Observation, np.ndarray, bool]], success: bool
) -> dict[str, np.ndarray]:
    """The arrays of a demonstration by their paths."""
    state = np.stack([observation["state"] for observation, _, _ in steps])
    ends = np.zeros(len(steps), np.int64)
    ends[-1] = 1
    return {
        "actions": np.stack([action for _, action, _ in steps]),
        "disturbed": np.array([disturbed for _, _, disturbed in steps]),
        "rewards": ends * float(success),
        "dones": ends,
        **{f"obs/{name}": state[:, place] for name, place in slices(schema.state).items()},
        **{f"obs/{name}_image": np.stack([o["images"][name] for o, _, _ in steps]) for name in schema.cameras},
    }


class _Pushes:
    """Actions that differ from the expert's for a few steps, the gripper's never: what follows shows how to recover."""

    RATE = 0.07  # chance that a push begins at a step without one

    def __init__(self, schema: Schema, space: Any, strength: float, rng: np.random.Generator) -> None:
        self.low, self.high = np.asarray(space.low, np.float64), np.asarray(space.high, np.float64)
        half = np.nan_to_num((self.high - self.low) / 2, posinf=1.0)
        half[numbers_of(schema.action, "gripper")] = 0.0
        self.reach, self.strength, self.rng, self.left = half, strength, rng, 0
        self.push = np.zeros_like(half)

    def __call__(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        """What is executed, and whether it is a push."""
        rng = self.rng
        if self.left == 0 and self.strength > 0 and rng.random() < self.RATE:
            direction = rng.standard_normal(len(self.reach))
            self.push = direction / np.linalg.norm(direction) * self.reach * rng.uniform(0.4, 2.0) * self.strength
            self.left = int(rng.integers(1, 5))
        if self.left == 0:
            return np.clip(action, self.low, self.high), False
        self.left -= 1
        return np.clip(action + self.push, self.low, self.high), True


def record_expert(env: GymEnv, demos: DemoConfig, episode: int) -> tuple[dict[str, np.ndarray], Schema, bool]:
    """One episode of the adapter's expert under disturbance, with images: arrays, what they are, and whether it did it.

    The demonstration goes on for a few steps when it is done: a policy should see that.
    """
    if env.env.adapter.expert is None:
        raise PrismError(f"task {env.task.name!r}: its adapter has no expert; record demonstrations with `Recorder`")
    schema = env.env.schema()
    rng = episode_rng("collect", demos.seed, episode, rng_stream=2)
    env.start("collect", demos.seed, episode)
    pushes, linger = _Pushes(schema, env.env.action_space, demos.noise, rng), int(rng.integers(4, 9))
    steps: list[tuple[Observation, np.ndarray, bool]] = []
    success = False
    for wanted in env.env.adapter.expert(env.env.env.unwrapped, rng):
        executed, pushed = pushes(wanted)
        steps.append((env.observe(), executed.astype(np.float32), pushed))
        success = env.advance(executed)
        linger -= success
        if linger == 0 or env.over or len(steps) == env.task.max_steps:
            break
    return arrays_of(schema, steps, success), schema, success


def check_fits(schema: Schema, shown: Schema, source: str, task: str) -> None:
    """Refuse demonstrations of something else than an environment shows and takes."""
    for name, size in schema.cameras.items():
        if (there := shown.cameras.get(name)) != size:
            got = f"shows {there[0]}x{there[1]}" if there else f"has {listed(list(shown.cameras), 8)}"
            raise PrismError(
                f"{source}: images of camera {name!r} are {size[0]}x{size[1]}, and the adapter of {task} {got}; make "
                "the two agree, or choose others with --data.cameras"
            )
    sizes = {part.name: part.size for part in shown.state}
    for part in schema.state:
        if sizes.get(part.name) != part.size:
            raise PrismError(
                f"{source}: its state has {part.name!r} with {part.size} numbers, and the adapter of {task} has "
                f"{listed([f'{name} ({size})' for name, size in sizes.items()], 8)}; make the two agree, or choose "
                "others with --data.state"
            )
    if schema.action_dim != shown.action_dim:
        raise PrismError(
            f"{source}: its actions have {schema.action_dim} numbers, and {task} takes {shown.action_dim}; "
            "demonstrations and environment have to be of one robot"
        )
