"""What a LeRobot dataset says of itself: `meta/info.json`, the table of its episodes, its tasks; v3.0, v2.1, v2.0."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, NotRequired, TypedDict

from prism_policy.config.ranges import Count, Natural, Positive, Range
from prism_policy.config.typed_json import conform, open_file, read_journal, read_json
from prism_policy.data.lerobot.parquet import MOST_NUMBERS, Table
from prism_policy.data.schema import Part, PartKind
from prism_policy.errors import PrismError
from prism_policy.utils.text import listed, quoted, shown

INFO = "meta/info.json"
_REMEDY = "repair it or get the dataset again"
_WRITING = "the dataset is still being written or was cut short; wait for its writer or get the whole dataset"
_Second = Annotated[float, Range(0)]


class InRobomimic(TypedDict):
    """An array of a robomimic file."""

    path: str
    shape: NotRequired[tuple[Natural, ...]]
    """Of a step."""


class Feature(TypedDict):
    """One column, or one camera's videos."""

    dtype: str
    shape: tuple[Annotated[int, Range(1, most=2**20)], ...]
    names: NotRequired[Any]
    info: NotRequired[dict[str, Any] | None]
    video_info: NotRequired[dict[str, Any] | None]
    parts: NotRequired[tuple[Part, ...]]
    """Our own: what consecutive numbers mean."""
    robomimic: NotRequired[InRobomimic]
    """Our own: where it was in a robomimic file."""


class Info(TypedDict):
    """`meta/info.json`, as far as it is read here."""

    codebase_version: str
    fps: Positive
    total_episodes: Natural
    total_frames: Natural
    chunks_size: NotRequired[Count]
    data_path: str
    video_path: NotRequired[str | None]
    splits: NotRequired[dict[str, str]]
    features: dict[str, Feature]


class _EpisodeLine(TypedDict):
    episode_index: Natural
    length: Natural
    tasks: NotRequired[tuple[str, ...]]


class _TaskLine(TypedDict):
    task_index: Natural
    task: str


@dataclass(frozen=True)
class Clip:
    """Where an episode's video lies."""

    path: Path
    start_s: float
    """Its first frame's time in the file."""


@dataclass(frozen=True)
class Recording:
    """Where one episode lies."""

    index: int
    length: int
    data: Path
    clips: Mapping[str, Clip]
    """By the feature's key."""


@dataclass(frozen=True)
class Field:
    """Where one part of state or action lies: numbers `start` to `start + part.size` of a feature."""

    part: Part
    key: str
    start: int
    width: int
    """Numbers of the whole feature."""


def read_info(folder: Path) -> Info:
    """Read and check `meta/info.json`.

    Raises:
        PrismError: there is none, it is damaged, of a version that is not known here, or names a feature twice.
    """
    path = folder / INFO
    missing = "expected a LeRobot dataset, a folder with meta, data and, of videos, videos"
    info: Info = read_json(path, Info, _REMEDY, missing)
    version = info["codebase_version"]
    if not re.fullmatch(r"v(2\.[01]|3\.\d{1,3})", version):
        convert = "convert it with LeRobot's own scripts"
        raise PrismError(
            f"{path}: codebase_version: expected v2.0, v2.1 or v3.0, got {quoted(version)}; {convert} first"
        )
    _check_unique(path)
    return info


