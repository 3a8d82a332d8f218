"""What is exported comes back equal, whole or not at all; LeRobot itself is asked in test_export_lerobot.py."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pytest

from commandline import prism
from community import demo, env_args, write_file
from lerobot_files import CAMERA, TASKS, pq, write
from prism_policy.data.lerobot import LeRobotSource
from prism_policy.data.lerobot import writer as writer_module
from prism_policy.data.lerobot.writer import as_ranges

CAMERAS = ("agentview", "robot0_eye_in_hand")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Three demonstrations with arrays of many types, shapes and depths."""
    demos: dict[str, dict[str, np.ndarray]] = {}
    for i, steps in enumerate((6, 9, 4)):
        rng = np.random.default_rng(i)
        arrays = {k: x for k, x in demo(steps, i, CAMERAS, 12).items() if not k.startswith("next_obs")}
        arrays |= {"obs/force": rng.normal(size=(steps, 1)), "obs/scene/mass": rng.normal(size=steps)}
        arrays |= {"obs/matrix": rng.normal(size=(steps, 3, 3)), "obs/touch": rng.random(steps) < 0.5}
        arrays |= {"obs/count": rng.integers(0, 9, (steps, 2)).astype(np.int16), "disturbed": rng.random(steps) < 0.3}
        demos[f"demo_{i}"] = arrays
    masks = {"train": ["demo_0", "demo_2"], "valid": ["demo_1"], "20_percent": ["demo_2"]}
    path = write_file(tmp_path / "made.hdf5", demos, env_args("v1.5"), masks)
    with h5py.File(path, "r+") as opened:
        opened["data"].attrs["instruction"] = "lift the red cube"
        for name in demos:
            opened[f"data/{name}"].attrs["model_file"] = f"<mujoco>{name}</mujoco>"
    return path


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return arrays


def attributes_of(path: Path) -> dict[str, Any]:
    made: dict[str, Any] = {}
    with h5py.File(path) as file:
        for name in ("data", *(f"data/{one}" for one in file["data"])):
            made |= {f"{name}.{key}": value for key, value in file[name].attrs.items()}
    return made


def test_robomimic_to_lerobot_and_back_is_equal_to_the_bit(file: Path, tmp_path: Path) -> None:
    done = prism("export", file, "--format", "lerobot", "--out", tmp_path / "set")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == [f"Folder: {tmp_path / 'set'}", f"Next: prism info {tmp_path / 'set'}"]
    done = prism("export", tmp_path / "set", "--format", "robomimic", "--out", tmp_path / "back.hdf5")
    assert done.returncode == 0, done.stderr
    before, after = arrays_of(file), arrays_of(tmp_path / "back.hdf5")
    assert before.keys() == after.keys()
    for name, values in before.items():
        assert (after[name].dtype, after[name].shape) == (values.dtype, values.shape), name
        assert after[name].tobytes() == values.tobytes(), name
    attributes = attributes_of(tmp_path / "back.hdf5")
    expected = attributes_of(file)
    assert {key: attributes[key] for key in expected} == expected


def test_what_has_no_column_is_named_and_left_out(tmp_path: Path) -> None:
    arrays = {**demo(4, 0, CAMERAS, 12), "calibration": np.zeros((8, 2))}
    path = write_file(tmp_path / "made.hdf5", {"demo_0": arrays}, env_args("v1.5"))
    done = prism("export", path, "--format", "lerobot", "--out", tmp_path / "set")
    (note,) = [line for line in done.stdout.splitlines() if line.startswith("note")]
    assert note.startswith(
        "note: left out calibration (float64 (8, 2)), next_obs/agentview_image (u..., next_obs/robot0_eye_in_hand"
    )
    prism("export", tmp_path / "set", "--format", "robomimic", "--out", tmp_path / "back.hdf5")
    held = arrays_of(tmp_path / "back.hdf5")
    kept = {
        key: x
        for key, x in arrays.items()
        if key != "calibration" and not key.startswith(tuple(f"next_obs/{c}" for c in CAMERAS))
    }
    assert held.keys() == {f"data/demo_0/{key}" for key in kept}
    np.testing.assert_array_equal(held["data/demo_0/next_obs/object"], arrays["next_obs/object"])


def test_a_mask_of_all_comes_back(tmp_path: Path) -> None:
    demos = {"demo_3": demo(4, 0, CAMERAS, 12)}
    path = write_file(tmp_path / "made.hdf5", demos, env_args("v1.5"), {"train": ["demo_3"]})
    prism("export", path, "--format", "lerobot", "--out", tmp_path / "set")
    prism("export", tmp_path / "set", "--format", "robomimic", "--out", tmp_path / "back.hdf5")
    held = arrays_of(tmp_path / "back.hdf5")
    assert held["mask/train"].tolist() == [b"demo_3"]
    assert "data/demo_3/actions" in held


