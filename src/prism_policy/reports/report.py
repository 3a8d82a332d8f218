"""`report.html`: what a run achieved, on one page that opens from disk and loads nothing from elsewhere.

It reads the run folder and nothing else, so it can be written again at any time. A part whose files are missing says
so.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import shlex
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from prism_policy import __version__
from prism_policy.config import config_json
from prism_policy.config.settings import RunConfig
from prism_policy.errors import PrismError
from prism_policy.evaluation.results import EpisodeSet, episode_sets, stages_of_failures
from prism_policy.reports.charts import bars, interval, loss_curve, percent
from prism_policy.tasks.libero import task_named
from prism_policy.utils.files import read_lines, write_text

# The browser may load nothing and run no script: what the page shows is what it holds.
_CONTENT_POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"

NUM_VIDEOS = 6
MAX_VIDEO_BYTES = 24 * 2**20  # a page of this size still opens at once; base64 adds a third

_SALIENCY_CAPTION = (
    "Saliency: how much each pixel moves the predicted action chunk (input gradient of the chunk's projection on "
    "itself, absolute value summed over colours, fixed noise). Bright means: a small change here would change what the "
    "robot does next. One colour scale a row."
)
_FAILURE_CAPTION = (
    "The first failed episode, with its saliency beside it (at most 40 moments, evenly spread). Brightness is relative "
    "to the mean of each image: 10 times as much is brightest. Saliency says what the policy reacts to, not why it "
    "failed."
)
_KEYPOINTS_CAPTION = (
    "Keypoints: the image positions that the spatial softmax hands to the policy, coloured by the stage of the network "
    "that they come from. The dashed frame is the part of the image that the network sees. A keypoint near the middle "
    "may be a feature that responds nowhere in particular: its expected position is then the centre."
)


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run folder from what lies there, and return its path.

    Raises:
        PrismError: `config.json` or `results/summary.json` is missing or damaged.
    """
    run = config_json.load(RunConfig, run_dir / "config.json")
    summary = _read_summary(run_dir / "results" / "summary.json")
    measured = episode_sets(run_dir, str(summary.get("checkpoint", "last")), str(summary.get("split", "evaluate")))
    metrics = read_lines(run_dir / "metrics.jsonl")
    title = f"{summary.get('task', run.task.name)}: {percent(summary['success_rate'])} success"
    style = files("prism_policy.reports").joinpath("report.css").read_text(encoding="utf-8")
    body = "\n".join(
        [
            _headline(run, summary),
            _section("Episodes", _episodes(measured)),
            *_comparisons(summary),
            *_tasks(summary),
            *_failures(run.task.name, summary),
            _section("What the policy looks at", _pictures(run_dir / "figures", run) + _failure(measured)),
            _section("Training", _training(metrics)),
            _section("Time and memory", _times(summary)),
            _section("Configuration", _configuration(run)),
            _section("What to run next", _next_steps(run_dir, run, summary)),
        ]
    )
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_CONTENT_POLICY}">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
<footer>Written by prism-policy {__version__} from the files in this run folder.</footer>
</main>
</body>
</html>
"""
    path = run_dir / "report.html"
    write_text(path, page)
    return path


def _read_summary(path: Path) -> dict[str, Any]:
    try:
        summary = json.loads(path.read_text())
        low, high = summary["wilson_95"]
        numbers = [summary["success_rate"], low, high]
        fits = all(isinstance(n, int | float) and 0 <= n <= 1 for n in numbers) and summary["n_episodes"] > 0
    except FileNotFoundError as error:
        raise PrismError(f"{path} not found; evaluate the run first") from error
    except (ValueError, KeyError, TypeError) as error:
        raise PrismError(f"{path} is damaged ({error!r}); evaluate the run again") from error
    if not fits:
        raise PrismError(
            f"{path}: expected rates in [0, 1] of at least one episode, got {summary}; evaluate the run again"
        )
    return summary


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>"


def _missing(text: str) -> str:
    return f'<p class="missing">{escape(text)}</p>'


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def _headline(run: RunConfig, summary: dict[str, Any]) -> str:
    rate, (low, high), n = summary["success_rate"], summary["wilson_95"], summary["n_episodes"]
    successes = summary.get("n_success", round(rate * n))
    facts = {
        "Task": summary.get("task", run.task.name),
        "Policy": str(summary.get("policy", run.policy.kind)).replace("_", " "),
        "Encoder": summary.get("encoder", f"{run.policy.encoder.pooling}, {run.policy.encoder.fusion}").replace(
            "_", " "
        ),
        "Demonstrations": run.demos.num_demos,
        "Seed": summary.get("seed", run.seed),
        "Checkpoint": summary.get("checkpoint", "last"),
    }
    if summary.get("median_seconds_to_success") is not None:
        facts["Median time to success"] = f"{summary['median_seconds_to_success']:.1f} s"
    if summary.get("split") == "validate":
        facts["Episodes"] = "of the stream for choosing settings"
    note = (
        '<p class="soft">A smoke run: the whole path at its smallest size. Its success rate means nothing.</p>'
        if summary.get("preset") == "smoke"
        else ""
    )
    items = "".join(f"<li><span>{escape(k)}</span><b>{escape(str(v))}</b></li>" for k, v in facts.items())
    return f"""<header>
