"""Saliency of several runs on the same frames: maps, metrics, and what the metrics say of one run against another."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from prism_policy.config.options import Attribution
from prism_policy.config.presets import encoder_name
from prism_policy.config.settings import Device, RunConfig
from prism_policy.errors import PrismError
from prism_policy.models.augment import crop_size
from prism_policy.policies import Policy
from prism_policy.run_folder import load_policy, read_run
from prism_policy.saliency.attribution import maps_of, objectives, saliency
from prism_policy.saliency.clips import Clip
from prism_policy.saliency.faithfulness import SHARES, curves, randomised
from prism_policy.saliency.metrics import (
    Estimate,
    Floats,
    entropy,
    lift_on,
    over_episodes,
    over_seeds,
    rank_correlation,
    share_on,
    verdict,
)
from prism_policy.utils.device import pick_device

Maps = dict[str, np.ndarray]
"""camera -> (F, h, w): saliency of the newest frames, of what the network sees of them."""

METRICS = {
    "share": "share of saliency on objects and gripper",
    "lift": "that share over their share of the area: 1 is chance",
    "entropy": "entropy of the map: 0 is one pixel, 1 is all alike",
    "time": "rank correlation with the map one step (50 ms) later",
    "seeds": "rank correlation with the map of another training seed",
    "deletion": "what deleting salient pixels changes more than deleting as many others",
    "insertion": "what showing salient pixels restores more than showing as many others",
    "randomised": "rank correlation with the map of randomised weights: near 0 for a map of what was learned",
    "randomised_lift": "the lift that randomised weights have",
}
"""The metrics and what they mean, in the order of the tables."""
MEASURED = tuple(name for name in METRICS if name != "seeds")
"""Those of a single run."""


@dataclass(frozen=True)
class Subject:
    """A trained policy to study."""

    folder: Path
    config: RunConfig
    policy: Policy

    @property
    def side(self) -> str:
        """Name of the policy without its seed."""
        return encoder_name(self.config.policy.encoder)

    @property
    def title(self) -> str:
        """Such as "sspool, seed 0"."""
        return f"{self.side}, seed {self.config.seed}"


def load_subjects(folders: Sequence[Path], device: Device = "auto") -> list[Subject]:
    """The policies of these run folders, which must take the same frames."""
    if not folders:
        raise PrismError("expected at least one run folder, got none; see `prism saliency --help`")
    if len({f.resolve() for f in folders}) < len(folders):
        raise PrismError(f"expected each run once, got {', '.join(map(str, folders))}")
    place = pick_device(device)
    subjects = [Subject(f, read_run(f), load_policy(f).to(place)) for f in folders]
    first, *others = subjects
    for other, name in itertools.product(others, ("name", "cameras", "render")):
        ours, theirs = getattr(first.config.task, name), getattr(other.config.task, name)
        if ours != theirs:
            got = f"task.{name} {ours!r} in {first.folder} and {theirs!r} in {other.folder}"
            raise PrismError(f"expected runs that take the same frames, got {got}")
    return subjects


def sides(subjects: Sequence[Subject]) -> dict[str, list[int]]:
    """Group runs that differ in nothing but their seed: name -> their places, in order."""
    groups: dict[RunConfig, list[int]] = {}
    for place, subject in enumerate(subjects):
        config = subject.config
        key = RunConfig(task=config.task, policy=config.policy, train=config.train)
        groups.setdefault(replace(key, demos=replace(config.demos, seed=0)), []).append(place)
    names: dict[str, list[int]] = {}
    for places in groups.values():
        name = subjects[places[0]].side
        names[name if name not in names else f"{name} ({subjects[places[0]].folder.name})"] = places
    return names


def observation_for(policy: Policy, clip: Clip) -> dict[str, Any]:
    """The clip's frames with as much history as the policy takes."""
    steps = policy.config.n_obs_steps
    images = {c: clip.observation["images"][c][:, -steps:] for c in policy.encoder.cameras}
    task = {name: x.expand(len(clip), -1) for name, x in policy.task_condition(clip.task).items()}
    return {**clip.observation, "images": images, "state": clip.observation["state"][:, -steps:], **task}


def saliency_maps(policy: Policy, clip: Clip, how: Attribution) -> Maps:
    """Saliency of every newest frame of a clip, over its centre crop."""
    maps = saliency(policy, observation_for(policy, clip), how)
    return {c: centre_crop(maps[c][:, -1], policy.encoder.config.crop) for c in policy.encoder.cameras}


