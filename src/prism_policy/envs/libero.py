"""LIBERO's tasks behind the library's environment contract, started and judged as the benchmark does.

An episode of the split "evaluate" begins at one of the task's 50 published initial states, any other at a placement of
its own, drawn from the task's regions: what is evaluated is never trained on. Cabinets and stoves are not part of those
states; they are placed anew, from the episode's random generator, before each.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch
from xml.etree import ElementTree

import numpy as np

from prism_policy.envs.episode import episode_rng
from prism_policy.envs.libero_install import INSTALL, prepare_libero
from prism_policy.envs.rendering import Renderer
from prism_policy.envs.robosuite import ENV_KWARGS, RobosuiteEnv, fixture_poses
from prism_policy.envs.simulators import mujoco, robosuite
from prism_policy.errors import PrismError
from prism_policy.tasks.spec import LIBERO
from prism_policy.utils.observations import Observation

SETTLE_STEPS = 10  # steps of doing nothing before an episode begins: LIBERO lets objects fall from a small height
IDLE = np.array([0.0, 0, 0, 0, 0, 0, -1])  # the action that lets objects settle: stay, fingers open
ARM_NOISE = 0.02
"""Standard deviation of the arm's joints in the published initial states [rad]; own placements have the same."""
SHIFT = 0.08
"""Own placements in which things jump aside by more than this are drawn again [m]. LIBERO places some so that they
touch; its published states are picked ones."""


class LiberoEnv(RobosuiteEnv):
    """One task: `{"images": {camera: uint8 (H, W, 3)}, "state": float32 (9,)}` in, actions (7,) out.

    Observations, actions and methods are those of `RobosuiteEnv`; actions are deltas, gripper -1 opens, +1 closes.
    A state ends with where cabinet and stove stand, 7 numbers each: LIBERO's own leave that to the model's XML.

    ```
    env = LiberoEnv(TaskConfig("libero_spatial_3", max_steps=280))
    observation, info = env.reset(seed=0, options={"split": "evaluate", "episode": 7})  # initial state 7
    ```
    """

    simulator = LIBERO

    def _make(self) -> tuple[Any, dict[str, Any]]:
        root = prepare_libero()
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):  # advertisements
            from libero.libero.envs import TASK_MAPPING
            from libero.libero.envs.bddl_utils import get_problem_info
            from robosuite.models.bases import BASE_MAPPING, NullMount

        # rpent-libero 0.2.0 gives the living room's robot no mount, as robosuite 1.4 spelled it; 1.5 knows no None.
        BASE_MAPPING.setdefault(None, NullMount)
        settings = {
            "robots": ["Panda"],
            "controller_configs": robosuite.load_composite_controller_config(controller="BASIC", robot="Panda"),
            "initialization_noise": None,
            "use_object_obs": True,  # LIBERO fails without; the sensors are taken out afterwards
        } | ENV_KWARGS
        spec = self.task.spec
        bddl = str(root / "bddl_files" / spec.suite / f"{spec.env_name}.bddl")
        try:
            problem = get_problem_info(bddl)["problem_name"]
            with _seeded(0):
                sim_env = TASK_MAPPING[problem](bddl, **settings)
        except FileNotFoundError as error:
            raise PrismError(f"LIBERO's assets lack {error.filename}; {INSTALL} again") from error
        self.init_states = read_init_states(root / "init_files" / spec.suite / f"{spec.env_name}.pruned_init")
        # As every reset does: else a scene that has met none yet, as in the drawing of demonstrations, shows the grip's
        # marks, and a policy would learn from other images than it meets.
        sim_env.visualize(vis_settings=dict.fromkeys(sim_env._visualizations, False))
        return sim_env, settings

    def _prepare(self) -> None:
        self.fixtures = [thing.root_body for thing in self.sim_env.fixtures]
        self._fixture_ids = [self.model.body(name).id for name in self.fixtures]
        # Where the model's own file has them. LIBERO's placements take for granted that they still stand there.
        self._home = fixture_poses(self.sim_env.model.get_xml(), self.fixtures)
        self._lamps = _lamps(self.sim_env)
        self._gripper = self.sim_env.robots[0].gripper["right"]
        self._arm = np.array(self.sim_env.robots[0]._ref_joint_pos_indexes)
        self.whole_states(self.init_states, "", self.task.spec.env_name)  # refuses other sizes

    @property
    def lift_bodies(self) -> Sequence[str]:
        """Bodies that the goals name first: what is to be moved. A place on the table is no body."""
        return self._goal_bodies(1)

    @property
    def mask_bodies(self) -> Sequence[str]:
        """Bodies that the goals name: what is to be moved, and where to."""
        return self._goal_bodies(2)

    def _goal_bodies(self, last: int) -> list[str]:
        sim = self.sim_env
        names = [name for goal in sim.parsed_problem["goal_state"] for name in goal[1 : 1 + last]]
        known = {**sim.objects_dict, **(sim.fixtures_dict if last > 1 else {})}
        things = (thing for name in names for thing in known if name == thing or name.startswith(f"{thing}_"))
        return [known[thing].root_body for thing in dict.fromkeys(things)]

    @property
    def model_xml(self) -> str:
        """The model, with cabinet and stove where they stand in this episode."""
        root = ElementTree.fromstring(self._xml)
        bodies = {body.get("name"): body for body in root.iter("body")}
        for name in self.fixtures:
            body = self.model.body(name)
            for key in ("pos", "quat"):
                bodies[name].set(key, " ".join(map(repr, getattr(body, key).tolist())))
        return ElementTree.tostring(root, encoding="unicode")

    def whole_states(self, states: np.ndarray, model_file: str, source: str) -> np.ndarray:
        """Recorded states (T, ...) with the fixtures where the recording's XML has them, unless they are in there."""
        spec = self.task.spec
        plain, fixtures = self._state_size, 7 * len(self.fixtures)
        if states.ndim != 2 or states.shape[1] - plain not in (0, fixtures) or not np.isfinite(states).all():
            raise PrismError(
                f"{source}: expected finite states of {plain} numbers, those of task {spec.number} of "
                f"{spec.suite} ({spec.instruction!r}), got shape {states.shape}; is it of another task?"
            )
        if states.shape[1] == plain + fixtures:
            return states
        poses = fixture_poses(model_file, self.fixtures) if model_file else self._home
        return np.hstack([states, np.broadcast_to(poses.ravel(), (len(states), fixtures))])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; `seed` and `options` are those of `RobosuiteEnv`.

        The split "evaluate" starts from initial state `episode` modulo their number, others from their own placement.
        """
        options = options or {}
        split, episode = options.get("split", "evaluate"), options.get("episode", 0)
        rng = episode_rng(split, seed or 0, episode)
        if "state" in options:
            self._place(rng)
            self.set_state(np.asarray(options["state"], np.float64))
            # A new controller has been made, which would go on from where the arm stood after the placement.
            self.sim_env.robots[0].part_controllers["right"].update(force=True)
            left, right = self.sim_env.sim.data.qpos[self.fingers]
            # The hand opens and closes over some steps; where it was going is not part of the state.
            self._gripper.current_action = np.array([1.0, -1.0]) * (1.0 if left - right > 0.06 else -1.0)
        elif split == "evaluate":
            self._place(rng)
            self.set_state(self.init_states[episode % len(self.init_states)])
            self._settle()
        else:
            for _ in range(100):
                self._place(rng)
                state = self.state
                state[1 + self._arm] += ARM_NOISE * rng.standard_normal(len(self._arm))
                self.set_state(state)
                if self._settle() < SHIFT:
                    break
            else:
                raise PrismError(f"found no placement of {self.task.name}'s objects that keeps still")
        self.states = [self.state]
        return self.observe(), {"success": self.success}

    def metadata_json(self) -> str:
        """What makes this environment, as JSON: `env_args` of robomimic and LIBERO."""
        name, bddl = type(self.sim_env).__name__, f"{self.task.spec.suite}/{self.task.spec.env_name}.bddl"
        made = {"env_name": name, "env_version": robosuite.__version__, "type": 1, "problem_name": name.lower()}
        return json.dumps(made | {"bddl_file": bddl, "env_kwargs": self.env_kwargs | {"bddl_file_name": bddl}})

    def _place(self, rng: np.random.Generator) -> None:
        """Draw a placement of everything."""
        self._arrange(self.model, self._home)
        from robosuite.utils.errors import RandomizationError

        with _seeded(int(rng.integers(2**32))), patch("pdb.set_trace"):  # where LIBERO finds no room, it debugs
            for _ in range(20):
                with contextlib.suppress(RandomizationError):
                    self.sim_env.reset()
                    break
            else:
                raise PrismError(f"found no placement of {self.task.name}'s objects without overlap")
        self.set_state(self.state)

    def _settle(self) -> float:
        """Let objects fall; returns how far one has moved along the table [m]."""
        bodies = [self.model.body(thing.root_body).id for thing in self.sim_env.objects]
        before = self.sim_env.sim.data._data.xpos[bodies, :2]
        for _ in range(SETTLE_STEPS):
            self.sim_env.step(IDLE)
        self.set_state(self.state)  # a replay from the first state starts without the solver's memory, too
        moved = self.sim_env.sim.data._data.xpos[bodies, :2] - before
        return float(np.linalg.norm(moved, axis=1).max())

    def _pose_in(self, renderer: Renderer, state: np.ndarray) -> mujoco.MjData:
        model = renderer.model
        for site, address, threshold in self._lamps:
            model.site_rgba[site, 3] = float(state[1 + address] >= threshold)
        return super()._pose_in(renderer, state)


@contextlib.contextmanager
def _seeded(seed: int) -> Any:
    """LIBERO draws from numpy's global generator, which is nobody else's business."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


