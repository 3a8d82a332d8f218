"""Damaged LeRobot datasets: reading one ends in episodes or one sentence, and changes nothing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fuzz.harness import cases, clean, digest, flipped
from fuzz.test_run_folder import spoil
from lerobot_files import write
from prism_policy.data.lerobot import LeRobotSource


@pytest.mark.parametrize(("version", "video"), [("v3.0", "libx264"), ("v3.0", None), ("v2.1", "libx264")])
def test_damaged_datasets_are_told(version: str, video: str | None, tmp_path: Path) -> None:
    base = write(tmp_path / "sound", version, video).folder
    files = sorted(path.relative_to(base) for path in base.rglob("*") if path.is_file())
    refused = 0
    for case, rng in cases(f"lerobot {version} {video}", 0.05):
        folder = tmp_path / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(base, folder)
        path = folder / ("meta/info.json" if rng.random() < 0.4 else files[rng.integers(len(files))])
        if path.suffix == ".json" and rng.random() < 0.8:
            path.write_text(json.dumps(spoil(rng, json.loads(path.read_text()))))
        elif path.suffix == ".jsonl" and rng.random() < 0.8:
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            path.write_text("".join(json.dumps(line) + "\n" for line in spoil_one(rng, lines)))
        else:
            path.write_bytes(flipped(rng, path.read_bytes()))
        before = digest(folder)
        refused += clean(case, lambda folder=folder: read(folder)) is not None
        assert digest(folder) == before
    assert refused


def spoil_one(rng: np.random.Generator, lines: list[object]) -> list[object]:
    i = int(rng.integers(len(lines)))
    return [*lines[:i], spoil(rng, lines[i]), *lines[i + 1 :]]


def read(folder: Path) -> None:
    source = LeRobotSource(folder)
    for _ in source.episodes(source.names, source.schema):
        pass
    source.fingerprint()
