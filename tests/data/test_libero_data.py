"""LIBERO's HDF5: actions beside what caused them, upright images, the right task; files here are synthetic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from libero_files import export_libero, to_axis_angle
from prism_policy.cli.demos import Import
from prism_policy.config import presets
from prism_policy.config.settings import TaskConfig, single_tasks
from prism_policy.data.libero import (
    describe_libero,
    import_libero,
    libero_episodes,
)
from prism_policy.data.robomimic import read_demos
from prism_policy.demos.dataset import libero_files
from prism_policy.errors import PrismError
from prism_policy.tasks import SPECS, task_spec
from prism_policy.tasks.libero import SUITES, find_task, wordings

TITLE = SUITES["libero_spatial"][3]
STEPS = (6, 9)


def write_libero(path: Path, title: str = TITLE, **attributes: Any) -> None:
    """A file as `create_dataset.py` writes it: frame t shows t + 1, what action t led to; the top row is marked."""
    spoken = wordings(title)[-1]
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"domain_name": "robosuite", "language_instruction": spoken})
        data.attrs["bddl_file_name"] = f"chiliocosm/bddl_files/libero_spatial/{title}.bddl"
        data.attrs["env_args"] = json.dumps({"type": 1, "env_name": "Libero_Tabletop_Manipulation"})
        data.attrs["macros_image_convention"] = "opengl"
        for name, value in attributes.items():
            data.attrs[name] = value
        for i, steps in enumerate(STEPS):
            demo = data.create_group(f"demo_{i}")
            before, after = np.arange(steps, dtype=np.float64), np.arange(1, steps + 1, dtype=np.float64)
            demo["actions"] = np.repeat(before[:, None] / 100, 7, axis=1)
            demo["states"] = np.repeat(before[:, None], 92, axis=1)
            robot = np.repeat(after[:, None], 9, axis=1)
            demo["robot_states"] = robot + np.arange(9) / 10
            demo["rewards"] = demo["dones"] = (before == steps - 1).astype(np.uint8)
            for key in ("agentview_rgb", "eye_in_hand_rgb"):
                frames = np.zeros((steps, 128, 128, 3), np.uint8)
                frames[:] = after[:, None, None, None]
                frames[:, -1] = 200  # the last row in the file is the top one
                demo[f"obs/{key}"] = frames
            demo.attrs["model_file"] = "<mujoco/>"
            demo.attrs["num_samples"] = steps


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    path = tmp_path / f"{TITLE}_demo.hdf5"
    write_libero(path)
    return path


def test_an_action_stands_beside_what_was_seen_before_it(recorded: Path) -> None:
    for episode, steps in zip(libero_episodes(recorded), STEPS, strict=True):
        seen = episode.images["agentview"][:, 64, 0, 0]
        assert len(episode) == steps - 1  # nothing was recorded before the first
        assert np.array_equal(seen, episode.sim_states[:, 0])
        assert np.allclose(episode.actions[:, 0] * 100, seen)
        assert np.allclose(episode.state[:, 0], seen + 0.2, atol=1e-5)  # the position follows the two fingers


def test_images_stand_upright(recorded: Path) -> None:
    episode = next(libero_episodes(recorded))
    for frames in episode.images.values():
        assert (frames[:, 0] == 200).all()
        assert (frames[:, -1] != 200).all()


def test_state_is_position_quaternion_fingers(recorded: Path) -> None:
    row = next(libero_episodes(recorded)).state[0]
    assert np.allclose(row - row[0], [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, -0.2, -0.1], atol=1e-5)


def test_the_task_is_told_by_name_and_instruction(recorded: Path) -> None:
    actual = describe_libero(recorded, "libero_spatial")
    assert (actual.task.suite, actual.task.number) == ("libero_spatial", 3)
    assert actual.instruction == "pick up the akita black bowl on the cookies box and place it on the plate"
    assert actual.task.instruction == "pick up the black bowl on the cookie box and place it on the plate"
    assert actual.demos == ("demo_0", "demo_1")


def test_an_import_reads_as_this_librarys_demonstrations(recorded: Path, tmp_path: Path) -> None:
    target = import_libero(recorded, tmp_path / "ours.hdf5", "libero_spatial")
    ours = read_demos(target, ["agentview", "robot0_eye_in_hand"])
    for episode, theirs in zip(ours, libero_episodes(recorded), strict=True):
        assert np.array_equal(episode.images["agentview"], theirs.images["agentview"])
        assert np.array_equal(episode.state, theirs.state)
        assert np.array_equal(episode.actions, theirs.actions)
        assert np.array_equal(episode.sim_states, theirs.sim_states)
    with h5py.File(target) as file:
        assert file["data"].attrs["libero_task"] == TITLE
        assert set(file["mask"]) == {"train", "valid"}


def test_a_folder_of_liberos_files_becomes_a_dataset_of_their_suite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = [presets.task_config(name) for name in task_spec("libero_spatial").members[3:5]]
    (tmp_path / "theirs").mkdir()
    for task in tasks:
        write_libero(tmp_path / "theirs" / f"{task.spec.env_name}_demo.hdf5", task.spec.env_name)
    Import(tmp_path / "theirs", tmp_path / "ours", "libero_spatial").run()
    assert f"Next: prism render {tmp_path / 'ours'}" in capsys.readouterr().out
    assert [file.name for file in libero_files(tmp_path / "ours", tasks).values()] == [
        f"{task.spec.env_name}_demo.hdf5" for task in tasks
    ]
    with pytest.raises(PrismError, match="ours exists; choose another --out"):
        Import(tmp_path / "theirs", tmp_path / "ours").run()
    with pytest.raises(PrismError, match="expected LIBERO's HDF5 files in this folder, got none"):
        Import(tmp_path, tmp_path / "other").run()


def test_a_round_trip_keeps_every_step(recorded: Path, tmp_path: Path) -> None:
    ours = import_libero(recorded, tmp_path / "ours.hdf5")
    theirs = export_libero(ours, tmp_path / "theirs.hdf5", find_task(TITLE))
    again = import_libero(theirs, tmp_path / "again.hdf5")
    cameras = ["agentview", "robot0_eye_in_hand"]
    for a, b in zip(read_demos(ours, cameras), read_demos(again, cameras), strict=True):
        for camera in cameras:
            assert np.array_equal(a.images[camera], b.images[camera])
        assert np.array_equal(a.state, b.state)
        assert np.array_equal(a.actions, b.actions)
        assert np.array_equal(a.sim_states, b.sim_states)


def test_what_is_exported_has_liberos_shift_and_rows(recorded: Path, tmp_path: Path) -> None:
    ours = import_libero(recorded, tmp_path / "ours.hdf5")
    with h5py.File(export_libero(ours, tmp_path / "theirs.hdf5", find_task(TITLE))) as file, h5py.File(recorded) as old:
        new, old = file["data/demo_1"], old["data/demo_1"]
        assert np.array_equal(new["actions"][:], old["actions"][1:])
        assert np.array_equal(new["obs/agentview_rgb"][:-1], old["obs/agentview_rgb"][1:-1])
        assert np.allclose(new["robot_states"][:-1], old["robot_states"][1:-1])
        assert new["obs/ee_states"].shape == (STEPS[1] - 1, 6)
        assert new["obs/joint_states"].shape == (STEPS[1] - 1, 7)
        assert file["data"].attrs["macros_image_convention"] == "opengl"


def test_the_axis_angle_does_not_jump_at_half_a_turn() -> None:
    angles = np.linspace(np.pi - 0.1, np.pi + 0.1, 21)
    quaternions = np.stack([np.sin(angles / 2), 0 * angles, 0 * angles, np.cos(angles / 2)], axis=1)
    assert np.allclose(to_axis_angle(quaternions)[:, 0], angles)
    assert np.array_equal(to_axis_angle(np.array([[0.0, 0, 0, 1]])), np.zeros((1, 3)))


def test_a_file_of_another_suite_is_refused(recorded: Path) -> None:
    with pytest.raises(PrismError, match=r"expected a task of libero_10, got .* of libero_spatial"):
        describe_libero(recorded, "libero_10")


def test_an_instruction_of_another_task_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x_demo.hdf5"
    write_libero(path, problem_info=json.dumps({"language_instruction": "open the window"}))
    with pytest.raises(PrismError, match="got 'open the window'; one of the two is wrong"):
        describe_libero(path)


def test_an_unknown_task_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x_demo.hdf5"
    write_libero(path, bddl_file_name="open_the_window.bddl")
    with pytest.raises(PrismError, match="unknown LIBERO task 'open_the_window'"):
        describe_libero(path)


def test_robomimics_layout_is_told_apart(recorded: Path, tmp_path: Path) -> None:
    ours = import_libero(recorded, tmp_path / "ours.hdf5")
    with pytest.raises(PrismError, match="robomimic's needs no import"):
        describe_libero(ours)


def test_a_demo_cut_short_is_named(recorded: Path) -> None:
    with h5py.File(recorded, "r+") as file:
        del file["data/demo_1/states"]
        file["data/demo_1/states"] = np.zeros((3, 92))
    with pytest.raises(PrismError, match=r"demo_1: expected 9 steps everywhere, got states of shape \(3, 92\)"):
        list(libero_episodes(recorded))


def test_an_unknown_camera_is_named(recorded: Path) -> None:
    with pytest.raises(PrismError, match=r"unknown camera 'frontview'.*has 'agentview', 'robot0_eye_in_hand'"):
        next(libero_episodes(recorded, ["frontview"]))


def test_a_failed_import_leaves_nothing(recorded: Path, tmp_path: Path) -> None:
    with h5py.File(recorded, "r+") as file:
        file["data/demo_1/actions"][3] = np.nan
    with pytest.raises(PrismError, match="demo_1: actions are not finite"):
        import_libero(recorded, tmp_path / "ours.hdf5")
    assert sorted(p.name for p in tmp_path.iterdir()) == [recorded.name]


def test_suites_have_their_tasks_and_sentences_no_scene() -> None:
    assert {suite: len(titles) for suite, titles in SUITES.items()} == {
        "libero_spatial": 10, "libero_object": 10, "libero_goal": 10, "libero_10": 10, "libero_90": 90,
    }  # fmt: skip
    assert len(task_spec("libero_10").members) == 10
    assert task_spec("libero_10_2").instruction == "turn on the stove and put the moka pot on it"
    assert not any("SCENE" in spec.instruction for spec in SPECS.values())
    with pytest.raises(PrismError, match=r"unknown task 'libero_99'; there are lift.* libero_spatial"):
        task_spec("libero_99")
    with pytest.raises(PrismError, match="expected a task from 0 to 9, got 10"):
        single_tasks(TaskConfig("libero_10", numbers=(10,)))
