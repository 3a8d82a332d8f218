"""Fetching robomimic's files, against a small server that answers like the Hugging Face hub."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

pytest.importorskip("huggingface_hub", reason="needs prism-policy[hub]")

REPOSITORY, FILE = "robomimic/robomimic_datasets", "v1.5/lift/ph/low_dim_v15.hdf5"
COMMIT = "0" * 40


class Hub(http.server.ThreadingHTTPServer):
    """Serves one large file; `broken_after` cuts the connection after so many bytes."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.content, self.sha256 = content, hashlib.sha256(content).hexdigest()
        self.broken_after: int | None = None
        self.ranges: list[str | None] = []


class Answers(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        assert self.path == f"/api/datasets/{REPOSITORY}/paths-info/main"
        entries: list[dict[str, Any]] = []
        if "low_dim_v15" in asked:
            size = len(self.server.content)
            lfs = {"oid": self.server.sha256, "size": size, "pointerSize": 134}
            entries = [{"type": "file", "path": FILE, "size": size, "oid": COMMIT, "lfs": lfs}]
        self._head(200, {"Content-Type": "application/json"}, len(json.dumps(entries)))
        self.wfile.write(json.dumps(entries).encode())

    def do_HEAD(self) -> None:
        linked = {"X-Linked-Etag": f'"{self.server.sha256}"', "X-Linked-Size": str(len(self.server.content))}
        self._head(
            200, {"X-Repo-Commit": COMMIT, "ETag": f'"{self.server.sha256}"', **linked}, len(self.server.content)
        )

    def do_GET(self) -> None:
        if FILE not in self.path:  # huggingface_hub asks for news of its own
            return self.send_error(404)
        content, asked = self.server.content, self.headers.get("Range")
        self.server.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        range_headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if asked else {}
        self._head(206 if asked else 200, range_headers, len(content) - start)
        self.wfile.write(content[start : self.server.broken_after])
        return None

    def _head(self, status: int, headers: dict[str, str], length: int) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    path = tmp_path / "made.hdf5"
    with h5py.File(path, "w") as file:
        file["data/demo_0/actions"] = np.random.default_rng(0).uniform(-1, 1, (5000, 7))
    server = Hub(path.read_bytes())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def fetch(folder: Path, port: int, *arguments: str, setup: str = "") -> subprocess.CompletedProcess[str]:
    """`prism download robomimic/lift/ph`; the hub's address is read when huggingface_hub is imported."""
    program = f"{setup}\nfrom prism_policy.cli.main import main\nmain()"
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HUB_DOWNLOAD_TIMEOUT": "2"}
    command = [sys.executable, "-c", program, "download", "robomimic/lift/ph", "--out", str(folder), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_a_file_is_fetched_checked_and_not_fetched_again(hub: Hub, tmp_path: Path) -> None:
    for _ in range(2):
        done = fetch(tmp_path, hub.server_port)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [f"File: {tmp_path / FILE}", f"Next: prism info {tmp_path / FILE}"]
    assert (tmp_path / FILE).read_bytes() == hub.content
    assert len(hub.ranges) == 1


def test_an_interrupted_download_goes_on_where_it_was(hub: Hub, tmp_path: Path) -> None:
    hub.broken_after = len(hub.content) // 2
    # The library tries again by itself a few times; the process is killed before it may.
    small = "import huggingface_hub.constants as constants; constants.DOWNLOAD_CHUNK_SIZE = 10_000"
    kill = "import os, time; time.sleep = lambda seconds: os._exit(9)"
    assert fetch(tmp_path, hub.server_port, setup=f"{small}; {kill}").returncode == 9
    assert not (tmp_path / FILE).exists()
    hub.broken_after, hub.ranges = None, []
    assert fetch(tmp_path, hub.server_port).returncode == 0
    assert (tmp_path / FILE).read_bytes() == hub.content
    (asked,) = hub.ranges
    assert asked is not None
    assert int(asked.removeprefix("bytes=").partition("-")[0]) > len(hub.content) // 3
    assert [file.name for file in (tmp_path / FILE).parent.iterdir()] == ["low_dim_v15.hdf5"]


def test_a_wrong_checksum_is_refused(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / FILE).parent.mkdir(parents=True)
    (tmp_path / FILE).write_bytes(hub.content[:-1] + b"?")
    done = fetch(tmp_path, hub.server_port)
    assert done.returncode == 2
    assert f"{tmp_path / FILE}: expected the hub's SHA-256 {hub.sha256[:12]}" in done.stderr


@pytest.mark.parametrize("without", ["network", "huggingface_hub"])
def test_what_cannot_be_fetched_can_be_put_there_by_hand(without: str, hub: Hub, tmp_path: Path) -> None:
    port = hub.server_port if without == "huggingface_hub" else 9  # "discard": nobody listens
    setup = "import sys; sys.modules['huggingface_hub'] = None" if without == "huggingface_hub" else ""
    done = fetch(tmp_path, port, setup=setup)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"get https://huggingface.co/datasets/{REPOSITORY}/resolve/main/{FILE} by hand" in line
    assert f"put it at {tmp_path / FILE}" in line
    assert ("pip install 'prism-policy[hub]'" in line) == (without == "huggingface_hub")
    (tmp_path / FILE).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / FILE).write_bytes(hub.content)
    done = fetch(tmp_path, port, setup=setup)
    assert done.returncode == 0, done.stderr
    assert "its checksum is unknown" in done.stdout


def test_an_unknown_data_set_is_named_with_those_that_are_there() -> None:
    from prism_policy.demos.download import download
    from prism_policy.errors import PrismError

    with pytest.raises(PrismError, match=r"unknown data set 'robomimic/tool_hang/mh'; there are robomimic/lift/ph, "):
        download("robomimic/tool_hang/mh")
