"""A folder in LeRobot's layout as a source of episodes: vectors from Parquet, frames from videos or encoded images."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from prism_policy.data.episode import EXTRAS, Episode
from prism_policy.data.lerobot.meta import (
    INFO,
    Field,
    Recording,
    cameras_of,
    fields_of,
    names_text,
    ranges,
    read_info,
    read_recordings,
    read_tasks,
)
from prism_policy.data.lerobot.meta import is_v3 as _is_v3
from prism_policy.data.lerobot.parquet import Table
from prism_policy.data.lerobot.video import read_frames, read_images
from prism_policy.data.schema import Schema
from prism_policy.errors import PrismError
from prism_policy.utils.cores import available_cores
from prism_policy.utils.text import quoted

RAW = "robomimic."
"""Before the names of what was in a robomimic file and LeRobot has no place for; see `demos.export`."""
_LEROBOTS = {"rewards": "next.reward", "dones": "next.done"}
"""LeRobot's own columns of what an `Episode` holds beside state and action."""
_MASKS = {"val": "valid", "validation": "valid"}
"""What some call the mask of held-out episodes."""
_LARGEST = float(np.finfo(np.float32).max)
_PIECE, _PIECES = 4096, 16


class LeRobotSource:
    """Episodes of a LeRobot dataset, v3.0, v2.1 or v2.0; needs pyarrow, not LeRobot.

    State and action have a part for each vector of floats under `observation.` and `action`. Episodes are named
    `episode_000007`. A frame is looked up by the episode's start in the video and its time stamp, within 0.1 ms.

    Usage::

        source = LeRobotSource(Path("unitree_g1"), episodes=["0:10", "12"])
        for episode in source.episodes(source.names, source.schema.select(cameras=["cam_high"])):
            episode.images["cam_high"]  # uint8 (T, 480, 640, 3)
    """

    def __init__(self, path: Path, episodes: Sequence[str] = (), workers: int | None = None) -> None:
        """Read all that is known without images.

        Args:
            path: folder with `meta/info.json`.
            episodes: which ones, as numbers and ranges: "7", "0:10" (0 to 9). None named is all.
            workers: threads that decode, each an episode; by default one for each core, at most 8.

        Raises:
            PrismError: no such dataset, a damaged one, one that is still being written, or no usable episode.
        """
        self.path = path.expanduser()
        self.workers = workers or min(available_cores(), 8)
        info = read_info(self.path)
        self.info, where = info, self.path / INFO
        self.camera_keys, sizes, findings = cameras_of(info, where)
        state, of_state = fields_of(info, where, "observation")
        action, of_action = fields_of(info, where, "action")
        if not action:
            raise PrismError(
                f"{where}: expected a feature `action` of float32; it has {names_text([*info['features']])}"
            )
        self._state, self._action = ({field.part.name: field for field in fields} for fields in (state, action))
        self.schema = Schema(
            sizes, tuple(field.part for field in state), tuple(field.part for field in action), info["fps"]
        )
        self._tasks = read_tasks(self.path, _is_v3(info))
        every = {one.index: one for one in read_recordings(self.path, info, self.camera_keys.values())}
        chosen = self._chosen(every, episodes)
        self._table = lru_cache(maxsize=self.workers + 2)(Table)
        self._recordings, left_out = self._present(chosen)
        self.names: tuple[str, ...] = tuple(self._recordings)
        self.masks: Mapping[str, tuple[str, ...]]
        self.masks, of_masks = self._masks()
        self.findings: tuple[str, ...] = (*findings, *of_state, *of_action, *left_out, *of_masks)

    def _chosen(self, every: Mapping[int, Recording], episodes: Sequence[str]) -> list[Recording]:
        if not episodes:
            return list(every.values())
        numbers = sorted({number for text in episodes for number in ranges(text, "episodes")})
        if unknown := [number for number in numbers if number not in every]:
            there = f"{self.path} has {min(every)} to {max(every)}" if every else f"{self.path} has none"
            raise PrismError(f"episodes: there is no episode {unknown[0]}; {there}")
        return [every[number] for number in numbers]

    def _present(self, chosen: Sequence[Recording]) -> tuple[dict[str, Recording], list[str]]:
        """Episodes whose files are there, by name, and what is said of the others.

        Raises:
            PrismError: a table that is there does not hold what the list of episodes says.
        """
        present: dict[str, Recording] = {}
        missing: dict[int, Path] = {}
        for one in chosen:
            files = [one.data, *(clip.path for clip in one.clips.values())]
            if absent := [file for file in files if not file.is_file()]:
                missing[one.index] = absent[0]
            elif one.length:
                present[f"episode_{one.index:06d}"] = one
        findings = []
        if missing:
            example = next(iter(missing.values())).relative_to(self.path)
            get = "get the files, or choose among the others with `episodes`"
            which = f"{len(missing)} of {len(chosen)} episodes whose files are missing: {names_text([*missing])}"
            findings.append(f"left out {which} ({example} is not there); {get}")
        if empty := [one.index for one in chosen if not one.length and one.index not in missing]:
            findings.append(f"left out {names_text(empty)}: episodes without a frame")
        if not present:
            raise PrismError(
                f"{self.path}: no usable episode among {len(chosen)}" + "".join(f": {f}" for f in findings)
            )
        for file, episodes in self._by_file(present.values()).items():
            table = self._table(file)
            table.require([*self._columns(self.schema)])
            if table.rows < (listed := sum(one.length for one in episodes)):
                which = f"episode {episodes[-1].index}"
                rows = f"expected at least {listed} rows, got {table.rows}"
                writing = (
                    "the dataset is still being written or was cut short; wait for its writer or get the file again"
                )
                raise PrismError(f"{file}, {which}: {rows}; {writing}")
        return present, findings

    @staticmethod
    def _by_file(recordings: Any) -> dict[Path, list[Recording]]:
        files: dict[Path, list[Recording]] = {}
        for one in recordings:
            files.setdefault(one.data, []).append(one)
        return files

    def _masks(self) -> tuple[dict[str, tuple[str, ...]], list[str]]:
        """The `splits` of `meta/info.json`, of the episodes that are there.

        LeRobot writes a split `train` of all episodes whatever they are for: that chooses nothing, and is no mask.
        """
        masks: dict[str, tuple[str, ...]] = {}
        findings = []
        for name, text in self.info.get("splits", {}).items():
            try:
                numbers = ranges(text, f"{INFO}: splits.{name}") if text else []
            except PrismError as error:
                findings.append(f"left out the split {quoted(name)} ({error})")
                continue
            names = (f"episode_{number:06d}" for number in numbers)
            masks[_MASKS.get(name, name)] = tuple(episode for episode in names if episode in self._recordings)
        return {} if masks == {"train": self.names} else masks, findings

    def fingerprint(self) -> dict[str, Any]:
        """Sizes, times of change and samples of the files of the chosen episodes, as one checksum."""
        recordings = self._recordings.values()
        files = {path for one in recordings for path in (one.data, *(clip.path for clip in one.clips.values()))}
        files |= {path for path in (self.path / "meta").rglob("*") if path.is_file()}
        checksum = hashlib.sha256()
        for path in sorted(files):
            about = path.stat()
            checksum.update(f"{path.relative_to(self.path)} {about.st_size} {about.st_mtime_ns} ".encode())
            with path.open("rb") as file:
                for i in range(_PIECES):
                    file.seek(max(about.st_size - _PIECE, 0) * i // (_PIECES - 1))
                    checksum.update(file.read(_PIECE))
        return {"format": "lerobot", "episodes": list(self.names), "files": checksum.hexdigest()}

    def episodes(self, names: Sequence[str], schema: Schema) -> Iterator[Episode]:
        """Episodes in the order of `names`; a few are decoded ahead, one a thread, so memory holds `workers` + 1.

        Raises:
            PrismError: an episode cannot be read; names file, episode and key.
        """
        if unknown := [name for name in names if name not in self._recordings]:
            there = f"{self.path} has {self.names[0]} to {self.names[-1]}"
            raise PrismError(f"no episode {quoted(unknown[0])}; {there}")
        left, ahead = iter(names), deque[Future[Episode]]()
        pool = ThreadPoolExecutor(self.workers, "decode")
        try:
            for name in left:
                ahead.append(pool.submit(self._episode, name, schema))
                if len(ahead) > self.workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def raw(self, name: str) -> dict[str, np.ndarray]:
        """What an episode of a robomimic file held beside its images, by path, as it was: after `prism export`."""
        beside = {key: about for key, about in self.info["features"].items() if key.startswith(RAW)}
        table, (start, stop) = self._rows(self._recordings[name])
        columns = table.read({key: self._width(key) for key in beside}, start, stop) if beside else {}
        arrays: dict[str, np.ndarray] = {}
        for key, about in beside.items():
            place = about.get("robomimic")
            if place is None or math.prod(shape := place.get("shape", ())) != self._width(key):
                raise PrismError(f"{self.path / INFO}: {key}: expected where it was in a robomimic file; export again")
            arrays[place["path"]] = columns[key].astype(about["dtype"], copy=False).reshape(-1, *shape)
        return arrays

    def _columns(self, schema: Schema) -> dict[str, int]:
        """Columns of numbers to read, and the width of each."""
        fields = [*(self._state[part.name] for part in schema.state), *(self._action[p.name] for p in schema.action)]
        wide = {field.key: field.width for field in fields}
        return wide | dict.fromkeys(("timestamp", "task_index"), 1)

    def _episode(self, name: str, schema: Schema) -> Episode:
        one = self._recordings[name]
        where = f"{one.data}, episode {one.index}"
        table, (start, stop) = self._rows(one)
        more = {name: key for name in (*EXTRAS, "disturbed", "states") if (key := self._key(name, table))}
        columns = table.read({**self._columns(schema), **{k: self._width(k) for k in more.values()}}, start, stop)
        times = self._times(columns["timestamp"], where)
        images: dict[str, np.ndarray] = {}
        for camera in schema.cameras:
            images[camera] = self._images(one, table, camera, times, (start, stop))
        state = self._vector([self._state[part.name] for part in schema.state], columns, where)
        action = self._vector([self._action[part.name] for part in schema.action], columns, where)
        steps, beside = stop - start, {name: columns[key].reshape(stop - start, -1) for name, key in more.items()}
        return Episode(
            name,
            images,
            state,
            action,
            beside["disturbed"][:, 0].astype(bool) if "disturbed" in beside else np.zeros(steps, bool),
            beside.get("states", np.zeros((steps, 0))),
            {extra: beside[extra][:, 0] for extra in EXTRAS if extra in beside},
            self._task(columns["task_index"], where),
            times=times,
        )

    def _rows(self, one: Recording) -> tuple[Table, tuple[int, int]]:
        """The table that holds an episode, and its first row and the one behind its last."""
        table = self._table(one.data)
        first, last, count = table.stretches.get(one.index, (0, -1, 0))
        if count != one.length or last - first + 1 != count:
            how = f"expected {one.length} rows one after the other as meta says, got {count}"
            writing = "the dataset is still being written, or get it again"
            raise PrismError(f"{one.data}, episode {one.index}, episode_index: {how}; {writing}")
        return table, (first, last + 1)

    @staticmethod
    def _key(name: str, table: Table) -> str | None:
        """The column of something optional, by its name in robomimic's layout."""
        return next((key for key in (f"{RAW}{name}", _LEROBOTS.get(name)) if key in table.columns), None)

    def _width(self, key: str) -> int:
        feature = self.info["features"].get(key)
        return math.prod(feature["shape"]) if feature else 1

    def _times(self, timestamps: np.ndarray, where: str) -> np.ndarray:
        """Times of the frames since the episode's start [s], which increase."""
        times = timestamps.astype(np.float64).reshape(-1)
        if not np.isfinite(times).all() or (np.diff(times) <= 0).any():
            bad = ~np.isfinite(times) | np.r_[False, np.diff(times) <= 0]
            step = int(np.flatnonzero(bad)[0])
            raise PrismError(f"{where}, timestamp: expected times that increase, got {times[step]:g} s at step {step}")
        return times

    def _images(
        self, one: Recording, table: Table, camera: str, times: np.ndarray, rows: tuple[int, int]
    ) -> np.ndarray:
        key, size = self.camera_keys[camera], self.schema.cameras[camera]
        try:
            if clip := one.clips.get(key):
                threads = max(1, available_cores() // self.workers)
                return read_frames(clip.path, clip.start_s + times, size, threads)
            return read_images(table.objects([key], *rows)[key], self.path, size)
        except PrismError as error:
            where = f"episode {one.index}, {key}"
            file = "" if str(self.path) in str(error) else f"{one.data}, "
            raise PrismError(f"{file}{where}: {error}") from error

    def _vector(self, fields: Sequence[Field], columns: Mapping[str, np.ndarray], where: str) -> np.ndarray:
        """The parts side by side, float32 (T, D), all of them finite."""
        steps = len(columns["timestamp"])
        vector = np.empty((steps, sum(field.part.size for field in fields)), np.float32)
        end = 0
        for field in fields:
            values = columns[field.key].reshape(steps, field.width)[:, field.start : field.start + field.part.size]
            if not (good := np.abs(values) <= _LARGEST).all():  # also false for NaN
                step, number = np.argwhere(~good)[0].tolist()
                named = field.part.names[number] if field.part.names else f"number {field.start + number}"
                what = f"expected finite numbers, got {values[step, number]} at step {step} ({quoted(named)})"
                raise PrismError(f"{where}, {field.key}: {what}; repair the episode or leave it out")
            vector[:, end : end + field.part.size] = values
            end += field.part.size
        return vector

    def _task(self, numbers: np.ndarray, where: str) -> str:
        """The text of the task that most rows name; "" where the dataset has no texts."""
        number = int(Counter(numbers.reshape(-1).tolist()).most_common(1)[0][0])
        if self._tasks and number not in self._tasks:
            raise PrismError(f"{where}, task_index: there is no task {number}; the dataset has {len(self._tasks)}")
        return self._tasks.get(number, "")
