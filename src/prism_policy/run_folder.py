"""The run folder: what a user keeps of a run, and all that later commands need.

config.json, data.json (what was learned from), normalizer.safetensors and weights.safetensors (EMA), checkpoints/,
metrics.jsonl, results/, videos/, report.html. Tensors are safetensors; nothing in it is a pickle.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from prism_policy.config import config_json
from prism_policy.config.ranges import Fraction, Natural
from prism_policy.config.settings import ProbeConfig, RunConfig, TaskConfig, check
from prism_policy.config.typed_json import Journal, open_file, read_journal, read_json
from prism_policy.data.schema import Schema, task_schema
from prism_policy.errors import PrismError
from prism_policy.policies import Policy, build_policy
from prism_policy.policies.instructions import instructions_of
from prism_policy.utils.files import atomic, disk_errors, write_text
from prism_policy.utils.hub import local_path
from prism_policy.utils.progress import console
from prism_policy.utils.text import shown


class TimedLine(TypedDict):
    """A line of metrics.jsonl, as far as an estimate of the cost needs it."""

    step: Natural
    wall_s: float


class MetricsLine(TypedDict):
    """A line of metrics.jsonl, as far as a report needs it."""

    step: Natural
    loss: float
    valid_loss: NotRequired[float]
    valid_action_error: NotRequired[float]
    success_rate: NotRequired[Fraction]
    rollout_episodes: NotRequired[Natural]


class TrainingLine(MetricsLine):
    """All that a training writes there, and needs to go on."""

    lr: float
    samples_per_s: float
    waiting: float
    wall_s: float


def read_metrics(folder: Path, line: type = TrainingLine) -> Journal:
    """The lines of a run's metrics.jsonl."""
    return read_journal(folder / "metrics.jsonl", line, key=lambda one: one["step"])


FOLDERS = ("checkpoints", "results", "videos", "figures", "rollouts", "recordings", "saliency", "tensorboard")
"""What a run folder holds beside files."""

RUN_FILES = ("config.json", "data.json", "normalizer.safetensors", "weights.safetensors", "metrics.jsonl")
"""Files of a trained run that a later command may read."""


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
    schema: Schema | None = None
    """What the policy takes and gives; none in a folder from before there was one."""
    recorded: dict[str, tuple[int, int]] | None = None
    """Sizes of the recording's images where they are resized before the policy sees them."""
    action_range: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """Lowest and highest of each number of the actions that were learned."""


def read_data(folder: Path) -> RunData | None:
    """What the run in `folder` learned from; none where nothing is recorded."""
    path = folder / "data.json"
    if not path.exists():
        return None
    data: RunData = read_json(path, RunData, "restore it, or train again into another folder")
    return data


def keep_data(folder: Path, data: RunData) -> None:
    """Record what the run learns from, or refuse other demonstrations than those that it began with."""
    if (before := read_data(folder)) is None:
        write_text(folder / "data.json", json.dumps(dataclasses.asdict(data), indent=2) + "\n")
        return
    for field, what in (("content", "other demonstrations"), ("train", "another mask"), ("valid", "another mask")):
        if getattr(before, field) != getattr(data, field):
            raise PrismError(
                f"{folder} began with {what}; give those back (the same content at any place will "
                "do), or choose another --out"
            )


def local_run(run: Path | str) -> Path:
    """A run folder as it is; `hf:USER/NAME` is fetched from the hub first, as far as it is a run."""

    def wanted(path: str) -> bool:
        return path in RUN_FILES or path.endswith((".json", ".jsonl", ".md", ".png"))

    return local_path(run, "model", wanted)


def check_rollouts(folder: Path) -> None:
    """Refuse to roll out the policy of a run that no simulation here can measure."""
    if not read_run(folder).task.spec.simulated:
        instead = f"its actions are compared with recorded ones instead: {folder / 'report.html'}"
        raise PrismError(f"{folder} is of a task that nothing simulates, so its success cannot be measured; {instead}")
    if (data := read_data(folder)) and data.train_only:
        raise PrismError(f"{folder} was trained on demonstrations that cannot be rolled out here: {data.train_only}")


def open_run(folder: Path, config: RunConfig, schema: Schema | None = None) -> None:
    """Make the run folder of this configuration, or accept the one that holds it; bad input writes nothing.

    The demonstrations may lie elsewhere than when the run began: `keep_data` knows them by content.
    """
    check(config)
    if schema is not None or config.task.spec.own_robot:
        weightless_policy(config, schema or task_schema(config.task))  # refuses what no network can be
    check_layout(folder)
    if config.dataset and (folder / "data.json").exists() and (folder / "config.json").exists():
        began = config_json.load(RunConfig, folder / "config.json").dataset
        config = dataclasses.replace(config, dataset=began or config.dataset)
    open_folder(folder, config)


