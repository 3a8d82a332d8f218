"""One reading of a file of demonstrations into checked facts, which every command uses.

`info` prints them, `train` refuses or keeps what they say in the run folder, and `evaluate` and `serve` read it there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from prism_policy.config.settings import ActionMode
from prism_policy.data.episode import ActionKind, read_actions
from prism_policy.data.hdf5 import array, child, described, file_version, read_errors, subgroup
from prism_policy.data.recorded_env import RecordedEnv, recorded_env
from prism_policy.data.robomimic import (
    GUESSED,
    action_kind,
    attributes_of,
    bad_demos,
    clip_text,
    demo_names,
    masks_of,
    odd_names,
    open_demos,
    usual_cameras,
)
from prism_policy.errors import PrismError
from prism_policy.utils.observations import STATE
from prism_policy.utils.text import listed


@dataclass(frozen=True)
class ActionStatistics:
    """One number of the actions, over all steps of all usable demonstrations."""

    name: str
    min: float
    max: float
    mean: float
    at_limit: float | None
    """Share of steps at -1 or +1; none for a position or rotation of absolute actions, which has no limit."""


@dataclass(frozen=True)
class DatasetFacts:
    """What a file holds."""

    demos: int
    steps: int  # of all usable demonstrations
    steps_median: float
    steps_min: int
    steps_max: int
    images: dict[str, tuple[int, int]]  # camera -> height and width [px] of the first usable demonstration's images
    low_dim: dict[str, int]  # key of an observation -> its numbers
    next_obs: bool  # whether what followed each observation is stored, too
    states: int  # numbers of a simulator state; 0 where none are stored
    successes: int | None  # demonstrations whose reward reaches 1; none where there are no rewards
    actions: list[ActionStatistics]
    masks: dict[str, int]  # mask -> demonstrations that it names
    env: RecordedEnv  # what recorded it
    render: dict[str, Any] | None  # render settings of the images, where recorded
    bad: dict[str, str]  # demonstrations that cannot be used -> why
    names: tuple[str, ...]  # of all demonstrations
    members: dict[str, tuple[str, ...]]  # mask -> the demonstrations that it names
    mask_flaws: dict[str, str]  # mask that is no list of names -> what is wrong
    findings: tuple[str, ...]
    """What to know before learning from it, a sentence each; bad demonstrations and `train_only` are beside it."""

    @property
    def train_only(self) -> str:
        """Why no simulation here can measure a policy that learned from it; "" where one can."""
        return self.env.scene_trouble or self.env.control_trouble

    @property
    def has_state(self) -> bool:
        """Whether the observations that make up the state are there."""
        return all(key in self.low_dim for key in STATE)


def read_facts(path: Path, action_mode: ActionMode = "delta") -> DatasetFacts:
    """Read and check all of a file but its images' content; once a process, while the file stays as it is.

    Raises:
        PrismError: it cannot be read, or has no usable demonstration.
    """
    return _read_facts(path, action_mode, file_version(path) if path.is_file() else "")


@lru_cache(maxsize=16)
def _read_facts(path: Path, action_mode: ActionMode, version: str) -> DatasetFacts:
    with open_demos(path) as file:
        attributes, names = attributes_of(file), demo_names(file)
        kind = action_kind(file, names)
        bad = bad_demos(file, names, usual_cameras(file, names), action_mode=action_mode, kind=kind)
        good = [name for name in names if name not in bad]
        if not good:
            others = f" (none of {len(names)} demos is usable)" if len(names) > 1 else ""
            raise PrismError(f"{path}, {names[0]}: {bad[names[0]]}{others}")
        data = file["data"]
        first = data[good[0]]
        actions = [read_actions(data[name]) for name in good]
        joined = np.concatenate(actions)
        masks, mask_flaws = masks_of(file)
        env = recorded_env(attributes.get("env_args", {}), kind != "delta")
        steps = [len(a) for a in actions]
        states = child(first, "states")
        return DatasetFacts(
            demos=len(names),
            steps=sum(steps),
            steps_median=float(np.median(steps)),
            steps_min=min(steps),
            steps_max=max(steps),
            images={c: first[f"obs/{c}_image"].shape[1:3] for c in usual_cameras(file, good[:1])},
            low_dim=_low_dim(first),
            next_obs=child(first, "next_obs") is not None,
            states=states.shape[1] if isinstance(states, h5py.Dataset) and states.ndim == 2 else 0,
            successes=_successes([data[name] for name in good]),
            actions=_statistics(joined, env.action_mode == "absolute"),
            masks={mask: len(members) for mask, members in masks.items()},
            env=env,
            render=attributes.get("render"),
            bad=bad,
            names=tuple(names),
            members={mask: tuple(members) for mask, members in masks.items()},
            mask_flaws=mask_flaws,
            findings=tuple(_findings(file, joined, kind, masks, mask_flaws)),
        )


def _low_dim(demo: h5py.Group) -> dict[str, int]:
    """Numbers a step of each observation that is no image."""
    observations = subgroup(demo, "obs")
    widths: dict[str, int] = {}
    with read_errors("obs"):
        for key in observations if observations is not None else ():
            item = child(observations, key)
            if isinstance(item, h5py.Dataset) and item.shape and item.ndim <= 2:
                widths[key] = math.prod(item.shape[1:])
    return widths


def _successes(demos: Sequence[h5py.Group]) -> int | None:
    rewarded = [bool((array(demo, "rewards") >= 1).any()) for demo in demos if child(demo, "rewards") is not None]
    return sum(rewarded) if rewarded else None


def _statistics(actions: np.ndarray, absolute: bool) -> list[ActionStatistics]:
    names = ("x", "y", "z", "rx", "ry", "rz") if absolute else ("dx", "dy", "dz", "drx", "dry", "drz")
    at_limit = [float(share) for share in (np.abs(actions) >= 1 - 1e-6).mean(axis=0)]
    shares = [None] * 6 + at_limit[6:] if absolute else at_limit
    return [
        ActionStatistics(name, float(x.min()), float(x.max()), float(x.mean()), share)
        for name, x, share in zip((*names, "gripper"), actions.T, shares, strict=True)
    ]


def _findings(
    file: h5py.File,
    actions: np.ndarray,
    kind: ActionKind,
    masks: dict[str, list[str]],
    mask_flaws: dict[str, str],
) -> list[str]:
    found = []
    names = set(demo_names(file))
    if odd := odd_names(file):
        kinds = described(file["data"].get(odd[0]))
        found.append(f"left out {listed(odd)} ({kinds}): expected demonstrations named demo_0, demo_1, ...")
    if kind == "guessed":
        found.append(GUESSED)
    if kind == "delta" and (clipped := int((np.abs(actions) > 1 + 1e-6).any(axis=1).sum())):
        found.append(clip_text(clipped, len(actions)))
    if set(np.unique(actions[:, 6])) == {0.0, 1.0}:
        found.append(
            "gripper commands are 0 and 1; robosuite opens at -1 and closes at 1, and at 0 holds still: write 2 x - 1"
        )
    found += mask_flaws.values()
    for mask, members in masks.items():
        if absent := [name for name in members if name not in names]:
            found.append(f"mask {mask!r} names {listed(absent, 3)}, which the file does not hold")
    if both := sorted(set(masks.get("train", ())) & set(masks.get("valid", ()))):
        found.append(f"masks 'train' and 'valid' share {listed(both, 3)}")
    return found


def split_demos(facts: DatasetFacts, source: str, train_mask: str = "") -> tuple[list[str], list[str], str]:
    """Demonstrations to learn from and held-out ones, and how they were chosen.

    With a `train_mask`, its members are learned and what `valid` holds beyond them is held out. Without, they are the
    masks `train` and `valid`; where one is missing, `valid` is empty or `train` the rest; where both are, all are
    learned and none held out.

    Raises:
        PrismError: a mask is missing, broken, empty, names what is not there, or shares demonstrations with the other.
    """
    again = "write the masks anew with `write_masks`"

    def members(mask: str) -> list[str] | None:
        if mask in facts.mask_flaws:
            raise PrismError(f"{source}: {facts.mask_flaws[mask]}; {again}")
        if mask not in facts.members:
            return None
        names = facts.members[mask]
        if absent := [name for name in names if name not in facts.names]:
            here = f"there are {facts.names[0]} to {facts.names[-1]}"
            raise PrismError(f"{source}: mask {mask!r}: no demonstration {absent[0]!r}; {here}; {again}")
        return list(dict.fromkeys(names))

    wanted = train_mask or "train"
    train, valid = members(wanted), members("valid")
    if train_mask and train is None:
        raise PrismError(f"{source} has no mask {train_mask!r}; it has {listed(list(facts.members), 8)}")
    if train is not None and not train:
        raise PrismError(f"{source}: expected demonstrations in the mask {wanted!r}, got none; see `write_masks`")
    if train is None:
        train = [name for name in facts.names if name not in (valid or ())]
        how = "all that 'valid' leaves" if valid else "all, as there are no masks"
        if not train:
            raise PrismError(f"{source}: mask 'valid' names every demonstration and none is left to learn; {again}")
    else:
        how = f"mask {wanted!r}"
        if not train_mask and (both := [name for name in valid or () if name in train]):
            shared = f"masks 'train' and 'valid' share {listed(both, 3)}: held-out ones would be learned"
            raise PrismError(f"{source}: {shared}; {again}")
    return train, [name for name in valid or () if name not in train], how
