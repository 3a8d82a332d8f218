"""Any robot's HDF5 as a source: keys, names and numbers are the file's; what does not fit is one sentence."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

import community
from prism_policy.data.schema import Part, Schema, numbers_of, slices
from prism_policy.data.source import open_source, split_demos
from prism_policy.errors import PrismError
from recordings import write_recording


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_recording(tmp_path / "takes.hdf5")


def test_the_schema_is_what_the_file_holds(path: Path) -> None:
    source = open_source(path)
    assert source.schema.cameras == {"front": (48, 64), "wrist_rgb": (40, 40)}
    assert [(part.name, part.size) for part in source.schema.state] == [
        ("arm_qpos", 5), ("arm_touch", 1), ("unused", 3)
    ]  # fmt: skip
    assert (source.schema.action, source.schema.fps) == ((Part("actions", 6),), None)
    assert source.names == ("take_8", "take_9", "take_10", "take_11")


def test_episodes_hold_the_chosen_cameras_and_parts_in_the_chosen_order(path: Path) -> None:
    source = open_source(path)
    schema = source.schema.select(["wrist_rgb"], ["arm_touch", "arm_qpos"])
    (episode,) = source.episodes(["take_10"], schema)
    with h5py.File(path) as file:
        demo = file["data/take_10"]
        np.testing.assert_array_equal(episode.images["wrist_rgb"], demo["obs/wrist_rgb"])
        expected = np.column_stack([demo["obs/arm/touch"], demo["obs/arm/qpos"]]).astype(np.float32)
        np.testing.assert_array_equal(episode.state, expected)
        np.testing.assert_array_equal(episode.actions, demo["actions"])  # joints in degrees: nothing is clipped
    assert (list(episode.images), episode.clipped) == (["wrist_rgb"], 0)


def test_a_mask_is_chosen_by_name(path: Path) -> None:
    source = open_source(path)
    assert split_demos(source)[:2] == (["take_8", "take_9", "take_10"], ["take_11"])
    assert split_demos(source, "few")[:2] == (["take_9"], ["take_11"])


@pytest.mark.parametrize(
    ("arms", "width", "parts"),
    [
        (["OSC_POSE"], 7, ["position 3", "rotation 3", "gripper 1"]),
        (["OSC_POSE"], 6, ["position 3", "rotation 3"]),
        (["OSC_POSITION"], 4, ["position 3", "gripper 1"]),
        (["JOINT_VELOCITY"], 8, ["joints 7", "gripper 1"]),
        (["OSC_POSE"] * 2, 14, [f"robot{i}_{x}" for i in "01" for x in ("position 3", "rotation 3", "gripper 1")]),
        (["OSC_POSE"], 9, ["actions 9"]),
        (["SOMETHING"], 7, ["actions 7"]),
    ],
)  # fmt: skip
def test_parts_of_the_action_follow_from_the_recorded_controllers(
    arms: list[str], width: int, parts: list[str], tmp_path: Path
) -> None:
    demo = community.demo(5)
    demo["actions"] = np.random.default_rng(0).uniform(-1, 1, (5, width))
    controllers = [{**community.OSC, "type": arm} for arm in arms]
    about = community.env_args("v1.4", "Stack")
    about["env_kwargs"]["controller_configs"] = controllers[0] if len(arms) == 1 else controllers
    schema = open_source(community.write_file(tmp_path / "a.hdf5", {"demo_0": demo}, about)).schema
    assert [f"{part.name} {part.size}" for part in schema.action] == parts
    assert all(part.shares for part in schema.action) == ("actions" not in parts[0])


def test_shares_of_a_controllers_range_are_clipped_whatever_their_number(tmp_path: Path) -> None:
    demo = community.demo(5)
    demo["actions"] = np.linspace(-3.75, 3.75, 30).reshape(5, 6)
    source = open_source(
        community.write_file(tmp_path / "a.hdf5", {"demo_0": demo}, community.env_args("v1.4", "Wipe"))
    )
    assert "4 of 5 actions leave [-1, 1] and are clipped, as robosuite does" in source.findings
    (episode,) = source.episodes(source.names, source.schema)
    np.testing.assert_array_equal(episode.actions, np.clip(demo["actions"], -1, 1).astype(np.float32))


def test_two_keys_of_one_name_are_named(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["data/take_8/obs/arm_qpos"] = np.zeros((24, 5))
    assert "obs/arm/qpos and obs/arm_qpos are both named 'arm_qpos'" in _bad(path)["take_8"]


def _bad(path: Path) -> dict[str, str]:
    bad: dict[str, str] = open_source(path).bad  # type: ignore[attr-defined]
    return bad


def test_an_episode_of_another_shape_is_named_with_its_key(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["data/take_9/obs/arm/qpos"], file["data/take_10/obs/front_image"], file["data/take_11/actions"]
        file["data/take_9/obs/arm/qpos"] = np.zeros((24, 4))
        file["data/take_10/obs/front_image"] = np.zeros((24, 64, 48, 3), np.uint8)
        file["data/take_11/actions"] = np.zeros((24, 7))
    bad = _bad(path)
    assert bad["take_9"] == "expected obs/arm/qpos of shape (T, 5), got (24, 4)"
    assert "camera 'front' of one shape, (48, 64, 3) as in most demos, got (64, 48, 3)" in bad["take_10"]
    assert bad["take_11"] == "expected actions of shape (T, 6), got (24, 7)"


def test_what_is_no_dataset_is_said(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").touch()
    with pytest.raises(PrismError, match=r"a LeRobot folder with meta/info.json, got a folder of notes.txt"):
        open_source(tmp_path / "folder")
    with pytest.raises(PrismError, match="not found; expected demonstrations"):
        open_source(tmp_path / "none")


def test_names_that_are_not_there_or_twice_are_refused_with_those_that_are() -> None:
    schema = Schema({"front": (8, 8)}, (Part("arm", 2, "joint"), Part("hand", 4, "rotation")), (Part("a", 1),))
    with pytest.raises(PrismError, match="unknown camera 'back'; there are front"):
        schema.select(cameras=["back"])
    with pytest.raises(PrismError, match="part of the state 'arm': expected it once, got it twice"):
        schema.select(state=["arm", "arm"])
    assert slices(schema.state) == {"arm": slice(0, 2), "hand": slice(2, 6)}
    assert numbers_of(schema.state, "rotation") == [2, 3, 4, 5]
    assert schema.select(state=["hand", "arm"]).state[0].name == "hand"


def test_a_folder_of_files_is_one_dataset(path: Path, tmp_path: Path) -> None:
    write_recording(tmp_path / "more.hdf5", 2)
    source = open_source(tmp_path)
    assert source.names[:3] == ("more/take_8", "more/take_9", "takes/take_8")
    first, last = source.episodes(["more/take_9", "takes/take_11"], source.schema)
    assert (first.name, last.name) == ("more/take_9", "takes/take_11")
    alone = next(open_source(path).episodes(["take_11"], source.schema))
    np.testing.assert_array_equal(last.actions, alone.actions)
    assert source.masks["few"] == ("more/take_9", "takes/take_9")
    with h5py.File(path, "r+") as file:
        for name in file["data"]:
            del file[f"data/{name}/obs/unused"]
    with pytest.raises(PrismError, match=r"takes\.hdf5: expected what more\.hdf5 holds, .* state of 9 .*; got .* of 6"):
        open_source(tmp_path)


def test_a_group_that_leads_back_to_itself_is_read_once(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        for name in file["data"]:
            file[f"data/{name}/obs/arm/again"] = h5py.SoftLink(f"/data/{name}/obs")
    assert len(open_source(path).schema.state) == 3
