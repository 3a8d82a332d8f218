"""robomimic's HDF5 layout: what is written is read back, and what is wrong is said."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

import community
from prism_policy.data.robomimic import iter_demos, merge_demos, read_attributes, read_demos, write_demo, write_masks
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
        np.testing.assert_array_equal(episode.sim_states, arrays["states"])
        np.testing.assert_array_equal(episode.actions, arrays["actions"].astype(np.float32))
        np.testing.assert_array_equal(episode.state[:, 3:7], arrays["obs/robot0_eef_quat"].astype(np.float32))
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
    assert (episode.images, episode.state.shape) == ({}, (T, 0))


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


@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("layout", ["v0.1", "v1.4", "v1.5"])
def test_files_of_every_generation_are_read(layout: str, compression: str | None, tmp_path: Path) -> None:
    """low_dim and image files, by plain h5py: with and without images, `next_obs`, compression; names in any order."""
    written = {f"demo_{i}": community.demo(4 + i, i, ("agentview",)) for i in (123, 7, 0)}
    about = community.env_args(layout)
    path = community.write_file(tmp_path / "image.hdf5", written, about, {"worse": ["demo_7"]}, compression)
    episodes = read_demos(path, cameras=["agentview"])
    assert [episode.name for episode in episodes] == ["demo_0", "demo_7", "demo_123"]
    for episode in episodes:
        arrays = written[episode.name]
        np.testing.assert_array_equal(episode.images["agentview"], arrays["obs/agentview_image"])
        low_dim = [arrays[f"obs/robot0_{key}"] for key in ("eef_pos", "eef_quat", "gripper_qpos")]
        np.testing.assert_array_equal(episode.state, np.concatenate(low_dim, axis=1).astype(np.float32))
        np.testing.assert_array_equal(episode.sim_states, arrays["states"])
    assert read_attributes(path)["env_args"] == about
    assert [episode.name for episode in read_demos(path, [], "worse")] == ["demo_7"]


def test_a_demo_file_without_observations_rewards_and_env_args_is_read(tmp_path: Path) -> None:
    """robosuite's own collection, before robomimic converts it; it begins at demo_1."""
    written = {"demo_1": community.demo(3)}
    path = community.write_file(tmp_path / "demo.hdf5", written, None, only=("actions", "states"))
    (episode,) = read_demos(path)
    assert (episode.images, episode.extras, episode.state.shape) == ({}, {}, (3, 0))
    np.testing.assert_array_equal(episode.sim_states, written["demo_1"]["states"])


def test_a_mask_that_names_absent_demos_is_refused(tmp_path: Path) -> None:
    path = community.write_file(
        tmp_path / "demos.hdf5", {"demo_0": community.demo()}, None, {"train": ["demo_0", "demo_4", "demo_5"]}
    )
    with pytest.raises(PrismError, match="mask 'train' names demo_4, demo_5, which the file does not hold"):
        read_demos(path, mask="train")
    write_masks(path)
    assert len(read_demos(path, mask="train")) == 1


def test_an_empty_mask_is_said(tmp_path: Path) -> None:
    path = community.write_file(tmp_path / "demos.hdf5", {"demo_0": community.demo()}, None, {"valid": []})
    with pytest.raises(PrismError, match="at least one demo in mask 'valid', got none"):
        read_demos(path, mask="valid")


@pytest.mark.parametrize("share", [0.1, 0.25, 0.99])
def test_masks_split_by_demo_the_same_everywhere(share: float, tmp_path: Path) -> None:
    demos = {f"demo_{i}": community.demo(2, i) for i in range(20)}
    splits = []
    for seed in (0, 0, 1):
        path = community.write_file(tmp_path / "demos.hdf5", demos, None, {"train": ["demo_3"]})
        write_masks(path, share, seed)
        with h5py.File(path) as file:
            splits.append({mask: [name.decode() for name in file[f"mask/{mask}"][:]] for mask in ("train", "valid")})
        train, valid = splits[-1]["train"], splits[-1]["valid"]
        assert sorted(train + valid) == sorted(demos)
        assert len(valid) == min(round(20 * share), 19)
    assert splits[0] == splits[1]
    assert splits[0] != splits[2] or share == 0.99


def test_a_share_out_of_range_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    path = community.write_file(tmp_path / "demos.hdf5", {"demo_0": community.demo()}, None, {"train": ["demo_0"]})
    before = path.read_bytes()
    with pytest.raises(PrismError, match="between 0 and 1, got 1"):
        write_masks(path, 1)
    assert path.read_bytes() == before


