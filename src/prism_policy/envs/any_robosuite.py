"""Any of robosuite's tasks, with the robots, controllers and control rate that a file of demonstrations recorded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from prism_policy.envs.robosuite import ENV_KWARGS, RobosuiteEnv, fixture_poses
from prism_policy.envs.simulators import mujoco, robosuite, robosuite_tasks
from prism_policy.errors import PrismError
from prism_policy.tasks.any_robosuite import ANY_ROBOSUITE
from prism_policy.tasks.spec import CONTROL_HZ
from prism_policy.utils.text import listed, one_line, shown

_OURS = ("camera_names", "camera_heights", "camera_widths", "camera_depths", "camera_segmentations", "env_name")
"""Of recorded settings: what is drawn is said elsewhere."""


class AnyRobosuiteEnv(RobosuiteEnv):
    """One task `robosuite:NAME`: state and actions have the numbers that its robots and controllers have.

    Parts of the state are, of each robot i, `robot{i}_eef_pos`, `robot{i}_eef_quat`, `robot{i}_gripper_qpos` and
    `robot{i}_joint_pos`; `task.state` names some of them, by default the first three. A state of the simulator ends
    with where the bodies stand that the task places anew in each episode without a joint, such as a door.
    """

    simulator = ANY_ROBOSUITE

    def _make(self) -> tuple[Any, dict[str, Any]]:
        if self.task.spec.env_name not in robosuite_tasks():
            there = listed(sorted(robosuite_tasks()), 30)
            raise PrismError(
                f"robosuite {robosuite.__version__} has no task {self.task.spec.env_name!r}; it has {there}"
            )
        recorded: dict[str, Any] = json.loads(self.task.env_kwargs or "{}")
        robots = recorded.get("robots") or ["Panda"]
        robots = [robots] if isinstance(robots, str) else list(robots)
        settings = {key: value for key, value in recorded.items() if key not in _OURS} | ENV_KWARGS
        settings |= {"robots": robots, "controller_configs": _controllers(recorded.get("controller_configs"), robots)}
        settings |= {"control_freq": recorded.get("control_freq", CONTROL_HZ), "use_object_obs": False}
        settings.pop("render_gpu_device_id", None)
        try:
            sim_env = robosuite.make(self.task.spec.env_name, seed=0, **settings)
            sim_env.reset()
        except PrismError:
            raise
        except Exception as error:  # whatever robosuite's constructors raise of settings that they do not know
            why = one_line(f"{type(error).__name__}: {error}", 200)
            raise PrismError(f"{self.task.name}: robosuite cannot make it as it was recorded ({why})") from error
        return sim_env, settings

    def _prepare(self) -> None:
        self.fixtures = _placed_anew(self.sim_env)
        self._fixture_ids = [self.model.body(name).id for name in self.fixtures]
        self._home = np.hstack([self.model.body_pos[self._fixture_ids], self.model.body_quat[self._fixture_ids]])
        self._joints = [np.array(robot._ref_joint_pos_indexes) for robot in self.sim_env.robots]
        every = self._every_part(self._data_now())
        self.parts = list(self.task.state) or [name for name in every if not name.endswith("_joint_pos")]
        if unknown := [name for name in self.parts if name not in every]:
            raise PrismError(
                f"{self.task.name}: unknown part of the state {unknown[0]!r}; it has {listed(list(every), 12)}"
            )

    def _data_now(self) -> mujoco.MjData:
        return self.sim_env.sim.data._data

    def _every_part(self, data: mujoco.MjData) -> dict[str, np.ndarray]:
        """Every part of the state by its name."""
        parts: dict[str, np.ndarray] = {}
        for i, robot in enumerate(self.sim_env.robots):
            body = self.sim_env.sim.model.body_name2id(robot.robot_model.eef_name["right"])
            parts[f"robot{i}_eef_pos"] = data.site_xpos[robot.eef_site_id["right"]]
            parts[f"robot{i}_eef_quat"] = np.roll(data.xquat[body], -1)
            if len(fingers := robot._ref_gripper_joint_pos_indexes["right"]):
                parts[f"robot{i}_gripper_qpos"] = data.qpos[np.array(fingers)]
            parts[f"robot{i}_joint_pos"] = data.qpos[self._joints[i]]
        return parts

    def _state_parts(self, data: mujoco.MjData) -> list[np.ndarray]:
        every = self._every_part(data)
        return [every[name] for name in self.parts]

    @property
    def part_sizes(self) -> dict[str, int]:
        """Numbers of each part of the observed state."""
        every = self._every_part(self._data_now())
        return {name: len(every[name]) for name in self.parts}

    def whole_states(self, states: np.ndarray, model_file: str, source: str) -> np.ndarray:
        """Recorded states (T, ...) with the placed bodies where the recording's XML has them, where they lack them."""
        plain, placed = self._state_size, 7 * len(self.fixtures)
        if placed and states.ndim == 2 and states.shape[1] == plain + placed and np.isfinite(states).all():
            return states
        states = super().whole_states(states, model_file, source)
        if not placed:
            return states
        try:
            poses = fixture_poses(model_file, self.fixtures) if model_file else self._home
        except (PrismError, SyntaxError, ValueError):
            poses = self._home
        return np.hstack([states, np.broadcast_to(poses.ravel(), (len(states), placed))])


def _placed_anew(sim_env: Any) -> Sequence[str]:
    """Bodies that two episodes place differently in the model itself."""
    model, places = sim_env.sim.model._model, []
    for seed in (0, 1):
        sim_env.rng = np.random.default_rng(seed)
        for sampler in _samplers(sim_env):
            sampler.rng = sim_env.rng
        sim_env.reset()
        places.append(np.hstack([model.body_pos, model.body_quat]))
    moved = np.flatnonzero((places[0] != places[1]).any(axis=1))
    return [mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_BODY, i) for i in moved]


def _samplers(sim_env: Any) -> list[Any]:
    initializer = getattr(sim_env, "placement_initializer", None)
    return [] if initializer is None else [initializer, *getattr(initializer, "samplers", {}).values()]


def _controllers(recorded: Any, robots: Sequence[str]) -> Any:
    """Controllers as robosuite 1.5 takes them, of those that any version recorded: one, or one for each robot."""
    from robosuite.controllers.composite.composite_controller_factory import refactor_composite_controller_config

    several = recorded if isinstance(recorded, list) else [recorded] * len(robots)
    if len(several) != len(robots):
        raise PrismError(f"expected a controller for each of {len(robots)} robots, got {len(several)}")
    made = []
    for one, robot in zip(several, robots, strict=True):
        if one is None:
            one = robosuite.load_composite_controller_config(controller="BASIC", robot=robot)
        if not isinstance(one, dict):
            raise PrismError(f"expected the settings of a controller, got {shown(one)}")
        if "body_parts" not in one:  # of robosuite before 1.5, in the frame of the world
            one = refactor_composite_controller_config(dict(one), robot, ["right"])
            one["body_parts"]["right"]["input_ref_frame"] = "world"
        made.append(one)
    return made if len(made) > 1 else made[0]
