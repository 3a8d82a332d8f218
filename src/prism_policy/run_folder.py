"""The run folder: what a user keeps of a run, and all that later commands need.

config.json, data.json (what was learned from), normalizer.safetensors and weights.safetensors (EMA), checkpoints/,
metrics.jsonl, results/, videos/, report.html. Tensors are safetensors; nothing in it is a pickle.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prism_policy.config import config_json
from prism_policy.config.settings import ProbeConfig, RunConfig, TaskConfig, check
from prism_policy.errors import PrismError
from prism_policy.policies import Policy, build_policy
from prism_policy.policies.instructions import instructions_of
from prism_policy.utils.files import atomic, disk_errors, write_text


@dataclasses.dataclass(frozen=True)
class RunData:
    """What a run learned from, wherever it lay: `data.json`."""

    content: str
    """Checksum of the demonstrations' arrays."""
    files: dict[str, dict[str, Any]]
    """Size and a sample's checksum of each file, by the task's name."""
    train: tuple[str, ...]
    """Demonstrations that are learned."""
    valid: tuple[str, ...]
    """Held-out ones."""
    train_only: str = ""
    """Why no simulation here can measure the policy; "" where one can."""
    control_hz: float | None = None
    """Control steps a second of the demonstrations; none where not recorded."""


def read_data(folder: Path) -> RunData | None:
    """What the run in `folder` learned from; none where nothing is recorded."""
    path = folder / "data.json"
    if not path.exists():
        return None
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        data = RunData(**{**held, "train": tuple(held["train"]), "valid": tuple(held["valid"])})
        rate = data.control_hz
        kinds = (data.content, data.train_only), (data.files,), (rate,)
        for values, kind in zip(kinds, (str, dict, float | int | None), strict=True):
            if not all(isinstance(value, kind) for value in values):
                raise TypeError("a value of another type")
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = str(error)[:80]
        raise PrismError(f"{path} is damaged ({reason}); restore it, or train again into another folder") from error
    return data


def keep_data(folder: Path, data: RunData) -> None:
    """Record what the run learns from, or refuse other demonstrations than those that it began with."""
    if (before := read_data(folder)) is None:
        write_text(folder / "data.json", json.dumps(dataclasses.asdict(data), indent=2) + "\n")
        return
    for field, what in (("content", "other demonstrations"), ("train", "another mask"), ("valid", "another mask")):
        if getattr(before, field) != getattr(data, field):
            raise PrismError(
                f"{folder} began with {what} than are given now; give those back (the same content at any place will "
                "do), or choose another --out"
            )


def check_rollouts(folder: Path) -> None:
    """Refuse to roll out the policy of a run that no simulation here can measure."""
    if (data := read_data(folder)) and data.train_only:
        raise PrismError(f"{folder} was trained on demonstrations that cannot be rolled out here: {data.train_only}")


def open_run(folder: Path, config: RunConfig) -> None:
    """Make the run folder of this configuration, or accept the one that holds it; bad input writes nothing.

    The demonstrations may lie elsewhere than when the run began: `keep_data` knows them by content.
    """
    check(config)
    if config.dataset and (folder / "data.json").exists() and (folder / "config.json").exists():
        began = config_json.load(RunConfig, folder / "config.json").dataset
        config = dataclasses.replace(config, dataset=began or config.dataset)
    open_folder(folder, config)


def open_folder(folder: Path, config: RunConfig | ProbeConfig) -> None:
    """Make `folder` with this configuration as its config.json, or accept the one that already holds it."""
    path = folder / "config.json"
    if path.exists():
        present = config_json.load(type(config), path)
        if present != config:
            field, old, new = next(_differences(dataclasses.asdict(present), dataclasses.asdict(config)))
            other = f"{field} is {old!r} there and {new!r} now"
            hint = "choose another --out or repeat the command that made it"
            raise PrismError(f"{folder} holds another run: {other}; {hint}")
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PrismError(f"{folder} exists and is no run folder (no config.json in it); choose another --out")
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(path, config_json.to_json(config))


def _differences(old: dict[str, Any], new: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any, Any]]:
    for key in old:
        if isinstance(old[key], dict):
            yield from _differences(old[key], new[key], f"{path}{key}.")
        elif old[key] != new[key]:
            yield f"{path}{key}", old[key], new[key]


def make_policy(config: RunConfig, proprio_dim: int, action_dim: int) -> Policy:
    """A fresh policy for the run's task or tasks."""
    size = config.task.render.resolution
    cameras = dict.fromkeys(config.task.cameras, (size, size))
    return build_policy(config.policy, cameras, proprio_dim, action_dim, instructions=instructions_of(config))


