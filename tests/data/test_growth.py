"""Eight times the data is eight times the work, counted in comparisons, reads and bytes; not in seconds."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import community
from counted import Name
from made_recording import MadeSource, clean
from made_recording import write as write_recording
from panda import frames_in
from prism_policy.data import facts, robomimic
from prism_policy.data.frames import Frames
from prism_policy.data.schema import Part, Schema
from prism_policy.data.source import FolderSource, RobomimicSource, split_demos
from prism_policy.data.windows import Windows
from prism_policy.demos import cache
from prism_policy.doctor.dataset import examine, masks
from prism_policy.utils import files
from prism_policy.utils.files import check_seal, seal, sha256
from small_run import write_demos

SCHEMA = Schema({}, (Part("state", 2),), (Part("action", 2),))


def names_of(count: int) -> tuple[str, ...]:
    """Names that are equal to those of another call, and not the same objects."""
    return tuple(Name(f"part_{i % 8}/demo_{i}") for i in range(count))


def frames_of(episodes: int, tasks: int = 1, steps: int = 3) -> Frames:
    """Frames without images."""
    count = episodes * steps
    ends = tuple(range(steps, count + 1, steps))
    of_tasks = tuple(f"task {i % tasks}" for i in range(episodes))
    numbers = torch.arange(2.0 * count).view(count, 2)
    return Frames(
        {}, numbers, numbers, torch.zeros(count, dtype=torch.bool), ends, names_of(episodes), SCHEMA, of_tasks
    )


def look_up(count: int) -> None:
    frames_of(count).indices(names_of(count))


def divide(count: int) -> None:
    source = MadeSource([], masks={"train": names_of(count)[1::2], "valid": names_of(count)[::2]})
    split_demos(SimpleNamespace(path=source.path, names=names_of(count), masks=source.masks))  # type: ignore[arg-type]
    rest = {"valid": names_of(count)[::2]}
    split_demos(SimpleNamespace(path=source.path, names=names_of(count), masks=rest))  # type: ignore[arg-type]


def look_for_shared(count: int) -> None:
    chosen = SimpleNamespace(masks={"train": names_of(count), "valid": names_of(count)})
    assert len(list(masks(chosen))) == 1  # type: ignore[arg-type]


def read_folder(count: int) -> None:
    parts = {f"part_{i}": MadeSource([], SCHEMA) for i in range(count // 8)}  # files grow with the demonstrations
    for part in parts.values():
        part.episodes = lambda names, schema: iter(())  # type: ignore[method-assign]
    list(FolderSource(Path("folder"), parts).episodes(names_of(count), SCHEMA))


@pytest.mark.parametrize("work", [look_up, divide, look_for_shared, read_folder])
def test_names_are_compared_as_often_as_there_are_some(work: Callable[[int], None]) -> None:
    calls = []
    for count in (64, 512):
        Name.calls = 0
        work(count)
        calls.append(Name.calls)
    assert 0 < calls[1] <= 9 * calls[0], calls


@pytest.mark.parametrize("tasks", [1, 3, 7])
def test_a_tasks_vector_is_held_once_however_many_windows_are_of_it(tasks: int) -> None:
    vectors = {f"task {i}": torch.full((5,), float(i)) for i in range(tasks)}
    windows = Windows(frames_of(21, tasks), 2, 1, 1, task_vectors=vectors)
    assert windows.task_vectors is not None
    assert windows.task_vectors.shape == (tasks, 5)
    every = torch.arange(len(windows))
    episode = windows.observed[:, -1] // 3
    assert torch.equal(windows.batch(every)["task"], (episode % tasks).float()[:, None].expand(-1, 5))  # type: ignore[arg-type]
    groups = windows.groups("task")
    for task, group in enumerate(groups):
        assert group.tolist() == [i for i in every.tolist() if int(episode[i]) % tasks == task]
    assert len(groups) == tasks


def counting(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[Any]:
    """First arguments of the calls of a module's function."""
    calls: list[Any] = []
    function = getattr(module, name)

    def counted(first: Any, *others: Any, **named: Any) -> Any:
        calls.append(first)
        return function(first, *others, **named)

    monkeypatch.setattr(module, name, counted)
    return calls