def test_lerobot_folders_hold_state_and_action_as_float32_and_the_task(file: Path, tmp_path: Path) -> None:
    prism("export", file, "--format", "lerobot", "--out", tmp_path / "set")
    table = pq.read_table(tmp_path / "set/data/chunk-000/file-000.parquet")
    held = arrays_of(file)
    names = ["demo_0", "demo_1", "demo_2"]
    actions = np.concatenate([held[f"data/{name}/actions"] for name in names]).astype(np.float32)
    np.testing.assert_array_equal(np.array(table["action"].to_pylist(), np.float32), actions)
    assert table["episode_index"].to_pylist() == [0] * 6 + [1] * 9 + [2] * 4
    assert table["index"].to_pylist() == list(range(19))
    np.testing.assert_array_equal(table["timestamp"].to_numpy()[:9], (np.r_[:6, :3] / 20).astype(np.float32))
    assert pq.read_table(tmp_path / "set/meta/tasks.parquet")["task"].to_pylist() == ["lift the red cube"]
    source = LeRobotSource(tmp_path / "set")
    assert source.masks["20_percent"] == ("episode_000002",)
    first = next(source.episodes(source.names, source.schema))
    np.testing.assert_array_equal(first.sim_states, held["data/demo_0/states"])
    np.testing.assert_array_equal(first.disturbed, held["data/demo_0/disturbed"])
    np.testing.assert_array_equal(first.extras["rewards"], held["data/demo_0/rewards"])
    assert source.schema.state_dim == first.state.shape[1]


def test_statistics_are_those_of_all_frames(file: Path, tmp_path: Path) -> None:
    prism("export", file, "--format", "lerobot", "--out", tmp_path / "set")
    stats, held = json.loads((tmp_path / "set/meta/stats.json").read_text()), arrays_of(file)
    names = ["demo_0", "demo_1", "demo_2"]
    actions = np.concatenate([held[f"data/{name}/actions"] for name in names])
    images = np.concatenate([held[f"data/{name}/obs/agentview_image"] for name in names]) / 255
    for key, values, axes in (("action", actions, 0), ("observation.images.agentview", images, (0, 1, 2))):
        for name, function in (("min", np.min), ("max", np.max), ("mean", np.mean), ("std", np.std)):
            expected = function(values, axis=axes)
            np.testing.assert_allclose(np.array(stats[key][name]).reshape(-1), expected, atol=1e-6)
        for q in (1, 10, 50, 90, 99):
            expected = np.quantile(values, q / 100, axis=axes)
            atol = 1e-6 if key == "action" else 1.01 / 255  # pixels have steps
            np.testing.assert_allclose(np.array(stats[key][f"q{q:02d}"]).reshape(-1), expected, atol=atol)
    assert np.shape(stats["observation.images.agentview"]["mean"]) == (3, 1, 1)
    assert stats["observation.images.agentview"]["count"] == [19]


@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_videos_hold_the_frames_at_their_times(codec: str, tmp_path: Path) -> None:
    made = write(tmp_path / "made", "v2.1", None, size=(64, 64))
    rows = made.images.astype(np.float64).mean((1, 2, 3))
    done = prism("export", made.folder, "--format", "lerobot", "--out", tmp_path / "set", "--video", codec)
    assert done.returncode == 0, done.stderr
    source = LeRobotSource(tmp_path / "set")
    episodes = list(source.episodes(source.names, source.schema))
    frames = np.concatenate([episode.images["front"] for episode in episodes])
    np.testing.assert_allclose(frames.mean((1, 2, 3)), rows, atol=6)
    with av.open(str(tmp_path / f"set/videos/{CAMERA}/chunk-000/file-000.mp4")) as container:
        assert container.streams.video[0].average_rate == 20
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    np.testing.assert_array_equal(frames, decoded)
    np.testing.assert_array_equal(np.concatenate([episode.state for episode in episodes]), made.state)
    assert [episode.task for episode in episodes] == [TASKS[0], TASKS[1], TASKS[0]]
    assert source.info["features"][CAMERA]["info"]["video.codec"] == codec