def _check_unique(path: Path) -> None:
    """JSON takes the last of two equal keys without a word: one of two cameras of one name would vanish."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in items]
        if double := [key for i, key in enumerate(keys) if key in keys[:i]]:
            raise PrismError(f"{path}: {quoted(double[0])}: expected it once, got it twice; rename one of the two")
        return dict(items)

    with open_file(path) as file:
        json.loads(file.read(), object_pairs_hook=pairs)


def is_v3(info: Info) -> bool:
    """Whether several episodes share a file."""
    return info["codebase_version"].startswith("v3")


def cameras_of(info: Info, path: Path) -> tuple[dict[str, str], dict[str, tuple[int, int]], list[str]]:
    """Cameras' features by the camera's name, height and width of each [px], and what is left out and why."""
    keys: dict[str, str] = {}
    sizes: dict[str, tuple[int, int]] = {}
    findings = []
    for key, feature in info["features"].items():
        if feature["dtype"] not in ("image", "video"):
            continue
        about = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
        if about.get("is_depth_map") or about.get("video.is_depth_map"):
            findings.append(f"left out {quoted(key)}: a depth map, which no policy here takes")
            continue
        name = re.sub(r"^(observation\.(images?\.)?)", "", key)
        if name in keys:
            both = f"features {quoted(keys[name])} and {quoted(key)} are both named {quoted(name)}"
            raise PrismError(f"{path}: {both}; rename one camera")
        keys[name], sizes[name] = key, _image_size(feature, f"{path}: {key}")
        if about.get("has_audio"):
            findings.append(f"left out the sound of {quoted(key)}")
    return keys, sizes, findings


def _image_size(feature: Feature, where: str) -> tuple[int, int]:
    """Height and width: (H, W, C), or (C, H, W) where the names say so."""
    shape, names = feature["shape"], feature.get("names")
    if len(shape) != 3:
        raise PrismError(f"{where}: expected a shape of height, width and channels, got {shown(list(shape))}")
    named = isinstance(names, Sequence) and not isinstance(names, str) and len(names) == 3
    last = names[2] in ("channel", "channels") if named and names else shape[2] <= 4 or shape[0] > 4
    return (shape[0], shape[1]) if last else (shape[1], shape[2])


def fields_of(info: Info, path: Path, prefix: str) -> tuple[list[Field], list[str]]:
    """Parts of the state (`prefix` "observation") or the action ("action"), and what is left out and why."""
    fields: list[Field] = []
    findings = []
    for key, feature in info["features"].items():
        if feature["dtype"] in ("image", "video") or not (key == prefix or key.startswith(f"{prefix}.")):
            continue
        if feature["dtype"] not in ("float32", "float64"):
            findings.append(f"left out {quoted(key)}: its numbers are {quoted(feature['dtype'])}, expected float32")
            continue
        width = math.prod(feature["shape"])
        if width > MOST_NUMBERS:
            raise PrismError(f"{path}: {key}: expected at most {MOST_NUMBERS} numbers, got {width}")
        start = 0
        for part in _parts(key.removeprefix(f"{prefix}."), feature, width, f"{path}: {key}"):
            if double := [field for field in fields if field.part.name == part.name]:
                both = f"{quoted(double[0].key)} and {quoted(key)} both hold a part named {quoted(part.name)}"
                raise PrismError(f"{path}: {both}; rename one")
            fields.append(Field(part, key, start, width))
            start += part.size
    return fields, findings


def _parts(name: str, feature: Feature, width: int, where: str) -> list[Part]:
    """Parts of a feature: those that it lists, else those that its names are grouped by, else one."""
    if parts := list(feature.get("parts", ())):
        if sum(part.size for part in parts) != width or min(part.size for part in parts) < 1:
            raise PrismError(f"{where}: expected parts of {width} numbers in all, got {[p.size for p in parts]}")
        return parts
    names = feature.get("names")
    groups = {k: _texts(v) for k, v in names.items()} if isinstance(names, dict) else {}
    if len(groups) > 1 and sum(map(len, groups.values())) == width and all(groups.values()):
        return [Part(k, len(v), _kind(v), tuple(v)) for k, v in groups.items()]
    flat = _texts(names)
    flat = flat if len(flat) == width else []
    return [Part(name, width, _kind(flat), tuple(flat))]


def _texts(names: Any) -> list[str]:
    """All texts in lists and maps within one another."""
    if isinstance(names, str):
        return [names]
    if isinstance(names, dict):
        inner = list(names.values())
        return list(names) if all(isinstance(x, int) for x in inner) else _texts(inner)
    return [text for one in names for text in _texts(one)] if isinstance(names, list | tuple) else []


_JOINT = re.compile(
    r"joint|motor|shoulder|elbow|wrist|forearm|waist|hip|knee|ankle|finger|thumb|pinky|gripper|hand(?!le)|qpos|\.pos$",
    re.I,
)
_NO_JOINT = re.compile(r"quat|rot6d|euler|rotation_|vel|torque|effort|current|eef|ee_|tcp|cartesian", re.I)


def _kind(names: Sequence[str]) -> PartKind:
    """`joint` where every number's name is a joint's or a finger's and one at least is no gripper, else `other`."""
    joints = [bool(_JOINT.search(name)) and not _NO_JOINT.search(name) for name in names]
    return "joint" if joints and all(joints) else "other"


def read_tasks(folder: Path, v3: bool) -> dict[int, str]:
    """What to do, by number; empty where the dataset does not say."""
    path = folder / ("meta/tasks.parquet" if v3 else "meta/tasks.jsonl")
    if not path.exists():
        return {}
    if not v3:
        return {line["task_index"]: line["task"] for line in read_journal(path, _TaskLine).sound(_REMEDY)}
    table = Table(path)
    key = next((key for key in ("task", "__index_level_0__") if key in table.columns), "task")
    columns = table.objects(["task_index", key])
    hint = tuple[_TaskLine, ...]
    lines = [{"task_index": i, "task": text} for i, text in zip(columns["task_index"], columns[key], strict=True)]
    return {line["task_index"]: line["task"] for line in _conform(hint, lines, path)}


def read_recordings(folder: Path, info: Info, cameras: Iterable[str]) -> list[Recording]:
    """Where each episode lies, in order.

    Raises:
        PrismError: the table of episodes is missing or damaged, or does not agree with `meta/info.json`.
    """
    videos = [key for key in cameras if info["features"][key]["dtype"] == "video"]
    read = _read_v3 if is_v3(info) else _read_v2
    recordings = sorted(read(folder, info, videos), key=lambda one: one.index)
    path, count = folder / INFO, len(recordings)
    if double := [a.index for a, b in itertools.pairwise(recordings) if a.index == b.index]:
        raise PrismError(f"{folder / 'meta'}: episode {double[0]} is listed twice; {_REMEDY}")
    if count != (said := info["total_episodes"]):
        raise PrismError(
            f"{path}: total_episodes: expected {count} as in the table of episodes, got {said}; {_WRITING}"
        )
    if (frames := sum(one.length for one in recordings)) != (said := info["total_frames"]):
        raise PrismError(f"{path}: total_frames: expected {frames} as in the table of episodes, got {said}; {_WRITING}")
    return recordings