def test_a_copied_cache_is_read_as_a_whole_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_demos(tmp_path / "demos.hdf5")
    frames = frames_in(data, ["agentview"], tmp_path / "cache")
    shutil.copytree(tmp_path / "cache", tmp_path / "copy", copy_function=shutil.copyfile)  # with times of their own
    monkeypatch.setattr(files, "SMALL", 0)  # all arrays are large ones
    read = counting(monkeypatch, files, "sha256")
    for _ in range(3):
        copied = frames_in(data, ["agentview"], tmp_path / "copy")
        assert copied.content == frames.content
    assert sorted(path.name for path in read) == ["actions.raw", "disturbed.raw", "image.agentview.raw", "state.raw"]


@pytest.mark.parametrize("harm", ["time", "none"])
def test_a_large_file_with_a_seal_is_read_where_its_time_is_another(
    harm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "SMALL", 0)
    path = tmp_path / "large"
    path.write_bytes(bytes(1_000_000))
    sealed = seal(path, sha256(path))
    if harm == "time":
        os.utime(path, ns=(0, 0))
    read = counting(monkeypatch, files, "sha256")
    again = check_seal(path, sealed)
    assert again == {**sealed, "changed_ns": path.stat().st_mtime_ns}
    assert len(read) == (harm == "time")
    with path.open("r+b") as file:
        file.seek(500_000)
        file.write(b"x")
    assert check_seal(path, sealed) is None


def test_a_large_cached_file_of_demonstrations_is_not_read_at_each_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(folder: Path, pool: Any) -> tuple[list[Path], str, dict[str, Any]]:
        cache.write_part(folder / "part.hdf5", {"actions": np.zeros((2, 7))}, {}, True, "{}")
        return [folder / "part.hdf5"], "{}", {}

    monkeypatch.setattr(files, "SMALL", 0)
    path = cache.cached("demos", {"a": 1}, tmp_path, 1, build, names=["demo_0"], masks={})
    read = counting(monkeypatch, files, "sha256")
    assert cache.cached("demos", {"a": 1}, tmp_path, 1, build, names=["demo_0"], masks={}) == path
    assert not read
    os.utime(path, ns=(0, 0))
    for _ in range(2):
        assert cache.cached("demos", {"a": 1}, tmp_path, 1, build, names=["demo_0"], masks={}) == path
    assert read == [path]


def test_every_file_of_the_largest_suite_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = []
    for i in range(90):  # as libero_90
        demos = {"demo_0": community.demo(4, i)}
        paths.append(community.write_file(tmp_path / f"{i}.hdf5", demos, community.env_args("v1.5"), {}))
    read = counting(monkeypatch, facts, "open_demos")
    for _ in range(2):
        for file in paths:
            RobomimicSource(file)
    assert read == paths


def test_demonstrations_that_cannot_be_read_cost_no_second_look_at_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    episodes = clean(12)
    path = write_recording(tmp_path / "a.hdf5", episodes)
    with h5py.File(path, "r+") as file:  # compressed images, of some of which the bytes are damaged
        for number in (2, 5, 8):
            images = file[f"data/demo_{number}/obs/front_image"][:]
            del file[f"data/demo_{number}/obs/front_image"]
            data = file[f"data/demo_{number}/obs"].create_dataset(
                "front_image", data=images, chunks=images.shape, compression="gzip"
            )
            data.id.write_direct_chunk((0, 0, 0, 0), b"no gzip" * 2000)
    source = RobomimicSource(path)
    read = counting(monkeypatch, robomimic, "read_demo")
    found = examine(source)
    assert found.episodes == 9
    assert [one.check for one in found.findings if one.check == "unusable-episode"] == ["unusable-episode"]
    assert len(read) == len(episodes)