def save_normalizer(folder: Path, policy: Policy, task: TaskConfig) -> None:
    """Write the statistics that all checkpoints share, with the task that they belong to."""
    with atomic(folder / "normalizer.safetensors") as temporary:
        metadata = {"task": json.dumps(dataclasses.asdict(task))}
        save_file(policy.normalizer.state_dict(), temporary, metadata)


def save_weights(folder: Path, weights: dict[str, Tensor]) -> None:
    """Write the averaged weights."""
    with atomic(folder / "weights.safetensors") as temporary:
        save_file({name: value.contiguous() for name, value in weights.items()}, temporary)


def weights_path(folder: Path, checkpoint: str) -> Path:
    """The file of a checkpoint's averaged weights: `last` (training's end), `best` (by rollouts), or of an update."""
    paths, best = {"last": folder / "weights.safetensors"}, folder / "checkpoints" / "best.safetensors"
    paths |= {"best": best} if best.exists() else {}
    paths |= kept_checkpoints(folder)
    if checkpoint not in paths:
        raise PrismError(f"{folder} has no checkpoint '{checkpoint}'; it has {', '.join(paths)}")
    return paths[checkpoint]


def kept_checkpoints(folder: Path) -> dict[str, Path]:
    """Checkpoints kept during training, by their number of updates, in order."""
    paths = {int(path.stem[7:]): path for path in (folder / "checkpoints").glob("update_*.safetensors")}
    return {str(number): paths[number] for number in sorted(paths)}


def load_policy(run_dir: Path | str, checkpoint: str = "last") -> Policy:
    """The trained policy of a run folder: EMA weights, evaluation mode; for `checkpoint` see `weights_path`.

    Raises:
        PrismError: a file is missing or damaged, or the weights belong to another configuration.
    """
    folder = Path(run_dir)
    config = config_json.load(RunConfig, folder / "config.json")
    path = weights_path(folder, checkpoint)
    statistics = _read_statistics(folder, config.task)
    weights = read_tensors(path)
    policy = make_policy(config, len(statistics["proprio.scale"]), len(statistics["action.scale"]))
    for name, normalizer in policy.normalizer.items():
        normalizer.load_statistics(statistics[f"{name}.scale"], statistics[f"{name}.offset"], name)  # type: ignore[operator]
    _load_weights(policy, weights, path, folder / "config.json")
    return policy.eval()


def _read_statistics(folder: Path, task: TaskConfig) -> dict[str, Tensor]:
    """Read the normalisers' statistics, and refuse a task that is not the one they belong to."""
    path = folder / "normalizer.safetensors"
    statistics = read_tensors(path)
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    expected = [f"{name}.{kind}" for name in ("proprio", "action") for kind in ("scale", "offset")]
    if missing := [name for name in expected if name not in statistics]:
        held = ", ".join(statistics) or "nothing"
        raise PrismError(f"{path} lacks '{missing[0]}'; it has {held}; restore the file of this run")
    if "task" not in metadata:
        raise PrismError(f"{path} does not say which task it belongs to; restore the file of this run")
    trained = config_json.from_dict(TaskConfig, json.loads(metadata["task"]))
    trained = dataclasses.replace(trained, max_steps=task.max_steps)  # an episode's limit is no part of the policy
    for field, old, new in _differences(dataclasses.asdict(trained), dataclasses.asdict(task), "task."):
        trained_with = f"was trained with {field} {old!r} and config.json says {new!r}"
        raise PrismError(f"the policy in {folder} {trained_with}; restore config.json")
    return statistics


def _load_weights(policy: Policy, weights: dict[str, Tensor], path: Path, config: Path) -> None:
    expected = {n: t for n, t in policy.state_dict().items() if not n.startswith("normalizer.")}
    for name in sorted(expected.keys() | weights.keys()):
        want = tuple(expected[name].shape) if name in expected else "no such weight"
        got = tuple(weights[name].shape) if name in weights else "no such weight"
        if want != got:
            flaw = f"'{name}' expected {want}, found {got}"
            raise PrismError(f"{path} does not fit {config}: {flaw}; restore the two files of one run")
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(weights[name])


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file."""
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise PrismError(f"{path} not found; train the run first") from error
    except safetensors.SafetensorError as error:
        raise PrismError(f"{path} is damaged ({error}); restore it or train again") from error
