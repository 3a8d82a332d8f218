"""A run folder as a checkpoint of LeRobot's, and back: the same weights and statistics, so the same actions to the bit.

LeRobot loads such a folder with the plug-in `lerobot_policy_prism`; writing and reading it takes neither of them. Its
config.json has this library's settings by their names (`PolicyConfig`), beside LeRobot's features.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from safetensors.torch import save_file
from torch import Tensor

from prism_policy.config.config_json import from_dict
from prism_policy.config.presets import encoder_name, task_config
from prism_policy.config.ranges import Natural
from prism_policy.config.settings import DataConfig, PolicyConfig, RunConfig, TaskConfig, TrainConfig
from prism_policy.config.typed_json import read_json
from prism_policy.data.schema import Schema, task_schema
from prism_policy.errors import PrismError
from prism_policy.policies import Policy
from prism_policy.run_folder import (
    RunData,
    check_weights,
    keep_data,
    load_policy,
    open_run,
    read_data,
    read_run,
    read_tensors,
    save_normalizer,
    save_weights,
    weightless_policy,
)
from prism_policy.tasks.recorded import RECORDED
from prism_policy.utils.files import disk_errors, scratch
from prism_policy.utils.images import Resize
from prism_policy.utils.text import listed

CONFIG, WEIGHTS, RUN = "config.json", "model.safetensors", "prism_run.json"
STATE, ACTION, IMAGES = "observation.state", "action", "observation.images."
_REMEDY = "expected a checkpoint of LeRobot's with --policy.type=prism (a folder named pretrained_model)"


class _Feature(TypedDict):
    type: str
    shape: tuple[Natural, ...]


class _Config(TypedDict):
    """config.json, as far as a run folder needs it."""

    type: str
    input_features: dict[str, _Feature]
    encoder: dict[str, Any]
    robot: Schema
    instructions: NotRequired[tuple[str, ...]]
    resize_shape: NotRequired[tuple[Natural, Natural] | None]
    crop_box: NotRequired[tuple[Natural, Natural, Natural, Natural] | None]


class _Run(TypedDict):
    """prism_run.json: the run that a checkpoint was made of."""

    config: dict[str, Any]
    data: NotRequired[RunData | None]


def is_run(path: Path) -> bool:
    """Whether there is a trained run in a folder, not a dataset."""
    return (path / "config.json").is_file() and (path / "weights.safetensors").is_file()


def is_checkpoint(path: Path) -> bool:
    """Whether there is a checkpoint of LeRobot's in a folder."""
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def write_checkpoint(run: Path, out: Path, checkpoint: str = "last") -> None:
    """Write a run's policy as a checkpoint that LeRobot loads, a new folder, whole or not at all.

    Raises:
        PrismError: `out` exists, or the run cannot be loaded.
    """
    if out.exists():
        raise PrismError(f"{out} exists; choose another --out or move it away")
    policy, config, data = load_policy(run, checkpoint), read_run(run), read_data(run)
    tensors = {f"model.{name}": x.detach().contiguous() for name, x in policy.state_dict().items()}
    tensors["updates"] = torch.zeros((), dtype=torch.int64)
    about = checkpoint_config(policy, config, data)
    texts = {CONFIG: about, RUN: {"config": asdict(config), "data": data and asdict(data)}, **_processors(about)}
    with disk_errors(out), scratch(out.absolute().parent) as place:
        made = place / out.name
        made.mkdir()
        for name, value in texts.items():
            (made / name).write_text(json.dumps(value, indent=4) + "\n")
        save_file(tensors, made / WEIGHTS, {"format": "pt"})
        (made / WEIGHTS).chmod(made.stat().st_mode & 0o666)
        made.rename(out)


