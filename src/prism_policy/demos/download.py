"""robomimic's published demonstrations, fetched from the Hugging Face hub and checked against its checksums.

Only this file imports huggingface_hub; the extra `hub` brings it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from prism_policy.data.recorded_env import read_env_args, recorded_env
from prism_policy.data.robomimic import demo_names, open_demos
from prism_policy.demos.cache import sha256
from prism_policy.demos.render import render_demos
from prism_policy.errors import PrismError
from prism_policy.utils.files import default_cache_dir, disk_errors, file_lock
from prism_policy.utils.progress import Bar, console

DownloadKind = Literal["low_dim", "demo", "image"]

REPOSITORY = "robomimic/robomimic_datasets"
DATASETS = {
    **{f"robomimic/{task}/ph": (task, "ph") for task in ("lift", "can", "square", "tool_hang")},
    **{f"robomimic/{task}/mh": (task, "mh") for task in ("lift", "can", "square")},
}
"""Name of a data set -> task and who demonstrated: one proficient human, or several."""


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
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        again = f"run the same command again to go on, or {by_hand}"
        raise PrismError(f"the Hugging Face hub did not give {path} ({why}); {again}") from error
    if (digest := sha256(target)) != about.lfs.sha256:
        sums = f"expected the hub's SHA-256 {about.lfs.sha256[:12]}..., got {digest[:12]}..."
        raise PrismError(f"{target}: {sums}; delete it and run the same command again")
    open_demos(target).close()
    return target


def _fetch_part(url: str, target: Path, about: Any) -> None:
    """Go on with the download of a file, or begin it; what is not whole lies beside `target`."""
    # `hf_hub_download` forgets what it has when it is killed. A part belongs to the hub's version of the file.
    from huggingface_hub.file_download import http_get

    part = target.with_name(f".{target.name}.{about.lfs.sha256[:12]}.part")
    with part.open("r+b" if part.exists() else "w+b") as file:
        http_get(url, file, resume_size=file.seek(0, os.SEEK_END), expected_size=about.size)
    if (digest := sha256(part)) != about.lfs.sha256:
        part.unlink()
        sums = f"came with SHA-256 {digest[:12]}..., expected the hub's {about.lfs.sha256[:12]}..."
        raise PrismError(f"{target.name} {sums}; run the same command again")
    part.replace(target)
    for other in target.parent.glob(f".{target.name}.*.part"):  # of versions that the hub no longer has
        other.unlink(missing_ok=True)


def _unchecked(target: Path, why: str) -> Path:
    open_demos(target).close()
    console.print(f"{target}: taken as it lies there, its checksum is unknown ({why})")
    return target