def centre_crop(images: np.ndarray, crop: float) -> np.ndarray:
    """The centre crop of images (F, H, W, ...)."""
    height, width = images.shape[1:3]
    h, w = crop_size(height, crop), crop_size(width, crop)
    top, left = (height - h) // 2, (width - w) // 2
    return images[:, top : top + h, left : left + w]


@dataclass(frozen=True)
class Record:
    """Metrics of a run in an episode, as means over its frames: of one camera, or of all cameras at once."""

    camera: str | None
    """None is all at once: deletion and insertion."""
    metrics: dict[str, float]
    curves: dict[str, Floats] = field(default_factory=dict)
    """Deletion, insertion and their chance, (S,) over `faithfulness.SHARES`."""


@dataclass(frozen=True)
class Study:
    """Metrics of R runs in E episodes by C cameras."""

    subjects: list[Subject]
    clips: list[Clip]
    cameras: list[str]
    records: list[Record]
    """In order: by run, then episode, then camera."""
    seeds: dict[str, Floats]
    """Side -> agreement of its runs, (E, C); empty for one that has a single run."""

    def values(self, metric: str) -> Floats:
        """(R, E, C), or (R, E, 1) of a metric of all cameras at once; NaN where it could not be measured."""
        at_once = metric in ("deletion", "insertion")
        shape = len(self.subjects), len(self.clips), 1 if at_once else len(self.cameras)
        values = [r.metrics.get(metric, math.nan) for r in self.records if (r.camera is None) == at_once]
        return np.array(values).reshape(shape) if values else np.full(shape, math.nan)

    @property
    def curves(self) -> dict[str, Floats]:
        """Deletion, insertion and their chance, (R, E, S); empty where not measured."""
        curves = [r.curves for r in self.records if r.curves]
        shape = len(self.subjects), len(self.clips), len(SHARES)
        return {name: np.array([c[name] for c in curves]).reshape(shape) for name in _CURVES} if curves else {}


def run_study(
    subjects: list[Subject],
    clips: list[Clip],
    how: Attribution,
    cameras: Sequence[str],
    progress: Callable[[int, int], None] | None = None,
    checked: int = 3,
) -> Study:
    """Measure all runs on all clips; `progress` is called with (done, total) after each episode of each run.

    Args:
        checked: frames of an episode for the deletion and insertion curves and the randomised weights; 0: without.
    """
    records: list[Record] = []
    maps: list[list[Maps]] = []
    for run, subject in enumerate(subjects):
        maps.append([])
        fresh = randomised(subject.policy, how.seed) if checked else None
        for episode, clip in enumerate(clips):
            maps[run].append(saliency_maps(subject.policy, clip, how))
            # A few frames spread evenly, the first and the last left out.
            few = np.unique(np.linspace(0, len(clip) - 1, checked + 2).astype(int)[1:-1])
            fresh_maps = saliency_maps(fresh, clip_of(clip, few), how) if fresh else {}
            records += _records(subject, clip, maps[run][episode], cameras, few, fresh_maps)
            if checked:
                records.append(_faithfulness(subject.policy, clip_of(clip, few), how, episode))
            if progress:
                progress(run * len(clips) + episode + 1, len(subjects) * len(clips))
    seeds = {side: _agreement([maps[p] for p in places], cameras) for side, places in sides(subjects).items()}
    return Study(subjects, clips, list(cameras), records, seeds)


_CURVES = ("deletion", "insertion", "deletion_chance", "insertion_chance")


def _records(
    subject: Subject, clip: Clip, maps: Maps, cameras: Sequence[str], few: np.ndarray, fresh_maps: Maps
) -> list[Record]:
    """A record a camera; with maps of fresh weights in a few frames, how much they are like these."""
    records = []
    for camera in cameras:
        mask = task_mask(subject, clip, camera)
        metrics = {"entropy": _mean(entropy(maps[camera]))}
        if mask is not None:
            metrics |= {"share": _mean(share_on(maps[camera], mask)), "lift": _mean(lift_on(maps[camera], mask))}
        before = np.flatnonzero(np.diff(clip.steps) == 1)  # frames whose successor is in the clip
        if len(before):
            metrics["time"] = _mean(rank_correlation(maps[camera][before], maps[camera][before + 1]))
        if fresh_maps:
            metrics["randomised"] = _mean(rank_correlation(maps[camera][few], fresh_maps[camera]))
        if fresh_maps and mask is not None:
            metrics["randomised_lift"] = _mean(lift_on(fresh_maps[camera], mask[few]))
        records.append(Record(camera, metrics))
    return records


