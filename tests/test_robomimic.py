"""robomimic's HDF5 layout: what is written is read back, and what is wrong is said."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from prism_policy.data.robomimic import merge_demos, read_attributes, read_demos, write_demo
from prism_policy.errors import PrismError

T = 5


def demo_arrays(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "actions": rng.uniform(-1, 1, (T, 7)),
        "states": rng.standard_normal((T, 32)),
        "rewards": np.zeros(T),
        "dones": np.zeros(T, np.int64),
        "obs/agentview_image": rng.integers(0, 255, (T, 8, 8, 3), np.uint8),
        "obs/robot0_eef_pos": rng.standard_normal((T, 3)),
        "obs/robot0_eef_quat": rng.standard_normal((T, 4)),
        "obs/robot0_gripper_qpos": rng.standard_normal((T, 2)),
    }


def write(path: Path, *demos: dict[str, np.ndarray]) -> Path:
    parts = []
    for i, arrays in enumerate(demos):
        parts.append(path.with_name(f"part_{i}.hdf5"))
        with h5py.File(parts[-1], "w") as file:
            write_demo(file.create_group("demo"), arrays, {"model_file": "<mujoco/>"})
    merge_demos(parts, path, '{"env_name": "Lift"}', {"render": '{"resolution": 8}'})
    return path


def test_demos_come_back_as_written_in_numeric_order(tmp_path: Path) -> None:
    written = [demo_arrays(seed) for seed in range(11)]
    episodes = read_demos(write(tmp_path / "demos.hdf5", *written))
    assert [episode.name for episode in episodes] == [f"demo_{i}" for i in range(11)]
    for arrays, episode in zip(written, episodes, strict=True):
        np.testing.assert_array_equal(episode.images["agentview"], arrays["obs/agentview_image"])
        np.testing.assert_array_equal(episode.states, arrays["states"])
        np.testing.assert_array_equal(episode.actions, arrays["actions"].astype(np.float32))
        np.testing.assert_array_equal(episode.proprio[:, 3:7], arrays["obs/robot0_eef_quat"].astype(np.float32))
        assert len(episode) == T


def test_pushed_steps_are_known_where_recorded(tmp_path: Path) -> None:
    pushed = np.array([False, True, True, False, False])
    path = write(tmp_path / "demos.hdf5", {**demo_arrays(), "disturbed": pushed}, demo_arrays(1))
    first, second = read_demos(path)
    assert first.disturbed.tolist() == pushed.tolist()
    assert not second.disturbed.any()


def test_attributes_follow_robomimic(tmp_path: Path) -> None:
    path = write(tmp_path / "demos.hdf5", demo_arrays(0), demo_arrays(1))
    attributes = read_attributes(path)
    assert (attributes["total"], attributes["env_args"]["env_name"]) == (2 * T, "Lift")
    with h5py.File(path) as file:
        assert file["data/demo_1"].attrs["num_samples"] == T
        assert file["data/demo_1/obs/agentview_image"].compression == "gzip"


def test_a_model_file_beyond_64_kb_is_kept(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "part.hdf5", "w", libver="latest") as file:
        write_demo(file.create_group("demo"), demo_arrays(), {"model_file": "x" * 300_000})
    merge_demos([tmp_path / "part.hdf5"], tmp_path / "demos.hdf5", "{}")
    with h5py.File(tmp_path / "demos.hdf5") as file:
        assert len(file["data/demo_0"].attrs["model_file"]) == 300_000


def test_masks_choose_demos(tmp_path: Path) -> None:
    path = write(tmp_path / "demos.hdf5", demo_arrays(0), demo_arrays(1), demo_arrays(2))
    with h5py.File(path, "a") as file:
        file["mask/worse"] = np.array([b"demo_2"])
    assert [episode.name for episode in read_demos(path, mask="worse")] == ["demo_2"]
    with pytest.raises(PrismError, match="no mask 'better'; it has train, valid, worse"):
        read_demos(path, mask="better")


def test_a_file_of_states_alone_is_read(tmp_path: Path) -> None:
    arrays = {key: values for key, values in demo_arrays().items() if not key.startswith("obs/")}
    (episode,) = read_demos(write(tmp_path / "demos.hdf5", arrays))
    assert (episode.images, episode.proprio.shape) == ({}, (T, 0))


def test_an_unknown_camera_is_named_with_those_the_file_holds(tmp_path: Path) -> None:
    path = write(tmp_path / "demos.hdf5", demo_arrays())
    with pytest.raises(PrismError, match="unknown camera 'front'; the file has 'agentview'"):
        read_demos(path, cameras=["front"])


def test_actions_that_are_not_finite_name_demo_and_step(tmp_path: Path) -> None:
    bad = demo_arrays()
    bad["actions"][3, 2] = np.nan
    with pytest.raises(PrismError, match="demo_1: actions are not finite at step 3"):
        read_demos(write(tmp_path / "demos.hdf5", demo_arrays(), bad))


def test_images_of_unequal_shape_are_refused(tmp_path: Path) -> None:
    other = {**demo_arrays(), "obs/agentview_image": np.zeros((T, 9, 9, 3), np.uint8)}
    with pytest.raises(
        PrismError, match=r"demo_1: expected images .* of one shape, \(8, 8, 3\) as in most demos, got \(9, 9, 3\)"
    ):
        read_demos(write(tmp_path / "demos.hdf5", demo_arrays(), other))


def test_arrays_of_unequal_length_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "demos.hdf5", demo_arrays())
    with h5py.File(path, "a") as file:
        del file["data/demo_0/states"]
        file["data/demo_0/states"] = np.zeros((T - 1, 32))
    with pytest.raises(PrismError, match="expected 5 steps everywhere"):
        read_demos(path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "demos.hdf5", demo_arrays())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(PrismError, match="not a readable HDF5 file, or it is cut short"):
        read_demos(path)


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["voltage"] = np.zeros(3)
    with pytest.raises(PrismError, match=r"expected robomimic's layout .* found voltage"):
        read_demos(tmp_path / "other.hdf5")


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(PrismError, match="not found"):
        read_demos(tmp_path / "none.hdf5")
