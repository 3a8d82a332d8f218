"""Runs looked at on the same frames: their saliency maps, the numbers of them, and what the numbers say."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prism_policy.config import config_json
from prism_policy.config.presets import encoder_name
from prism_policy.config.settings import RunConfig
from prism_policy.errors import PrismError
from prism_policy.models.encoder import crop_size
from prism_policy.policies import Policy
from prism_policy.run_folder import load_policy
from prism_policy.saliency.attribution import Attribution, Objective, part_of, rows_that_fit, saliency
from prism_policy.saliency.clips import Clip
from prism_policy.saliency.faithfulness import curves, randomised
from prism_policy.saliency.metrics import (
    Estimate,
    Floats,
    density,
    entropy,
    lift_on,
    over_episodes,
    over_seeds,
    rank_correlation,
    share_on,
    verdict,
)

Maps = dict[str, np.ndarray]
"""camera -> (F, h, w): saliency of the newest frames, of what the network sees of them."""

NUMBERS = {
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
"""What is measured, in the order in which it is told."""


@dataclass(frozen=True)
class Subject:
    """A trained policy that is looked at."""

    folder: Path
    config: RunConfig
    policy: Policy

    @property
    def side(self) -> str:
        """What it is, whatever its seed."""
        return encoder_name(self.config.policy.encoder)

    @property
    def title(self) -> str:
        """Such as "sspool, seed 0"."""
        return f"{self.side}, seed {self.config.seed}"


def load_subjects(folders: Sequence[Path]) -> list[Subject]:
    """The policies of these run folders, which must take the same frames.

    Raises:
        PrismError: no runs, one twice, no run folder, or runs of different tasks, cameras or resolutions.
    """
    if not folders:
        raise PrismError("expected at least one run folder, got none; see `prism saliency --help`")
    if len({f.resolve() for f in folders}) < len(folders):
        raise PrismError(f"expected each run once, got {', '.join(map(str, folders))}")
    found = [Subject(f, config_json.load(RunConfig, f / "config.json"), load_policy(f)) for f in folders]
    first = found[0]
    for other in found[1:]:
        for name in ("name", "cameras", "render"):
            ours, theirs = getattr(first.config.task, name), getattr(other.config.task, name)
            if ours != theirs:
                raise PrismError(
                    f"expected runs that take the same frames, got task.{name} {ours!r} in {first.folder} and "
                    f"{theirs!r} in {other.folder}"
                )
    return found


def sides(subjects: Sequence[Subject]) -> dict[str, list[int]]:
    """Which runs differ in nothing but their seed: name -> their places, in order."""
    found: dict[RunConfig, list[int]] = {}
    for place, subject in enumerate(subjects):
        config = subject.config
        key = RunConfig(task=config.task, policy=config.policy, train=config.train)
        found.setdefault(replace(key, demos=replace(config.demos, seed=0)), []).append(place)
    names: dict[str, list[int]] = {}
    for places in found.values():
        name = subjects[places[0]].side
        names[name if name not in names else f"{name} ({subjects[places[0]].folder.name})"] = places
    return names


def observation_for(policy: Policy, clip: Clip) -> dict[str, Any]:
    """The clip's frames with as much history as the policy takes."""
    steps = policy.config.n_obs_steps
    images = {c: clip.observation["images"][c][:, -steps:] for c in policy.encoder.cameras}
    task = {name: x.expand(len(clip), -1) for name, x in policy.task_condition(clip.task).items()}
    return {**clip.observation, "images": images, "proprio": clip.observation["proprio"][:, -steps:], **task}


def look(policy: Policy, clip: Clip, how: Attribution) -> Maps:
    """Saliency of every newest frame of a clip, of what the network sees of it."""
    maps = saliency(policy, observation_for(policy, clip), how)
    return {c: seen(maps[c][:, -1], policy.encoder.config.crop) for c in policy.encoder.cameras}


def seen(images: np.ndarray, crop: float) -> np.ndarray:
    """The centre crop of images (F, H, W, ...)."""
    height, width = images.shape[1:3]
    h, w = crop_size(height, crop), crop_size(width, crop)
    top, left = (height - h) // 2, (width - w) // 2
    return images[:, top : top + h, left : left + w]


