"""LeRobot's datasets hold here what PyAV and pyarrow say they hold, in every layout; damaged ones are named."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from lerobot_files import CAMERA, RECORDED, TASKS, Made, pa, pq, write, write_video
from prism_policy.data.frames import open_frames
from prism_policy.data.lerobot import LeRobotSource
from prism_policy.errors import PrismError

LAYOUTS = [("v3.0", "libx264"), ("v3.0", "libsvtav1"), ("v3.0", None), ("v2.1", "libx264"), ("v2.1", None)]


def read(made: Made, **options: Any) -> list[Any]:
    source = LeRobotSource(made.folder, **options)
    return list(source.episodes(source.names, source.schema))


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize(("version", "video"), LAYOUTS)
def test_every_layout_gives_the_episodes_that_were_written(version: str, video: str | None, tmp_path: Path) -> None:
    made = write(tmp_path / "set", version, video)
    source = LeRobotSource(made.folder)
    assert source.schema.cameras == {"front": (48, 64)}
    assert [(p.name, p.size, p.kind) for p in source.schema.state] == [("state", 6, "joint")]
    assert [(p.name, p.size, p.kind) for p in source.schema.action] == [("action", 4, "other")]
    assert source.schema.action[0].names == ("x", "y", "z", "grip")
    assert (source.schema.fps, source.findings) == (20.0, ())
    assert source.names == ("episode_000000", "episode_000001", "episode_000002")
    assert source.masks == {}
    for i, episode in enumerate(source.episodes(source.names, source.schema)):
        rows = made.rows(i)
        np.testing.assert_array_equal(episode.state, made.state[rows])
        np.testing.assert_array_equal(episode.actions, made.action[rows])
        assert (episode.name, episode.task) == (source.names[i], TASKS[i % 2])
        images, expected = episode.images["front"], made.images[rows]
        assert images.shape == expected.shape
        if video is None:
            np.testing.assert_array_equal(images, expected)
        else:  # each frame is told by its brightness, 10 apart
            np.testing.assert_allclose(images.mean((1, 2, 3)), expected.mean((1, 2, 3)), atol=4)


def test_frames_equal_what_pyav_decodes(tmp_path: Path) -> None:
    made = write(tmp_path / "set")
    expected = decoded(made.folder / f"videos/{CAMERA}/chunk-000/file-000.mp4")
    first, second, _ = read(made)
    np.testing.assert_array_equal(np.concatenate([first.images["front"], second.images["front"]]), expected)


def test_frames_are_found_between_key_frames_far_apart_and_out_of_order(tmp_path: Path) -> None:
    made = write(tmp_path / "set", lengths=(17, 23, 9), files=((0, 1, 2),))
    path = made.folder / f"videos/{CAMERA}/chunk-000/file-000.mp4"
    write_video(path, made.images, made.fps, g="12", bf="3")
    expected = decoded(path)
    for i, episode in reversed(list(enumerate(read(made)))):
        np.testing.assert_array_equal(episode.images["front"], expected[made.rows(i)])


@pytest.mark.slow
@pytest.mark.skipif(not RECORDED.is_dir(), reason="needs the recordings; PRISM_LEROBOT_DATA names their folder")
def test_both_conversions_of_a_real_recording_are_equal() -> None:
    old, new = (LeRobotSource(RECORDED / f"unitree_g1_{v}") for v in ("v21", "v30"))
    assert old.schema == new.schema
    assert new.schema.cameras == {"cam_high": (480, 640)}
    assert [(p.name, p.size, p.kind) for p in (*new.schema.state, *new.schema.action)] == [
        ("state", 26, "joint"),
        ("action", 26, "joint"),
    ]
    pairs = zip(old.episodes(old.names, old.schema), new.episodes(new.names, new.schema), strict=True)
    for i, (a, b) in enumerate(pairs):
        for key in ("state", "actions"):
            np.testing.assert_array_equal(getattr(a, key), getattr(b, key))
        np.testing.assert_array_equal(a.images["cam_high"], b.images["cam_high"])
        folder = RECORDED / "unitree_g1_v21/videos/chunk-000/observation.images.cam_high"
        np.testing.assert_array_equal(a.images["cam_high"], decoded(folder / f"episode_{i:06d}.mp4"))
        assert a.task == b.task == "Pick up the yellow bottle on the table."
    table = pq.read_table(RECORDED / "unitree_g1_v30/data/chunk-000/file-000.parquet")
    expected = np.stack(table["observation.state"].to_pylist()[-len(b) :]).astype(np.float32)
    np.testing.assert_array_equal(b.state, expected)


def test_a_dropped_frame_moves_no_other(tmp_path: Path) -> None:
    """A recording that lost a frame has a gap in its time stamps, and in its video: frames go by time, not by count."""
    made = write(tmp_path / "set", "v2.1")
    path = made.folder / "data/chunk-000/episode_000001.parquet"
    table = pq.read_table(path)
    kept = [i for i in range(len(table)) if i != 3]
    pq.write_table(table.take(kept), path)
    lines = [json.loads(line) for line in (made.folder / "meta/episodes.jsonl").read_text().splitlines()]
    lines[1]["length"] -= 1
    (made.folder / "meta/episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    made.edit(total_frames=20)
    episode = read(made)[1]
    expected = decoded(made.folder / f"videos/chunk-000/{CAMERA}/episode_000001.mp4")[kept]
    np.testing.assert_array_equal(episode.images["front"], expected)


def test_a_row_group_of_many_episodes_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LeRobot's converter writes all episodes of a file as one."""
    made = write(tmp_path / "set", video=None, files=((0, 1, 2),))
    path = made.folder / "data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(path), path)
    source, table = LeRobotSource(made.folder, workers=1), LeRobotSource(made.folder)._table(path)
    reads: list[list[str]] = []
    read_groups = table._file.read_row_groups
    monkeypatch.setattr(source, "_table", lambda _: table)
    spy = lambda groups, columns: (reads.append(columns), read_groups(groups, columns=columns))[1]  # noqa: E731
    monkeypatch.setattr(table, "_file", type("File", (), {"read_row_groups": staticmethod(spy)}))
    for i, episode in enumerate(source.episodes(source.names, source.schema)):
        np.testing.assert_array_equal(episode.images["front"], made.images[made.rows(i)])
    assert sum(CAMERA in columns for columns in reads) == 1
    assert len(reads) == 3  # episodes, numbers, images


