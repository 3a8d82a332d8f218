"""The Hugging Face hub: what is fetched is checked against its checksums and kept, what is sent is one commit.

Only this file imports huggingface_hub; the extra `hub` brings it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import quote

from prism_policy.errors import PrismError
from prism_policy.utils.files import default_cache_dir, disk_errors, file_lock, sha256, write_text
from prism_policy.utils.progress import Bar, console
from prism_policy.utils.text import one_line, quoted

Kind = Literal["dataset", "model"]

PREFIX = "hf:"
"""Before the name of a repository, where a path is expected."""
SITE = "https://huggingface.co"
_FETCHED = ".prism-fetched.json"
_INSTALL = "huggingface_hub is not installed; run `pip install 'prism-policy[hub]'`"


def repository_name(name: str, kind: Kind) -> str:
    """USER/NAME, with or without the prefix; refuses any other form."""
    part = r"\w[\w.-]{0,95}"
    if not re.fullmatch(f"{part}/{part}", repository := name.removeprefix(PREFIX), re.ASCII):
        raise PrismError(f"{quoted(name)}: expected {PREFIX}USER/NAME, the name of a {kind} on the Hugging Face hub")
    return repository


def local_path(place: Path | str, kind: Kind, wanted: Callable[[str], bool] = lambda path: True) -> Path:
    """A path as it is; `hf:USER/NAME` is fetched from the hub into the cache first.

    What was fetched is not fetched again, an interrupted download goes on, and every file is checked. Without a network
    a repository that was fetched whole is taken as it lies there, and that is said.

    Args:
        wanted: which of the repository's files are fetched, by their paths.

    Raises:
        PrismError: no such repository, no huggingface_hub, no network, a full disk, a checksum that differs.
    """
    text = str(place)
    if not text.startswith(PREFIX):
        return Path(place)
    repository = repository_name(text, kind)
    folder = default_cache_dir() / "hub" / f"{kind}s" / repository.replace("/", "--")
    busy = f"another process is downloading {text}: waiting for it"
    try:
        with _hub_errors(f"did not give {text}", "; run the same command again to go on") as hub:
            about = hub.repo_info(repository, repo_type=kind, files_metadata=True)
            url = f"{_url(hub.endpoint, repository, kind)}/resolve/{about.sha}"  # all files of one version
            files = [one for one in about.siblings or () if _stays_inside(one.rfilename) and wanted(one.rfilename)]
            with disk_errors(folder), file_lock(folder / ".lock", busy):
                _fetch_all(url, files, folder)
    except HubError as error:
        if not _fetched(folder):
            raise
        console.print(f"{text}: taken as it lies in {folder} ({error.why})")
    return folder


def fetch_file(repository: str, kind: Kind, path: str, target: Path) -> None:
    """Bring `target` to a file of a repository; an interrupted download goes on.

    Without the hub, or huggingface_hub, a file that lies there is taken, and that is said.

    Raises:
        PrismError: as `local_path`; the sentence says where to put the file by hand.
    """
    by_hand = f"get {_url(SITE, repository, kind)}/resolve/main/{path} by hand, put it at {target}"
    remedy = f", or {by_hand} and run the same command again: it will be found there"
    busy = f"another process is downloading {target}: waiting for it"
    try:
        with _hub_errors(f"did not give {path}", f"; run the same command again to go on{remedy}", remedy) as hub:
            about = next(iter(hub.get_paths_info(repository, [path], repo_type=kind)), None)
            if about is None:
                raise FileNotFoundError("there is no such file")
            with disk_errors(target), file_lock(target.with_name(f".{target.name}.lock"), busy):
                if not target.exists():
                    _fetch_part(f"{_url(hub.endpoint, repository, kind)}/resolve/main/{path}", target, about)
    except HubError as error:
        if not target.exists():
            raise
        console.print(f"{target}: taken as it lies there, its checksum is unknown ({error.why})")
        return
    if not _is_whole(target, about):
        sums = f"expected the hub's SHA-256 {_checksum(about)[:12]}..., got {sha256(target)[:12]}..."
        raise PrismError(f"{target}: {sums}; delete it and run the same command again")


def send_folder(folder: Path, repository: str, message: str, private: bool) -> str:
    """Make the repository of a model this folder's files, in one commit, and return its address.

    Whoever is logged in sends it (`hf auth login`, or HF_TOKEN). Files that the repository has beside them stay.

    Raises:
        PrismError: no huggingface_hub, nobody logged in, no right to write there, no network.
    """
    remedy = "; log in with `hf auth login` or set HF_TOKEN to a token that may write there, and run it again"
    with _hub_errors(f"did not take {repository}", remedy) as hub:
        hub.create_repo(repository, private=private, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    return _url(hub.endpoint, repository, "model")


class HubError(PrismError):
    """The hub, or the package that speaks to it, could not be reached."""

    why: str


@contextmanager
def _hub_errors(failed: str, remedy: str, without: str = "") -> Iterator[Any]:
    """The hub's interface; whatever it raises becomes one sentence, which never holds a token."""
    try:
        from huggingface_hub import HfApi, get_token
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ModuleNotFoundError as error:
        missing = HubError(f"{_INSTALL}{without}")
        missing.why = "huggingface_hub is not installed"
        raise missing from error
    if not console.is_terminal:
        disable_progress_bars()
    try:
        yield HfApi()
    except PrismError:
        raise
    except Exception as error:  # of whichever HTTP library huggingface_hub uses
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        if type(error).__name__ == "RepositoryNotFoundError":
            first = "there is no such repository, or you may not see it"
        reason = one_line(first.replace(get_token() or "\0", "***"), 160)
        unreachable = HubError(f"the Hugging Face hub {failed} ({reason}){remedy}")
        unreachable.why = f"the Hugging Face hub {failed} ({reason})"
        raise unreachable from None


