"""`report.html`: what a run folder holds, on one page that loads nothing; a part whose files are missing says so."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

from prism_policy.config.presets import encoder_name
from prism_policy.config.settings import RunConfig
from prism_policy.config.typed_json import Journal, read_json
from prism_policy.evaluation.compare import TRIED
from prism_policy.evaluation.open_loop import read_open_loop
from prism_policy.evaluation.results import EpisodeSet, Summary, episode_sets, stages_of_failures
from prism_policy.reports.charts import loss_curve
from prism_policy.reports.html import data_url, percent, render
from prism_policy.run_folder import MetricsLine, read_data, read_metrics, read_run, schema_of
from prism_policy.tasks import task_spec
from prism_policy.utils.files import write_text
from prism_policy.utils.terminal import shell

NUM_VIDEOS = 6
MAX_VIDEO_BYTES = 24 * 2**20  # a page of this size still opens at once; base64 adds a third
Sets = Sequence[tuple[EpisodeSet, list[dict[str, Any]]]]
"""Sets of episodes with their records."""


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run folder from what lies there, and return its path."""
    run = read_run(run_dir)
    tried = (run_dir / TRIED).exists()  # on a robot, by `prism trials`
    if not run.task.spec.simulated and not tried:
        return _write_recorded(run_dir, run)
    summary = read_summary(run_dir)
    checkpoint, split = str(summary.get("checkpoint", "last")), str(summary.get("split", "evaluate"))
    sets = [(s, s.records()) for s in episode_sets(run_dir, checkpoint, split)]
    task = summary.get("task", run.task.name)
    page = render(
        "reports/report.html",
        title=f"{task}: {percent(summary['success_rate'])} success",
        facts=_facts(run, summary),
        rate=summary["success_rate"],
        interval=summary["wilson_95"],
        successes=summary.get("n_success", round(summary["success_rate"] * summary["n_episodes"])),
        n_episodes=summary["n_episodes"],
        smoke=summary.get("preset") == "smoke",
        strips=_strips(sets),
        videos=_videos(sets),
        max_video_mib=MAX_VIDEO_BYTES // 2**20,
        comparison=_comparison(summary),
        last_10=summary.get("mean_of_last_10"),
        tasks=[
            (task_spec(n).instruction, f"{t['n_success']} of {t['n_episodes']}", t["success_rate"], *t["wilson_95"])
            for n, t in summary.get("tasks", {}).items()
        ],
        failures=stages_of_failures(run.task.name, summary.get("failures_by_stage", {})),
        pictures=_pictures(run_dir / "figures", run),
        failure=_failure(sets),
        findings=read_findings(run_dir),
        **_training(read_metrics(run_dir, MetricsLine)),
        times={k: t for k, t in (summary.get("wall_s") or {}).items() if isinstance(t, int | float) and t > 0},
        peak_mib=summary.get("peak_rss_mib"),
        worker_peak_mib=summary.get("worker_peak_rss_mib"),
        settings=list(_flat(dataclasses.asdict(run))),
        run=run,
        encoder=shlex.quote(str(summary.get("encoder", "prism"))),
        code=shlex.quote(f"import prism_policy as pp; print(pp.load_policy({json.dumps(str(run_dir))}))"),
    )
    path = run_dir / "report.html"
    write_text(path, page)
    return path


def _write_recorded(run_dir: Path, run: RunConfig) -> Path:
    """The report of a run that nothing simulates: what was measured, and what was not."""
    data, result, picture = read_data(run_dir), read_open_loop(run_dir), run_dir / "figures" / "open_loop.png"
    name = Path(run.dataset).name
    facts = {
        "Demonstrations": f"{len(data.train)} of {name}, {len(data.valid)} held out" if data else name,
        "Policy": run.policy.kind.replace("_", " "),
        "Encoder": encoder_name(run.policy.encoder),
        "Seed": run.seed,
    }
    page = render(
        "reports/recorded.html",
        title=f"{name}: predicted against recorded actions",
        facts=facts,
        result=result,
        why=f"{data.train_only[:1].upper()}{data.train_only[1:]}." if data and data.train_only else "",
        picture=data_url(picture, "image/png") if picture.is_file() else "",
        schema=schema_of(run_dir, run),
        recorded=data.recorded if data else None,
        findings=read_findings(run_dir),
        **_training(read_metrics(run_dir, MetricsLine)),
        settings=list(_flat(dataclasses.asdict(run))),
        serve=shell("prism", "serve", run_dir),
    )
    path = run_dir / "report.html"
    write_text(path, page)
    return path


