"""HDF5 files of any form and with any damage: an answer or one sentence, in bounded time, and the file as it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import community
from fuzz.harness import cases, clean, digest, flipped
from prism_policy.config.settings import RunConfig
from prism_policy.data.facts import read_facts
from prism_policy.data.libero import describe_libero, libero_episodes
from prism_policy.data.robomimic import read_attributes, read_demos, write_masks
from prism_policy.demos.dataset import fit_to_dataset, open_dataset
from prism_policy.demos.render import check_source
from prism_policy.utils.progress import console
from small_run import small_config

CAMERA = "agentview"


@pytest.fixture(scope="module", autouse=True)
def _quiet(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRISM_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(console, "quiet", True)
        yield


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    demos = {f"demo_{i}": community.demo(8, i, [CAMERA], 32) for i in range(3)}
    masks = {"train": ["demo_0", "demo_1"], "valid": ["demo_2"], "20_percent": ["demo_0"]}
    path = tmp_path_factory.mktemp("sound") / "demos.hdf5"
    community.write_file(path, demos, community.env_args("v1.5"), masks, "gzip")
    with h5py.File(path, "r+") as file:
        file["data"].attrs["render"] = json.dumps({"resolution": 32, "msaa": 0})
        file["data/demo_0"].attrs["model_file"] = "<mujoco/>"
    return path


def any_value(rng: np.random.Generator) -> Any:
    """What a foreign file may have where something else is expected."""
    values: list[Any] = [
        3, -1.5, "text", b"\xff\xfe", "²", [1, 2], np.zeros((3, 0)), np.zeros((8, 7)), np.full((8, 7), np.nan),
        np.zeros((8, 3), np.complex64), np.zeros(8, [("a", "f4"), ("b", "i4")]), np.array(["a", "b"], dtype="S"),
        np.full((8, 7), 1e300), np.zeros((8, 32, 32, 3), np.uint8), np.zeros((8, 3, 32, 32), np.uint8),
        np.zeros((8, 24, 32, 3), np.uint8), np.zeros((8, 32, 32, 3), np.float32), np.array([], "S4"),
        h5py.Empty("f"), np.uint64(2**64 - 1), np.float64(np.inf), "[" * 5000, "{}", "null", '{"a": 1e999}',
        np.array([b"demo_0", b"demo_9"]), np.zeros((8, 7), ">f2"), np.zeros((9, 7)), True, "x" * 40000,
    ]  # fmt: skip
    return values[rng.integers(len(values))]


def any_json(rng: np.random.Generator, value: Any, depth: int = 0) -> Any:
    """A JSON value with parts of it replaced."""
    others: list[Any] = [None, 0, -1, 1.5, "x", "panda.json", [], [{}], {}, [1, [2]], True, 10**30, "1.99.0", "²"]
    if rng.random() < 0.15 or depth > 6:
        return others[rng.integers(len(others))]
    if isinstance(value, dict):
        return {key: any_json(rng, x, depth + 1) if rng.random() < 0.4 else x for key, x in value.items()}
    return value


def deform(path: Path, rng: np.random.Generator) -> None:
    """Change some of a file's structure and values."""
    with h5py.File(path, "r+") as file:
        for _ in range(rng.integers(1, 4)):
            with suppress(OSError, ValueError, TypeError, KeyError, RuntimeError):  # h5py does not write it
                deform_once(file, rng)


def deform_once(file: h5py.File, rng: np.random.Generator) -> None:
    paths: list[str] = []
    file.visit(paths.append)
    if paths:
        target = paths[rng.integers(len(paths))]
        item = file[target]
        match rng.integers(9):
            case 0:
                del file[target]
            case 1:
                del file[target]
                file[target] = any_value(rng)
            case 2:
                del file[target]
                file.create_group(f"{target}/within")
            case 3:
                item.attrs[["env_args", "render", "num_samples", "model_file", "total"][rng.integers(5)]] = any_value(
                    rng
                )
            case 4:
                about = any_json(rng, community.env_args(["v0.1", "v1.4", "v1.5"][rng.integers(3)]))
                file.require_group("other")
                if isinstance(file.get("data"), h5py.Group):
                    file["data"].attrs["env_args"] = json.dumps(about)
            case 5:
                del file[target]
                links = [h5py.SoftLink("/nowhere"), h5py.SoftLink("/data"), h5py.ExternalLink("none.hdf5", "/")]
                file[target] = links[rng.integers(len(links))]
            case 6:
                name = ["demo_²", "demo_x", "demo_01", "episode", "demo_99999999999999999999", "ü"][rng.integers(6)]
                parent = item if isinstance(item, h5py.Group) else item.parent
                if name not in parent:
                    parent[name] = any_value(rng)
            case 7 if isinstance(item, h5py.Dataset) and item.dtype.kind == "f" and 0 < item.size < 10**6:
                values = item[()]
                values.flat[rng.integers(values.size)] = [np.nan, np.inf, 1e30, -40.0, 1.5][rng.integers(5)]
                item[()] = values
            case 8:
                del file[target]
                shape = [(10**9, 7), (2**40,), (8, 10**6, 10**6, 3), (2**31, 7)][rng.integers(4)]
                chunks = (True, None)[rng.integers(2)]
                file.create_dataset(target, shape, ["f8", "u1"][rng.integers(2)], chunks=chunks)
            case _:
                pass


def readers(path: Path, config: RunConfig) -> list[Callable[[], object]]:
    """Everything that reads a foreign file."""
    run = replace(config, dataset=str(path))
    return [
        lambda: read_facts(path),
        lambda: read_facts(path, "absolute"),
        lambda: read_demos(path),
        lambda: read_demos(path, skip_bad=True),
        lambda: read_demos(path, [CAMERA], "train", skip_bad=True),
        lambda: read_attributes(path),
        lambda: fit_to_dataset(run),
        lambda: open_dataset(replace(run, data=replace(run.data, mask="20_percent"))),
        lambda: check_source(path, run.task),
        lambda: list(libero_episodes(path)),
        lambda: describe_libero(path),
    ]


def check(case: int, path: Path, config: RunConfig, rng: np.random.Generator) -> None:
    before = digest(path.parent)
    all_readers = readers(path, config)
    for read in [all_readers[i] for i in rng.permutation(len(all_readers))[:2]]:  # in another case, others
        clean(case, read)
        assert digest(path.parent) == before, f"case {case}: the file or its folder was changed"
    if rng.random() < 0.7:
        return
    if clean(case, lambda: write_masks(path)):
        assert digest(path.parent) == before, f"case {case}: masks were half written"
    else:
        facts = read_facts(path) if clean(case, lambda: read_facts(path)) is None else None
        assert facts is None or facts.masks["train"] >= 1
    assert [*path.parent.iterdir()] == [path]


def test_files_of_any_form(sound: Path, tmp_path: Path) -> None:
    config = small_config()
    for case, rng in cases("hdf5-form", 0.35):
        folder = tmp_path / str(case)
        folder.mkdir()
        path = Path(shutil.copy(sound, folder))
        deform(path, rng)
        check(case, path, config, rng)
        shutil.rmtree(folder)


def test_files_with_damaged_bytes(sound: Path, tmp_path: Path) -> None:
    config = small_config()
    content = sound.read_bytes()
    for case, rng in cases("hdf5-bytes", 0.15):
        folder = tmp_path / str(case)
        folder.mkdir()
        path = folder / "demos.hdf5"
        path.write_bytes(flipped(rng, content))
        check(case, path, config, rng)
        shutil.rmtree(folder)
