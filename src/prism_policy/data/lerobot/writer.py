"""Episodes written as a LeRobot dataset v3.0, which `LeRobotDataset` opens and `lerobot-train` trains on."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from PIL import Image

from prism_policy.data.lerobot.parquet import Rows, TableWriter, write_table
from prism_policy.data.schema import Part, Schema
from prism_policy.errors import PrismError
from prism_policy.utils.cores import available_cores

VideoCodec = Literal["h264", "av1"]
_CHUNK, _DATA_MB, _VIDEO_MB = 1000, 100, 200  # LeRobot's own defaults
_QUANTILES = (1, 10, 50, 90, 99)
_ENCODERS = {
    # A key frame every second one, so that LeRobot finds any frame fast; no frame out of order.
    "h264": ("libx264", {"g": "2", "crf": "18", "bf": "0"}),
    "av1": ("libsvtav1", {"g": "2", "crf": "30", "preset": "12"}),
}


@dataclass(frozen=True)
class Raw:
    """A column beside state and action, by its path in robomimic's layout."""

    path: str
    dtype: str
    shape: tuple[int, ...]
    """Of a step: () of a plain number."""


@dataclass
class _VideoFile:
    container: Any
    stream: Any
    frames: int = 0
    bytes: int = 0

    def write(self, frame: av.VideoFrame | None) -> None:
        """Encode a frame, or with none the last that were held back."""
        for packet in self.stream.encode(frame):
            self.bytes += packet.size
            self.container.mux(packet)


def _open_video(path: Path, codec: VideoCodec, fps: int, size: tuple[int, ...]) -> _VideoFile:
    encoder, options = _ENCODERS[codec]
    container = av.open(str(path), "w")
    stream: Any = container.add_stream(encoder, rate=fps, options=options)
    stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
    before = os.environ.get("SVT_LOG")
    os.environ["SVT_LOG"] = "0"  # SVT-AV1 prints its settings else
    try:
        stream.codec_context.open()
    finally:
        os.environ.pop("SVT_LOG")
        if before is not None:
            os.environ["SVT_LOG"] = before
    return _VideoFile(container, stream)


