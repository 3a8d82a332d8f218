"""Where a gymnasium environment has its images, its state and its success: a few lines for each environment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np

from prism_client.schema import Part, PartKind, Schema
from prism_policy.errors import PrismError
from prism_policy.utils.images import Resize
from prism_policy.utils.observations import Observation
from prism_policy.utils.text import listed, one_line

Read = Callable[[Any, Any], Any]
"""(the environment, unwrapped; what its `reset` or `step` observed) -> an array."""
Expert = Callable[[Any, np.random.Generator], Iterator[np.ndarray]]
"""(the environment, unwrapped; an episode's random numbers) -> actions, each for what is there when it is asked for."""


def info_success(reward: float, terminated: bool, info: Mapping[str, Any]) -> bool:
    """What `info` says under `is_success` or `success`, as most environments of manipulation do."""
    for key in ("is_success", "success"):
        if key in info:
            return bool(info[key])
    raise PrismError(
        f"expected `is_success` or `success` in the environment's info, got {listed(list(info), 8)}; give the adapter "
        "success=lambda reward, terminated, info: ..."
    )


@dataclass(frozen=True)
class Camera:
    """Images of one camera."""

    read: Read = lambda env, observation: env.render()
    """An image uint8 (H, W, 3) of now; one of another size is resized, with antialiasing."""
    height: int = 96
    width: int = 96
    """What the policy sees [px]."""


@dataclass(frozen=True)
class StatePart:
    """Numbers that a robot would feel."""

    read: Read
    """Finite numbers, as many every time."""
    kind: PartKind = "other"
    """position, rotation, gripper, joint or other: decides how they are scaled."""
    names: tuple[str, ...] = ()
    """What each is, such as x and y."""


@dataclass(frozen=True)
class ObservationAdapter:
    """What a policy sees and feels of an environment, what its actions are, and what is success.

    ```
    ADAPTER = ObservationAdapter(
        cameras={"top": Camera(lambda env, observation: env.render(), 96, 96)},
        state={"agent": StatePart(lambda env, observation: observation["agent_pos"], "position")},
        success=lambda reward, terminated, info: info["is_success"],
    )
    ```
    """

    cameras: Mapping[str, Camera]
    state: Mapping[str, StatePart]
    success: Callable[[float, bool, Mapping[str, Any]], bool] = info_success
    """(reward, terminated, info) of a step -> whether the task is done."""
    action: tuple[Part, ...] = ()
    """What the numbers of an action are; by default one part `action`."""
    fps: float | None = None
    """Steps a second; by default the environment's `metadata["render_fps"]`."""
    make: Mapping[str, Any] = field(default_factory=lambda: {"render_mode": "rgb_array"})
    """Of an adapter for gym:ID: what `gymnasium.make` gets beside the id."""
    imports: str = ""
    """Of an adapter for gym:ID: the module whose import registers the id."""
    expert: Expert | None = None
    """A scripted policy, for `prism collect`."""


class AdaptedEnv(gymnasium.Env[Observation, np.ndarray]):
    """An environment with its adapter: `{"images": {camera: uint8 (H, W, 3)}, "state": float32 (S,)}` in, actions out.

    ```
    env = AdaptedEnv(gymnasium.make("gym_pusht/PushT-v0", render_mode="rgb_array"), ADAPTER)
    observation, info = env.reset(seed=0)  # info["success"] says whether the task is done
    ```
    """

    def __init__(self, env: gymnasium.Env[Any, Any], adapter: ObservationAdapter) -> None:
        if not isinstance(adapter, ObservationAdapter):
            raise PrismError(f"expected an ObservationAdapter, got {type(adapter).__name__}")
        space = env.action_space
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1 or space.dtype.kind != "f":
            raise PrismError(
                f"expected actions in a Box of real numbers of shape (A,), got {one_line(space)}; policies here give "
                "continuous actions"
            )
        if not adapter.cameras:
            raise PrismError("the adapter has no cameras; policies here see: give it at least one")
        self.env, self.adapter = env, adapter
        self.action_space: gymnasium.spaces.Box = space
        self.size = int(space.shape[0])
        bounds = np.unique(np.abs([space.low, space.high]))
        parts = adapter.action or (Part("action", self.size, shares=bool(len(bounds) == 1 and bounds[0] == 1)),)
        if (size := sum(part.size for part in parts)) != self.size:
            raise PrismError(f"the adapter's parts of an action have {size} numbers, the environment takes {self.size}")
        self.action = tuple(parts)
        rate = adapter.fps or env.metadata.get("render_fps")
        self.fps = float(rate) if rate else None
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": max(round(self.fps or 20), 1)}
        self._sizes: dict[str, int] = {}
        self.raw: Any = None
        """What the environment observed last."""

    def schema(self) -> Schema:
        """What a policy sees, feels and does here; an episode is begun to count the numbers of the state."""
        self.advance_from(0)
        self.state()
        state = tuple(Part(name, self._sizes[name], one.kind, one.names) for name, one in self.adapter.state.items())
        sizes = {name: (camera.height, camera.width) for name, camera in self.adapter.cameras.items()}
        return Schema(sizes, state, self.action, self.fps)

    def advance_from(self, seed: int) -> None:
        """Begin an episode, without looking."""
        self.raw, _ = self.env.reset(seed=seed)

    def advance(self, action: np.ndarray) -> tuple[bool, bool]:
        """One step without looking: success, and whether the environment ends the episode here."""
        space = self.action_space
        action = np.asarray(action, np.float64)
        if action.shape != (self.size,) or not np.isfinite(action).all():
            raise PrismError(f"expected a finite action of shape ({self.size},), got {one_line(action, 60)}")
        clipped = np.clip(action, space.low, space.high).astype(space.dtype)
        self.raw, reward, terminated, truncated, info = self.env.step(clipped)
        return bool(self.adapter.success(float(reward), bool(terminated), info)), bool(terminated or truncated)

    def state(self, names: Sequence[str] = ()) -> np.ndarray:
        """Numbers of these parts, or of all, float32 (S,)."""
        parts = []
        for name in names or self.adapter.state:
            try:
                value = np.asarray(self.adapter.state[name].read(self.env.unwrapped, self.raw), np.float64)
            except Exception as error:  # whatever a user's function raises
                raise PrismError(f"state {name!r}: the adapter's function raised {_said(error)}") from error
            size = self._sizes.setdefault(name, value.size)
            if value.ndim > 1 or value.size != size or not value.size or not np.isfinite(value).all():
                got = f"shape {value.shape}: {one_line(value)}"
                raise PrismError(f"state {name!r}: expected {size or 'some'} finite numbers, got {got}")
            parts.append(value.reshape(-1))
        return np.concatenate(parts or [np.zeros(0)]).astype(np.float32)

    def image(self, camera: str, size: tuple[int, int] | None = None) -> np.ndarray:
        """What a camera shows now, uint8 (H, W, 3), at the policy's size or another one."""
        one = self.adapter.cameras[camera]
        try:
            image = np.asarray(one.read(self.env.unwrapped, self.raw))
        except Exception as error:  # whatever a user's function raises
            raise PrismError(f"camera {camera!r}: the adapter's function raised {_said(error)}") from error
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            got = f"{image.dtype} {image.shape}"
            raise PrismError(f"camera {camera!r}: expected an image uint8 (H, W, 3), got {one_line(got)}")
        return Resize(size or (one.height, one.width))(image)

    def observe(self, cameras: Sequence[str] = (), state: Sequence[str] = ()) -> Observation:
        """What a policy sees and feels now."""
        return {
            "images": {name: self.image(name) for name in cameras or self.adapter.cameras},
            "state": self.state(state),
        }

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode."""
        self.raw, info = self.env.reset(seed=seed, options=options)
        return self.observe(), {**info, "success": False}

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One step, the action clipped to the environment's bounds; ends at success, too."""
        success, over = self.advance(action)
        return self.observe(), float(success), success, over and not success, {"success": success}

    def close(self) -> None:
        """Close the environment."""
        self.env.close()


def _said(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}", 160)