def test_parts_are_chosen_by_name_in_the_order_one_gives(tmp_path: Path) -> None:
    made = write(tmp_path / "set", video=None)
    made.edit_feature("observation.state", names={"arm": ["joint_0", "joint_1"], "object": ["x", "y", "z", "mass"]})
    source = LeRobotSource(made.folder)
    assert [(p.name, p.kind) for p in source.schema.state] == [("arm", "joint"), ("object", "other")]
    schema = source.schema.select(state=["object", "arm"])
    (episode,) = source.episodes(["episode_000001"], schema)
    expected = made.state[made.rows(1)]
    np.testing.assert_array_equal(episode.state, np.concatenate([expected[:, 2:], expected[:, :2]], axis=1))


def test_a_shape_of_channels_first_is_read_as_its_names_say(tmp_path: Path) -> None:
    made = write(tmp_path / "set", video=None)
    made.edit_feature(CAMERA, shape=[3, 48, 64], names=["channels", "height", "width"])
    assert LeRobotSource(made.folder).schema.cameras == {"front": (48, 64)}
    np.testing.assert_array_equal(read(made)[0].images["front"], made.images[made.rows(0)])


def test_missing_episodes_are_named_and_the_others_read(tmp_path: Path) -> None:
    made = write(tmp_path / "set", "v2.1")
    (made.folder / f"videos/chunk-000/{CAMERA}/episode_000001.mp4").unlink()
    source = LeRobotSource(made.folder)
    (finding,) = source.findings
    assert finding.startswith("left out 1 of 3 episodes whose files are missing: 1 (videos/chunk-000/")
    assert source.names == ("episode_000000", "episode_000002")
    assert [episode.name for episode in source.episodes(source.names, source.schema)] == list(source.names)
    assert LeRobotSource(made.folder, ["0", "2"]).findings == ()
    made.edit(splits={"train": "0:2", "val": "2:3", "odd": "all"})
    source = LeRobotSource(made.folder)
    assert source.masks == {"train": ("episode_000000",), "valid": ("episode_000002",)}
    assert "left out the split 'odd'" in source.findings[-1]


def test_episodes_are_chosen_by_number_and_range(tmp_path: Path) -> None:
    made = write(tmp_path / "set", video=None)
    assert LeRobotSource(made.folder, ["1:3"]).names == ("episode_000001", "episode_000002")
    assert LeRobotSource(made.folder, ["2,0"]).names == ("episode_000000", "episode_000002")
    with pytest.raises(PrismError, match=r"episodes: there is no episode 3; .* has 0 to 2"):
        LeRobotSource(made.folder, ["0:4"])
    with pytest.raises(PrismError, match="episodes: expected numbers and ranges such as 7 or 0:10, got 'all'"):
        LeRobotSource(made.folder, ["all"])


