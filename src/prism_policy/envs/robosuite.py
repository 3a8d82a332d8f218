"""robosuite's tasks behind the library's environment contract: a Panda, operational-space pose control at 20 Hz."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar
from xml.etree import ElementTree

import gymnasium
import numpy as np
from scipy.spatial.transform import Rotation

from prism_policy.config.settings import TaskConfig
from prism_policy.envs.episode import episode_rng
from prism_policy.envs.rendering import Renderer, camera_id
from prism_policy.envs.simulators import mujoco, prepare_robosuite, robosuite
from prism_policy.errors import PrismError
from prism_policy.tasks import SPECS, task_names
from prism_policy.tasks.spec import CONTROL_HZ, ROBOSUITE, Simulator, TaskSpec
from prism_policy.utils.observations import Observation

ENV_KWARGS = {
    "control_freq": CONTROL_HZ, "has_renderer": False, "has_offscreen_renderer": False, "use_camera_obs": False,
    "ignore_done": True, "hard_reset": False, "renderer": "mujoco",
}  # fmt: skip
"""How all simulators of robosuite's kind are made: nothing drawn, no end of their own."""


def register_variation(spec: TaskSpec) -> None:
    """Make a variation known to robosuite under its own name, so that files can say which one recorded them."""
    if spec.scene:
        module, _, name = spec.scene.partition(":")
        getattr(importlib.import_module(module), name)()
    known = robosuite.environments.base.REGISTERED_ENVS
    if not spec.varies or spec.env_name in known:
        return
    base = known[spec.varies]

    def edit_model_xml(self: Any, xml: str) -> str:
        root = ElementTree.fromstring(base.edit_model_xml(self, xml))
        elements = {element.get("name"): element for element in root.iter()}
        for name, attribute, value in spec.changes:
            elements[name].set(attribute, value)
        return ElementTree.tostring(root, encoding="unicode")

    type(base)(spec.env_name, (base,), {"edit_model_xml": edit_model_xml})  # robosuite's metaclass registers it