def test_merging_writes_masks_and_keeps_names_if_told(tmp_path: Path) -> None:
    write(tmp_path / "a.hdf5", *(demo_arrays(i) for i in range(10)))
    parts = [tmp_path / f"part_{i}.hdf5" for i in range(3)]
    merge_demos(parts, tmp_path / "b.hdf5", "{}", None, ["demo_5", "demo_2", "demo_9"], {"20_percent": ["demo_9"]})
    with h5py.File(tmp_path / "a.hdf5") as file:
        assert (len(file["mask/train"]), len(file["mask/valid"])) == (9, 1)
    with h5py.File(tmp_path / "b.hdf5") as file:
        np.testing.assert_array_equal(file["data/demo_2/states"], demo_arrays(1)["states"])
        assert list(file["mask"]) == ["20_percent"]


def test_next_obs_is_what_followed(tmp_path: Path) -> None:
    arrays = demo_arrays()
    with h5py.File(tmp_path / "demo.hdf5", "w") as file:
        write_demo(file.create_group("demo"), arrays, {}, next_obs=True)
        for key in ("agentview_image", "robot0_eef_pos"):
            np.testing.assert_array_equal(file[f"demo/next_obs/{key}"][:-1], arrays[f"obs/{key}"][1:])
            np.testing.assert_array_equal(file[f"demo/next_obs/{key}"][-1], arrays[f"obs/{key}"][-1])


def harmed(path: Path) -> tuple[Path, dict[str, str]]:
    """Two good demos, and one of each kind of bad one with what is said of it."""
    demos = {f"demo_{i}": community.demo(5, i, ("agentview",)) for i in range(9)}
    demos["demo_1"]["actions"][2, 0] = np.nan
    demos["demo_2"]["obs/agentview_image"] = np.zeros((5, 9, 9, 3), np.uint8)
    demos["demo_3"]["states"] = np.zeros((4, 32))
    demos["demo_4"]["actions"] = np.zeros((5, 14))
    del demos["demo_5"]["obs/agentview_image"]
    demos["demo_6"]["obs/agentview_image"] = np.zeros((5, 8, 8, 3), np.float32)
    demos["demo_7"]["obs/robot0_eef_pos"] = np.zeros((5, 2))
    community.write_file(path, demos, community.env_args("v1.5"))
    return path, {
        "demo_1": "actions are not finite at step 2",
        "demo_2": "of one shape, (8, 8, 3) as in most demos, got (9, 9, 3)",
        "demo_3": "expected 5 steps everywhere, got states of shape (4, 32)",
        "demo_4": "expected actions of shape (T, 7), got (5, 14)",
        "demo_5": "unknown camera 'agentview'; the file has no images",
        "demo_6": "expected images of 'agentview' as uint8 (T, H, W, 3), got float32 (5, 8, 8, 3)",
        "demo_7": "expected obs/robot0_eef_pos of shape (T, 3), got (5, 2)",
    }


def test_bad_demos_are_named_and_left_out_only_if_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, reasons = harmed(tmp_path / "demos.hdf5")
    with pytest.raises(PrismError, match="demo_1: actions are not finite at step 2"):
        read_demos(path)
    assert [episode.name for episode in read_demos(path, skip_bad=True)] == ["demo_0", "demo_8"]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(reasons)
    for line, (name, reason) in zip(lines, reasons.items(), strict=True):
        assert line.startswith(f"demos.hdf5: left out {name}: ")
        assert reason in line


def test_nothing_but_bad_demos_is_an_error(tmp_path: Path) -> None:
    bad = community.demo()
    bad["actions"][:] = np.inf
    path = community.write_file(tmp_path / "demos.hdf5", {"demo_0": bad}, None)
    with pytest.raises(PrismError, match="no usable demo among 1; demo_0: actions are not finite at step 0"):
        read_demos(path, skip_bad=True)


def test_a_demo_whose_data_are_damaged_is_named(tmp_path: Path) -> None:
    """A flipped byte in a compressed image: HDF5 notices when it is read."""
    demos = {f"demo_{i}": community.demo(5, i, ("agentview",), 32) for i in range(2)}
    path = community.write_file(tmp_path / "demos.hdf5", demos, None, compression="gzip")
    with h5py.File(path) as file:
        chunk = file["data/demo_1/obs/agentview_image"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + 64] = bytes(64)
    path.write_bytes(content)
    with pytest.raises(PrismError, match="demo_1: damaged, cannot be read"):
        read_demos(path)
    assert [episode.name for episode in read_demos(path, skip_bad=True)] == ["demo_0"]


def test_absolute_actions_are_asked_for_where_there_are_none(tmp_path: Path) -> None:
    path = community.write_file(tmp_path / "demos.hdf5", {"demo_0": community.demo()}, None)
    with pytest.raises(PrismError, match="demo_0: no absolute actions"):
        list(iter_demos(path, action_mode="absolute"))