def _lamps(sim_env: Any) -> list[tuple[int, int, float]]:
    """What glows when it is on: site, address of the knob among the joints, and the angle from which it is [rad]."""
    model, lamps = sim_env.sim.model, []
    for thing in sim_env.fixtures:
        for site, _ in thing.object_properties["vis_site_names"].values():
            threshold = min(thing.object_properties["articulation"]["default_turnon_ranges"])
            lamps.append((model.site_name2id(site), int(model.get_joint_qpos_addr(thing.joints[0])), threshold))
    return lamps


class _ArrayUnpickler(pickle.Unpickler):
    """Knows nothing but numpy's arrays, so that a file cannot run anything."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return lambda text, encoding: text.encode(encoding)
        if module.removesuffix(".multiarray") in ("numpy", "numpy.core", "numpy._core"):
            if name == "_reconstruct":
                return np.core.multiarray._reconstruct  # type: ignore[attr-defined]
            if name in ("ndarray", "dtype"):
                return getattr(np, name)
        raise PrismError(f"expected a pickled array, found {module}.{name} in it")


def read_init_states(path: Path) -> np.ndarray:
    """Published initial states of a task, float64 (50, S): what `torch.load` returns, without torch."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(entry for entry in archive.namelist() if entry.endswith("data.pkl"))
            return np.asarray(_ArrayUnpickler(io.BytesIO(archive.read(name))).load(), np.float64)
    except (OSError, zipfile.BadZipFile, StopIteration, pickle.UnpicklingError) as error:
        raise PrismError(f"{path}: expected LIBERO's initial states ({error}); {INSTALL} again") from error
