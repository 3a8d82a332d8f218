"""This library's simulated tasks for LeRobot: `lerobot-eval --env.type=prism --env.task=lift`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import gymnasium
import numpy as np
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs import EnvConfig
from lerobot.envs.utils import freeze_after_episode_end
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE
from prism_policy.config.presets import task_config
from prism_policy.config.settings import RenderConfig, TaskConfig, check_task
from prism_policy.data.actions import decode_absolute
from prism_policy.data.schema import task_schema
from prism_policy.envs.make import make_env
from prism_policy.errors import PrismError
from prism_policy.tasks.spec import CONTROL_HZ


@EnvConfig.register_subclass("prism")
@dataclass
class PrismEnvConfig(EnvConfig):
    """A simulated task; the seeds that LeRobot counts up are the numbers of episodes of `prism evaluate`."""

    task: str | None = "lift"
    """lift, can, square, stack or tool_hang."""
    fps: int = CONTROL_HZ
    cameras: tuple[str, ...] = ()
    """Cameras to draw; empty is those of the task."""
    resolution: int = 0
    """Width and height of their images [px]; 0 is that of the task."""
    max_steps: int = 0
    """Steps after which an episode counts as failed; 0 is that of the task."""
    action_mode: Literal["delta", "absolute"] = "delta"
    """Actions are steps of the hand, or its pose."""
    split: Literal["evaluate", "validate"] = "evaluate"
    seed: int = 0
    """Seed of the episodes' starts, `--seed` of `prism evaluate`."""
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Say what the task shows and takes."""
        try:
            schema = task_schema(self.task_config())
            check_task(self.task_config())
        except PrismError as error:
            raise ValueError(str(error)) from error
        pixels = {f"pixels/{camera}": size for camera, size in schema.cameras.items()}
        self.features = {name: PolicyFeature(FeatureType.VISUAL, (*size, 3)) for name, size in pixels.items()}
        self.features |= {
            "agent_pos": PolicyFeature(FeatureType.STATE, (schema.state_dim,)),
            ACTION: PolicyFeature(FeatureType.ACTION, (schema.action_dim,)),
        }
        self.features_map = {name: f"{OBS_IMAGES}.{name.removeprefix('pixels/')}" for name in pixels}
        self.features_map |= {"agent_pos": OBS_STATE, ACTION: ACTION}

    def task_config(self) -> TaskConfig:
        """The same as this library's own settings."""
        task = task_config(self.task or "")
        render = RenderConfig(self.resolution or task.render.resolution)
        return replace(
            task,
            cameras=self.cameras or task.cameras,
            max_steps=self.max_steps or task.max_steps,
            render=render,
            action_mode=self.action_mode,
        )

    @property
    def gym_kwargs(self) -> dict[str, Any]:  # noqa: D102 (LeRobot's)
        return {"task": self.task_config(), "split": self.split, "seed": self.seed}

    def create_envs(
        self, n_envs: int, use_async_envs: bool = False
    ) -> dict[str, dict[int, gymnasium.vector.VectorEnv]]:
        """`n_envs` of them, in processes of their own where LeRobot wants that; a finished one costs nothing."""
        make = freeze_after_episode_end(partial(PrismEnv, **self.gym_kwargs))
        mode = gymnasium.vector.AutoresetMode.NEXT_STEP
        envs: gymnasium.vector.VectorEnv
        if use_async_envs and n_envs > 1:
            envs = gymnasium.vector.AsyncVectorEnv([make] * n_envs, context="forkserver", autoreset_mode=mode)
        else:
            envs = gymnasium.vector.SyncVectorEnv([make] * n_envs, autoreset_mode=mode)
        return {self.type: {0: envs}}


class PrismEnv(gymnasium.Env):
    """One simulated task as LeRobot takes it: `{"pixels": {camera: uint8 (H, W, 3)}, "agent_pos": float32 (S,)}`."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}  # noqa: RUF012 (declared so by gymnasium)
    render_mode = "rgb_array"

    def __init__(self, task: TaskConfig, split: str = "evaluate", seed: int = 0) -> None:
        self.env, self.split, self.seed, self.episode = make_env(task), split, seed, -1
        self.absolute = task.action_mode == "absolute"
        self.task, self.task_description = task.name, task.spec.instruction or task.name.replace("_", " ")
        self._max_episode_steps = task.max_steps
        shown = self.env.observation_space
        self.observation_space = gymnasium.spaces.Dict({"pixels": shown["images"], "agent_pos": shown["state"]})
        numbers = task_schema(task).action_dim
        self.action_space = gymnasium.spaces.Box(-np.inf, np.inf, (numbers,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start the episode of this number; without one the next."""
        self.episode = self.episode + 1 if seed is None else seed
        observation, info = self.env.reset(seed=self.seed, options={"split": self.split, "episode": self.episode})
        return self._shown(observation), {"is_success": info["success"]}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """One control step."""
        action = np.asarray(action, np.float32)
        action = decode_absolute(action) if self.absolute else action
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._shown(observation), reward, terminated, truncated, {"is_success": info["success"]}

    @staticmethod
    def _shown(observation: dict[str, Any]) -> dict[str, Any]:
        return {"pixels": observation["images"], "agent_pos": observation["state"]}

    def render(self) -> np.ndarray:
        """A frame of the first camera, large enough to look at."""
        frame: np.ndarray = self.env.render(resolution=240)
        return frame

    def close(self) -> None:
        """Free the simulator."""
        self.env.close()
