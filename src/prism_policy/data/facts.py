"""One reading of a file of demonstrations into checked facts, which every command uses.

`info` prints them, `train` refuses or keeps what they say in the run folder, and `evaluate` and `serve` read it there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from prism_policy.config.settings import ActionMode
from prism_policy.data.episode import ActionKind, clip_shares, read_actions
from prism_policy.data.hdf5 import array, child, described, file_version
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
    recorded_schema,
    usual_state,
)
from prism_policy.data.schema import Part, Schema, numbers_of
from prism_policy.errors import PrismError
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
    schema: Schema  # all that most demonstrations hold
    kind: ActionKind  # what the recorded `actions` are
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
    reading: tuple[str, ...]
    """Those of `findings` that say how the file is read, and not what it holds."""

    @property
    def train_only(self) -> str:
        """Why no simulation here can measure a policy that learned from it; "" where one can."""
        return self.env.scene_trouble or self.env.control_trouble

    @property
    def images(self) -> dict[str, tuple[int, int]]:
        """Camera -> height and width of its images [px]."""
        return self.schema.cameras

    @property
    def low_dim(self) -> dict[str, int]:
        """Name of an observation -> its numbers."""
        return {part.name: part.size for part in self.schema.state}


def read_facts(path: Path, action_mode: ActionMode = "delta") -> DatasetFacts:
    """Read and check all of a file but its images' content; once a process, while the file stays as it is.

    Raises:
        PrismError: it cannot be read, or has no usable demonstration.
    """
    return _read_facts(path, action_mode, file_version(path) if path.is_file() else "")


@lru_cache(maxsize=256)  # several commands look at all files of a suite more than once, and the largest has 90
def _read_facts(path: Path, action_mode: ActionMode, version: str) -> DatasetFacts:
    with open_demos(path) as file:
        attributes, names = attributes_of(file), demo_names(file)
        kind = action_kind(file, names)
        schema = recorded_schema(file, names, kind, action_mode == "absolute")
        bad = bad_demos(file, names, schema.select(state=usual_state(schema)), kind, action_mode)
        good = [name for name in names if name not in bad]
        if not good:
            others = f" (none of {len(names)} demos is usable)" if len(names) > 1 else ""
            raise PrismError(f"{path}, {names[0]}: {bad[names[0]]}{others}")
        data = file["data"]
        first = data[good[0]]
        actions = [read_actions(data[name]) for name in good]
        joined = np.concatenate(actions)
        masks, mask_flaws = masks_of(file)
        env = recorded_env(attributes.get("env_args", {}), kind in ("absolute", "guessed"))
        recorded = schema.action if schema.action_dim == joined.shape[1] else env.action_parts(joined.shape[1])
        steps = [len(a) for a in actions]
        states = child(first, "states")
        return DatasetFacts(
            demos=len(names),
            steps=sum(steps),
            steps_median=float(np.median(steps)),
            steps_min=min(steps),
            steps_max=max(steps),
            schema=schema,
            kind=kind,
            next_obs=child(first, "next_obs") is not None,
            states=states.shape[1] if isinstance(states, h5py.Dataset) and states.ndim == 2 else 0,
            successes=_successes([data[name] for name in good]),
            actions=_statistics(joined, recorded),
            masks={mask: len(members) for mask, members in masks.items()},
            env=env,
            render=attributes.get("render"),
            bad=bad,
            names=tuple(names),
            members={mask: tuple(members) for mask, members in masks.items()},
            mask_flaws=mask_flaws,
            findings=(*(reading := _reading(file, kind, masks, mask_flaws)), *_findings(joined, recorded, kind, masks)),
            reading=reading,
        )


def _successes(demos: Sequence[h5py.Group]) -> int | None:
    rewarded = [bool((array(demo, "rewards") >= 1).any()) for demo in demos if child(demo, "rewards") is not None]
    return sum(rewarded) if rewarded else None


def _statistics(actions: np.ndarray, parts: Sequence[Part]) -> list[ActionStatistics]:
    names = [name for part in parts for name in part.number_names]
    shares = [part.shares for part in parts for _ in range(part.size)]
    at_limit = (np.abs(actions) >= 1 - 1e-6).mean(axis=0)
    return [
        ActionStatistics(name, float(x.min()), float(x.max()), float(x.mean()), float(limit) if share else None)
        for name, x, share, limit in zip(names, actions.T, shares, at_limit, strict=True)
    ]


def _reading(
    file: h5py.File, kind: ActionKind, masks: dict[str, list[str]], mask_flaws: dict[str, str]
) -> tuple[str, ...]:
    """What is left out or guessed."""
    found, names = list[str](), set(demo_names(file))
    if odd := odd_names(file):
        kinds = described(file["data"].get(odd[0]))
        found.append(f"left out {listed(odd)} ({kinds}): expected demonstrations named demo_0, demo_1, ...")
    if kind == "guessed":
        found.append(GUESSED)
    found += mask_flaws.values()
    for mask, members in masks.items():
        if absent := [name for name in members if name not in names]:
            found.append(f"mask {mask!r} names {listed(absent, 3)}, which the file does not hold")
    return tuple(found)


def _findings(
    actions: np.ndarray, parts: Sequence[Part], kind: ActionKind, masks: dict[str, list[str]]
) -> tuple[str, ...]:
    """What is odd about what is held."""
    found = []
    if kind not in ("absolute", "guessed") and (clipped := clip_shares(actions, parts)[1]):
        found.append(clip_text(clipped, len(actions)))
    if any(set(np.unique(actions[:, i])) == {0.0, 1.0} for i in numbers_of(parts, "gripper")):
        found.append(
            "gripper commands are 0 and 1; robosuite opens at -1 and closes at 1, and at 0 holds still: write 2 x - 1"
        )
    if both := sorted(set(masks.get("train", ())) & set(masks.get("valid", ()))):
        found.append(f"masks 'train' and 'valid' share {listed(both, 3)}")
    return tuple(found)