def checkpoint_config(policy: Policy, config: RunConfig, data: RunData | None) -> dict[str, Any]:
    """What LeRobot's config.json says of a policy: `PrismConfig` of the plug-in, without what it fills in itself."""
    schema, train = policy.schema, config.train
    resize = Resize.parse(config.data.resize, config.data.crop) if data and data.recorded else None
    sizes = (data and data.recorded) or schema.cameras
    inputs = {f"{IMAGES}{c}": _feature("VISUAL", 3, *sizes[c]) for c in schema.cameras}
    settings = asdict(policy.config)
    settings["encoder"] |= {"name": encoder_name(policy.config.encoder)}
    settings["encoder"]["num_keypoints"] = settings["encoder"]["num_keypoints"] or 0  # the plug-in's word for none
    return {
        "type": "prism",
        "input_features": inputs | {STATE: _feature("STATE", schema.state_dim)},
        "output_features": {ACTION: _feature("ACTION", schema.action_dim)},
        "device": None,  # LeRobot takes the best there is
        "push_to_hub": False,
        **settings,
        "resize_shape": resize and resize.size,
        "crop_box": resize and resize.box,
        "ema_power": train.ema_power or 0.0,
        "ema_max_decay": train.ema_max_decay,
        "optimizer_lr": train.lr,
        "optimizer_betas": train.betas,
        "optimizer_eps": train.eps,
        "optimizer_weight_decay": train.weight_decay,
        "optimizer_grad_clip_norm": train.grad_clip,
        "scheduler_warmup_steps": train.warmup_steps,
        "robot": asdict(schema),
        "instructions": policy.instructions.known if policy.instructions else (),
    }


def _feature(kind: str, *shape: int) -> dict[str, Any]:
    return {"type": kind, "shape": shape}


def _processors(config: dict[str, Any]) -> dict[str, Any]:
    """LeRobot's processors as the plug-in makes them: a batch dimension and the device; numbers pass unchanged."""
    identity = dict.fromkeys(("VISUAL", "STATE", "ENV", "ACTION"), "IDENTITY")

    def step(name: str, **settings: Any) -> dict[str, Any]:
        return {"registry_name": name, "config": settings}

    def numbers(features: dict[str, Any]) -> dict[str, Any]:
        return {"eps": 1e-8, "features": features, "norm_map": identity}

    before = [
        step("rename_observations_processor", rename_map={}),
        step("to_batch_processor"),
        step("device_processor", device="cpu", float_dtype=None),  # LeRobot puts the policy's in its place
        step("normalizer_processor", **numbers(config["input_features"] | config["output_features"])),
    ]
    after = [
        step("unnormalizer_processor", **numbers(config["output_features"])),
        step("device_processor", device="cpu", float_dtype=None),
    ]
    named = {"policy_preprocessor": before, "policy_postprocessor": after}
    return {f"{name}.json": {"name": name, "steps": steps} for name, steps in named.items()}


def read_checkpoint(checkpoint: Path, out: Path, task: str = "") -> RunConfig:
    """Make a run folder of a checkpoint of LeRobot's: with the averaged weights, where there are some.

    Args:
        task: what the policy does, such as lift, so that it can be rolled out here; by default that of the run which
            the checkpoint was made of, else `recorded`.

    Raises:
        PrismError: `out` exists, the checkpoint is damaged or another policy's, or the task's robot is not its own.
    """
    if out.exists():
        raise PrismError(f"{out} exists; choose another one or move it away")
    path = checkpoint / CONFIG
    raw: dict[str, Any] = read_json(path, dict[str, Any], _REMEDY, _REMEDY)
    if raw.get("type") != "prism":
        raise PrismError(f"{path}: expected the policy 'prism', got {raw.get('type')!r}; {_REMEDY}")
    about: Any = read_json(path, _Config, _REMEDY)
    policy = _policy_config(raw, path)
    config, data = _run_of(checkpoint, about, policy, task)
    tensors, _ = read_tensors(checkpoint / WEIGHTS)
    averaged = "ema." if any(name.startswith("ema.") for name in tensors) else "model."
    state = {name.removeprefix(averaged): x for name, x in tensors.items() if name.startswith(averaged)}
    with disk_errors(out), scratch(out.absolute().parent) as place:
        made = place / out.name
        _write_run(made, config, data, state, checkpoint)
        made.rename(out)
    return config


def _policy_config(raw: dict[str, Any], path: Path) -> PolicyConfig:
    settings = {field.name: raw[field.name] for field in dataclasses.fields(PolicyConfig) if field.name in raw}
    encoder = {name: value for name, value in raw["encoder"].items() if name != "name"}
    encoder["num_keypoints"] = encoder.get("num_keypoints") or None
    try:
        config: PolicyConfig = from_dict(PolicyConfig, settings | {"encoder": encoder})
    except PrismError as error:
        raise PrismError(f"{path}: {error}; {_REMEDY}") from error
    return config


