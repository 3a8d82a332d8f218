"""The frame cache holds what the file holds, is never stale, and is whole or not there."""

import errno
import json
import os
import sys
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest
import torch

from panda import frames_in, frames_of, source_frames
from prism_policy.data import source as source_module
from prism_policy.data.frames import Frames
from prism_policy.data.robomimic import Episode, merge_demos, write_demo
from prism_policy.data.source import RobomimicSource, file_print
from prism_policy.data.windows import Windows, rows
from prism_policy.errors import PrismError
from prism_policy.utils.files import seal

CAMERAS = ("agentview", "robot0_eye_in_hand")


def write_file(path: Path, episodes: list[Episode]) -> Path:
    parts = []
    for i, e in enumerate(episodes):
        parts.append(path.with_name(f"part_{i}.hdf5"))
        with h5py.File(parts[-1], "w", libver="latest") as file:
            arrays = {"actions": e.actions, "disturbed": e.disturbed, "states": e.sim_states}
            arrays |= {f"obs/{camera}_image": images for camera, images in e.images.items()}
            low_dim = np.split(e.state, [3, 7], axis=1)
            names = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
            arrays |= {f"obs/{name}": values for name, values in zip(names, low_dim, strict=True)}
            write_demo(file.create_group("demo"), arrays, {})
    merge_demos(parts, path, "{}")
    return path


@pytest.fixture
def file(tmp_path: Path, episodes: list[Episode]) -> Path:
    return write_file(tmp_path / "demos.hdf5", episodes)


def assert_equal(actual: Frames, episodes: list[Episode]) -> None:
    expected = frames_of(episodes)
    assert actual.images.keys() == expected.images.keys()
    for camera, images in expected.images.items():
        assert torch.equal(actual.images[camera], images)
    for name in ("state", "actions", "disturbed"):
        assert torch.equal(getattr(actual, name), getattr(expected, name))
    assert (actual.ends, actual.names) == (expected.ends, expected.names) == ((30, 55), ("demo_0", "demo_1"))


def test_the_cache_holds_what_the_file_holds_at_the_second_opening_too(
    file: Path, tmp_path: Path, episodes: list[Episode], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, int]] = []
    assert_equal(frames_in(file, CAMERAS, tmp_path, progress=lambda *c: calls.append(c)), episodes)
    assert calls == [(1, 2), (2, 2)]
    monkeypatch.setattr(source_module, "iter_demos", None)  # no reading of the HDF5 any more
    assert_equal(frames_in(file, CAMERAS, tmp_path), episodes)


def test_a_changed_file_or_other_cameras_never_find_it(file: Path, tmp_path: Path, episodes: list[Episode]) -> None:
    frames_in(file, CAMERAS, tmp_path)
    assert list(frames_in(file, CAMERAS[1:], tmp_path).images) == ["robot0_eye_in_hand"]
    about = file.stat()
    with h5py.File(file, "r+") as opened:
        opened["data/demo_1/actions"][-1, 0] = 0.125
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))  # as a copy that keeps its times
    assert file.stat().st_size == about.st_size
    assert frames_in(file, CAMERAS, tmp_path).actions[-1, 0] == 0.125


def test_a_large_file_is_told_from_others_by_a_sample(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(20_000_000))
    before = file_print(path)
    about = path.stat()
    with path.open("r+b") as file:
        file.seek(10_000_000)
        file.write(b"x" * 400_000)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert file_print(path) != before


def test_a_damaged_cache_is_made_anew(file: Path, tmp_path: Path, episodes: list[Episode]) -> None:
    frames_in(file, CAMERAS, tmp_path)
    (folder,) = tmp_path.glob("frames-*")
    with (folder / "image.agentview.raw").open("r+b") as raw:
        raw.truncate(1000)
    assert_equal(frames_in(file, CAMERAS, tmp_path), episodes)
    (folder / "manifest.json").write_text("{")
    assert_equal(frames_in(file, CAMERAS, tmp_path), episodes)