class LeRobotWriter:
    """Writes episodes one after the other into an empty folder.

    State and action are `observation.state` and `action`, float32, with the parts' names; images are PNG, equal to the
    bit, or videos.

    Usage::

        writer = LeRobotWriter(folder, schema, fps=20)
        writer.add(episode.images, episode.state, episode.actions, "lift the cube")
        writer.finish({"train": [0]})
    """

    def __init__(
        self,
        folder: Path,
        schema: Schema,
        fps: int,
        video: VideoCodec | None = None,
        robot_type: str | None = None,
        raw: Sequence[Raw] = (),
        paths: Mapping[str, str] | None = None,
    ) -> None:
        """Begin.

        Args:
            raw: further columns, named `robomimic.` and their path with dots.
            paths: of cameras' images in robomimic's layout.

        Raises:
            PrismError: a camera has an odd height or width, which a video cannot have.
        """
        self.folder, self.fps, self.video, self.robot_type = folder, fps, video, robot_type
        self.cameras = {camera: f"observation.images.{camera.replace('/', '.')}" for camera in schema.cameras}
        self._raw = {f"robomimic.{one.path.replace('/', '.')}": one for one in raw}
        self._has_state = schema.state_dim > 0
        self.features = self._features(schema, paths or {})
        self._tasks: dict[str, int] = {}
        self._rows: dict[str, list[Any]] = {}
        self._episodes = self._frames = 0
        self._data: TableWriter | None = None
        self._data_index = -1
        self._videos: dict[str, _VideoFile] = {}
        self._video_index = dict.fromkeys(self.cameras.values(), -1)
        self._vectors: dict[str, list[np.ndarray]] = {}
        self._pixels = {key: _Histogram() for key in self.cameras.values()}

    def _features(self, schema: Schema, paths: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        features: dict[str, dict[str, Any]] = {}
        for camera, (height, width) in schema.cameras.items():
            if self.video and (height % 2 or width % 2):
                raise PrismError(
                    f"camera {camera!r}: a video needs even sides, got {width}x{height}; leave out --video"
                )
            about = {"shape": [height, width, 3], "names": ["height", "width", "channels"]}
            about = {"dtype": "video" if self.video else "image", **about}
            if self.video:
                video = {"height": height, "width": width, "codec": self.video, "pix_fmt": "yuv420p"}
                video |= {"fps": self.fps, "channels": 3, "is_depth_map": False}
                about["info"] = {**{f"video.{key}": value for key, value in video.items()}, "has_audio": False}
            if camera in paths:
                about["robomimic"] = {"path": paths[camera]}
            features[self.cameras[camera]] = about
        if self._has_state:
            features["observation.state"] = _vector_feature(schema.state)
        features["action"] = _vector_feature(schema.action)
        for key, one in self._raw.items():
            about = {"dtype": one.dtype, "shape": [math.prod(one.shape)], "names": None}
            features[key] = {**about, "robomimic": {"path": one.path, "shape": list(one.shape)}}
        features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
        for key in ("frame_index", "episode_index", "index", "task_index"):
            features[key] = {"dtype": "int64", "shape": [1], "names": None}
        return features

    def add(
        self,
        images: Mapping[str, np.ndarray],
        state: np.ndarray,
        action: np.ndarray,
        task: str,
        raw: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Write an episode: images uint8 (T, H, W, 3) by camera, state (T, S), action (T, A), `raw` by path."""
        steps, start, raw = len(action), self._frames, raw or {}
        vectors = {"observation.state": state} if self._has_state else {}
        vectors = {**vectors, "action": action}
        rows: dict[str, Rows] = {key: _wide(x.astype(np.float32)) for key, x in vectors.items()}
        for key, one in self._raw.items():
            rows[key] = _wide(raw[one.path].astype(one.dtype, copy=False).reshape(steps, -1))
        rows["timestamp"] = (np.arange(steps) / self.fps).astype(np.float32)
        rows["frame_index"] = np.arange(steps)
        rows["episode_index"] = np.full(steps, self._episodes)
        rows["index"] = np.arange(start, start + steps)
        rows["task_index"] = np.full(steps, self._tasks.setdefault(task, len(self._tasks)))
        for key, x in vectors.items():
            self._vectors.setdefault(key, []).append(x.astype(np.float32))
        about: dict[str, Any] = {"episode_index": self._episodes, "tasks": [task], "length": steps}
        for camera, key in self.cameras.items():
            self._pixels[key].add(images[camera])
            if self.video:
                about |= self._add_video(key, images[camera])
            else:
                rows[key] = _encoded(images[camera])
        about |= self._add_rows(rows)
        about |= {"dataset_from_index": start, "dataset_to_index": start + steps}
        about |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        for name, value in about.items():
            self._rows.setdefault(name, []).append(value)
        self._episodes, self._frames = self._episodes + 1, start + steps

    def _add_rows(self, rows: Mapping[str, Rows]) -> dict[str, int]:
        size = sum(x.nbytes if isinstance(x, np.ndarray) else sum(map(len, x)) for x in rows.values())
        if self._data is None or self._data.bytes + size > _DATA_MB * 2**20:
            if self._data:
                self._data.close()
            self._data_index += 1
            self._data = TableWriter(self._place("data", self._data_index, "parquet"))
        self._data.write(rows)
        chunk, file = divmod(self._data_index, _CHUNK)
        return {"data/chunk_index": chunk, "data/file_index": file}

    def _add_video(self, key: str, images: np.ndarray) -> dict[str, Any]:
        video = self._videos.get(key)
        # Of an episode's size nothing is known but that of those before.
        if video is None or video.bytes * (1 + len(images) / video.frames) > _VIDEO_MB * 2**20:
            self._close_video(key)
            self._video_index[key] += 1
            path = self._place(f"videos/{key}", self._video_index[key], "mp4")
            video = self._videos[key] = _open_video(path, self.video or "h264", self.fps, images.shape[1:3])
        begin = video.frames
        for image in images:
            video.write(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24"))
        video.frames += len(images)
        chunk, file = divmod(self._video_index[key], _CHUNK)
        times = {"from_timestamp": begin / self.fps, "to_timestamp": video.frames / self.fps}
        return {f"videos/{key}/{k}": v for k, v in {"chunk_index": chunk, "file_index": file, **times}.items()}

    def _close_video(self, key: str) -> None:
        if video := self._videos.pop(key, None):
            video.write(None)
            video.container.close()

    def _place(self, folder: str, index: int, suffix: str) -> Path:
        chunk, file = divmod(index, _CHUNK)
        path = self.folder / folder / f"chunk-{chunk:03d}" / f"file-{file:03d}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def finish(self, splits: Mapping[str, Iterable[int]] | None = None) -> None:
        """Write what describes the dataset; `splits` name lists of episodes, by default all are `train`."""
        if self._data:
            self._data.close()
        for key in list(self._videos):
            self._close_video(key)
        meta = self.folder / "meta"
        (meta / "episodes/chunk-000").mkdir(parents=True)
        columns = {k: np.array(v) if isinstance(v[0], int | float) else v for k, v in self._rows.items()}
        write_table(meta / "episodes/chunk-000/file-000.parquet", columns)
        tasks: dict[str, Rows] = {"task_index": np.arange(len(self._tasks)), "task": list(self._tasks)}
        write_table(meta / "tasks.parquet", tasks, index="task")
        stats = {key: _statistics(np.concatenate(x)) for key, x in self._vectors.items()}
        stats |= {key: pixels.statistics() for key, pixels in self._pixels.items()}
        (meta / "stats.json").write_text(json.dumps(stats, indent=4))
        number = "chunk-{chunk_index:03d}/file-{file_index:03d}"
        info = {
            "codebase_version": "v3.0",
            "robot_type": self.robot_type,
            "total_episodes": self._episodes,
            "total_frames": self._frames,
            "total_tasks": len(self._tasks),
            "chunks_size": _CHUNK,
            "data_files_size_in_mb": _DATA_MB,
            "video_files_size_in_mb": _VIDEO_MB,
            "fps": self.fps,
            "splits": {name: as_ranges(x) for name, x in (splits or {"train": range(self._episodes)}).items()},
            "data_path": f"data/{number}.parquet",
            "video_path": f"videos/{{video_key}}/{number}.mp4" if self.video else None,
            "features": self.features,
        }
        (meta / "info.json").write_text(json.dumps(info, indent=4))


def as_ranges(numbers: Iterable[int]) -> str:
    """Numbers as LeRobot's `splits` have them, "0:4"; with gaps, "0:2,3:4"."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and runs[-1][1] == number:
            runs[-1][1] += 1
        else:
            runs.append([number, number + 1])
    return ",".join(f"{start}:{end}" for start, end in runs)


def _vector_feature(parts: Sequence[Part]) -> dict[str, Any]:
    names = [
        f"{part.name}.{part.names[i]}" if len(part.names) == part.size else f"{part.name}.{i}"
        for part in parts
        for i in range(part.size)
    ]
    return {"dtype": "float32", "shape": [len(names)], "names": names, "parts": [asdict(part) for part in parts]}


def _wide(values: np.ndarray) -> np.ndarray:
    """(T, 1) as (T,), as LeRobot stores one number a step."""
    return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values


def _png(image: np.ndarray) -> bytes:
    memory = io.BytesIO()
    Image.fromarray(image).save(memory, "PNG", compress_level=1)
    return memory.getvalue()


def _encoded(images: np.ndarray) -> list[bytes]:
    with ThreadPoolExecutor(available_cores()) as pool:
        return list(pool.map(_png, images))


def _statistics(values: np.ndarray) -> dict[str, Any]:
    """Of numbers (N, D), as LeRobot's `meta/stats.json` has them."""
    x = values.astype(np.float64)
    made: dict[str, Any] = {"min": x.min(0), "max": x.max(0), "mean": x.mean(0), "std": x.std(0)}
    made |= {f"q{q:02d}": np.quantile(x, q / 100, axis=0) for q in _QUANTILES}
    return {**{key: value.tolist() for key, value in made.items()}, "count": [len(x)]}


class _Histogram:
    """Statistics of a camera's pixels, by colour; large images count every so many rows and columns."""

    def __init__(self) -> None:
        self.counts, self.frames = np.zeros((3, 256), np.int64), 0

    def add(self, images: np.ndarray) -> None:
        step = max(1, min(images.shape[1:3]) // 128)
        few = images[:, ::step, ::step]
        self.counts += [np.bincount(few[..., c].reshape(-1), minlength=256) for c in range(3)]
        self.frames += len(images)

    def statistics(self) -> dict[str, Any]:
        """In [0, 1], each (3, 1, 1)."""
        level, made = np.arange(256) / 255, dict[str, Any]()
        for counts in self.counts:
            total, below = counts.sum(), np.cumsum(counts)
            mean = (counts * level).sum() / total
            held = np.flatnonzero(counts)
            of_colour = {"min": level[held[0]], "max": level[held[-1]], "mean": mean}
            of_colour["std"] = np.sqrt((counts * (level - mean) ** 2).sum() / total)
            of_colour |= {f"q{q:02d}": level[np.searchsorted(below, total * q / 100)] for q in _QUANTILES}
            for key, value in of_colour.items():
                made.setdefault(key, []).append([[float(value)]])
        return {**made, "count": [self.frames]}