def _url(endpoint: str, repository: str, kind: Kind) -> str:
    return f"{endpoint}/datasets/{repository}" if kind == "dataset" else f"{endpoint}/{repository}"


def _checksum(about: Any) -> str:
    """The hub's checksum of a file: SHA-256 of a large one, else git's."""
    return str(about.lfs.sha256 if about.lfs else about.blob_id)


def _is_whole(path: Path, about: Any) -> bool:
    """Whether a file is what the hub has."""
    if path.stat().st_size != about.size:
        return False
    if about.lfs:
        return sha256(path) == about.lfs.sha256
    blob = b"blob %d\0" % about.size + path.read_bytes()
    return hashlib.sha1(blob, usedforsecurity=False).hexdigest() == about.blob_id


def _fetch_part(url: str, target: Path, about: Any) -> None:
    """Go on with the download of a file, or begin it; what is not whole lies beside `target`."""
    # `hf_hub_download` forgets what it has when it is killed. A part belongs to the hub's version of the file.
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{_checksum(about)[:12]}.part")
    with part.open("r+b" if part.exists() else "w+b") as file:
        have = file.seek(0, os.SEEK_END)
        http_get(url, file, resume_size=have, expected_size=about.size, headers=build_hf_headers())
    if not _is_whole(part, about):
        got = f"{sha256(part)[:12]}..., expected the hub's {_checksum(about)[:12]}..."
        part.unlink()
        raise PrismError(f"{target.name} came with SHA-256 {got}; run the same command again")
    part.replace(target)
    for other in target.parent.glob(f".{target.name}.*.part"):  # of versions that the hub no longer has
        other.unlink(missing_ok=True)


def _stays_inside(path: str) -> bool:
    """Whether a file of a repository is to be fetched: none that is hidden, and none that would lie elsewhere."""
    return not PurePosixPath(path).is_absolute() and not any(p.startswith(".") for p in PurePosixPath(path).parts)


def _fetch_all(url: str, files: Sequence[Any], folder: Path) -> None:
    """Bring the folder to what the hub has."""
    wanted = {one.rfilename: _checksum(one) for one in files}
    if _fetched(folder) == wanted and all((folder / path).is_file() for path in wanted):
        return
    (folder / _FETCHED).unlink(missing_ok=True)  # until all of it is there
    megabytes = sum(one.size for one in files) / 1e6
    with Bar("Downloading", len(files)) as bar:
        for done, one in enumerate(files):
            bar.update(done, f"{done} of {len(files)} files, {megabytes:.0f} MB in all")
            target = folder / one.rfilename
            if not (target.is_file() and _is_whole(target, one)):
                _fetch_part(f"{url}/{quote(one.rfilename)}", target, one)
        bar.count(len(files), len(files))
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden and path.relative_to(folder).as_posix() not in wanted:
            path.unlink()  # the hub has it no longer
    write_text(folder / _FETCHED, json.dumps(wanted))


def _fetched(folder: Path) -> dict[str, str]:
    """Checksums of the files of a folder that was fetched whole; else none."""
    try:
        held = json.loads((folder / _FETCHED).read_text())
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}