def read_run(folder: Path) -> RunConfig:
    """The configuration of a run folder, checked as a command's flags are.

    Raises:
        PrismError: it is missing, damaged, or out of range; a file of the folder is where a folder belongs.
    """
    check_layout(folder)
    path = folder / "config.json"
    config = config_json.load(RunConfig, path)
    try:
        check(config)
    except PrismError as error:
        raise PrismError(f"{path}: {error}; restore it or start a new run folder") from error
    return config


def check_layout(folder: Path) -> None:
    """Refuse a file where a run folder has a folder, which a command would find only when it writes its results."""
    for place in (folder, *(folder / name for name in FOLDERS)):
        if place.exists() and not place.is_dir():
            raise PrismError(f"{place} is a file, expected a folder; move it away or choose another run folder")


def open_folder(folder: Path, config: RunConfig | ProbeConfig) -> None:
    """Make `folder` with this configuration as its config.json, or accept the one that already holds it."""
    path = folder / "config.json"
    if path.exists():
        present = config_json.load(type(config), path)
        if present != config:
            field, old, new = next(differences(dataclasses.asdict(present), dataclasses.asdict(config)))
            other = f"{field} is {shown(old)} there and {shown(new)} now"
            hint = "choose another --out or repeat the command that made it"
            if field == "train.steps":
                hint = "the learning rate follows this number, which a run keeps: choose another --out for a new run"
            raise PrismError(f"{folder} holds another run: {other}; {hint}")
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PrismError(f"{folder} exists and is no run folder (no config.json in it); choose another --out")
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(path, config_json.to_json(config))


def differences(old: dict[str, Any], new: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, old value, new value) of each field that differs."""
    for key in old | new:
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from differences(before, after, f"{path}{key}.")
        elif before != after:
            yield f"{path}{key}", before, after


def schema_of(folder: Path, config: RunConfig) -> Schema:
    """What the policy of a run takes and gives, as its demonstrations said, or its simulated task does."""
    data = read_data(folder)
    if data is not None and data.schema is not None:
        return data.schema
    if not config.task.spec.own_robot:
        raise PrismError(f"{folder / 'data.json'} does not say what the policy takes and gives; restore it")
    return task_schema(config.task)


def make_policy(config: RunConfig, schema: Schema) -> Policy:
    """A fresh policy for the run's task or tasks."""
    return build_policy(config.policy, schema, instructions=instructions_of(config))


def weightless_policy(config: RunConfig, schema: Schema) -> Policy:
    """The run's policy without memory for its weights: it refuses what cannot be built, and knows every shape."""
    try:
        with torch.device("meta"):
            return make_policy(config, schema)
    except (RuntimeError, OverflowError) as error:  # of sizes whose product is beyond any number of bytes
        raise PrismError("policy: the sizes of this network are beyond any memory; choose smaller ones") from error


def save_normalizer(folder: Path, policy: Policy, task: TaskConfig) -> None:
    """Write the statistics that all checkpoints share, with the task that they belong to."""
    metadata = {"task": json.dumps(dataclasses.asdict(task))}
    with atomic(folder / "normalizer.safetensors") as temporary:
        write_tensors(temporary, policy.normalizer.state_dict(), metadata)


def save_weights(folder: Path, weights: dict[str, Tensor]) -> None:
    """Write the averaged weights."""
    with atomic(folder / "weights.safetensors") as temporary:
        write_tensors(temporary, weights)


def is_trained(folder: Path) -> bool:
    """Whether training has ended; says so where its weights are damaged, and another training makes them again."""
    path = folder / "weights.safetensors"
    if not path.exists():
        return False
    open_file(path).close()  # a folder, or a file that cannot be read, is not made again
    try:
        read_tensors(path)
    except PrismError as error:
        console.print(f"{error.problem}: making it again from the last checkpoint")
        return False
    return True


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
    found = (folder / "checkpoints").glob("update_*.safetensors")
    paths = {int(path.stem[7:]): path for path in found if path.stem[7:].isdecimal()}
    return {str(number): paths[number] for number in sorted(paths)}


