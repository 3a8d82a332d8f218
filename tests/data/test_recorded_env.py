"""What recorded a file, from the `env_args` of each generation of robomimic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import pytest

from community import RECORDED, demo, env_args, write_file
from prism_policy.data.recorded_env import looks_absolute, read_env_args, recorded_env
from prism_policy.errors import PrismError


@pytest.mark.parametrize(
    ("layout", "robosuite", "frame"), [("v0.1", "", "world"), ("v1.4", "1.4.1", "world"), ("v1.5", "1.5.1", "world")]
)
@pytest.mark.parametrize(
    ("env_name", "task"),
    [("Lift", "lift"), ("PickPlaceCan", "can"), ("NutAssemblySquare", "square"), ("ToolHang", "tool_hang")],
)
def test_every_generation_is_understood(layout: str, robosuite: str, frame: str, env_name: str, task: str) -> None:
    env = recorded_env(env_args(layout, env_name, camera_names=["agentview", "robot0_eye_in_hand"]))
    assert (env.layout, env.robosuite, env.task, env.robots) == (layout, robosuite, task, ("Panda",))
    assert (env.controller, env.action_mode, env.reference_frame) == ("OSC_POSE", "delta", frame)
    assert (env.scene_trouble, env.control_trouble) == ("", "")
    assert env.cameras == ("agentview", "robot0_eye_in_hand")
    config = env.task_config("file")
    assert (config.name, config.reference_frame) == (task, frame)


def test_robosuite_15_without_a_reference_frame_means_the_base() -> None:
    """Its default, and what this library's own demonstrations say."""
    about = env_args("v1.5")
    arm = about["env_kwargs"]["controller_configs"]["body_parts"]["right"]
    del arm["input_ref_frame"]
    assert recorded_env(about).reference_frame == "base"
    about["env_kwargs"]["controller_configs"]["body_parts"] = {"arms": {"right": arm}}  # as in robosuite's own JSON
    assert recorded_env(about).controller == "OSC_POSE"


@pytest.mark.parametrize(("robot", "arms"), [("Panda", 1), ("Baxter", 2)])
def test_a_left_arm_that_the_robot_does_not_have_is_no_arm(robot: str, arms: int) -> None:
    """robosuite 1.5 writes the controllers of both for any robot, as in this library's own demonstrations."""
    about = env_args("v1.5")
    about["env_kwargs"]["robots"] = robot
    parts = about["env_kwargs"]["controller_configs"]["body_parts"]
    parts["left"] = parts["right"]
    assert [part.name for part in recorded_env(about).action_parts(7 * arms)][-1].endswith("gripper")


@pytest.mark.parametrize(
    ("layout", "controller", "mode"),
    [
        ("v1.4", {"control_delta": False}, "absolute"),
        ("v1.5", {"control_delta": False}, "absolute"),  # robomimic goes on writing it
        ("v1.5", {"control_delta": True, "input_type": "absolute"}, "absolute"),  # robosuite reads this one
        ("v1.5", {"control_delta": False, "input_type": "delta"}, "delta"),
    ],
)
def test_absolute_actions_are_told_from_deltas(layout: str, controller: dict[str, Any], mode: str) -> None:
    env = recorded_env(env_args(layout, controller=controller))
    assert (env.action_mode, env.task_config("file").action_mode, env.control_trouble) == (mode, mode, "")


def test_files_of_diffusion_policy_are_known_by_their_actions() -> None:
    """It writes absolute actions beside `env_args` that still say delta."""
    actions = demo()["actions"]
    assert not looks_absolute(actions)
    actions[2, 3] = -3.1  # one delta that overshoots
    assert not looks_absolute(actions)
    actions[:, 3] = -3.1
    assert looks_absolute(actions)
    assert recorded_env(env_args("v1.4"), looks_absolute(actions)).action_mode == "absolute"