def test_the_fingerprint_changes_with_the_content_and_the_choice(tmp_path: Path) -> None:
    made = write(tmp_path / "set", "v2.1", None)
    before = LeRobotSource(made.folder).fingerprint()
    assert json.loads(json.dumps(before)) == before == LeRobotSource(made.folder).fingerprint()
    assert LeRobotSource(made.folder, ["0"]).fingerprint() != before
    path = made.folder / "data/chunk-000/episode_000002.parquet"
    table = pq.read_table(path)
    changed = table.set_column(table.column_names.index("task_index"), "task_index", pa.array([1] * len(table)))
    pq.write_table(changed, path)
    assert LeRobotSource(made.folder).fingerprint() != before


def test_depth_maps_sound_and_whole_numbers_are_left_out_and_said(tmp_path: Path) -> None:
    made = write(tmp_path / "set")
    made.edit_feature(CAMERA, info={"has_audio": True})
    depth = {"dtype": "video", "shape": [48, 64, 3], "names": None, "info": {"video.is_depth_map": True}}
    made.edit_feature("observation.images.depth", **depth)
    made.edit_feature("observation.mode", dtype="int64", shape=[1], names=None)
    source = LeRobotSource(made.folder)
    assert list(source.schema.cameras) == ["front"]
    assert [finding.split(":")[0] for finding in source.findings] == [
        f"left out the sound of {CAMERA!r}",
        "left out 'observation.images.depth'",
        "left out 'observation.mode'",
    ]


def test_only_a_few_episodes_are_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = write(tmp_path / "set", "v2.1", None, lengths=(2,) * 12)
    source, started = LeRobotSource(made.folder, workers=2), []
    read_one = source._episode
    monkeypatch.setattr(source, "_episode", lambda name, schema: (started.append(name), read_one(name, schema))[1])
    episodes = source.episodes(source.names, source.schema)
    next(episodes)
    assert len(started) <= 3
    assert [next(episodes).name for _ in range(11)] == list(source.names[1:])


def rewrite(path: Path, **changed: Any) -> None:
    table = pq.read_table(path)
    for name, values in changed.items():
        key = name.replace("__", ".")
        table = table.set_column(table.column_names.index(key), key, values)
    pq.write_table(table, path)


def nan_in_the_state(made: Made) -> None:
    state = made.state[made.rows(1)].copy()
    state[4, 2] = np.nan
    rewrite(made.folder / "data/chunk-000/episode_000001.parquet", observation__state=pa.array(list(state)))


def two_cameras(made: Made) -> None:
    made.edit_feature("observation.image.front", dtype="video", shape=[48, 64, 3], names=None)


def equal_keys(made: Made) -> None:
    path = made.folder / "meta/info.json"
    camera = json.dumps({CAMERA: {"dtype": "video", "shape": [48, 64, 3]}})[1:-1]
    path.write_text(path.read_text().replace('"features": {', f'"features": {{{camera}, '))


def short_video(made: Made) -> None:
    video = made.folder / f"videos/chunk-000/{CAMERA}/episode_000001.mp4"
    write_video(video, made.images[made.rows(1)][:6], made.fps)


def other_rate(made: Made) -> None:
    write_video(made.folder / f"videos/chunk-000/{CAMERA}/episode_000001.mp4", made.images[made.rows(1)], 17)


def unknown_codec(made: Made) -> None:
    path = made.folder / f"videos/chunk-000/{CAMERA}/episode_000001.mp4"
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))


def unreadable_video(made: Made) -> None:
    (made.folder / f"videos/chunk-000/{CAMERA}/episode_000001.mp4").write_bytes(b"no video" * 100)


def cut_table(made: Made) -> None:
    path = made.folder / "data/chunk-000/episode_000001.parquet"
    path.write_bytes(path.read_bytes()[:-100])


def short_table(made: Made) -> None:
    path = made.folder / "data/chunk-000/episode_000001.parquet"
    pq.write_table(pq.read_table(path).slice(0, 4), path)


def outside(made: Made) -> None:
    made.edit(data_path="../../{episode_index}.parquet")


def attribute_of_a_number(made: Made) -> None:
    made.edit(data_path="{episode_index.__class__}.parquet")


def frozen_clock(made: Made) -> None:
    times = pa.array(np.r_[0, 1, 2, 2, 3, 4, 5, 6, 7].astype(np.float32) / made.fps)
    rewrite(made.folder / "data/chunk-000/episode_000001.parquet", timestamp=times)


def without_action(made: Made) -> None:
    info = json.loads((made.folder / "meta/info.json").read_text())
    del info["features"]["action"]
    made.edit(features=info["features"])