@dataclass(frozen=True)
class Study:
    """Numbers of R runs in E episodes, averaged over frames: a name of `NUMBERS` -> float64 (R, E, C) or (R, E, 1)."""

    subjects: list[Subject]
    clips: list[Clip]
    cameras: list[str]
    values: dict[str, Floats]
    seeds: dict[str, Floats]
    """Side -> agreement of its runs, (E, C); empty for one that has a single run."""
    curves: dict[str, Floats]
    """Deletion, insertion and their chance, (R, E, S) over `faithfulness.SHARES`; empty where not measured."""


def study(
    subjects: list[Subject],
    clips: list[Clip],
    how: Attribution,
    cameras: Sequence[str],
    progress: Callable[[int, int], None] | None = None,
    checked: int = 3,
) -> Study:
    """Measure all runs on all clips.

    Args:
        cameras: whose numbers count.
        progress: called with (done, total) after each episode of each run.
        checked: frames of an episode for the deletion and insertion curves and the randomised weights; 0 leaves these
            out.

    Raises:
        PrismError: see `Attribution.check`.
    """
    names = ("share", "lift", "entropy", "time")
    wide = {name: np.full((len(subjects), len(clips), len(cameras)), np.nan) for name in (*names, "randomised",
            "randomised_lift")}  # fmt: skip
    narrow = {name: np.full((len(subjects), len(clips), 1), np.nan) for name in ("deletion", "insertion")}
    lines: dict[str, list[list[Floats]]] = {name: [] for name in _LINES}
    maps: list[list[Maps]] = []
    for r, subject in enumerate(subjects):
        maps.append([])
        fresh = randomised(subject.policy, how.seed) if checked else None
        for name in _LINES:
            lines[name].append([])
        for e, clip in enumerate(clips):
            found = look(subject.policy, clip, how)
            maps[-1].append(found)
            few = _some(clip, checked)
            without = look(fresh, clip_of(clip, few), how) if fresh else {}
            for c, camera in enumerate(cameras):
                mask = _task(clip, camera, subject)
                told = _numbers(found[camera], mask, clip.steps)
                if without:
                    told["randomised"] = _mean(rank_correlation(found[camera][few], without[camera]))
                if without and mask is not None:
                    told["randomised_lift"] = _mean(lift_on(without[camera], mask[few]))
                for name, value in told.items():
                    wide[name][r, e, c] = value
            if checked:
                gains, drawn = _curves(subject.policy, clip_of(clip, few), how, e)
                for name, value in gains.items():
                    narrow[name][r, e, 0] = value
                for name in _LINES:
                    lines[name][-1].append(drawn[name])
            if progress:
                progress(r * len(clips) + e + 1, len(subjects) * len(clips))
    seeds = {side: _agreement([maps[p] for p in places], cameras) for side, places in sides(subjects).items()}
    stacked = {name: np.array(value) for name, value in lines.items()} if checked else {}
    return Study(subjects, clips, list(cameras), wide | narrow, seeds, stacked)


_LINES = ("deletion", "insertion", "deletion_chance", "insertion_chance")


def _task(clip: Clip, camera: str, subject: Subject) -> np.ndarray | None:
    """Where objects and gripper are, bool (F, h, w) of what the network sees."""
    return seen(clip.masks[camera], subject.config.policy.encoder.crop) > 0 if clip.masks else None


def _numbers(maps: np.ndarray, mask: np.ndarray | None, steps: np.ndarray) -> dict[str, float]:
    told = {"entropy": _mean(entropy(maps))}
    if mask is not None:
        told |= {"share": _mean(share_on(maps, mask)), "lift": _mean(lift_on(maps, mask))}
    next_ones = np.flatnonzero(np.diff(steps) == 1)
    if len(next_ones):
        told["time"] = _mean(rank_correlation(maps[next_ones], maps[next_ones + 1]))
    return told


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _some(clip: Clip, count: int) -> np.ndarray:
    """A few frames of a clip, spread evenly, the first and the last left out."""
    return np.unique(np.linspace(0, len(clip) - 1, count + 2).astype(int)[1:-1])


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