class FoundFault(TypedDict):
    """A finding of `prism doctor` as the page shows it."""

    severity: str
    title: str
    what: str
    where: str
    why: str
    do: str


class Findings(TypedDict):
    """What doctor.json holds."""

    shown: tuple[FoundFault, ...]


def findings_path(run_dir: Path) -> Path:
    """Where `prism doctor` keeps what it found in a run."""
    return run_dir / "results" / "doctor.json"


def read_findings(run_dir: Path) -> tuple[FoundFault, ...] | None:
    """What `prism doctor` found, worst first; none where it was not asked."""
    if not (path := findings_path(run_dir)).is_file():
        return None
    found: Findings = read_json(path, Findings, "run `prism doctor` on the run again")
    return found["shown"]


def summary_path(run_dir: Path) -> Path:
    """Where an evaluation keeps its summary."""
    return run_dir / "results" / "summary.json"


def read_summary(run_dir: Path) -> dict[str, Any]:
    """The summary of a run that was evaluated."""
    return read_json(summary_path(run_dir), Summary, "evaluate the run again", "evaluate the run first")


def _facts(run: RunConfig, summary: dict[str, Any]) -> dict[str, Any]:
    encoder = summary.get("encoder", f"{run.policy.encoder.pooling}, {run.policy.encoder.fusion}")
    facts = {
        "Task": summary.get("task", run.task.name),
        "Policy": str(summary.get("policy", run.policy.kind)).replace("_", " "),
        "Encoder": encoder.replace("_", " "),
        "Demonstrations": run.demos.num_demos,
        "Seed": summary.get("seed", run.seed),
        "Checkpoint": summary.get("checkpoint", "last"),
    }
    if summary.get("median_seconds_to_success") is not None:
        facts["Median time to success"] = f"{summary['median_seconds_to_success']:.1f} s"
    if summary.get("trials"):
        facts["Trials"] = summary["trials"]
    if summary.get("split") == "validate":
        facts["Episodes"] = "of the split for choosing settings"
    return facts


def _strips(sets: Sets) -> list[tuple[str, list[dict[str, Any]]]]:
    """(label, episodes with their outcome in words) of each set; nothing where no episode was played."""
    if not any(records for _, records in sets):
        return []
    labels = [f"Seed {s.seed}" + (f", {task_spec(s.task).instruction}" if s.task else "") for s, _ in sets]
    episodes = [[r | {"outcome": _outcome(r)} for r in records] for _, records in sets]
    return list(zip(labels, episodes, strict=True))


def _comparison(summary: dict[str, Any]) -> list[tuple[str, ...]]:
    """Rows of checkpoints with their seeds, where there are several of either."""
    checkpoints = summary.get("checkpoints", {})
    if len(checkpoints) < 2 and len(summary.get("seeds", {})) < 2:
        return []
    rows: list[tuple[str, ...]] = []
    for name, row in checkpoints.items():
        low, high = row["wilson_95"]
        seeds = ", ".join(f"{seed}: {percent(s['success_rate'])}" for seed, s in row["seeds"].items())
        deviation = row["std_over_seeds"]
        mean = percent(row["mean_over_seeds"]) + ("" if deviation is None else f" ± {percent(deviation)}")
        rate = f"{row['n_success']} of {row['n_episodes']}", percent(row["success_rate"])
        rows.append((name, *rate, f"{percent(low)} to {percent(high)}", mean, seeds))
    return rows