def task_mask(subject: Subject, clip: Clip, camera: str) -> np.ndarray | None:
    """Pixels of objects and gripper, bool (F, h, w) of what the network sees; None where the simulator cannot tell."""
    return centre_crop(clip.masks[camera], subject.config.policy.encoder.crop) > 0 if clip.masks else None


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def clip_of(clip: Clip, places: np.ndarray) -> Clip:
    """Some frames of a clip."""
    images = {c: x[places] for c, x in clip.observation["images"].items()}
    others = {n: x[places] for n, x in clip.observation.items() if n != "images"}
    return replace(
        clip,
        steps=clip.steps[places],
        phases=[clip.phases[p] for p in places],
        observation={"images": images, **others},
        masks={c: x[places] for c, x in clip.masks.items()},
    )


def _faithfulness(policy: Policy, clip: Clip, how: Attribution, seed: int) -> Record:
    """Gains and curves averaged over the frames of a clip; each clip has chances of its own, the same for all runs."""
    parts = [curves(f, maps_of(f, how), seed) for f in objectives(policy, observation_for(policy, clip), how)]
    joined = {n: np.concatenate([getattr(p, n) for p in parts]) for n in (*_CURVES, "deletion_gain", "insertion_gain")}
    gains = {name: _mean(joined[f"{name}_gain"]) for name in ("deletion", "insertion")}
    return Record(None, gains, {name: joined[name].mean(0) for name in _CURVES})


def _agreement(maps: Sequence[Sequence[Maps]], cameras: Sequence[str]) -> Floats:
    """Mean rank correlation over pairs of runs, (E, C); empty (0, C) for a single run."""
    pairs = list(itertools.combinations(maps, 2))
    if not pairs:
        return np.zeros((0, len(cameras)))

    def alike(a: Maps, b: Maps) -> list[float]:
        return [_mean(rank_correlation(a[c], b[c])) for c in cameras]

    return np.mean([list(map(alike, a, b)) for a, b in pairs], axis=0)


def per_episode(study: Study, metric: str, places: Sequence[int], camera: str | None = None) -> Floats:
    """A side's metric of each episode, averaged over its runs and over cameras (or of one camera), (E,)."""
    values = study.values(metric)[list(places)]  # (R, E, C or 1)
    if camera is not None and values.shape[2] > 1:
        values = values[..., [study.cameras.index(camera)]]
    return _nanmean(_nanmean(values, 2), 0)


def per_run(study: Study, metric: str, places: Sequence[int]) -> list[float]:
    """A metric of each run of a side, over all episodes and cameras."""
    values = study.values(metric)
    return [_mean(_nanmean(values[p], 1)) for p in places]


def _nanmean(values: Floats, axis: int) -> Floats:
    known = np.isfinite(values)
    count = known.sum(axis)
    return np.divide(values.sum(axis, where=known), count, out=np.full(count.shape, np.nan), where=count > 0)


@dataclass(frozen=True)
class Contrast:
    """Metrics of side A less those of side B."""

    a: str
    b: str
    episodes: dict[str, Estimate]
    """These networks, paired on the same frames: metric -> difference over episodes."""
    seeds: dict[str, Estimate]
    """Networks trained like these: metric -> difference over training seeds."""

    @property
    def these(self) -> str:
        """Whether A is more localised than B, of these networks."""
        return verdict(self.episodes["lift"], self.episodes["entropy"])

    @property
    def trained_alike(self) -> str:
        """The same of networks from other seeds: what holds over episodes has to hold over trainings, too."""
        alike = verdict(self.seeds["lift"], self.seeds["entropy"])
        return alike if alike == self.these else "undecided"


def contrast(study: Study, a: str, b: str) -> Contrast:
    """Compare two sides on the same frames."""
    places, seeds = sides(study.subjects), study.seeds
    episodes = {n: over_episodes(per_episode(study, n, places[a]) - per_episode(study, n, places[b])) for n in MEASURED}
    if len(seeds[a]) and len(seeds[b]):
        episodes["seeds"] = over_episodes(_nanmean(seeds[a], 1) - _nanmean(seeds[b], 1))
    trained = {n: over_seeds(per_run(study, n, places[a]), per_run(study, n, places[b])) for n in MEASURED}
    return Contrast(a, b, episodes, trained)


def summary(study: Study) -> dict[str, dict[str, Estimate]]:
    """Side -> metric -> its mean, with an interval over episodes of these networks."""
    means: dict[str, dict[str, Estimate]] = {}
    for side, places in sides(study.subjects).items():
        means[side] = {n: over_episodes(per_episode(study, n, places)) for n in MEASURED}
        if len(study.seeds[side]):
            means[side]["seeds"] = over_episodes(_nanmean(study.seeds[side], 1))
    return means
