"""`prism saliency`: saliency of runs as pictures and numbers, on frames that are the same for all of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prism_policy.config.settings import Device, RunConfig, TaskConfig
from prism_policy.errors import PrismError
from prism_policy.evaluation.results import EpisodeSet, episode_sets
from prism_policy.policies import Policy
from prism_policy.saliency.attribution import Attribution
from prism_policy.saliency.clips import Clip, Pick, Source, draw_clips, evaluated_source, sources
from prism_policy.saliency.figures import draw_grid, draw_keypoints, draw_metrics, draw_stages, film
from prism_policy.saliency.study import Study, Subject, load_subjects, run_study, saliency_maps, sides
from prism_policy.saliency.tables import contrasts, in_words, markdown, randomised_in_words, write_tables
from prism_policy.utils.progress import Bar, console

MOST_CALLS = 16
"""Of the network a sample, through which a report takes the gradient."""


@dataclass(frozen=True)
class SaliencyOptions:
    """How to compute the saliency of runs, on which frames, and what to write."""

    how: Attribution = field(default_factory=Attribution)
    """The method and what it is the saliency of."""
    compare: bool = False
    """Test "the first run is more localised than the others", on episodes of all runs in turn. Runs that differ in
    nothing but their seed are one side; pictures and film show the first run of each."""
    episode: int = 0
    """The first episode; pictures and film are of it."""
    episodes: int | None = None
    """Episodes that the numbers are of; by default 1, or 12 with --compare."""
    frames: int | None = None
    """Most frames of each, spread evenly; by default 40 of one episode, 8 of each of several."""
    cameras: tuple[str, ...] = ()
    """Some of the cameras; by default all."""
    video: bool = True
    """Write the film."""
    checks: bool = True
    """Measure deletion, insertion and randomised weights, which take most of the time."""
    format: str = "png"
    """Of the pictures: png or pdf."""

    @property
    def n_episodes(self) -> int:
        """`episodes`, or its default."""
        return self.episodes if self.episodes is not None else 12 if self.compare else 1

    @property
    def n_frames(self) -> int:
        """`frames`, or its default."""
        return self.frames if self.frames is not None else 40 if self.n_episodes == 1 else 8


def run_saliency(folders: Sequence[Path], options: SaliencyOptions, out: Path, device: Device = "auto") -> Study:
    """Measure the saliency of these runs, write pictures, film and tables into `out`, and print the metrics."""
    subjects = load_subjects(folders, device)
    cameras = _check(subjects, options)
    several = options.n_episodes > 1
    history = max(s.config.policy.n_obs_steps for s in subjects)
    (first,) = sources(subjects[0].folder, subjects[0].config, [options.episode], history)
    others = _in_turn(subjects, options, history) if several else [first]
    wanted: list[tuple[Source, int, Pick]] = [(first, 5, "phases")]
    wanted += [(other, options.n_frames, "pairs" if several else "even") for other in others]
    if options.video and several:
        wanted.append((first, 40, "even"))
    with Bar("Frames", len(wanted)) as bar:
        moments, *clips = draw_clips(wanted, progress=bar.count)
    shown = [subjects[places[0]] for places in sides(subjects).values()] if options.compare else subjects
    _draw(shown, options, cameras, moments, out)
    if options.video:
        whole = clips.pop() if several else clips[0]
        with Bar("Film", len(shown)) as bar:
            film(shown, whole, [saliency_maps(s.policy, whole, options.how) for s in shown], out / "film.mp4")
            bar.count(len(shown), len(shown))
    with Bar("Numbers", len(subjects) * len(clips)) as bar:
        study = run_study(subjects, clips, options.how, cameras, bar.count, 3 if options.checks else 0)
    write_tables(study, options.how, out)
    if several:
        draw_metrics(study, out / f"numbers.{options.format}")
    _print(study, options)
    return study


def _check(subjects: Sequence[Subject], options: SaliencyOptions) -> list[str]:
    """Refuse what cannot work before anything is drawn; returns the cameras."""
    known = subjects[0].config.task.cameras
    if unknown := [c for c in options.cameras if c not in known]:
        raise PrismError(f"unknown camera '{unknown[0]}'; these runs see {', '.join(known)}")
    for name, value in {"episodes": options.n_episodes, "frames": options.n_frames}.items():
        if value < 1:
            raise PrismError(f"{name}: expected at least 1, got {value}")
    if options.format not in ("png", "pdf"):
        raise PrismError(f"format: expected png or pdf, got '{options.format}'")
    for subject in subjects:
        options.how.check(subject.policy)
    if options.compare and len(sides(subjects)) < 2:
        got = f"{len(subjects)} of {subjects[0].side} alone"
        raise PrismError(f"expected runs of at least two encoders or policies to compare, got {got}")
    return [c for c in known if not options.cameras or c in options.cameras]


def _in_turn(subjects: Sequence[Subject], options: SaliencyOptions, history: int) -> list[Source]:
    """Episodes of the evaluated runs in turn, so that no side is measured only on frames that it led to itself."""
    evaluated = [s for s in subjects if any(e.records() for e in episode_sets(s.folder))] or [subjects[0]]
    owners = itertools.islice(itertools.cycle(evaluated), options.n_episodes)
    return [sources(s.folder, s.config, [options.episode + i], history)[0] for i, s in enumerate(owners)]


def _draw(
    subjects: Sequence[Subject], options: SaliencyOptions, cameras: Sequence[str], moments: Clip, out: Path
) -> None:
    maps = [saliency_maps(s.policy, moments, options.how) for s in subjects]
    for camera in cameras:
        draw_grid(subjects, moments, maps, [camera], out / f"saliency-{camera}.{options.format}")
        for subject in subjects:
            if subject.config.policy.encoder.pooling == "spatial_softmax":
                name = f"keypoints-{subject.side}-s{subject.config.seed}-{camera}.{options.format}"
                draw_stages(subject, moments, camera, out / name)


def _print(study: Study, options: SaliencyOptions) -> None:
    console.print(markdown(study, options.how).partition("\n- ")[0], markup=False)
    tested = [in_words(one, study) for one in contrasts(study)] if options.compare else []
    for sentence in (*tested, *randomised_in_words(study)):
        console.print(sentence, markup=False)


def draw_moments(config: RunConfig, policy: Policy, episodes: EpisodeSet, task: TaskConfig) -> None:
    """Write the run's figures/saliency.png and, if the encoder has them, keypoints.png; those there are kept.

    They show a few moments of the first episode, whatever its outcome: nobody picks.
    """
    subject, figures = Subject(episodes.run, config, policy), episodes.run / "figures"
    paths = {"saliency": figures / "saliency.png"}
    if config.policy.encoder.pooling == "spatial_softmax":
        paths["keypoints"] = figures / "keypoints.png"
    if all(path.exists() for path in paths.values()):
        return
    source = evaluated_source(episodes, task, config.policy.n_obs_steps, 0)
    (clip,) = draw_clips([(source, 5, "even")])
    draw_grid([subject], clip, [saliency_maps(policy, clip, Attribution())], task.cameras, paths["saliency"])
    if "keypoints" in paths:
        draw_keypoints(subject, clip, task.cameras, paths["keypoints"])


def film_failure(config: RunConfig, policy: Policy, episodes: EpisodeSet, task: TaskConfig) -> Path | None:
    """A video of the first failed episode with the saliency beside it; None where none failed.

    A sampler of many steps is too slow for a report: there it is the saliency of one call of the network.
    """
    episode = next((int(r["episode"]) for r in episodes.records() if not r["success"]), None)
    if episode is None:
        return None
    path = episodes.run / "figures" / episodes.name / f"episode_{episode:03d}_saliency.mp4"
    if not path.exists():
        calls = getattr(config.policy, config.policy.kind).num_inference_steps
        how = Attribution(noise_level=None if calls <= MOST_CALLS else 0.5)
        source = evaluated_source(episodes, task, config.policy.n_obs_steps, episode)
        (clip,) = draw_clips([(source, 40, "even")])
        film([Subject(episodes.run, config, policy)], clip, [saliency_maps(policy, clip, how)], path)
    return path