def load_policy(run_dir: Path | str, checkpoint: str = "last") -> Policy:
    """The trained policy of a run folder, or of the hub's `hf:USER/NAME`: EMA weights, evaluation mode.

    For `checkpoint` see `weights_path`.

    Raises:
        PrismError: no such run; a file is missing or damaged, or the weights are not finite or belong to another
            configuration.
    """
    folder = local_run(run_dir)
    config = read_run(folder)
    schema = schema_of(folder, config)
    path = weights_path(folder, checkpoint)
    statistics = _read_statistics(folder, config.task)
    weights, _ = read_tensors(path)
    check_weights(weightless_policy(config, schema), weights, path, folder / "config.json")
    with torch.random.fork_rng(devices=[]):  # the weights that are replaced cost the caller no random numbers
        policy = make_policy(config, schema)
    for name, normalizer in policy.normalizer.items():
        normalizer.load_statistics(statistics[f"{name}.scale"], statistics[f"{name}.offset"], name)  # type: ignore[operator]
    with torch.no_grad():
        for name, tensor in _weights_of(policy).items():
            tensor.copy_(weights[name])
    return policy.eval()


def _read_statistics(folder: Path, task: TaskConfig) -> dict[str, Tensor]:
    """Read the normalisers' statistics, and refuse a task that is not the one they belong to."""
    path = folder / "normalizer.safetensors"
    statistics, metadata = read_tensors(path)
    expected = [f"{name}.{kind}" for name in ("state", "action") for kind in ("scale", "offset")]
    if missing := [name for name in expected if name not in statistics]:
        held = ", ".join(statistics) or "nothing"
        raise PrismError(f"{path} lacks '{missing[0]}'; it has {held}; restore the file of this run")
    if "task" not in metadata:
        raise PrismError(f"{path} does not say which task it belongs to; restore the file of this run")
    if shape := next((tuple(x.shape) for x in statistics.values() if x.ndim != 1 or not x.is_floating_point()), None):
        raise PrismError(f"{path}: expected statistics of one number a dimension, got shape {shape}; restore the file")
    try:
        trained = config_json.from_dict(TaskConfig, json.loads(metadata["task"]))
    except (ValueError, RecursionError, PrismError) as error:
        raise PrismError(f"{path} is damaged (its task: {str(error)[:200]}); restore the file of this run") from error
    trained = dataclasses.replace(trained, max_steps=task.max_steps)  # an episode's limit is no part of the policy
    for field, old, new in differences(dataclasses.asdict(trained), dataclasses.asdict(task), "task."):
        trained_with = f"was trained with {field} {old!r} and config.json says {new!r}"
        raise PrismError(f"the policy in {folder} {trained_with}; restore config.json")
    return statistics


def _weights_of(policy: Policy) -> dict[str, Tensor]:
    """What a file of weights holds: all but the normalisers' statistics, which all checkpoints share."""
    return {name: x for name, x in policy.state_dict().items() if not name.startswith("normalizer.")}


def check_weights(policy: Policy, weights: Mapping[str, Tensor], path: Path, config: Path) -> None:
    """Refuse weights of other names, shapes or types than the policy's, or that are not finite."""
    check_tensors(_weights_of(policy), weights, f"{path} does not fit {config}", "restore the two files of one run")
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise PrismError(f"{path}: '{name}' holds NaN or infinity; take another checkpoint, or train again")


def check_tensors(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], what: str, remedy: str) -> None:
    """Refuse tensors of other names, shapes or types than expected, by the first that differs."""
    for name in sorted(expected.keys() | found.keys()):
        want, got = (_form(tensors.get(name)) for tensors in (expected, found))
        if want != got:
            raise PrismError(f"{what}: '{name[:100]}' expected {want}, found {got}; {remedy}")


def _form(tensor: Tensor | None) -> str:
    """Shape, and the type where it is not the usual one."""
    if tensor is None:
        return "no such weight"
    return f"{tuple(tensor.shape)}" + f" of {str(tensor.dtype)[6:]}" * (tensor.dtype != torch.float32)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file with a checksum in its metadata, which `read_tensors` verifies."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # One entry: safetensors writes several in an order of its own, and the same run shall give the same bytes.
    save_file(plain, path, {"prism": json.dumps({**(metadata or {}), "crc32": checksum(plain)})})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file.

    Raises:
        PrismError: it is missing, cannot be read, or is damaged: its form, or its content by the checksum.
    """
    try:
        open_file(path).close()
        with safetensors.safe_open(path, "pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            metadata |= {name: str(value) for name, value in dict(json.loads(metadata.get("prism", "{}"))).items()}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except FileNotFoundError as error:
        raise PrismError(f"{path} not found; train the run first") from error
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, RuntimeError, KeyError) as error:
        raise PrismError(f"{path} is damaged ({shown(str(error))}); restore it or train again") from error
    if metadata.get("crc32") not in (None, checksum(tensors)):
        raise PrismError(f"{path} is damaged (its checksum differs); restore it or train again")
    return tensors, metadata


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and bytes."""
    crc = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"
