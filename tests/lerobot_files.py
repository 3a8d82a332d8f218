"""Small LeRobot datasets, written with pyarrow and PyAV alone, as LeRobot's documentation lays them out."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

pa = pytest.importorskip("pyarrow", reason="needs prism-policy[lerobot]")
pq = pytest.importorskip("pyarrow.parquet")

RECORDED = Path(os.environ.get("PRISM_LEROBOT_DATA") or Path(__file__).parents[2] / "shared/data/lerobot")
"""Folder of two conversions of a real recording, `unitree_g1_v21` and `unitree_g1_v30`; not part of this project."""
CAMERA = "observation.images.front"
TASKS = ("lift the cube", "close the drawer")
INT64 = {"dtype": "int64", "shape": [1], "names": None}


@dataclass
class Made:
    """What a dataset should hold."""

    folder: Path
    lengths: tuple[int, ...] = (7, 9, 5)
    fps: int = 20
    size: tuple[int, int] = (48, 64)
    state: np.ndarray = field(init=False)
    action: np.ndarray = field(init=False)
    images: np.ndarray = field(init=False)
    """uint8 (N, H, W, 3): a brightness that tells every frame, and noise where it is not for videos."""

    def __post_init__(self) -> None:
        rng, frames = np.random.default_rng(0), sum(self.lengths)
        self.state = rng.normal(size=(frames, 6)).astype(np.float32)
        self.action = rng.uniform(-1, 1, (frames, 4)).astype(np.float32)
        level = (np.arange(frames) * 10 + 20).astype(np.uint8)[:, None, None, None]
        self.images = np.broadcast_to(level, (frames, *self.size, 3)).copy()

    @property
    def starts(self) -> list[int]:
        return [0, *np.cumsum(self.lengths).tolist()]

    def rows(self, episode: int) -> slice:
        return slice(*self.starts[episode : episode + 2])

    def edit(self, **changes: Any) -> None:
        """Change entries of meta/info.json; `features__KEY` one of the features."""
        path = self.folder / "meta/info.json"
        info = json.loads(path.read_text())
        info.update(changes)
        path.write_text(json.dumps(info))

    def edit_feature(self, key: str, **changes: Any) -> None:
        info = json.loads((self.folder / "meta/info.json").read_text())
        info["features"].setdefault(key, {}).update(changes)
        self.edit(features=info["features"])


def write_video(path: Path, images: np.ndarray, fps: int, codec: str = "libx264", **changed: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"g": "2", "crf": "12"} | ({"bf": "0"} if codec == "libx264" else {"preset": "12"}) | changed
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, fps, options=options)
        stream.height, stream.width, stream.pix_fmt = *images.shape[1:3], "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def png(image: np.ndarray) -> dict[str, Any]:
    memory = io.BytesIO()
    Image.fromarray(image).save(memory, "PNG")
    return {"bytes": memory.getvalue(), "path": "frame.png"}


def vectors(values: np.ndarray) -> Any:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def columns(made: Made, video: str | None) -> dict[str, Any]:
    lengths, frames = made.lengths, sum(made.lengths)
    step = np.concatenate([np.arange(n) for n in lengths])
    episode = np.repeat(np.arange(len(lengths)), lengths)
    rows = {
        "observation.state": vectors(made.state),
        "action": vectors(made.action),
        "timestamp": pa.array((step / made.fps).astype(np.float32)),
        "frame_index": pa.array(step),
        "episode_index": pa.array(episode),
        "index": pa.array(np.arange(frames)),
        "task_index": pa.array(episode % 2),
    }
    if video is None:
        struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        rows[CAMERA] = pa.array([png(image) for image in made.images], struct)
    return rows


def write(
    folder: Path,
    version: str = "v3.0",
    video: str | None = "libx264",
    files: Sequence[Sequence[int]] = ((0, 1), (2,)),
    **options: Any,
) -> Made:
    """Write a dataset of three episodes; `video` None stores PNG. In v3.0, `files` says which episodes share one."""
    made = Made(folder, **options)
    v3 = version.startswith("v3")
    rng = np.random.default_rng(1)
    if video is None:
        made.images = rng.integers(0, 256, made.images.shape, np.uint8)
    rows = pa.table(columns(made, video))
    shape = [*made.size, 3]
    camera = {"dtype": "image" if video is None else "video", "shape": shape, "names": ["height", "width", "channels"]}
    features = {
        CAMERA: camera,
        "observation.state": {"dtype": "float32", "shape": [6], "names": {"motors": [f"joint_{i}" for i in range(6)]}},
        "action": {"dtype": "float32", "shape": [4], "names": ["x", "y", "z", "grip"]},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), INT64),
    }
    number = "chunk-{chunk_index:03d}/file-{file_index:03d}" if v3 else "chunk-{episode_chunk:03d}"
    episode = "" if v3 else "/episode_{episode_index:06d}"
    place = "videos/{video_key}/" + number if v3 else "videos/" + number + "/{video_key}"
    info = {
        "codebase_version": version,
        "robot_type": "made",
        "total_episodes": len(made.lengths),
        "total_frames": sum(made.lengths),
        "total_tasks": len(TASKS),
        "chunks_size": 1000,
        "fps": made.fps,
        "splits": {"train": f"0:{len(made.lengths)}"},
        "data_path": f"data/{number}{episode}.parquet",
        "video_path": f"{place}{episode}.mp4" if video else None,
        "features": features,
    }
    (folder / "meta").mkdir(parents=True)
    (folder / "meta/info.json").write_text(json.dumps(info))
    (_write_v3 if v3 else _write_v2)(made, rows, video, files)
    return made


def _write_v2(made: Made, rows: Any, video: str | None, files: Sequence[Sequence[int]]) -> None:
    meta, data = made.folder / "meta", made.folder / "data/chunk-000"
    data.mkdir(parents=True)
    tasks = [{"task_index": i, "task": task} for i, task in enumerate(TASKS)]
    lines = [{"episode_index": i, "tasks": [TASKS[i % 2]], "length": n} for i, n in enumerate(made.lengths)]
    for name, entries in (("tasks", tasks), ("episodes", lines)):
        (meta / f"{name}.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    for i, n in enumerate(made.lengths):
        pq.write_table(rows.slice(made.starts[i], n), data / f"episode_{i:06d}.parquet")
        if video:
            path = made.folder / f"videos/chunk-000/{CAMERA}/episode_{i:06d}.mp4"
            write_video(path, made.images[made.rows(i)], made.fps, video)


def _write_v3(made: Made, rows: Any, video: str | None, files: Sequence[Sequence[int]]) -> None:
    data = made.folder / "data/chunk-000"
    data.mkdir(parents=True)
    table: dict[str, list[Any]] = {}
    for number, episodes in enumerate(files):
        frames, seconds = [], 0.0
        with pq.ParquetWriter(data / f"file-{number:03d}.parquet", rows.schema) as writer:
            for i in episodes:
                n = made.lengths[i]
                writer.write_table(rows.slice(made.starts[i], n))
                row = {"episode_index": i, "tasks": [TASKS[i % 2]], "length": n, "data/chunk_index": 0}
                row |= {"data/file_index": number, "dataset_from_index": made.starts[i]}
                row["dataset_to_index"] = made.starts[i + 1]
                if video:
                    at = {"chunk_index": 0, "file_index": number, "from_timestamp": seconds}
                    row |= {f"videos/{CAMERA}/{key}": value for key, value in at.items()}
                    seconds += n / made.fps
                    row[f"videos/{CAMERA}/to_timestamp"] = seconds
                for key, value in row.items():
                    table.setdefault(key, []).append(value)
                frames.append(made.images[made.rows(i)])
        if video:
            path = made.folder / f"videos/{CAMERA}/chunk-000/file-{number:03d}.mp4"
            write_video(path, np.concatenate(frames), made.fps, video)
    (made.folder / "meta/episodes/chunk-000").mkdir(parents=True)
    pq.write_table(pa.table(table), made.folder / "meta/episodes/chunk-000/file-000.parquet")
    tasks = pa.table({"task_index": pa.array(range(len(TASKS))), "task": pa.array(TASKS)})
    pq.write_table(tasks, made.folder / "meta/tasks.parquet")
