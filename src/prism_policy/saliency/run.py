"""`prism saliency`: what runs look at, as pictures and numbers, on frames that are the same for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from prism_policy.config.settings import Device, RunConfig, TaskConfig
from prism_policy.errors import PrismError
from prism_policy.evaluation.results import Stream, streams
from prism_policy.policies import Policy
from prism_policy.saliency.attribution import Attribution
from prism_policy.saliency.clips import Clip, Pick, Source, draw_clips, evaluated_source, sources
from prism_policy.saliency.figures import draw_grid, draw_numbers, draw_stages, film
from prism_policy.saliency.study import Study, Subject, load_subjects, look, sides, study
from prism_policy.saliency.tables import contrasts, in_words, markdown, randomised_in_words, write_tables
from prism_policy.utils.progress import Bar, console

REPORT_FRAMES = 40
MOST_CALLS = 16
"""Of the network a sample, through which a report takes the gradient."""


@dataclass(frozen=True)
class Asked:
    """What to show of which frames."""

    how: Attribution = field(default_factory=Attribution)
    episode: int = 0
    """The first episode; pictures and film are of it."""
    episodes: int = 1
    """How many episodes the numbers are of."""
    frames: int = 40
    """Most frames of each."""
    cameras: tuple[str, ...] = ()
    """Some of the runs' cameras; empty is all."""
    compare: bool = False
    """Test whether the first side is more localised than the others."""
    video: bool = True
    checks: bool = True
    """Measure deletion and insertion curves and the maps of randomised weights."""
    format: str = "png"


def show(folders: Sequence[Path], asked: Asked, out: Path, device: Device = "auto") -> Study:
    """Look at these runs, write everything into `out`, and print the numbers.

    Raises:
        PrismError: no run folder, runs that do not take the same frames, an unknown camera, method, target, stage or
            episode, nothing to compare, no simulator and no dataset, or a place that may not be written to.
    """
    subjects = load_subjects(folders, device)
    cameras = _check(subjects, asked)
    history = max(s.config.policy.n_obs_steps for s in subjects)
    first = sources(subjects[0].folder, subjects[0].config, [asked.episode], history)[0]
    others = _in_turn(subjects, asked, history) if asked.episodes > 1 else [first]
    wanted: list[tuple[Source, int, Pick]] = [(first, 5, "phases")]
    wanted += [(other, asked.frames, "even" if asked.episodes == 1 else "pairs") for other in others]
    if asked.video and asked.episodes > 1:
        wanted.append((first, 40, "even"))
    with Bar("Frames", len(wanted)) as bar:
        moments, *clips = draw_clips(wanted, progress=bar.count)
    shown = [subjects[places[0]] for places in sides(subjects).values()] if asked.compare else subjects
    _draw(shown, asked, cameras, moments, out)
    if asked.video:
        whole = clips.pop() if asked.episodes > 1 else clips[0]
        with Bar("Film", len(shown)) as bar:
            film(shown, whole, [look(s.policy, whole, asked.how) for s in shown], out / "film.mp4")
            bar.count(len(shown), len(shown))
    with Bar("Numbers", len(subjects) * len(clips)) as bar:
        found = study(subjects, clips, asked.how, cameras, bar.count, 3 if asked.checks else 0)
    write_tables(found, asked.how, out)
    if len(clips) > 1:
        draw_numbers(found, out / f"numbers.{asked.format}")
    _print(found, asked)
    return found


def _check(subjects: Sequence[Subject], asked: Asked) -> list[str]:
    """Refuse what cannot work before anything is drawn; returns the cameras."""
    known = subjects[0].config.task.cameras
    if unknown := [c for c in asked.cameras if c not in known]:
        raise PrismError(f"unknown camera '{unknown[0]}'; these runs see {', '.join(known)}")
    for name, value in {"episodes": asked.episodes, "frames": asked.frames}.items():
        if value < 1:
            raise PrismError(f"{name}: expected at least 1, got {value}")
    if asked.format not in ("png", "pdf"):
        raise PrismError(f"format: expected png or pdf, got '{asked.format}'")
    for subject in subjects:
        asked.how.check(subject.policy)
    if asked.compare and len(sides(subjects)) < 2:
        raise PrismError(
            f"expected runs of at least two encoders or policies to compare, got {len(subjects)} of "
            f"{subjects[0].side} alone"
        )
    return [c for c in known if not asked.cameras or c in asked.cameras]


def _in_turn(subjects: Sequence[Subject], asked: Asked, history: int) -> list[Source]:
    """Episodes of the evaluated runs in turn, so that no side is measured only on frames that it led to itself."""
    evaluated = [s for s in subjects if any(stream.records() for stream in streams(s.folder))] or [subjects[0]]
    return [
        sources(owner.folder, owner.config, [asked.episode + i], history)[0]
        for i, owner in zip(range(asked.episodes), np.resize(np.array(evaluated, object), asked.episodes), strict=True)
    ]


def _draw(subjects: Sequence[Subject], asked: Asked, cameras: Sequence[str], moments: Clip, out: Path) -> None:
    maps = [look(s.policy, moments, asked.how) for s in subjects]
    for camera in cameras:
        draw_grid(subjects, moments, maps, camera, out / f"saliency-{camera}.{asked.format}")
        for subject in subjects:
            if subject.config.policy.encoder.pooling == "spatial_softmax":
                name = f"keypoints-{subject.side}-s{subject.config.seed}-{camera}.{asked.format}"
                draw_stages(subject, moments, camera, out / name)


def _print(found: Study, asked: Asked) -> None:
    console.print(markdown(found, asked.how).partition("\n- ")[0], markup=False)
    said = [in_words(one, found) for one in contrasts(found)] if asked.compare else []
    for sentence in (*said, *randomised_in_words(found)):
        console.print(sentence, markup=False)


def film_failure(config: RunConfig, policy: Policy, stream: Stream, task: TaskConfig) -> Path | None:
    """A video of a stream's first failed episode with the saliency beside it; None where none failed.

    A sampler of many steps is too slow for a report: there it is the saliency of one call of the network.
    """
    episode = next((int(r["episode"]) for r in stream.records() if not r["success"]), None)
    if episode is None:
        return None
    path = failure_film(stream, episode)
    if not path.exists():
        calls = getattr(config.policy, config.policy.kind).num_inference_steps
        how = Attribution(noise_level=None if calls <= MOST_CALLS else 0.5)
        source = evaluated_source(stream, task, config.policy.n_obs_steps, episode)
        clip = draw_clips([(source, REPORT_FRAMES, "even")])[0]
        film([Subject(stream.run, config, policy)], clip, [look(policy, clip, how)], path)
    return path


def failure_film(stream: Stream, episode: int) -> Path:
    """Where `film_failure` puts its video."""
    return stream.run / "figures" / stream.name / f"episode_{episode:03d}_saliency.mp4"