@pytest.mark.parametrize(
    ("about", "sentence"),
    [
        ({}, "does not say which environment recorded it"),
        (env_args("v1.5", "TwoArmTransport", robots=["Panda", "Panda"]), "PickPlaceCan.* got 'TwoArmTransport'"),
        (env_args("v1.4", robots=["Sawyer"]), "expected one robot, Panda, got Sawyer"),
        (env_args("v1.4", gripper_types=["Robotiq85Gripper"]), "expected the Panda's own gripper, got .*Robotiq85"),
        ({**env_args("v1.5"), "env_version": "1.6.0"}, "written by robosuite 1.6.0; this library runs up to 1.5"),
        ({**env_args("v1.5"), "env_version": "2.0"}, "written by robosuite 2.0"),
        ({**env_args("v1.4"), "type": 3}, r"expected a robosuite environment \(type 1\), got 'Lift' of type 3"),
        (
            {**env_args("v1.4"), "type": 2},
            "recorded in an environment of gymnasium, which --task gym:Lift would roll out",
        ),
        ({**env_args("v1.4"), "type": 2, "env_name": ""}, "no environment recorded it; success is what trials"),
    ],
)
def test_scenes_that_cannot_be_made_here_are_one_sentence(about: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PrismError, match=f"demos.hdf5: .*{sentence}"):
        recorded_env(about).task_config("demos.hdf5", actions=False)


@pytest.mark.parametrize(
    ("about", "sentence"),
    [
        (env_args("v1.4", controller={"type": "OSC_POSITION"}), "for the controller OSC_POSE, got OSC_POSITION"),
        (env_args("v1.5", controller={"kp": 300}), "OSC_POSE with kp 150, got 300"),
        (env_args("v1.4", controller={"output_max": [0.1] * 6}), "OSC_POSE with output_max .* got"),
        (env_args("v1.4", controller={"impedance_mode": "variable"}), "impedance_mode fixed, got variable"),
        (
            env_args("v1.5", controller_configs={"type": "WHOLE_BODY_IK", "body_parts": {"right": {"a": 1}}}),
            "got WHOLE_B",
        ),
        (env_args("v1.4", control_freq=10), "at 20 Hz, got 10"),
        (env_args("v1.5", controller={"input_type": "absolute", "input_ref_frame": "base"}), "in the world's frame"),
        (env_args("v1.4", controller_configs=None), "does not say which controller"),
    ],
)
def test_actions_that_cannot_be_executed_here_are_one_sentence(about: dict[str, Any], sentence: str) -> None:
    env = recorded_env(about)
    assert env.task_config("demos.hdf5", actions=False).name == "lift"
    with pytest.raises(PrismError, match=f"demos.hdf5: .*{sentence}"):
        env.task_config("demos.hdf5")


def test_a_real_recording_of_robosuite_141_is_understood() -> None:
    with h5py.File(RECORDED) as file:
        env = recorded_env(read_env_args(file))
    assert (env.robosuite, env.layout, env.task, env.scene_trouble, env.control_trouble) == (
        "1.4.1",
        "v1.4",
        "lift",
        "",
        "",
    )


def test_robosuites_own_collection_script_is_understood(tmp_path: Path) -> None:
    """It writes `env`, `env_info` and `repository_version` where robomimic has `env_args`."""
    path = write_file(tmp_path / "demo.hdf5", {"demo_1": demo()}, None)
    with h5py.File(path, "a") as file:
        file["data"].attrs["env"] = "Lift"
        file["data"].attrs["repository_version"] = "1.4.1"
        file["data"].attrs["env_info"] = '{"robots": ["Panda"], "controller_configs": {"type": "OSC_POSE"}}'
    with h5py.File(path) as file:
        env = recorded_env(read_env_args(file))
    assert (env.task, env.robosuite, env.control_trouble) == ("lift", "1.4.1", "")


def test_env_args_that_are_no_json_are_one_sentence(tmp_path: Path) -> None:
    path = write_file(tmp_path / "demos.hdf5", {"demo_0": demo()}, None)
    for wrong in ("Lift", "[1]", "3"):
        with h5py.File(path, "a") as file:
            file["data"].attrs["env_args"] = wrong
        with h5py.File(path) as file, pytest.raises(PrismError, match=r"demos.hdf5: expected `env_args` to be a JSON"):
            read_env_args(file)