def _run_of(checkpoint: Path, about: Any, policy: PolicyConfig, task: str) -> tuple[RunConfig, RunData]:
    """The run's settings and what it learned from: as they were, or what LeRobot says of them."""
    schema, instructions = about["robot"], about.get("instructions", ())
    if (checkpoint / RUN).exists():
        run: Any = read_json(checkpoint / RUN, _Run, "remove it, and name the --task")
        config: RunConfig = replace(from_dict(RunConfig, run["config"]), policy=policy)
        data = run.get("data") or RunData("", {}, (), (), schema=schema)
        return (config if not task else replace(config, task=_task(task, schema))), data
    if instructions:
        several = f"{listed(list(instructions), 3)}; of a policy of several tasks LeRobot alone can go on"
        raise PrismError(f"{checkpoint / CONFIG}: expected a policy of one task, got {several}")
    size, box = about.get("resize_shape"), about.get("crop_box")
    how = DataConfig(resize="x".join(map(str, size or ())), crop=",".join(map(str, box or ())))
    shapes = {key.removeprefix(IMAGES): one["shape"][1:] for key, one in about["input_features"].items()}
    recorded = {c: (shapes[c][0], shapes[c][1]) for c in schema.cameras if c in shapes} if size or box else None
    config = RunConfig(_task(task or RECORDED.name, schema), policy=policy, data=how, train=_train_config(checkpoint))
    trained = _trained_on(checkpoint)
    return replace(config, dataset=trained), RunData("", {}, (), (), schema=schema, recorded=recorded)


def _task(name: str, schema: Schema) -> TaskConfig:
    """A task with this robot's cameras."""
    if name == RECORDED.name:
        return TaskConfig(name, tuple(schema.cameras))
    sizes = {side for size in schema.cameras.values() for side in size}
    task = replace(task_config(name), cameras=tuple(schema.cameras))
    if task.spec.own_robot:
        modes = [replace(task, action_mode=mode) for mode in task.spec.action_modes]  # type: ignore[arg-type]
        task = next((one for one in modes if task_schema(one).action_dim == schema.action_dim), task)
        task = replace(task, render=replace(task.render, resolution=max(sizes)))
        expected = task_schema(task)
        same = (expected.cameras, expected.state_dim, expected.action_dim)
        if same != (schema.cameras, schema.state_dim, schema.action_dim):
            got = f"cameras {schema.cameras}, {schema.state_dim} numbers of state and {schema.action_dim} of action"
            raise PrismError(f"task {name}: expected cameras {expected.cameras}, {same[1]} and {same[2]}, got {got}")
    return task


def _lerobots(checkpoint: Path) -> dict[str, Any]:
    """What LeRobot wrote about the training, as far as it is there."""
    path = checkpoint / "train_config.json"
    return read_json(path, dict[str, Any], "restore it or remove it") if path.exists() else {}


def _train_config(checkpoint: Path) -> TrainConfig:
    said = _lerobots(checkpoint)
    known = {"steps": said.get("steps"), "batch_size": said.get("batch_size")}
    config: TrainConfig = from_dict(TrainConfig, {name: value for name, value in known.items() if value})
    return config


def _trained_on(checkpoint: Path) -> str:
    dataset = _lerobots(checkpoint).get("dataset") or {}
    return str(dataset.get("root") or dataset.get("repo_id") or "")


def _write_run(folder: Path, config: RunConfig, data: RunData, state: dict[str, Tensor], checkpoint: Path) -> None:
    """Write the folder of a trained run."""
    schema = data.schema or task_schema(config.task)
    open_run(folder, config, schema)
    keep_data(folder, data)
    weights = {name: x for name, x in state.items() if not name.startswith("normalizer.")}
    policy = weightless_policy(config, schema)
    check_weights(policy, weights, checkpoint / WEIGHTS, checkpoint / CONFIG)
    for name, normalizer in policy.normalizer.items():
        normalizer.to_empty(device="cpu")
        statistics = (state.get(f"normalizer.{name}.{kind}", torch.zeros(0)) for kind in ("scale", "offset"))
        normalizer.load_statistics(*statistics, name)  # type: ignore[operator]
    save_normalizer(folder, policy, config.task)
    save_weights(folder, weights)