class RobosuiteEnv(gymnasium.Env[Observation, np.ndarray]):
    """One simulated task: `{"images": {camera: uint8 (H, W, 3)}, "state": float32 (9,)}` in, actions (7,) out.

    A delta action is (dx, dy, dz, rx, ry, rz, gripper) in [-1, 1]: 5 cm and 0.5 rad at full scale; gripper +1 closes.
    An absolute one (`task.action_mode`) is (x, y, z, rotation vector, gripper) of the hand in the world [m, rad].
    Observations and frames are functions of the simulator state alone, so replaying `states` gives the same pixels.

    ```
    env = RobosuiteEnv(TaskConfig("lift"))
    observation, info = env.reset(seed=0, options={"split": "evaluate", "episode": 3})
    ```
    """

    simulator: ClassVar[Simulator] = ROBOSUITE
    over: ClassVar[bool] = False  # no episode ends by itself but at success
    fixtures: Sequence[str] = ()  # bodies whose poses a state ends with, 7 numbers each
    _fixture_ids: Sequence[int] = ()
    _renderer: Renderer | None = None
    _segmenter: Renderer | None = None
    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}  # noqa: RUF012 (declared so by gymnasium)

    def __init__(self, task: TaskConfig, render_images: bool = True) -> None:
        known = task.name in SPECS or task.spec.any_robot
        if not known or task.spec.simulator != self.simulator:
            names = ", ".join(name for name in task_names() if SPECS[name].simulator == self.simulator)
            raise PrismError(f"unknown task {task.name!r}; there are {names}")
        prepare_robosuite()
        self.task = task
        self.render_images = render_images
        self.sim_env, self.env_kwargs = self._make()
        self.sim_env._observables.clear()  # not those of `observe`, and recomputed at each 2 ms substep
        self._xml: str = self.sim_env.sim.model.get_xml()  # later, MuJoCo would give that of the last model it compiled
        self._prepare()
        for camera in task.cameras:
            camera_id(self.model, camera)
        self._data = mujoco.MjData(self.model)
        hand = self.sim_env.robots[0]
        self.eef_site = hand.eef_site_id["right"]
        self._eef_body = self.sim_env.sim.model.body_name2id(hand.robot_model.eef_name["right"])
        self.fingers = np.array(hand._ref_gripper_joint_pos_indexes["right"])
        self.states: list[np.ndarray] = [self.state]  # states since the reset, the start included; each float64 (S,)

        size = task.render.resolution
        image = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        width = int(self.sim_env.action_dim)
        self._limit = np.full(width, np.inf if task.action_mode == "absolute" else 1.0)
        self._limit[6:] = 1.0
        self.action_space = gymnasium.spaces.Box(-self._limit.astype(np.float32), self._limit.astype(np.float32))
        self.observation_space = gymnasium.spaces.Dict(
            {
                "images": gymnasium.spaces.Dict(dict.fromkeys(task.cameras, image)),
                "state": gymnasium.spaces.Box(-np.inf, np.inf, (sum(self.part_sizes.values()),), np.float32),
            }
        )

    def _make(self) -> tuple[Any, dict[str, Any]]:
        """The simulator's own environment, and what it was made with."""
        controller: dict[str, Any] = robosuite.load_composite_controller_config(controller="BASIC", robot="Panda")
        mode, frame = self.task.action_mode, self.task.reference_frame
        frame = "world" if mode == "absolute" else frame
        controller["body_parts"]["right"] |= {"input_type": mode, "input_ref_frame": frame}
        settings = {"robots": "Panda", "controller_configs": controller, "use_object_obs": False} | ENV_KWARGS
        # The seed decides what is drawn once at construction, such as the size of Lift's cube: the same for everybody.
        register_variation(self.task.spec)
        sim_env = robosuite.make(self.task.spec.env_name, seed=0, **settings)
        sim_env.reset()
        return sim_env, settings

    def _prepare(self) -> None:
        """Anything else that the first state needs."""

    @property
    def model_xml(self) -> str:
        """The model of this episode."""
        return self._xml

    @property
    def _state_size(self) -> int:
        """Numbers of (time, qpos, qvel)."""
        return 1 + int(self.model.nq) + int(self.model.nv)

    @property
    def model(self) -> mujoco.MjModel:
        """MuJoCo's model."""
        return self.sim_env.sim.model._model

    @property
    def lift_bodies(self) -> Sequence[str]:
        """Bodies to lift."""
        return self.task.spec.lift_bodies

    @property
    def mask_bodies(self) -> Sequence[str]:
        """Bodies that the task is about: what is moved, and what it has to fit on or into."""
        return self.task.spec.mask_bodies

    @property
    def success(self) -> bool:
        """Whether the task is done now, by robosuite's own rule."""
        return bool(self.sim_env._check_success())

    @property
    def state(self) -> np.ndarray:
        """The simulator's state as robomimic stores it: (time, qpos, qvel), float64 (S,).

        Then the pose of each fixture, position and quaternion w x y z, where there are any.
        """
        plain, ids = np.asarray(self.sim_env.sim.get_state().flatten()), self._fixture_ids
        if not ids:
            return plain
        return np.concatenate([plain, np.hstack([self.model.body_pos[ids], self.model.body_quat[ids]]).ravel()])

    def whole_states(self, states: np.ndarray, model_file: str, source: str) -> np.ndarray:
        """Recorded states (T, S), completed by what this environment's hold beyond them, which is nothing.

        `model_file` is the XML of the recording's model, `source` the file and demonstration, for errors.
        """
        if states.ndim != 2 or states.shape[1] != self._state_size:
            raise PrismError(
                f"{source}: expected states of {self._state_size} numbers (time, joint positions and velocities of "
                f"{self.task.spec.env_name} in robosuite {robosuite.__version__}), got shape {states.shape}"
            )
        if not np.isfinite(states).all():
            raise PrismError(f"{source}: expected finite states, got NaN or infinity; repair or remove this demo")
        return states

    def set_state(self, state: np.ndarray) -> None:
        """Put the simulation into `state` (S,), with the solver's memory wiped so that nothing else matters.

        It may lack the fixtures, which stay where they are then.
        """
        if self.fixtures and len(state) == self._state_size + 7 * len(self.fixtures):
            self._arrange(self.model, state[self._state_size :])
            state = state[: self._state_size]
        if state.shape != (self._state_size,) or not np.isfinite(state).all():
            size = f"{self._state_size} numbers for task {self.task.name!r}"
            raise PrismError(f"expected a finite state of {size}, got shape {state.shape}")
        sim = self.sim_env.sim
        sim.set_state_from_flattened(state)
        sim.data._data.qacc_warmstart[:] = 0
        sim.forward()

    def _arrange(self, model: mujoco.MjModel, fixtures: np.ndarray) -> None:
        """Put the fixtures where they stand."""
        poses = fixtures.reshape(-1, 7)
        model.body_pos[self._fixture_ids], model.body_quat[self._fixture_ids] = poses[:, :3], poses[:, 3:]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: seed of the run; None is 0.
            options: `split` ("evaluate" by default), `episode` (0), or `state` (S,): start from this recorded state
                instead, as the replay of a demonstration does.
        """
        options = options or {}
        env = self.sim_env
        env.rng = episode_rng(options.get("split", "evaluate"), seed or 0, options.get("episode", 0))
        initializer = getattr(env, "placement_initializer", None)
        for sampler in (initializer, *getattr(initializer, "samplers", {}).values()) if initializer else ():
            sampler.rng = env.rng
        env.reset()
        self.set_state(np.asarray(options.get("state", self.state), np.float64))
        for controller in (c for robot in env.robots for c in robot.part_controllers.values()):
            # The null space pulls towards the start's joint positions, which are the state's now.
            if hasattr(controller, "update_initial_joints"):
                controller.update_initial_joints(env.sim.data.qpos[controller.qpos_index])
        self.set_state(self.state)
        self.states = [self.state]
        return self.observe(), {"success": self.success}

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One control step of 50 ms, actions clipped; ends at success, truncated at `task.max_steps`."""
        success = self.advance(action)
        truncated = len(self.states) > self.task.max_steps
        return self.observe(), float(success), success, truncated, {"success": success}

    def step_chunk(self, actions: np.ndarray, n_obs: int) -> tuple[list[Observation], bool, int]:
        """Execute actions (Ta, 7) until success or `task.max_steps`, and draw only the last frames.

        Returns:
            The last min(n_obs, steps done) observations, success, and the number of steps done.
        """
        done, success = 0, False
        for action in actions[: self.task.max_steps - len(self.states) + 1]:
            success, done = self.advance(action), done + 1
            if success:
                break
        return [self.observe(state) for state in self.states[1:][-min(n_obs, done) :] if done], success, done

    def advance(self, action: np.ndarray) -> bool:
        """One control step without an observation; returns success."""
        action = np.asarray(action, np.float64)
        if action.shape != self._limit.shape or not np.isfinite(action).all():
            raise PrismError(f"expected a finite action of shape {self._limit.shape}, got {action}")
        self.sim_env.step(np.clip(action, -self._limit, self._limit))
        self.states.append(self.state)
        return self.success

    def absolute(self, action: np.ndarray) -> np.ndarray:
        """The absolute action (7,) whose goal is the controller's own for a delta action (7,) (Chi et al., 2025)."""
        controller = self.sim_env.robots[0].part_controllers["right"]
        controller.update(force=True)  # it would keep what it knew of another state
        controller.set_goal(np.clip(np.asarray(action, np.float64)[:6], -1.0, 1.0))
        position, rotation = controller.goal_pos, controller.goal_ori
        if self.task.reference_frame == "base":
            position = controller.origin_pos + controller.origin_ori @ position
            rotation = controller.origin_ori @ rotation
        return np.concatenate([position, Rotation.from_matrix(rotation).as_rotvec(), np.clip(action[6:], -1.0, 1.0)])

    def observe(self, state: np.ndarray | None = None) -> Observation:
        """The observation of `state` (S,), by default the current one; without images if `render_images` is off."""
        data = self._pose(state)
        parts = self._state_parts(data)
        images = {camera: self._draw(camera) for camera in self.task.cameras} if self.render_images else {}
        return {"images": images, "state": np.concatenate(parts).astype(np.float32)}

    @property
    def part_sizes(self) -> dict[str, int]:
        """Parts of the observed state, by robomimic's names, and their numbers."""
        return {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}

    def _state_parts(self, data: mujoco.MjData) -> list[np.ndarray]:
        """Position [m] and quaternion x y z w of the hand, fingers [m]."""
        return [data.site_xpos[self.eef_site], np.roll(data.xquat[self._eef_body], -1), data.qpos[self.fingers]]

    def render(
        self, camera: str | None = None, resolution: int | None = None, state: np.ndarray | None = None
    ) -> np.ndarray:
        """A frame uint8 (H, W, 3) of any camera at any resolution, of `state` (S,) or of now."""
        camera_id(self.model, camera or self.task.cameras[0])
        self._renderer = self._renderer or Renderer(self.model, self.task.render)
        self._pose(state)
        return self._draw(camera or self.task.cameras[0], resolution)

    def segment(self, camera: str, state: np.ndarray | None = None) -> np.ndarray:
        """Which geom of `model` each pixel of a camera's image shows, int32 (H, W), -1 for none; as `render` otherwise.

        Drawn without anti-aliasing, so that a pixel shows one geom: the one in its middle.
        """
        camera_id(self.model, camera)
        self._segmenter = self._segmenter or Renderer(self.model, replace(self.task.render, msaa=0))
        self._pose_in(self._segmenter, self.state if state is None else state)
        return self._segmenter.segment(camera)

    def metadata_json(self) -> str:
        """What makes this environment, as JSON: robomimic's `env_args`."""
        made = {"env_name": self.task.spec.env_name, "env_version": robosuite.__version__, "type": 1}
        return json.dumps(made | {"env_kwargs": self.env_kwargs})

    def close(self) -> None:
        """Free OpenGL and the simulation."""
        for renderer in (self._renderer, self._segmenter):
            if renderer is not None:
                renderer.close()
        self._renderer = self._segmenter = None
        self.sim_env.close()

    def _pose(self, state: np.ndarray | None) -> mujoco.MjData:
        """Poses of `state` in data of their own: the simulation stays untouched."""
        state = self.state if state is None else state
        if self.render_images or self._renderer is not None:
            self._renderer = self._renderer or Renderer(self.model, self.task.render)
            return self._pose_in(self._renderer, state)
        self._data.qpos[:] = state[1 : 1 + self.model.nq]
        mujoco.mj_kinematics(self.model, self._data)
        return self._data

    def _pose_in(self, renderer: Renderer, state: np.ndarray) -> mujoco.MjData:
        """Have a renderer show `state`."""
        if self.fixtures:  # the renderer's copy of the model may be of another episode
            self._arrange(renderer.model, state[1 + renderer.model.nq + renderer.model.nv :])
        return renderer.pose(state[1 : 1 + self.model.nq])

    def _draw(self, camera: str, resolution: int | None = None) -> np.ndarray:
        assert self._renderer is not None
        return self._renderer.draw(camera, resolution)


def fixture_poses(xml: str, names: Sequence[str]) -> np.ndarray:
    """Where bodies stand in a model's XML, such as a demonstration's `model_file`: (n, 7), quaternions w x y z."""
    bodies = {body.get("name"): body for body in ElementTree.fromstring(xml).iter("body")}
    if absent := [name for name in names if name not in bodies]:
        raise PrismError(f"expected a model with {', '.join(names)}, this one lacks {', '.join(absent)}")
    values = {name: (bodies[name].get("pos", "0 0 0"), bodies[name].get("quat", "1 0 0 0")) for name in names}
    return np.array([" ".join(values[name]).split() for name in names], np.float64).reshape(-1, 7)