def _read_v3(folder: Path, info: Info, videos: Sequence[str]) -> list[Recording]:
    data, video = _Template(folder, info, "data_path"), _Template(folder, info, "video_path") if videos else None
    recordings = []
    paths = sorted((folder / "meta/episodes").glob("chunk-*/file-*.parquet"))
    if not paths and info["total_episodes"]:
        raise PrismError(f"{folder / 'meta/episodes'}: expected a table of episodes, got none; {_WRITING}")
    whole = ("episode_index", "length", "data/chunk_index", "data/file_index")
    of_video = ("chunk_index", "file_index", "from_timestamp")
    wanted = [*whole, *(f"videos/{key}/{column}" for key in videos for column in of_video)]
    hint = tuple[Natural | _Second, ...]
    for path in paths:
        columns = Table(path).objects(wanted)
        for key, values in columns.items():
            _conform(hint if key.endswith("timestamp") else tuple[Natural, ...], values, path, key)
        for row in range(len(columns["length"])):
            at = {key: values[row] for key, values in columns.items()}
            clips = {
                key: Clip(
                    video(
                        video_key=key,
                        chunk_index=at[f"videos/{key}/chunk_index"],
                        file_index=at[f"videos/{key}/file_index"],
                    ),
                    float(at[f"videos/{key}/from_timestamp"]),
                )
                for key in videos
                if video
            }
            file = data(chunk_index=at["data/chunk_index"], file_index=at["data/file_index"])
            recordings.append(Recording(at["episode_index"], at["length"], file, clips))
    return recordings


def _read_v2(folder: Path, info: Info, videos: Sequence[str]) -> list[Recording]:
    data, video = _Template(folder, info, "data_path"), _Template(folder, info, "video_path") if videos else None
    path, size = folder / "meta/episodes.jsonl", info.get("chunks_size", 1000)
    if not path.exists():
        raise PrismError(f"{path} not found; {_WRITING}")
    recordings = []
    for line in read_journal(path, _EpisodeLine).sound(_REMEDY):
        at = {"episode_chunk": line["episode_index"] // size, "episode_index": line["episode_index"]}
        clips = {key: Clip(video(video_key=key, **at), 0.0) for key in videos if video}
        recordings.append(Recording(line["episode_index"], line["length"], data(**at), clips))
    return recordings


class _Template:
    """A path with places for numbers, as `meta/info.json` gives it; never out of the folder."""

    def __init__(self, folder: Path, info: Info, key: str) -> None:
        self.folder, self.where, self.text = folder, f"{folder / INFO}: {key}", info.get(key)

    def __call__(self, **values: Any) -> Path:
        text = self.text
        if not isinstance(text, str):
            raise PrismError(f"{self.where}: expected a path with places for numbers, got {shown(text)}; {_REMEDY}")
        fields = re.findall(r"\{[^{}]*\}", text)
        plain = re.sub(r"\{[a-z_]{1,40}(:0\d{1,2}d)?\}", "", text)
        names = [field[1:-1].partition(":")[0] for field in fields]
        path = None
        if "{" not in plain and "}" not in plain and all(name in values for name in names):
            path = PurePosixPath(text.format(**values))
        if path is None or path.is_absolute() or ".." in path.parts or not str(path).isprintable() or len(text) > 200:
            known = ", ".join(f"{{{name}}}" for name in values)
            expected = f"expected a path within the dataset of {known}, got {quoted(text)}"
            raise PrismError(f"{self.where}: {expected}; {_REMEDY}")
        return self.folder / path


def _conform(hint: Any, values: Any, path: Path, key: str = "") -> Any:
    try:
        return conform(hint, values, key)
    except PrismError as error:
        raise PrismError(f"{path}: {error}; {_REMEDY}") from error


def ranges(text: str, where: str) -> list[int]:
    """Numbers of episodes: "7", "0:10" (0 to 9, as LeRobot's `splits` have it), or several with commas.

    Raises:
        PrismError: the text is something else.
    """
    numbers: list[int] = []
    for one in text.replace(" ", "").split(","):
        match = re.fullmatch(r"(\d{1,9})(?::(\d{1,9}))?", one)
        if not match or (match[2] and int(match[2]) - int(match[1]) > 10**6):
            raise PrismError(f"{where}: expected numbers and ranges such as 7 or 0:10, got {quoted(text)}")
        numbers += range(int(match[1]), int(match[2])) if match[2] else [int(match[1])]
    return numbers


def names_text(names: Sequence[object]) -> str:
    """The first few of some numbers."""
    return listed([str(name) for name in names], 8)