def _outcome(episode: dict[str, Any]) -> str:
    end = "success" if episode["success"] else f"failure, {episode.get('stage') or 'nothing'} reached,"
    return f"Episode {episode['episode']}: {end} after {episode['steps']} steps"


def choose_episodes(episodes: Sequence[dict[str, Any]], count: int = NUM_VIDEOS) -> list[dict[str, Any]]:
    """The first `count` episodes, and the first success and failure where these lie further on: nobody picks."""
    chosen = list(episodes[:count])
    for outcome in (True, False):
        first = next((e for e in episodes if bool(e["success"]) is outcome), None)
        if first is not None and first not in chosen:
            chosen.append(first)
    return chosen


def _videos(sets: Sets) -> list[dict[str, Any]]:
    """Videos of the first seed of each task."""
    first = {s.task: (s, records) for s, records in reversed(sets)}
    count = NUM_VIDEOS if len(first) == 1 else 1
    return [_videos_of(s, records, count) for s, records in reversed(first.values())]


def _videos_of(episodes: EpisodeSet, records: Sequence[dict[str, Any]], count: int) -> dict[str, Any]:
    paths = {int(r["episode"]): episodes.videos / f"episode_{int(r['episode']):03d}.mp4" for r in records}
    filmed = [r for r in records if paths[int(r["episode"])].is_file()]
    shown, size, large = [], 0, 0
    for record in choose_episodes(filmed, count):
        path = paths[int(record["episode"])]
        if size + path.stat().st_size > MAX_VIDEO_BYTES:
            large += 1
        else:
            size += path.stat().st_size
            shown.append((data_url(path, "video/mp4"), _outcome(record)))
    numbers = {"count": count, "filmed": len(filmed), "episodes": len(records), "large": large}
    return {"name": episodes.name, "shown": shown, **numbers}


def _pictures(figures: Path, run: RunConfig) -> list[tuple[str, str, str]]:
    """(name, address, why there is none) of each figure."""
    pictures = []
    for name in ("saliency", "keypoints"):
        path = figures / f"{name}.png"
        if path.is_file():
            pictures.append((name, data_url(path, "image/png"), ""))
        elif name == "keypoints" and run.policy.encoder.pooling != "spatial_softmax":
            pictures.append((name, "", f"No keypoints: this encoder pools by '{run.policy.encoder.pooling}'."))
        else:
            pictures.append((name, "", f"figures/{name}.png is not there: no {name} to show."))
    return pictures


def _failure(sets: Sets) -> dict[str, str] | None:
    """The film of the first failed episode, where there is one."""
    paths = (p for e, _ in sets[:1] for p in sorted((e.run / "figures" / e.name).glob("episode_*_saliency.mp4")))
    if (path := next(paths, None)) is None:
        return None
    return {"source": data_url(path, "video/mp4"), "file": f"figures/{sets[0][0].name}/{path.name}"}


def _training(journal: Journal) -> dict[str, Any]:
    """The loss curve and a sentence about it; neither where there are too few losses."""
    metrics = journal.repaired("the report leaves these lines out")
    points = [(float(m["step"]), float(m["loss"])) for m in metrics if _is_positive(m["loss"])]
    if len(points) < 2:
        return {"curve": None, "training": ""}
    speeds = sorted(float(m["samples_per_s"]) for m in metrics if _is_positive(m.get("samples_per_s")))
    text = f"Loss over {points[-1][0]:,.0f} updates, logarithmic. Faint: as logged; bold: smoothed."
    if speeds:
        text += f" Median speed: {speeds[len(speeds) // 2]:,.0f} windows a second."
    if skipped := len(metrics) - len(points):
        text += f" {skipped} logged losses were not positive and finite, and are left out."
    if journal.flaw:
        text += " Some lines of metrics.jsonl are damaged, and are left out."
    return {"curve": loss_curve(points), "training": text}


def _is_positive(number: Any) -> bool:
    return isinstance(number, int | float) and 0 < number < math.inf


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
