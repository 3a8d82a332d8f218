"""What a file's facts say: delta or absolute, masks, findings; every command heeds the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import community
from prism_policy.data.facts import read_facts
from prism_policy.data.robomimic import iter_demos, read_demos
from prism_policy.data.source import RobomimicSource, split_demos
from prism_policy.errors import PrismError


def write(path: Path, change: dict[str, Any] | None = None, masks: dict[str, list[str]] | None = None) -> Path:
    """Four demonstrations; `change` replaces arrays of demo_1."""
    demos = {f"demo_{i}": community.demo(6, i, ["agentview"]) for i in range(4)}
    demos["demo_1"].update(change or {})
    return community.write_file(path, demos, community.env_args("v1.4"), masks)


def test_one_overshooting_delta_is_clipped_counted_and_stays_a_delta(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    actions = community.demo(6, 1)["actions"]
    actions[2, 4], actions[3, 0] = 2.9, -1.5
    path = write(tmp_path / "a.hdf5", {"actions": actions})
    facts = read_facts(path)
    assert facts.env.action_mode == "delta"
    assert "2 of 24 actions leave [-1, 1] and are clipped, as robosuite does" in facts.findings
    episode = read_demos(path)[1]
    np.testing.assert_array_equal(episode.actions, np.clip(actions, -1, 1).astype(np.float32))
    assert "2 of 24 actions leave [-1, 1]" in capsys.readouterr().out
    with pytest.raises(PrismError, match="no absolute actions"):
        list(iter_demos(path, action_mode="absolute"))


def test_a_demo_of_poses_among_deltas_is_bad(tmp_path: Path) -> None:
    actions = community.demo(6, 1)["actions"]
    actions[:, 3] = 3.1
    path = write(tmp_path / "a.hdf5", {"actions": actions})
    assert "look like poses, those of the file are deltas" in read_facts(path).bad["demo_1"]
    assert len(read_demos(path, skip_bad=True)) == 3


@pytest.mark.parametrize(
    ("masks", "sentence"),
    [
        ({"train": ["demo_0", "demo_1"], "valid": ["demo_1"]}, "masks 'train' and 'valid' share demo_1"),
        ({"train": []}, "expected demonstrations in the mask 'train', got none"),
        ({"train": ["demo_0", "demo_7"]}, "no demonstration 'demo_7'"),
        ({"valid": ["demo_0", "demo_1", "demo_2", "demo_3"]}, "none is left to learn"),
    ],
)
def test_masks_that_cannot_be_followed_are_one_sentence(
    masks: dict[str, list[str]], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(PrismError, match=sentence):
        split_demos(RobomimicSource(write(tmp_path / "a.hdf5", masks=masks)))


@pytest.mark.parametrize(
    ("masks", "mask", "train", "valid"),
    [
        ({"train": ["demo_2"]}, "", [2], []),
        ({"valid": ["demo_2"]}, "", [0, 1, 3], [2]),
        ({}, "", [0, 1, 2, 3], []),
        ({"few": ["demo_0", "demo_1"], "valid": ["demo_1", "demo_3"]}, "few", [0, 1], [3]),
    ],
)
def test_half_of_the_masks_is_not_read_as_none(
    masks: dict[str, list[str]], mask: str, train: list[int], valid: list[int], tmp_path: Path
) -> None:
    learned, held_out, _ = split_demos(RobomimicSource(write(tmp_path / "a.hdf5", masks=masks)), mask)
    assert (learned, held_out) == ([f"demo_{i}" for i in train], [f"demo_{i}" for i in valid])


def test_a_mask_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    source = RobomimicSource(write(tmp_path / "a.hdf5", masks={"train": ["demo_0"], "few": ["demo_1"]}))
    with pytest.raises(PrismError, match="no mask 'some'; it has few, train"):
        split_demos(source, "some")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"obs/robot0_eef_quat": np.full((6, 4), np.nan)}, "obs/robot0_eef_quat is not finite at step 0"),
        ({"obs/robot0_eef_quat": np.full((6, 4), 1e300)}, "obs/robot0_eef_quat is not finite at step 0"),
        ({"obs/robot0_eef_pos": np.array(3.0)}, "expected 6 steps everywhere, got obs/robot0_eef_pos of shape"),
        ({"actions": np.zeros((6, 7), np.complex64)}, "expected actions as numbers .*, got complex64"),
        ({"rewards": np.array([b"a"] * 6)}, "expected rewards as numbers"),
    ],
)
def test_what_is_wrong_with_one_demo_spoils_no_other(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.hdf5", change)
    with pytest.raises(PrismError, match=f"demo_1: {sentence}"):
        read_demos(path)
    assert list(read_facts(path).bad) == ["demo_1"]
    assert [episode.name for episode in read_demos(path, skip_bad=True)] == ["demo_0", "demo_2", "demo_3"]


def test_a_low_dim_key_that_is_missing_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.hdf5")
    with h5py.File(path, "r+") as file:
        del file["data/demo_1/obs/robot0_eef_quat"]
    assert read_facts(path).bad["demo_1"].startswith("expected obs/robot0_eef_quat beside obs/robot0_eef_pos")


def test_demos_of_other_names_and_gripper_commands_of_0_and_1_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.hdf5")
    with h5py.File(path, "r+") as file:
        for i in range(4):
            file[f"data/demo_{i}/actions"][:, 6] = np.arange(6) % 2
        file.copy("data/demo_0", file["data"], "demo_²")
        file["mask/odd"] = 3
    facts = read_facts(path)
    assert (facts.demos, list(facts.mask_flaws)) == (4, ["odd"])
    assert any("left out demo_²" in finding for finding in facts.findings)
    assert any("gripper commands are 0 and 1" in finding for finding in facts.findings)


@pytest.mark.parametrize(
    ("kwargs", "hz", "trouble"),
    [
        ({"control_freq": 10}, 10.0, "expected actions at 20 Hz, got 10"),
        ({"controller_configs": [{"type": "OSC_POSE"}] * 2}, 20.0, "one arm, got a list of 2"),
        ({"controller_configs": "panda.json"}, 20.0, "got the name 'panda.json'"),
        ({"controller_configs": {"body_parts": [1]}, "robots": 3}, 20.0, "expected one robot"),
    ],
)
def test_what_cannot_be_rolled_out_is_to_train_only(
    kwargs: dict[str, Any], hz: float, trouble: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.hdf5")
    with h5py.File(path, "r+") as file:
        file["data"].attrs["env_args"] = json.dumps(community.env_args("v1.4", **kwargs))
    facts = read_facts(path)
    assert (facts.env.control_hz, trouble in facts.train_only) == (hz, True)
