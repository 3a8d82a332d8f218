"""robomimic's demonstrations, fetched from the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from prism_policy.data.recorded_env import read_env_args, recorded_env
from prism_policy.data.robomimic import demo_names, open_demos
from prism_policy.demos.render import render_demos
from prism_policy.errors import PrismError
from prism_policy.utils.files import default_cache_dir
from prism_policy.utils.hub import fetch_file
from prism_policy.utils.progress import Bar

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
    file = folder / path
    fetch_file(REPOSITORY, "dataset", path, file)
    open_demos(file).close()
    if kind != "image":
        return file
    with open_demos(file) as demos:
        recorded = recorded_env(read_env_args(demos)).task_config(str(file), actions=False)
        total = len(demo_names(demos))
    with Bar("Images", total) as bar:
        return render_demos(file, recorded, progress=bar.count)