<h1>{escape(str(facts["Task"]))}: how often the learned policy succeeds</h1>
<div class="result">
<div class="rate">{percent(rate)}<small>{escape(str(successes))} of {escape(str(n))} episodes</small></div>
<div class="interval">{interval(rate, low, high)}</div>
</div>
<ul class="facts">{items}</ul>{note}
</header>"""


def _episodes(measured: Sequence[EpisodeSet]) -> str:
    found = [(stream, stream.records()) for stream in measured]
    if not any(episodes for _, episodes in found):
        return _missing("No episodes.jsonl of this checkpoint in results/: no outcomes to show.")
    parts = ['<p class="soft">Every episode in order, with its number of steps; ✓ success, ✗ failure.</p>']
    for stream, episodes in found:
        strip = "".join(
            f'<li class="{"success" if e["success"] else "failure"}" title="{escape(_outcome(e))}">'
            f"{'✓' if e['success'] else '✗'}<small>{escape(str(e['steps']))}</small></li>"
            for e in episodes
        )
        if len(found) > 1:
            name = f", {task_named(stream.task).instruction}" if stream.task else ""
            parts.append(f'<p class="soft">Seed {stream.seed}{escape(name)}</p>')
        parts.append(f'<ol class="strip" start="0">{strip}</ol>')
    filmed = {stream.task: (stream, episodes) for stream, episodes in reversed(found)}  # the first seed of each task
    most = NUM_VIDEOS if len(filmed) == 1 else 1
    return "".join(parts) + "".join(_videos(*one, most) for one in reversed(filmed.values()))


def _comparisons(summary: dict[str, Any]) -> list[str]:
    """Checkpoints and seeds side by side, where there are several."""
    checkpoints = summary.get("checkpoints", {})
    if len(checkpoints) < 2 and len(summary.get("seeds", {})) < 2:
        return []
    rows = []
    for name, found in checkpoints.items():
        low, high = found["wilson_95"]
        seeds = ", ".join(f"{seed}: {percent(s['success_rate'])}" for seed, s in found["seeds"].items())
        deviation = found["std_over_seeds"]
        mean = percent(found["mean_over_seeds"]) + ("" if deviation is None else f" ± {percent(deviation)}")
        cells = (name, f"{found['n_success']} of {found['n_episodes']}", percent(found["success_rate"]),
                 f"{percent(low)} to {percent(high)}", mean, seeds)  # fmt: skip
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    heads = ("checkpoint", "successes", "rate", "95% interval (Wilson)", "mean ± deviation over seeds", "seeds")
    table = f"<table><tr>{''.join(f'<th>{h}</th>' for h in heads)}</tr>{''.join(rows)}</table>"
    if ten := summary.get("mean_of_last_10"):
        table += (
            f'<p class="soft">Mean of the last 10 checkpoints: {percent(ten["mean"])} ± {percent(ten["std"])} '
            f"({escape(', '.join(ten['checkpoints']))}).</p>"
        )
    return [_section("Checkpoints and seeds", table)]


def _tasks(summary: dict[str, Any]) -> list[str]:
    """Success of each task of a suite, with intervals."""
    found = summary.get("tasks", {})
    if not found:
        return []
    rows = [
        (
            task_named(name).instruction,
            f"{row['n_success']} of {row['n_episodes']}",
            row["success_rate"],
            *row["wilson_95"],
        )
        for name, row in found.items()
    ]
    intro = '<p class="soft">Bars: share of the episodes that succeeded; lines: 95% interval (Wilson).</p>'
    return [_section("Task by task", intro + bars(rows))]


def _failures(task: str, summary: dict[str, Any]) -> list[str]:
    """How far the failures came, where there are any."""
    stages = stages_of_failures(task, summary.get("failures_by_stage", {}))
    if not stages:
        return []
    intro = '<p class="soft">The furthest stage that a failed episode reached, by the simulator\'s true state.</p>'
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{count}</td></tr>" for name, count in stages)
    return [_section("Where it fails", f"{intro}<table><tr><th>reached</th><th>episodes</th></tr>{rows}</table>")]


def _outcome(episode: dict[str, Any]) -> str:
    end = "success" if episode["success"] else f"failure, {episode.get('stage') or 'nothing'} reached,"
    return f"Episode {episode['episode']}: {end} after {episode['steps']} steps"


def choose_episodes(episodes: Sequence[dict[str, Any]], count: int = NUM_VIDEOS) -> list[dict[str, Any]]:
    """The first `count` episodes, and the first success and the first failure where these lie further on.

    Chosen by number alone: nobody picks the pretty ones.
    """
    chosen = list(episodes[:count])
    for outcome in (True, False):
        first = next((e for e in episodes if bool(e["success"]) is outcome), None)
        if first is not None and first not in chosen:
            chosen.append(first)
    return chosen


def _videos(stream: EpisodeSet, episodes: Sequence[dict[str, Any]], count: int = NUM_VIDEOS) -> str:
    folder = stream.videos
    filmed = {int(e["episode"]): folder / f"episode_{int(e['episode']):03d}.mp4" for e in episodes}
    filmed = {number: path for number, path in filmed.items() if path.is_file()}
    figures, size, large = [], 0, 0
    for episode in choose_episodes([e for e in episodes if int(e["episode"]) in filmed], count):
        path = filmed[int(episode["episode"])]
        if size + path.stat().st_size > MAX_VIDEO_BYTES:
            large += 1
        else:
            size += path.stat().st_size
            figures.append(
                f'<figure><video controls autoplay muted loop playsinline src="{_data_url(path, "video/mp4")}"></video>'
                f"<figcaption>{escape(_outcome(episode))}</figcaption></figure>"
            )
    where = f"<code>videos/{escape(stream.name)}/</code>"
    if not figures:
        return _missing(f"No videos in videos/{stream.name}/.")
    first = "filmed episode" if count == 1 else f"{count} filmed episodes"
    note = (
        f"Shown: the first {first} by number, whatever their outcome, and the first success and "
        f"the first failure if they come later. {len(filmed)} of {len(episodes)} episodes, evenly spread by number, "
        f"are in {where}, and all of these side by side in <code>grid.mp4</code>."
    )
    if large:
        note += (
            f" {large} of those chosen are left out to keep this page below {MAX_VIDEO_BYTES // 2**20} MiB of video."
        )
    return f'<p class="soft">{note}</p>\n<div class="videos">{"".join(figures)}</div>'


def _data_url(path: Path, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _pictures(folder: Path, run: RunConfig) -> str:
    parts = ['<p class="soft">At a few moments of the first episode, whatever its outcome.</p>']
    for name, caption in (("saliency", _SALIENCY_CAPTION), ("keypoints", _KEYPOINTS_CAPTION)):
        path = folder / f"{name}.png"
        if path.is_file():
            image = f'<img alt="{name}" src="{_data_url(path, "image/png")}">'
            parts.append(f'<figure class="picture">{image}<figcaption>{escape(caption)}</figcaption></figure>')
        elif name == "keypoints" and run.policy.encoder.pooling != "spatial_softmax":
            parts.append(_missing(f"No keypoints: this encoder pools by '{run.policy.encoder.pooling}'."))
        else:
            parts.append(_missing(f"figures/{name}.png is not there: no {name} to show."))
    return "\n".join(parts)


def _failure(measured: Sequence[EpisodeSet]) -> str:
    """The first failed episode with its saliency beside it, where it was filmed."""
    for stream in measured[:1]:
        for path in sorted((stream.run / "figures" / stream.name).glob("episode_*_saliency.mp4"))[:1]:
            caption = f"{_FAILURE_CAPTION} File: figures/{stream.name}/{path.name}."
            video = f'<video controls muted loop playsinline src="{_data_url(path, "video/mp4")}"></video>'
            return f'<figure class="picture">{video}<figcaption>{escape(caption)}</figcaption></figure>'
    return ""


def _training(metrics: list[dict[str, Any]]) -> str:
    points = [
        (float(m["step"]), float(m["loss"]))
        for m in metrics
        if isinstance(m.get("loss"), int | float) and math.isfinite(m["loss"]) and m["loss"] > 0
    ]
    if len(points) < 2:
        return _missing("metrics.jsonl holds fewer than two positive losses: no curve to draw.")
    speeds = sorted(float(m["samples_per_s"]) for m in metrics if m.get("samples_per_s"))
    text = f"Loss over {points[-1][0]:,.0f} updates, logarithmic. Faint: as logged; bold: smoothed."
    if speeds:
        text += f" Median speed: {speeds[len(speeds) // 2]:,.0f} windows a second."
    if skipped := len(metrics) - len(points):
        text += f" {skipped} logged losses were not positive and finite, and are left out."
    return f'{loss_curve(points)}<p class="soft">{escape(text)}</p>'


def _times(summary: dict[str, Any]) -> str:
    stages = {k: float(v) for k, v in (summary.get("wall_s") or {}).items() if isinstance(v, int | float) and v > 0}
    if not stages:
        return _missing("results/summary.json holds no times.")
    total = sum(stages.values())
    bar = "".join(f'<i class="c{i % 6}" style="flex:{t:.3f}"></i>' for i, t in enumerate(stages.values()))
    legend = "".join(
        f'<li><i class="c{i % 6}"></i>{escape(k)} {_duration(t)}</li>' for i, (k, t) in enumerate(stages.items())
    )
    text = f"{_duration(total)} in all."
    if peak := summary.get("peak_rss_mib"):
        text += f" Peak memory: {float(peak):,.0f} MiB."
    if worker := summary.get("worker_peak_rss_mib"):
        text += f" A simulator worker: {float(worker):,.0f} MiB at most."
    return f'<div class="times">{bar}</div><ul class="legend">{legend}</ul><p class="soft">{escape(text)}</p>'


def _configuration(run: RunConfig) -> str:
    rows = "".join(
        f"<tr><th><code>{escape(name)}</code></th><td>{escape(str(value))}</td></tr>"
        for name, value in _flat(dataclasses.asdict(run))
    )
    return f"<details><summary>All settings (config.json)</summary><table>{rows}</table></details>"


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


def _next_steps(run_dir: Path, run: RunConfig, summary: dict[str, Any]) -> str:
    encoder = shlex.quote(str(summary.get("encoder", "prism")))
    code = f"import prism_policy as pp; print(pp.load_policy({json.dumps(str(run_dir))}))"
    shell = f"""# the same again from another seed: how much of the result is luck?
prism quickstart --task {run.task.name} --policy {run.policy.kind} --encoder {encoder} --seed {run.seed + 1}

# another encoder: how strongly features respond, instead of where
prism quickstart --task {run.task.name} --policy {run.policy.kind} --encoder avgpool --seed {run.seed}

# the policy for your own observations
python -c {shlex.quote(code)}

# everything else
prism --help"""
    return f"<pre><code>{escape(shell)}</code></pre>"
