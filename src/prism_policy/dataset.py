"""The demonstrations a run learns from: a file's, or the scripted expert's, and which of them are held out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from prism_policy.cache import default_cache_dir
from prism_policy.collect import collect, render_demos
from prism_policy.config import RunConfig
from prism_policy.data.frames import open_frames
from prism_policy.data.robomimic import bad_demos, cameras_of, demo_names, open_demos, read_masks
from prism_policy.data.robomimic_env import read_env_args, recorded_env
from prism_policy.data.windows import Windows
from prism_policy.errors import PrismError
from prism_policy.progress import Bar


def fit_to_dataset(config: RunConfig) -> RunConfig:
    """The run with what its file decides: the frame of delta actions.

    Raises:
        PrismError: the file is of another task, lacks a camera, or holds images of another size or other actions.
    """
    path = Path(config.dataset)
    with open_demos(path) as file:
        recorded = recorded_env(read_env_args(file))
        names = demo_names(file)[:1]  # what all have wrong; the others are looked at when they are unpacked
        first = file["data"][names[0]]
        flaws = bad_demos(file, names, action_mode=config.task.action_mode)
        held = {camera: first[f"obs/{camera}_image"].shape[1:3] for camera in cameras_of(first)}
    if recorded.task is not None and recorded.task != config.task.name:
        raise PrismError(f"{path} holds demonstrations of task '{recorded.task}'; expected '{config.task.name}'")
    size = config.task.render.resolution
    for camera in config.task.cameras:
        if camera not in held:
            found = ", ".join(held) or "no images (run `prism render` on it first)"
            raise PrismError(f"{path} lacks camera '{camera}'; it has {found}")
        if held[camera] != (size, size):
            raise PrismError(
                f"{path}: expected images of {size}x{size} px from camera '{camera}', got {held[camera]}; draw others "
                f"with `prism render`, or set task.render.resolution={held[camera][0]}"
            )
    for name, reason in flaws.items():
        raise PrismError(f"{path}, {name}: {reason}")
    return replace(config, task=replace(config.task, reference_frame=recorded.reference_frame))


def training_windows(config: RunConfig) -> tuple[Windows, Windows | None]:
    """Windows to learn from and held-out ones: those of the file's masks `train` and `valid`, else all and none.

    Scripted demonstrations are made and drawn first where they are not in the cache yet.

    Raises:
        PrismError: as `collect`, `render_demos` and `open_frames`.
    """
    if config.dataset:
        path = Path(config.dataset)
    else:
        with Bar("Demonstrations", config.demos.num_demos) as bar:
            states = collect(config.task, config.demos, progress=bar.count)
        with Bar("Rendering", config.demos.num_demos) as bar:
            path = render_demos(states, config.task, progress=bar.count)
    frames = open_frames(path, config.task.cameras, default_cache_dir(), config.task.action_mode)
    with open_demos(path) as file:
        masks = read_masks(file)
    shape = config.policy
    parts = [masks[name] for name in ("train", "valid")] if {"train", "valid"} <= masks.keys() else [frames.names, ()]
    train, valid = (
        Windows(frames, shape.horizon, shape.n_obs_steps, shape.n_action_steps, frames.indices(part)) if part else None
        for part in parts
    )
    if train is None:
        raise PrismError(f"{path}: expected demonstrations in its mask 'train', got none; see `write_masks`")
    return train, valid