def test_an_error_on_the_way_leaves_nothing(file: Path, tmp_path: Path) -> None:
    source = RobomimicSource(file)
    with h5py.File(file, "r+") as opened:
        opened["data/demo_1/actions"][3] = np.nan
    with pytest.raises(PrismError, match=r"demos\.hdf5, demo_1: actions are not finite at step 3"):
        source_frames(source, CAMERAS, tmp_path)
    assert not list(tmp_path.glob("*frames-*"))


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    file: Path, tmp_path: Path, episodes: list[Episode], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(PrismError, match=r"no space left on the disk of .*frames-"):
            frames_in(file, CAMERAS, tmp_path)
    assert not list(tmp_path.glob("*frames-*"))
    assert_equal(frames_in(file, CAMERAS, tmp_path), episodes)


def test_writing_into_mapped_frames_does_not_reach_the_disk(
    file: Path, tmp_path: Path, episodes: list[Episode]
) -> None:
    frames_in(file, CAMERAS, tmp_path).images["agentview"].zero_()
    assert_equal(frames_in(file, CAMERAS, tmp_path), episodes)


@pytest.mark.skipif(sys.platform != "linux", reason="counts what Linux promises to processes")
def test_frames_beyond_all_memory_are_mapped_and_not_read(file: Path, tmp_path: Path) -> None:
    """A sparse file stands for them: a disk holds nothing of it."""
    frames_in(file, CAMERAS, tmp_path)
    (folder,) = tmp_path.glob("frames-*")
    raw, manifest = folder / "image.agentview.raw", json.loads((folder / "manifest.json").read_text())
    about, ends = manifest["arrays"]["image.agentview"], manifest["ends"]
    memory = psutil.virtual_memory().total + psutil.swap_memory().total
    about["shape"][0] = int(1.5 * memory / np.prod(about["shape"][1:]))
    os.truncate(raw, int(np.prod(about["shape"])))
    about.update(seal(raw, about["sha256"]))  # whose checksum of all would be another: nothing may compute it
    (folder / "manifest.json").write_text(json.dumps(manifest))
    frames = frames_in(file, CAMERAS, tmp_path)
    assert frames.nbytes > memory
    assert raw.stat().st_blocks * 512 < 10**8
    batch = Windows(frames, 16, 2, 8).batch(torch.tensor([0, 1]))
    assert ends == list(frames.ends)
    assert batch["images"]["agentview"].any()  # type: ignore[union-attr]
    assert not frames.images["agentview"][-1].any()


def test_demos_without_state_are_held(tmp_path: Path, episodes: list[Episode]) -> None:
    path = tmp_path / "states.hdf5"
    with h5py.File(path, "w", libver="latest") as file:
        write_demo(file.create_group("data/demo_0"), {"actions": episodes[0].actions}, {})
    actual = frames_in(path, (), tmp_path)
    assert (actual.state.shape, len(actual)) == ((30, 0), 30)


def test_rows_are_what_indexing_gives(episodes: list[Episode]) -> None:
    frames = frames_of(episodes)
    indices = torch.randint(0, 55, (8, 2))
    for values in (*frames.images.values(), frames.state, frames.disturbed[:, None]):
        assert torch.equal(rows(values, indices), values[indices])


def test_windows_of_some_episodes_share_the_frames(episodes: list[Episode]) -> None:
    frames = frames_of(episodes)
    both = Windows(frames, 16, 2, 8)
    train, valid = Windows(frames, 16, 2, 8, episodes=[0]), Windows(frames, 16, 2, 8, episodes=[1])
    assert len(train) + len(valid) == len(both)
    assert torch.equal(torch.cat([train.observed, valid.observed]), both.observed)
    assert train.frames is valid.frames
    assert (frames.indices(["demo_1"]), frames.indices(frames.names)) == ([1], [0, 1])
    with pytest.raises(PrismError, match="no demonstration 'demo_7'; there are demo_0 to demo_1"):
        frames.indices(["demo_7"])
    np.testing.assert_array_equal(valid.batch(torch.tensor([1]))["actions"][0], episodes[1].actions[:16])


def test_the_manifest_says_where_the_frames_came_from(file: Path, tmp_path: Path) -> None:
    frames_in(file, CAMERAS, tmp_path)
    (folder,) = tmp_path.glob("frames-*")
    assert json.loads((folder / "manifest.json").read_text())["path"] == str(file)
