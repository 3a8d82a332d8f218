"""Any robosuite task as a file recorded it: robots, controllers and placed bodies, whatever robosuite's version was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from community import OSC, env_args
from prism_policy.config.presets import task_config
from prism_policy.config.settings import TaskConfig
from prism_policy.data.recorded_env import recorded_env
from prism_policy.envs.any_robosuite import AnyRobosuiteEnv
from prism_policy.errors import PrismError

pytest.importorskip("robosuite", reason="needs prism-policy[sim]")
pytestmark = pytest.mark.slow  # each environment takes seconds to make


def env_of(name: str, **kwargs: object) -> AnyRobosuiteEnv:
    task = recorded_env(env_args("v0.1", name, **kwargs)).drawn_task("demos.hdf5")
    assert task.name == f"robosuite:{name}"
    return AnyRobosuiteEnv(task, render_images=False)


def test_a_door_stands_where_its_state_says_in_another_episode_too() -> None:
    env = env_of("Door")
    assert env.fixtures == ["Door_main"]
    env.reset(options={"episode": 0})
    there, state = env.model.body("Door_main").pos.copy(), env.state
    env.reset(options={"episode": 1})
    assert not np.allclose(env.model.body("Door_main").pos, there)
    env.set_state(state)
    np.testing.assert_array_equal(env.model.body("Door_main").pos, there)
    xml = '<mujoco><worldbody><body name="Door_main" pos="0.1 0.2 0.3" quat="0 1 0 0"/></worldbody></mujoco>'
    plain = state[: -7 * len(env.fixtures)]
    whole = env.whole_states(np.stack([plain, plain]), xml, "demos.hdf5, demo_0")
    np.testing.assert_array_equal(whole[:, -7:], [[0.1, 0.2, 0.3, 0, 1, 0, 0]] * 2)
    env.close()


def test_two_arms_have_the_parts_of_both_and_each_its_own_action() -> None:
    env = env_of("TwoArmHandover", robots=["Panda", "Panda"], env_configuration="single-arm-opposed")
    observation, _ = env.reset()
    assert list(env.part_sizes) == [
        f"robot{i}_{part}" for i in (0, 1) for part in ("eef_pos", "eef_quat", "gripper_qpos")
    ]
    assert (observation["state"].shape, env.action_space.shape) == ((18,), (14,))
    before = observation["state"]
    for _ in range(5):
        observation, *_ = env.step(np.eye(14)[9])  # the second arm, up
    moved = observation["state"] - before
    assert moved[11] > 0.01
    assert np.abs(moved[:3]).max() < 0.005
    env.close()


def test_the_state_that_a_policy_learned_is_observed_in_its_order() -> None:
    task = recorded_env(env_args("v0.1", "Wipe", controller=OSC)).drawn_task("demos.hdf5")
    env = AnyRobosuiteEnv(replace(task, state=("robot0_joint_pos", "robot0_eef_pos")), render_images=False)
    observation, _ = env.reset()
    assert (observation["state"].shape, env.action_space.shape) == ((10,), (6,))
    np.testing.assert_allclose(observation["state"][:7], env.sim_env.sim.data.qpos[:7], atol=1e-6)
    with pytest.raises(PrismError, match="unknown part of the state 'robot0_gripper_qpos'; it has robot0_eef_pos"):
        AnyRobosuiteEnv(replace(task, state=("robot0_gripper_qpos",)), render_images=False)
    env.close()


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        (task_config("robosuite:Juggle"), "robosuite 1.5.* has no task 'Juggle'; it has Door, "),
        (
            replace(task_config("robosuite:Door"), env_kwargs=json.dumps({"robots": ["Panda"], "wings": 2})),
            "robosuite:Door: robosuite cannot make it as it was recorded .*wings",
        ),
        (
            replace(
                task_config("robosuite:Door"), env_kwargs=json.dumps({"robots": ["Panda"], "controller_configs": 3})
            ),
            "expected the settings of a controller, got 3",
        ),
    ],
)
def test_what_robosuite_cannot_make_is_one_sentence(task: TaskConfig, sentence: str) -> None:
    with pytest.raises(PrismError, match=sentence):
        AnyRobosuiteEnv(task, render_images=False)


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(PrismError, match="expected robosuite's name of a task after 'robosuite:'"):
        task_config("robosuite:../Door")


@pytest.mark.parametrize(
    ("mimicgen", "known"),
    [
        ("from robosuite.environments.manipulation.lift import Lift\nclass Coffee_D0(Lift): pass", "True"),
        ("1 / 0", "False"),
    ],
)
def test_mimicgens_tasks_are_known_where_it_is_installed(tmp_path: Path, mimicgen: str, known: str) -> None:
    """Its tasks join robosuite's when it is imported; where it cannot be, that is said and robosuite's remain."""
    (tmp_path / "mimicgen.py").write_text(mimicgen)
    code = "from prism_policy.envs.simulators import robosuite_knows as k; print(k('Coffee_D0'), k('Lift'), k('Tea'))"
    paths = os.pathsep.join((str(tmp_path), *filter(None, (os.environ.get("PYTHONPATH"),))))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[-3:] == [known, "True", "False"]
    assert ("mimicgen is installed and cannot be imported" in done.stdout) == (known == "False")