@pytest.mark.parametrize("video", ["none", "h264"])
def test_large_datasets_are_split_into_files(video: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = write(tmp_path / "made", "v2.1", None, size=(64, 64), lengths=(60, 70, 50))
    monkeypatch.setattr(writer_module, "_DATA_MB", 0.9)
    monkeypatch.setattr(writer_module, "_VIDEO_MB", 0.05)
    monkeypatch.setattr(writer_module, "_CHUNK", 2)
    prism("export", made.folder, "--format", "lerobot", "--out", tmp_path / "set", "--video", video)
    place = tmp_path / ("set/data" if video == "none" else f"set/videos/{CAMERA}")
    assert len(list(place.rglob("chunk-00*/file-00*"))) == 3
    assert len(list(place.glob("chunk-*"))) == 2
    source, expected = LeRobotSource(tmp_path / "set"), LeRobotSource(made.folder)
    for a, b in zip(
        source.episodes(source.names, source.schema), expected.episodes(expected.names, expected.schema), strict=True
    ):
        np.testing.assert_array_equal(a.state, b.state)
        if video == "none":
            np.testing.assert_array_equal(a.images["front"], b.images["front"])


def test_a_foreign_lerobot_dataset_becomes_a_robomimic_file(tmp_path: Path) -> None:
    made = write(tmp_path / "made", video=None)
    done = prism("export", made.folder, "--format", "robomimic", "--out", tmp_path / "out.hdf5", "--episodes", "1:3")
    assert done.returncode == 0, done.stderr
    held = arrays_of(tmp_path / "out.hdf5")
    np.testing.assert_array_equal(held["data/demo_0/actions"], made.action[made.rows(1)])
    np.testing.assert_array_equal(held["data/demo_1/obs/state"], made.state[made.rows(2)])
    np.testing.assert_array_equal(held["data/demo_0/obs/front_image"], made.images[made.rows(1)])
    assert not [name for name in held if name.startswith("mask")]
    about = attributes_of(tmp_path / "out.hdf5")
    assert json.loads(about["data/demo_0.ep_meta"]) == {"lang": TASKS[1]}
    assert json.loads(about["data.env_args"])["env_kwargs"] == {"control_freq": 20.0}
    assert about["data.total"] == 14


def test_a_folder_of_files_becomes_one_dataset(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "several"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.hdf5").write_bytes(file.read_bytes())
    done = prism("export", folder, "--format", "lerobot", "--out", tmp_path / "set")
    assert done.returncode == 0, done.stderr
    assert "their other arrays with each alone" in done.stdout
    source, held = LeRobotSource(tmp_path / "set"), arrays_of(file)
    episodes = list(source.episodes(source.names, source.schema))
    assert len(episodes) == 6
    for i in (1, 4):
        np.testing.assert_array_equal(episodes[i].images["agentview"], held["data/demo_1/obs/agentview_image"])
        np.testing.assert_array_equal(episodes[i].disturbed, held["data/demo_1/disturbed"])


def test_what_cannot_be_exported_is_told_and_nothing_written(file: Path, tmp_path: Path) -> None:
    out, folder = tmp_path / "set", sorted(tmp_path.iterdir())
    done = prism("export", file, "--format", "robomimic", "--out", tmp_path / "x.hdf5", "--video", "h264")
    assert (done.returncode, "holds images, not videos" in done.stderr) == (2, True)
    odd = write(tmp_path / "odd", video=None, size=(48, 63))
    folder = sorted(tmp_path.iterdir())
    done = prism("export", odd.folder, "--format", "lerobot", "--out", out, "--video", "h264")
    assert done.returncode == 2
    assert "camera 'front': a video needs even sides, got 63x48" in done.stderr
    odd.edit(fps=29.97)
    done = prism("export", odd.folder, "--format", "lerobot", "--out", out)
    assert (done.returncode, "whole numbers of frames a second, got 29.97" in done.stderr) == (2, True)
    path = odd.folder / "data/chunk-000/file-001.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    done = prism("export", odd.folder, "--format", "lerobot", "--out", out)
    assert (done.returncode, "no readable Parquet file" in done.stderr) == (2, True)
    assert sorted(tmp_path.iterdir()) == folder


@pytest.mark.parametrize("form", ["lerobot", "robomimic"])
def test_a_full_disk_is_told_and_nothing_left(
    form: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer_module, "write_table", full)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10_000))
    done = prism("export", file, "--format", form, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert f"no space left on the disk of {tmp_path / 'out'}" in done.stderr
    assert list(tmp_path.iterdir()) == [file]


def test_nothing_is_overwritten(file: Path, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    done = prism("export", file, "--format", "lerobot", "--out", tmp_path / "set")
    assert done.returncode == 2
    assert f"{tmp_path / 'set'} exists; choose another --out" in done.stderr
    assert not list((tmp_path / "set").iterdir())


def test_a_killed_export_leaves_nothing_and_the_next_one_sweeps(file: Path, tmp_path: Path) -> None:
    program = (
        "import time\nfrom prism_policy.data.lerobot.writer import LeRobotWriter\n"
        "LeRobotWriter.finish = lambda self, splits: (print('written', flush=True), time.sleep(60))\n"
        "from prism_policy.cli.main import main\nmain()"
    )
    command = ["export", str(file), "--format", "lerobot", "--out", str(tmp_path / "set")]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *command], stdout=subprocess.PIPE, text=True, env={**os.environ}
    )
    assert process.stdout
    while process.stdout.readline().strip() != "written":
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "set").exists()
    assert list(tmp_path.glob(".prism-*.tmp"))
    done = prism(*command)
    assert done.returncode == 0, done.stderr
    assert len(LeRobotSource(tmp_path / "set").names) == 3
    assert not list(tmp_path.glob(".prism-*.tmp"))


def test_ranges_have_gaps_where_numbers_do() -> None:
    assert as_ranges([0, 1, 2]) == "0:3"
    assert as_ranges([4, 0, 2, 1]) == "0:3,4:5"
