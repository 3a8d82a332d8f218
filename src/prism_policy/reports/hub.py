"""Runs on the Hugging Face hub: what a policy needs and what was measured, with a model card written from it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from prism_policy.config import config_json
from prism_policy.config.presets import encoder_name
from prism_policy.errors import PrismError
from prism_policy.evaluation.open_loop import open_loop_path, read_open_loop
from prism_policy.reports.html import render
from prism_policy.reports.report import read_summary, summary_path
from prism_policy.run_folder import RUN_FILES, load_policy, local_run, read_data, read_run, schema_of, weights_path
from prism_policy.utils import hub
from prism_policy.utils.files import default_cache_dir, disk_errors, scratch, write_text


def push(run: Path, repository: str, checkpoint: str = "last", private: bool = False) -> str:
    """Send a run to the hub and return its address there.

    Of the run folder go its settings, statistics, metrics and results, and the weights of one checkpoint; no videos,
    no states, and of the demonstrations' path only the file's name. `model_card` becomes README.md.

    Raises:
        PrismError: the run is not trained or damaged; what `hub.send_folder` raises.
    """
    repository = hub.repository_name(repository, "model")
    load_policy(run, checkpoint)  # refuses what nobody could load
    with scratch(default_cache_dir()) as place:
        folder = place / "run"
        for path in run.rglob("*"):
            name = path.relative_to(run).as_posix()
            if path.is_file() and _belongs(name):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, folder / name)
        shutil.copyfile(weights_path(run, checkpoint), folder / "weights.safetensors")
        config = read_run(run)
        config = dataclasses.replace(config, dataset=Path(config.dataset).name)
        write_text(folder / "config.json", config_json.to_json(config))
        write_text(folder / "README.md", model_card(run, repository, checkpoint))
        return hub.send_folder(folder, repository, f"prism push: checkpoint {checkpoint}", private)


def pull(repository: str, target: Path) -> Path:
    """Fetch a run from the hub into a new folder, which is whole or absent.

    Raises:
        PrismError: `target` exists; the repository holds no run; what `hub.local_path` raises.
    """
    if target.exists():
        raise PrismError(f"{target} exists; choose another --out")
    name = hub.repository_name(repository, "model")
    fetched = local_run(f"{hub.PREFIX}{name}")
    load_policy(fetched)
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch(target.parent) as folder:
            shutil.copytree(fetched, folder / "run", ignore=shutil.ignore_patterns(".*"))
            (folder / "run").rename(target)
    return target


def model_card(run: Path, repository: str, checkpoint: str = "last") -> str:
    """The card, in Markdown: what was learned from what, how often it succeeds, how to use it, what it cannot do."""
    config, data = read_run(run), read_data(run)
    summary = read_summary(run) if summary_path(run).exists() else None
    measured = (summary or {}).get("checkpoints", {}).get(checkpoint)
    return render(
        "reports/card.md",
        repository=repository,
        checkpoint=checkpoint,
        config=config,
        encoder=encoder_name(config.policy.encoder),
        kind=config.policy.kind.replace("_", " "),
        instruction=config.task.spec.instruction,
        dataset=Path(config.dataset).name,
        data=data,
        schema=schema_of(run, config),
        measured=measured,
        split=(summary or {}).get("split", "evaluate"),
        smoke=(summary or {}).get("preset") == "smoke",
        open_loop=read_open_loop(run) if open_loop_path(run).exists() else None,
    )


def _belongs(name: str) -> bool:
    """Whether a file of a run folder is one of those that are sent."""
    return name in RUN_FILES or (name.startswith("results/") and name.endswith((".json", ".jsonl")))
