"""Demonstrations fetched from the Hugging Face hub and checked against its checksums: robomimic's, or any dataset's.

Only this file imports huggingface_hub; the extra `hub` brings it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import quote

from prism_policy.data.recorded_env import read_env_args, recorded_env
from prism_policy.data.robomimic import demo_names, open_demos
from prism_policy.demos.cache import sha256
from prism_policy.demos.render import render_demos
from prism_policy.errors import PrismError
from prism_policy.utils.files import default_cache_dir, disk_errors, file_lock, write_text
from prism_policy.utils.progress import Bar, console
from prism_policy.utils.text import one_line, quoted

DownloadKind = Literal["low_dim", "demo", "image"]

REPOSITORY = "robomimic/robomimic_datasets"
DATASETS = {
    **{f"robomimic/{task}/ph": (task, "ph") for task in ("lift", "can", "square", "tool_hang")},
    **{f"robomimic/{task}/mh": (task, "mh") for task in ("lift", "can", "square")},
}
"""Name of a data set -> task and who demonstrated: one proficient human, or several."""
HUB = "hf:"
"""Before the name of a dataset repository, where a path is expected."""
_FETCHED = ".prism-fetched.json"


def download(name: str, kind: DownloadKind = "low_dim", folder: Path | None = None) -> Path:
    """Fetch a file of demonstrations, or take the one that lies in its place; an interrupted download goes on.

    Args:
        kind: `low_dim` has states and low-dimensional observations, `demo` states alone. Images are not published:
            `image` fetches `low_dim` and draws this library's default cameras at 84 px from its states.
        folder: the file becomes FOLDER/v1.5/TASK/SOURCE/KIND_v15.hdf5; by default `robomimic` in the cache.

    Raises:
        PrismError: an unknown name, no huggingface_hub, no network, a full disk, a checksum that differs; with `image`,
            what `render_demos` raises.
    """
    if name not in DATASETS:
        raise PrismError(f"unknown data set {name!r}; there are {', '.join(DATASETS)}")
    task, source = DATASETS[name]
    path = f"v1.5/{task}/{source}/{'demo' if kind == 'demo' else 'low_dim'}_v15.hdf5"
    folder = (folder or default_cache_dir() / "robomimic").expanduser()
    file = _fetch(path, folder)
    if kind != "image":
        return file
    with open_demos(file) as demos:
        recorded = recorded_env(read_env_args(demos)).task_config(str(file), actions=False)
        total = len(demo_names(demos))
    with Bar("Images", total) as bar:
        return render_demos(file, recorded, progress=bar.count)


def _fetch(path: str, folder: Path) -> Path:
    target = folder / path
    url = f"https://huggingface.co/datasets/{REPOSITORY}/resolve/main/{path}"
    by_hand = f"get {url} by hand, put it at {target} and run the same command again: it will be found there"
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ModuleNotFoundError as error:
        if target.exists():
            return _unchecked(target, "huggingface_hub is not installed")
        install = "run `pip install 'prism-policy[hub]'`"
        raise PrismError(f"downloading needs huggingface_hub: {install}, or {by_hand}") from error
    if not console.is_terminal:
        disable_progress_bars()
    hub = HfApi()
    try:
        entries: list[Any] = list(hub.get_paths_info(REPOSITORY, [path], repo_type="dataset"))
        if not entries:
            raise FileNotFoundError("there is no such file")
        about = entries[0]
        busy = f"another process is downloading {target}: waiting for it"
        with disk_errors(folder), file_lock(target.with_name(f".{target.name}.lock"), busy):
            if not target.exists():
                _fetch_part(f"{hub.endpoint}/datasets/{REPOSITORY}/resolve/main/{path}", target, about)
    except PrismError:
        raise
    except Exception as error:  # of whichever HTTP library huggingface_hub uses
        if target.exists():
            return _unchecked(target, "the Hugging Face hub cannot be reached")
        why = _first_line(error)
        again = f"run the same command again to go on, or {by_hand}"
        raise PrismError(f"the Hugging Face hub did not give {path} ({why}); {again}") from error
    if (digest := sha256(target)) != about.lfs.sha256:
        sums = f"expected the hub's SHA-256 {about.lfs.sha256[:12]}..., got {digest[:12]}..."
        raise PrismError(f"{target}: {sums}; delete it and run the same command again")
    open_demos(target).close()
    return target


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


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

    part = target.with_name(f".{target.name}.{_checksum(about)[:12]}.part")
    with part.open("r+b" if part.exists() else "w+b") as file:
        http_get(url, file, resume_size=file.seek(0, os.SEEK_END), expected_size=about.size)
    if not _is_whole(part, about):
        got = f"{sha256(part)[:12]}..., expected the hub's {_checksum(about)[:12]}..."
        part.unlink()
        raise PrismError(f"{target.name} came with SHA-256 {got}; run the same command again")
    part.replace(target)
    for other in target.parent.glob(f".{target.name}.*.part"):  # of versions that the hub no longer has
        other.unlink(missing_ok=True)


def resolve_dataset(place: Path | str) -> Path:
    """A dataset's path; `hf:USER/NAME` is fetched from the hub into the cache first.

    What was fetched is not fetched again, an interrupted download goes on, and every file is checked. Without a network
    a dataset that was fetched whole is taken as it lies there, and that is said.

    Raises:
        PrismError: no such repository, no huggingface_hub, no network, a full disk, a checksum that differs.
    """
    text = str(place)
    if not text.startswith(HUB):
        return Path(place)
    match = re.fullmatch(r"(\w[\w.-]{0,95})/(\w[\w.-]{0,95})", repository := text.removeprefix(HUB), re.ASCII)
    if match is None:
        raise PrismError(f"{quoted(text)}: expected {HUB}USER/NAME, the name of a dataset on the Hugging Face hub")
    folder = default_cache_dir() / "hub" / f"{match[1]}--{match[2]}"
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ModuleNotFoundError as error:
        install = "huggingface_hub is not installed; run `pip install 'prism-policy[hub]'`"
        return _as_it_lies(folder, text, install, error)
    disable_progress_bars()
    hub = HfApi()
    try:
        about = hub.dataset_info(repository, files_metadata=True)
        url = f"{hub.endpoint}/datasets/{repository}/resolve/{about.sha}"  # all files of one version
        with disk_errors(folder), file_lock(folder / ".lock", f"another process is downloading {text}: waiting for it"):
            _fetch_all(url, [one for one in about.siblings or () if _is_data(one.rfilename)], folder)
    except PrismError:
        raise
    except Exception as error:  # of whichever HTTP library huggingface_hub uses
        why = f"the Hugging Face hub did not give {text} ({one_line(_first_line(error), 160)})"
        return _as_it_lies(folder, text, f"{why}; run the same command again to go on", error)
    return folder


def _is_data(path: str) -> bool:
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
            target.parent.mkdir(parents=True, exist_ok=True)
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


def _as_it_lies(folder: Path, name: str, why: str, error: Exception) -> Path:
    if not _fetched(folder):
        raise PrismError(why) from error
    console.print(f"{name}: taken as it lies in {folder} ({why.rpartition('; ')[0]})")
    return folder


def _unchecked(target: Path, why: str) -> Path:
    open_demos(target).close()
    console.print(f"{target}: taken as it lies there, its checksum is unknown ({why})")
    return target
