"""`prism saliency`: saliency of runs as pictures and numbers, on frames that are the same for all of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from prism_policy.config.options import Attribution, SaliencyOptions
from prism_policy.config.settings import Device, RunConfig, TaskConfig
from prism_policy.errors import PrismError
from prism_policy.evaluation.results import EpisodeSet, episode_sets
from prism_policy.policies import Policy
from prism_policy.saliency.attribution import check
from prism_policy.saliency.clips import Pick, Source, draw_clips, evaluated_source, sources
from prism_policy.saliency.figures import draw_grid, draw_keypoints, draw_metrics, draw_stages, film
from prism_policy.saliency.study import Study, Subject, load_subjects, run_study, saliency_maps, sides
from prism_policy.saliency.tables import contrasts, in_words, markdown, randomised_in_words, write_tables
from prism_policy.utils.progress import Bar, console

MOST_CALLS = 16
"""Of the network a sample, through which a report takes the gradient."""


def run_saliency(
    folders: Sequence[Path], how: Attribution, options: SaliencyOptions, out: Path, device: Device
) -> Study:
    """Measure the saliency of these runs, write pictures, film and tables into `out`, and print the metrics."""
    subjects = load_subjects(folders, device)
    cameras = _check(subjects, how, options)
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
    maps = [saliency_maps(s.policy, moments, how) for s in shown]
    for camera in cameras:
        draw_grid(shown, moments, maps, [camera], out / f"saliency-{camera}.{options.format}")
        for subject in shown:
            if subject.config.policy.encoder.pooling == "spatial_softmax":
                name = f"keypoints-{subject.side}-s{subject.config.seed}-{camera}.{options.format}"
                draw_stages(subject, moments, camera, out / name)
    if options.video:
        whole = clips.pop() if several else clips[0]
        with Bar("Film", len(shown)) as bar:
            film(shown, whole, [saliency_maps(s.policy, whole, how) for s in shown], out / "film.mp4")
            bar.count(len(shown), len(shown))
    with Bar("Numbers", len(subjects) * len(clips)) as bar:
        study = run_study(subjects, clips, how, cameras, bar.count, 3 if options.checks else 0)
    write_tables(study, how, out)
    if several:
        draw_metrics(study, out / f"numbers.{options.format}")
    table = markdown(study, how).partition("\n- ")[0]
    console.print(*table.splitlines())
    tested = [in_words(one, study) for one in contrasts(study)] if options.compare else []
    for sentence in (*tested, *randomised_in_words(study)):
        console.print(sentence)
    return study


def _check(subjects: Sequence[Subject], how: Attribution, options: SaliencyOptions) -> list[str]:
    """Refuse what cannot work before anything is drawn; returns the cameras."""
    known = subjects[0].config.task.cameras
    if unknown := [c for c in options.camera if c not in known]:
        raise PrismError(f"unknown camera '{unknown[0]}'; these runs see {', '.join(known)}")
    for name, value in {"episodes": options.n_episodes, "frames": options.n_frames}.items():
        if value < 1:
            raise PrismError(f"{name}: expected at least 1, got {value}")
    if options.format not in ("png", "pdf"):
        raise PrismError(f"format: expected png or pdf, got '{options.format}'")
    for subject in subjects:
        check(how, subject.policy)
    if options.compare and len(sides(subjects)) < 2:
        got = f"{len(subjects)} of {subjects[0].side} alone"
        raise PrismError(f"expected runs of at least two encoders or policies to compare, got {got}")
    return [c for c in known if not options.camera or c in options.camera]


def _in_turn(subjects: Sequence[Subject], options: SaliencyOptions, history: int) -> list[Source]:
    """Episodes of the evaluated runs in turn, so that no side is measured only on frames that it led to itself."""
    evaluated = [s for s in subjects if any(e.records() for e in episode_sets(s.folder))] or [subjects[0]]
    owners = itertools.islice(itertools.cycle(evaluated), options.n_episodes)
    return [sources(s.folder, s.config, [options.episode + i], history)[0] for i, s in enumerate(owners)]


def draw_moments(config: RunConfig, policy: Policy, episodes: EpisodeSet, task: TaskConfig) -> None:
    """Write figures/saliency.png and, for keypoints, keypoints.png, of the first episode; those there are kept."""
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