def _curves(policy: Policy, clip: Clip, how: Attribution, seed: int) -> tuple[dict[str, float], dict[str, Floats]]:
    """Gains and curves averaged over the frames of a clip; each clip has chances of its own, the same for all runs."""
    observation = observation_for(policy, clip)
    noise = policy.draw_noise(1, torch.Generator().manual_seed(how.seed))
    found = []
    batch = rows_that_fit(policy, how)
    for first in range(0, len(clip), batch):
        part = part_of(policy, observation, slice(first, first + batch))
        f = Objective(policy, part, noise.expand(len(part["proprio"]), *noise.shape[1:]), how.target, how.noise_level)
        found.append(curves(f, saliency(policy, part, how), seed=seed))
    gains = {
        "deletion": _mean(np.concatenate([f.deletion_gain for f in found])),
        "insertion": _mean(np.concatenate([f.insertion_gain for f in found])),
    }
    return gains, {name: np.concatenate([getattr(f, name) for f in found]).mean(0) for name in _LINES}


def _agreement(maps: Sequence[Sequence[Maps]], cameras: Sequence[str]) -> Floats:
    """Mean rank correlation over pairs of runs, (E, C); empty (0, C) for a single run."""
    pairs = list(itertools.combinations(maps, 2))
    if not pairs:
        return np.zeros((0, len(cameras)))
    episodes = range(len(maps[0]))
    return np.array(
        [[np.mean([_mean(rank_correlation(a[e][c], b[e][c])) for a, b in pairs]) for c in cameras] for e in episodes]
    )


def per_episode(found: Study, name: str, places: Sequence[int], camera: str | None = None) -> Floats:
    """A side's number of each episode, averaged over its runs and over cameras (or of one camera), (E,)."""
    values = found.values[name][list(places)]  # (R, E, C or 1)
    if camera is not None and values.shape[2] > 1:
        values = values[..., [found.cameras.index(camera)]]
    return _nanmean(_nanmean(values, 2), 0)


def per_run(found: Study, name: str, places: Sequence[int]) -> list[float]:
    """A number of each run of a side, over all episodes and cameras."""
    return [float(_mean(_nanmean(found.values[name][p], 1))) for p in places]


def _nanmean(values: Floats, axis: int) -> Floats:
    known = np.isfinite(values)
    count = known.sum(axis)
    total = np.where(known, values, 0.0).sum(axis)
    mean: Floats = np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
    return mean


@dataclass(frozen=True)
class Contrast:
    """Side A less side B."""

    a: str
    b: str
    episodes: dict[str, Estimate]
    """These networks, paired on the same frames: number -> difference over episodes."""
    seeds: dict[str, Estimate]
    """Networks trained like these: number -> difference over training seeds."""

    @property
    def these(self) -> str:
        """Whether A is more localised than B, of these networks."""
        return verdict(self.episodes["lift"], self.episodes["entropy"])

    @property
    def trained_alike(self) -> str:
        """The same of networks from other seeds: what holds over episodes has to hold over trainings, too."""
        alike = verdict(self.seeds["lift"], self.seeds["entropy"])
        return alike if alike == self.these else "undecided"


def contrast(found: Study, a: str, b: str) -> Contrast:
    """Compare two sides on the frames that both have seen."""
    places = sides(found.subjects)
    names = [n for n in NUMBERS if n in found.values]
    paired = {n: over_episodes(per_episode(found, n, places[a]) - per_episode(found, n, places[b])) for n in names}
    if len(found.seeds[a]) and len(found.seeds[b]):
        paired["seeds"] = over_episodes(_nanmean(found.seeds[a], 1) - _nanmean(found.seeds[b], 1))
    trained = {n: over_seeds(per_run(found, n, places[a]), per_run(found, n, places[b])) for n in names}
    return Contrast(a, b, paired, trained)


def summary(found: Study) -> dict[str, dict[str, Estimate]]:
    """Side -> number -> its mean, with an interval over episodes of these networks."""
    told: dict[str, dict[str, Estimate]] = {}
    for side, places in sides(found.subjects).items():
        told[side] = {n: over_episodes(per_episode(found, n, places)) for n in NUMBERS if n in found.values}
        if len(found.seeds[side]):
            told[side]["seeds"] = over_episodes(_nanmean(found.seeds[side], 1))
    return told


def densities(maps: Mapping[str, np.ndarray]) -> Maps:
    """Maps in units of their own mean; one of zeros stays zero."""
    return {c: np.nan_to_num(density(x)) for c, x in maps.items()}
