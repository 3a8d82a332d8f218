"""`hf:user/name` is a folder after it was fetched, against a small server that answers like the Hugging Face hub."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

constants = pytest.importorskip("huggingface_hub.constants", reason="needs prism-policy[hub]")

from hub_server import Hub, serving  # noqa: E402
from lerobot_files import write  # noqa: E402 (it skips without pyarrow)
from prism_policy.data.lerobot import LeRobotSource  # noqa: E402
from prism_policy.errors import PrismError  # noqa: E402
from prism_policy.utils.hub import local_path  # noqa: E402

NAME = "somebody/cubes"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    made = write(tmp_path / "made")
    paths = [path for path in sorted(made.folder.rglob("*")) if path.is_file()]
    files = {path.relative_to(made.folder).as_posix(): path.read_bytes() for path in paths}
    files |= {".gitattributes": b"*.mp4 filter=lfs\n", "../outside": b"?"}
    monkeypatch.setenv("PRISM_CACHE", str(tmp_path / "cache"))
    with serving() as server:
        server.repositories[f"datasets/{NAME}"] = files
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        yield server


@pytest.fixture
def files(hub: Hub) -> dict[str, bytes]:
    return hub.repositories[f"datasets/{NAME}"]


def test_a_dataset_is_fetched_once_and_read(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    for _ in range(2):
        folder = local_path(f"hf:{NAME}", "dataset")
    assert folder == tmp_path / "cache/hub/datasets/somebody--cubes"
    assert sorted(hub.fetched) == sorted(path for path in files if not path.startswith("."))
    for path in hub.fetched:
        assert (folder / path).read_bytes() == files[path]
    assert not (tmp_path / "cache/hub/outside").exists()
    source, original = LeRobotSource(folder), LeRobotSource(tmp_path / "made")
    assert source.schema == original.schema
    assert [len(e) for e in source.episodes(source.names, source.schema)] == [7, 9, 5]
    assert local_path(tmp_path, "dataset") == tmp_path


def test_an_interrupted_download_goes_on(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.broken = "meta/tasks.parquet"
    with pytest.raises(PrismError, match=f"the Hugging Face hub did not give hf:{NAME} .*; run the same command again"):
        local_path(f"hf:{NAME}", "dataset")
    first, folder = len(hub.fetched), tmp_path / "cache/hub/datasets/somebody--cubes"
    # Half a file, as a kill leaves it.
    content = files[hub.broken]
    part = folder / f"meta/.tasks.parquet.{hashlib.sha256(content).hexdigest()[:12]}.part"
    part.write_bytes(content[:100])
    hub.broken = ""
    local_path(f"hf:{NAME}", "dataset")
    assert len(hub.fetched) == len(set(hub.fetched)) > first  # nothing twice
    assert (folder / "meta/tasks.parquet").read_bytes() == content
    assert any(wanted.startswith("bytes=100-") for wanted in hub.ranges)


def test_another_version_replaces_what_changed(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    folder = local_path(f"hf:{NAME}", "dataset")
    before, hub.fetched = (folder / "meta/info.json").read_bytes(), []
    files["meta/info.json"] = before.replace(b'"made"', b'"another"')
    video = next(path for path in files if path.endswith("file-001.mp4"))
    del files[video]
    local_path(f"hf:{NAME}", "dataset")
    assert hub.fetched == ["meta/info.json"]
    assert b'"another"' in (folder / "meta/info.json").read_bytes()
    assert LeRobotSource(folder).findings[0].startswith("left out 1 of 3 episodes whose files are missing: 2")


def test_a_damaged_file_is_fetched_again(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.broken = next(path for path in files if path.endswith("file-001.mp4"))
    with pytest.raises(PrismError):
        local_path(f"hf:{NAME}", "dataset")
    path = tmp_path / "cache/hub/datasets/somebody--cubes/meta/info.json"
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    hub.broken = ""
    local_path(f"hf:{NAME}", "dataset")
    assert path.read_bytes() == files["meta/info.json"]


def test_without_a_network_what_is_there_is_taken_and_said(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # "discard": nobody listens
    with pytest.raises(PrismError, match="the Hugging Face hub did not give"):
        local_path(f"hf:{NAME}", "dataset")
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    folder = local_path(f"hf:{NAME}", "dataset")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert local_path(f"hf:{NAME}", "dataset") == folder
    assert "taken as it lies in" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["hf:cubes", "hf:a/b/c", "hf:../../etc", "hf:a/..", "hf:"])
def test_what_is_no_repository_is_told(name: str) -> None:
    with pytest.raises(PrismError, match="expected hf:USER/NAME"):
        local_path(name, "dataset")
