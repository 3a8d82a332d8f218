"""`prism collect`, `prism render` and `prism info` from the shell, one after the other."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import pytest

import commandline

pytest.importorskip("robosuite", reason="needs prism-policy[sim]")


def prism(folder: Path, *arguments: str, code: int = 0) -> str:
    """Run the command with a cache of its own; returns what it printed, or what it complained about."""
    done = commandline.prism(*arguments, cwd=folder, PRISM_CACHE=str(folder / "cache"))
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


@pytest.mark.slow
def test_demonstrations_are_made_drawn_and_told_about(tmp_path: Path) -> None:
    printed = prism(tmp_path, "collect", "--task", "can", "--num-demos", "2", "--workers", "1", "--out", "can.hdf5")
    assert "2 demonstrations" in printed
    assert "Next: prism render can.hdf5" in printed
    arguments = ("--cameras", "agentview", "--resolution", "32", "--workers", "1", "--out", "images.hdf5")
    assert "Next: prism info images.hdf5" in prism(tmp_path, "render", "can.hdf5", *arguments)
    with h5py.File(tmp_path / "images.hdf5") as file:
        for demo in file["data"].values():
            assert demo["obs/agentview_image"].shape == (len(demo["actions"]), 32, 32, 3)
            assert demo["actions_abs"].shape == demo["actions"].shape
        assert list(file["data/demo_0/obs"]) == [
            "agentview_image", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"
        ]  # fmt: skip
    printed = prism(tmp_path, "info", "images.hdf5", "--replay", "1")
    assert "2 demonstrations of PickPlaceCan" in printed
    assert (tmp_path / "images-contact.png").stat().st_size > 1000
    run = (
        "--task can --dataset images.hdf5 --encoder sspool --out run --policy.encoder.width 16 "
        "--policy.down-dims 16 32 --train.steps 4 --train.batch-size 4 --train.valid-every 2 --task.cameras agentview "
        "--task.render.resolution 32 --task.max-steps 10"
    )
    # Two stages of the trunk are left at 32 px: deeper ones have no room for keypoints.
    printed = prism(tmp_path, "train", *run.split(), "--policy.encoder.stages", "2")
    assert "Next: prism evaluate run" in printed
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "valid_loss" in line] == [2, 4]
    assert "0 of 1 unseen episodes" in prism(tmp_path, "evaluate", "run", "--n-episodes", "1", "--workers", "1")
    assert (tmp_path / "run" / "videos" / "last" / "evaluate-s0" / "episode_000.mp4").stat().st_size > 1000
    complaint = prism(tmp_path, "train", "--task", "can", "--dataset", "images.hdf5", "--out", "other", code=2)
    assert "expected images of 84x84 px from camera 'agentview', got (32, 32)" in complaint
    assert not (tmp_path / "other").exists()
    assert "config.json not found" in prism(tmp_path, "evaluate", "other", code=2)
    # A command that was killed as it ended finds its file, and what else is there is not overwritten.
    assert "File: can.hdf5" in prism(tmp_path, "collect", "--task", "can", "--num-demos", "2", "--out", "can.hdf5")
    assert "File: images.hdf5" in prism(tmp_path, "render", "can.hdf5", *arguments)
    before = (tmp_path / "can.hdf5").read_bytes()
    complaint = prism(tmp_path, "collect", "--task", "can", "--num-demos", "3", "--out", "can.hdf5", code=2)
    assert "can.hdf5 exists; choose another --out" in complaint
    assert (tmp_path / "can.hdf5").read_bytes() == before
    assert "unknown camera 'front'" in prism(tmp_path, "render", "can.hdf5", "--cameras", "front", code=2)
    assert "resolution: expected 8 to 2048 px, got 4" in prism(
        tmp_path, "render", "can.hdf5", "--resolution", "4", code=2
    )
    assert "num_demos: expected at least 1, got 0" in prism(tmp_path, "collect", "--num-demos", "0", code=2)
    assert "not found" in prism(tmp_path, "render", "nothing.hdf5", code=2)
