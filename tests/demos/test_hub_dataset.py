"""`hf:user/name` is a folder after it was fetched, against a small server that answers like the Hugging Face hub."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

constants = pytest.importorskip("huggingface_hub.constants", reason="needs prism-policy[hub]")

from lerobot_files import write  # noqa: E402 (it skips without pyarrow)
from prism_policy.data.lerobot import LeRobotSource  # noqa: E402
from prism_policy.demos.download import resolve_dataset  # noqa: E402
from prism_policy.errors import PrismError  # noqa: E402

NAME, COMMIT = "somebody/cubes", "5" * 40


class Hub(http.server.ThreadingHTTPServer):
    """Serves a repository's files; what is large is known by its SHA-256, the rest by git's checksum."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.files: dict[str, bytes] = {}
        self.fetched: list[str] = []
        self.broken = ""  # this file is not given
        self.ranges: list[str] = []

    def entry(self, path: str) -> dict[str, object]:
        content = self.files[path]
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        about: dict[str, object] = {"rfilename": path, "size": len(content), "blobId": oid}
        if path.endswith((".parquet", ".mp4")):
            about["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return about


class Answers(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        if self.path == f"/api/datasets/{NAME}?blobs=true":
            about = {"id": NAME, "sha": COMMIT, "siblings": [self.server.entry(path) for path in self.server.files]}
            return self._answer(json.dumps(about).encode(), {"Content-Type": "application/json"})
        path = self.path.partition("?")[0].removeprefix(f"/datasets/{NAME}/resolve/{COMMIT}/")
        if path not in self.server.files or path == self.server.broken:
            return self.send_error(404)
        self.server.fetched.append(path)
        content, wanted = self.server.files[path], self.headers.get("Range")
        if wanted:
            self.server.ranges.append(wanted)
            content = content[int(wanted.removeprefix("bytes=").partition("-")[0]) :]
        return self._answer(content, {}, 206 if wanted else 200)

    def _answer(self, content: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    made = write(tmp_path / "made")
    server = Hub()
    for path in sorted(made.folder.rglob("*")):
        if path.is_file():
            server.files[path.relative_to(made.folder).as_posix()] = path.read_bytes()
    server.files[".gitattributes"] = b"*.mp4 filter=lfs\n"
    server.files["../outside"] = b"?"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("PRISM_CACHE", str(tmp_path / "cache"))
    yield server
    server.shutdown()
    server.server_close()


def test_a_dataset_is_fetched_once_and_read(hub: Hub, tmp_path: Path) -> None:
    for _ in range(2):
        folder = resolve_dataset(f"hf:{NAME}")
    assert folder == tmp_path / "cache/hub/somebody--cubes"
    assert sorted(hub.fetched) == sorted(path for path in hub.files if not path.startswith("."))
    for path in hub.fetched:
        assert (folder / path).read_bytes() == hub.files[path]
    assert not (tmp_path / "cache/hub/outside").exists()
    source, original = LeRobotSource(folder), LeRobotSource(tmp_path / "made")
    assert source.schema == original.schema
    assert [len(e) for e in source.episodes(source.names, source.schema)] == [7, 9, 5]
    assert resolve_dataset(tmp_path) == tmp_path


def test_an_interrupted_download_goes_on(hub: Hub, tmp_path: Path) -> None:
    hub.broken = "meta/tasks.parquet"
    with pytest.raises(PrismError, match=f"the Hugging Face hub did not give hf:{NAME} .*; run the same command again"):
        resolve_dataset(f"hf:{NAME}")
    first, folder = len(hub.fetched), tmp_path / "cache/hub/somebody--cubes"
    # Half a file, as a kill leaves it.
    content = hub.files[hub.broken]
    part = folder / f"meta/.tasks.parquet.{hashlib.sha256(content).hexdigest()[:12]}.part"
    part.write_bytes(content[:100])
    hub.broken = ""
    resolve_dataset(f"hf:{NAME}")
    assert len(hub.fetched) == len(set(hub.fetched)) > first  # nothing twice
    assert (folder / "meta/tasks.parquet").read_bytes() == content
    assert any(wanted.startswith("bytes=100-") for wanted in hub.ranges)


def test_another_version_replaces_what_changed(hub: Hub, tmp_path: Path) -> None:
    folder = resolve_dataset(f"hf:{NAME}")
    before, hub.fetched = (folder / "meta/info.json").read_bytes(), []
    hub.files["meta/info.json"] = before.replace(b'"made"', b'"another"')
    video = next(path for path in hub.files if path.endswith("file-001.mp4"))
    del hub.files[video]
    resolve_dataset(f"hf:{NAME}")
    assert hub.fetched == ["meta/info.json"]
    assert b'"another"' in (folder / "meta/info.json").read_bytes()
    assert LeRobotSource(folder).findings[0].startswith("left out 1 of 3 episodes whose files are missing: 2")


def test_a_damaged_file_is_fetched_again(hub: Hub, tmp_path: Path) -> None:
    hub.broken = next(path for path in hub.files if path.endswith("file-001.mp4"))
    with pytest.raises(PrismError):
        resolve_dataset(f"hf:{NAME}")
    path = tmp_path / "cache/hub/somebody--cubes/meta/info.json"
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    hub.broken = ""
    resolve_dataset(f"hf:{NAME}")
    assert path.read_bytes() == hub.files["meta/info.json"]


def test_without_a_network_what_is_there_is_taken_and_said(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # "discard": nobody listens
    with pytest.raises(PrismError, match="the Hugging Face hub did not give"):
        resolve_dataset(f"hf:{NAME}")
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{hub.server_port}")
    folder = resolve_dataset(f"hf:{NAME}")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert resolve_dataset(f"hf:{NAME}") == folder
    assert "taken as it lies in" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["hf:cubes", "hf:a/b/c", "hf:../../etc", "hf:a/..", "hf:"])
def test_what_is_no_repository_is_told(name: str) -> None:
    with pytest.raises(PrismError, match="expected hf:USER/NAME"):
        resolve_dataset(name)