BAD: list[tuple[Callable[[Made], None], str]] = [
    (lambda made: made.edit(fps=0), r"info\.json: fps: expected more than 0, got 0"),
    (lambda made: made.edit(codebase_version="v1.6"), r"codebase_version: expected v2\.0, v2\.1 or v3\.0, got 'v1\.6'"),
    (lambda made: made.edit(total_episodes=4), r"total_episodes: expected 3 .*, got 4; .* still being written"),
    (lambda made: made.edit(total_frames=22), r"total_frames: expected 21 .*, got 22; .* still being written"),
    (lambda made: made.edit_feature(CAMERA, shape=[48, 63, 3]), rf"episode 0, {CAMERA}: .*expected 63x48 .* got 64x48"),
    (lambda made: made.edit_feature("action", shape=[5], names=None), r"action: expected 5 numbers in every row"),
    (lambda made: made.edit_feature("action", parts=[{"name": "a", "size": 3}]), r"action: expected parts of 4"),
    (lambda made: (made.folder / "meta/episodes.jsonl").unlink(), r"episodes\.jsonl not found"),
    (lambda made: shutil.rmtree(made.folder / "data"), "no usable episode among 3: left out 3 of 3"),
    (nan_in_the_state, r"episode 1, observation\.state: expected finite numbers, got nan at step 4 \('joint_2'\)"),
    (two_cameras, r"info\.json: features .* and .* are both named 'front'"),
    (equal_keys, rf"info\.json: '{CAMERA}': expected it once, got it twice"),
    (short_video, rf"episode 1, {CAMERA}: .*_000001\.mp4: expected 9 frames, the last at 0\.40 s, got 6"),
    (other_rate, rf"episode 1, {CAMERA}: .*_000001\.mp4: expected a frame at 0\.0500 s \(step 1\), within 0\.0001 s"),
    (unknown_codec, rf"episode 1, {CAMERA}: .*_000001\.mp4 cannot be decoded: its codec is not known to PyAV"),
    (unreadable_video, rf"episode 1, {CAMERA}: .*_000001\.mp4 cannot be decoded"),
    (cut_table, r"episode_000001\.parquet is no readable Parquet file: it is damaged, cut short"),
    (short_table, r"episode_000001\.parquet, episode 1: expected at least 9 rows, got 4; the dataset is still being"),
    (outside, r"data_path: expected a path within the dataset of \{episode_chunk\}, \{episode_index\}, got '\.\./"),
    (attribute_of_a_number, r"data_path: expected a path within the dataset"),
    (frozen_clock, r"episode 1, timestamp: expected times that increase, got 0\.1 s at step 3"),
    (without_action, "expected a feature `action` of float32; it has"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), BAD, ids=[message[-40:] for _, message in BAD])
def test_what_is_wrong_is_named_by_file_episode_and_key(
    spoil: Callable[[Made], None], message: str, tmp_path: Path
) -> None:
    made = write(tmp_path / "set", "v2.1")
    assert len(read(made)) == 3
    spoil(made)
    with pytest.raises(PrismError, match=message) as caught:
        read(made)
    text = str(caught.value)
    assert str(made.folder) in text
    assert "\n" not in text
    assert len(text) < 480 + len(str(made.folder)) * text.count(str(made.folder))


def test_a_table_of_episodes_without_its_columns_is_named(tmp_path: Path) -> None:
    made = write(tmp_path / "set")
    path = made.folder / "meta/episodes/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(path).drop_columns([f"videos/{CAMERA}/from_timestamp"]), path)
    with pytest.raises(PrismError, match=f"expected a column 'videos/{CAMERA}/from_timestamp'"):
        read(made)


def test_no_folder_and_no_dataset_are_told(tmp_path: Path) -> None:
    with pytest.raises(PrismError, match=r"info\.json not found; expected a LeRobot dataset"):
        LeRobotSource(tmp_path / "nothing")


def test_a_damaged_dataset_leaves_nothing_in_the_frame_cache(tmp_path: Path) -> None:
    made = write(tmp_path / "set", "v2.1")
    source = LeRobotSource(made.folder)
    frames = open_frames(source, source.schema, tmp_path / "cache")
    assert frames.ends == (7, 16, 21)
    np.testing.assert_array_equal(frames.state.numpy(), made.state)
    shutil.rmtree(tmp_path / "cache")
    short_video(made)
    with pytest.raises(PrismError, match="shorter than its table"):
        open_frames(source, source.schema, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_without_pyarrow_what_to_install_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = write(tmp_path / "set")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(PrismError, match=r"need pyarrow; run `pip install 'prism-policy\[lerobot\]'`"):
        LeRobotSource(made.folder)
