"""A small server that speaks as much of the Hugging Face hub's protocol as huggingface_hub needs here."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote

COMMIT = "5" * 40


class Hub(http.server.ThreadingHTTPServer):
    """Repositories of files; what is large is known by its SHA-256, the rest by git's checksum.

    Args:
        token: whoever does not send it may not write.
    """

    def __init__(self, token: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.token = token
        self.repositories: dict[str, dict[str, bytes]] = {}
        """By `models/USER/NAME` or `datasets/USER/NAME`."""
        self.private: set[str] = set()
        self.uploads: dict[str, bytes] = {}
        self.commits: list[str] = []
        self.fetched: list[str] = []
        self.ranges: list[str] = []
        self.broken = ""
        """This file is not given."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def entry(self, path: str, content: bytes) -> dict[str, object]:
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        about: dict[str, object] = {"rfilename": path, "size": len(content), "blobId": oid}
        if is_large(path):
            about["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return about


def is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".parquet", ".mp4", ".hdf5"))


class _Answers(http.server.BaseHTTPRequestHandler):
    server: Hub

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/"):
            name = path.removeprefix("/api/")
            if name not in self.server.repositories:
                return self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            files = self.server.repositories[name]
            siblings = [self.server.entry(file, content) for file, content in files.items()]
            return self._json({"id": name.partition("/")[2], "sha": COMMIT, "siblings": siblings})
        name, _, file = path.removeprefix("/").partition("/resolve/")
        name = name if name.startswith("datasets/") else f"models/{name}"
        file = unquote(file.partition("/")[2])
        content = self.server.repositories.get(name, {}).get(file)
        if content is None or file == self.server.broken:
            return self.send_error(404)
        self.server.fetched.append(file)
        if "Range" in self.headers:
            self.server.ranges.append(self.headers["Range"])
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        return self._answer(content[start:], 206 if "Range" in self.headers else 200)

    def do_POST(self) -> None:
        body = self.body()
        if self.path.endswith("/paths-info/main"):
            return self.paths_info(body.decode())
        if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self._json({"error": f"Invalid credentials: {self.headers.get('Authorization')}"}, 401)
        path = self.path.partition("?")[0]
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = (
                f"models/{asked['organization']}/{asked['name']}"
                if asked.get("organization")
                else f"models/{asked['name']}"
            )
            if name in self.server.repositories:
                return self._json({"error": "exists", "url": self.server.url}, 409)
            self.server.repositories[name] = {}
            if asked.get("private") or asked.get("visibility") == "private":
                self.server.private.add(name)
            return self._json({"url": f"{self.server.url}/{name.removeprefix('models/')}"})
        if path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            modes = {file["path"]: "lfs" if is_large(file["path"]) else "regular" for file in files}
            about = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
            return self._json({"files": about})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.server.url}/upload/{one['oid']}", "header": {}}}}
                for one in json.loads(body)["objects"]
            ]
            return self._json({"transfer": "basic", "objects": objects}, 200)
        if path.endswith("/commit/main"):
            name = path.removeprefix("/api/").removesuffix("/commit/main")
            files = self.server.repositories[name]
            for line in map(json.loads, body.decode().splitlines()):
                value = line["value"]
                if line["key"] == "header":
                    self.server.commits.append(value["summary"])
                elif line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.server.uploads[value["oid"]]
            about = {
                "commitUrl": f"{self.server.url}/{name.partition('/')[2]}/commit/{COMMIT}",
                "commitOid": COMMIT,
                "success": True,
            }
            return self._json(about)
        if path.endswith("/validate-yaml"):
            return self._json({"errors": [], "warnings": []})
        return self._json({"error": f"nothing here answers POST {path}"}, 404)

    def paths_info(self, asked: str) -> None:
        files = self.server.repositories.get(self.path.removeprefix("/api/").removesuffix("/paths-info/main"), {})
        entries = []
        for path, content in files.items():
            if path in unquote(asked):
                about = self.server.entry(path, content)
                lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
                entry = {"type": "file", "path": path, "size": len(content), "oid": about["blobId"]}
                entries.append(entry | ({"lfs": lfs} if is_large(path) else {}))
        self._json(entries)

    def do_PUT(self) -> None:
        content = self.body()
        assert self.path == f"/upload/{hashlib.sha256(content).hexdigest()}"
        self.server.uploads[self.path.removeprefix("/upload/")] = content
        self._answer(b"")

    def _json(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        kind = "application/vnd.git-lfs+json" if "/info/lfs/" in self.path else "application/json"
        self._answer(json.dumps(value).encode(), status, {"Content-Type": kind, **(headers or {})})

    def _answer(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(token: str = "") -> Iterator[Hub]:
    """The server, until the end of the context."""
    hub = Hub(token)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    yield hub
    hub.shutdown()
    hub.server_close()
