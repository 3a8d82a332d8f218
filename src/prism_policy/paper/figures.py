"""An experiment's results as a picture: bars as in the paper's figures, or the saliency of several policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from prism_policy.config.options import Attribution
from prism_policy.config.settings import single_tasks
from prism_policy.paper.cells import Cell
from prism_policy.paper.tables import Results, added_parameters
from prism_policy.run_folder import load_policy
from prism_policy.saliency.clips import Clip, draw_clips, evaluated_source
from prism_policy.saliency.heatmaps import paint, strength
from prism_policy.saliency.study import centre_crop, clip_of, saliency_maps
from prism_policy.utils.files import atomic

GREY = "#666666"


def draw_bars(results: Results, path: Path) -> None:
    """A panel a block, a group a column, a bar a row: ours with Wilson's interval, the paper's number as a diamond.

    Figure 5 has its gains and parameters in two more panels.
    """
    entries = results.experiment.entries
    blocks = list(dict.fromkeys(e.block for e in entries))
    rows = list(dict.fromkeys(e.row for e in entries))
    colours = {row: mpl.colormaps["viridis"](0.1 + 0.75 * i / max(len(rows) - 1, 1)) for i, row in enumerate(rows)}
    counts = [len({e.column for e in entries if e.block == block}) for block in blocks]
    widths = [max(1.0, count * (0.32 * len(rows) + 0.5)) for count in counts]
    more = [2.0, 2.0] if results.experiment.name == "fig5" else []
    figure = Figure(figsize=(max(7.0, sum(widths + more) + 1.2), 4.4), layout="constrained")
    panels = figure.subplots(1, len(blocks) + len(more), squeeze=False, width_ratios=widths + more)[0]
    for axis, block in zip(panels, blocks, strict=False):
        _panel(axis, results, block, rows, colours)
    if more:
        _gains(panels[-2], results, rows, colours)
        added = {row: count / 1e6 for row, (_, count) in added_parameters(results).items()}
        panels[-1].bar(range(len(added)), added.values(), 0.75, color=[colours[row] for row in added])
        panels[-1].set_yscale("log")
        _bare(panels[-1], list(added), "added parameters [M], at full size")
    panels[0].set_ylabel("success [%]")
    handles: list[Any] = [Patch(color=colour, label=row) for row, colour in colours.items()]
    handles.append(Line2D([], [], color="black", label="ours, 95% interval (Wilson)"))
    other = "data, scale and tasks" if any(e.partial for e in entries) else "data and scale"
    if any(e.paper is not None for e in entries):
        label = "the paper's number" + f": other {other}" * results.other_setting
        handles.append(Line2D([], [], label=label, **_HOLLOW))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle(f"{results.experiment.title}\nours at scale {results.scale}, {results.data}", fontsize=9)
    _save(figure, path)


def _panel(axis: Axes, results: Results, block: str, rows: Sequence[str], colours: Mapping[str, Any]) -> None:
    entries = [e for e in results.experiment.entries if e.block == block]
    columns = list(dict.fromkeys(e.column for e in entries))
    here = [row for row in rows if any(e.row == row for e in entries)]
    width = 0.8 / len(here)
    for entry in entries:
        x = columns.index(entry.column) + width * (here.index(entry.row) - (len(here) - 1) / 2)
        score = results.scores[entry.key]
        if score is None:
            axis.text(x, 1, "missing", rotation=90, ha="center", va="bottom", fontsize=7, color=GREY)
        else:
            mean = 100 * score.mean_and_std[0]
            low, high = (100 * share for share in score.interval)
            axis.bar(x, mean, 0.9 * width, color=colours[entry.row])
            axis.plot([x - 0.15 * width] * 2, [low, high], color="black", linewidth=1.2)
        if entry.paper is not None:
            axis.plot([x + 0.2 * width], [entry.paper], **_HOLLOW)
    axis.set_xticks(range(len(columns)), columns)
    axis.set(xlim=(-0.5, len(columns) - 0.5), ylim=(0, 103))
    axis.set_title(block, fontsize=9)
    axis.grid(axis="y", alpha=0.2)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _gains(axis: Axes, results: Results, rows: Sequence[str], colours: Mapping[str, Any]) -> None:
    """Differences in points with Tango's interval."""
    for comparison, paired in results.differences:
        x = rows.index(comparison.a[1])
        if paired is None:
            axis.text(x, 0, "missing", rotation=90, ha="center", va="bottom", fontsize=7, color=GREY)
            continue
        axis.bar(x, 100 * paired.difference, 0.75, color=colours[comparison.a[1]])
        axis.plot([x, x], [100 * share for share in paired.interval()], color="black", linewidth=1.2)
    axis.axhline(0, color=GREY, linewidth=0.8)
    _bare(axis, rows, "gain [points], 95% interval (Tango)")


def _bare(axis: Axes, rows: Sequence[str], title: str) -> None:
    axis.set_xticks(range(len(rows)), rows, rotation=45, ha="right", fontsize=8)
    axis.set_title(title, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)


_HOLLOW: dict[str, Any] = {"marker": "D", "ls": "", "ms": 6, "mfc": "white", "mec": "black", "mew": 1.0}


def draw_saliency_grid(results: Results, path: Path) -> bool:
    """Tasks down, encoders across: one frame a task with each policy's input gradient; False where nothing is there.

    All policies of a task see the frame in the middle of the first episode of the first one that was measured, whatever
    its outcome; brightness is relative to the mean of each picture.
    """
    entries = results.experiment.entries
    rows, columns = (list(dict.fromkeys(names)) for names in zip(*((e.column, e.row) for e in entries), strict=True))
    cells = {(e.column, e.row): results.cells[e.variants[0], results.seeds[0]] for e in entries}
    measured = {key: cell for key, cell in cells.items() if cell.records("last", results.n_episodes)}
    if not measured:
        return False
    figure = Figure(figsize=(2.3 * (len(columns) + 1) + 0.3, 2.3 * len(rows) + 0.5), layout="constrained")
    axes = figure.subplots(len(rows), len(columns) + 1, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], box_aspect=1)
    for line, row in zip(axes, rows, strict=True):
        line[0].set_ylabel(row)
        first = next((measured[row, c] for c in columns if (row, c) in measured), None)
        if first is not None:
            clip = _middle_frame(first)
            camera = first.config.task.cameras[0]
            line[0].imshow(clip.observation["images"][camera][0, -1])
        for axis, column in zip(line[1:], columns, strict=True):
            if first is None or (row, column) not in measured:
                axis.text(0.5, 0.5, "missing", ha="center", va="center", color=GREY, transform=axis.transAxes)
                continue
            axis.imshow(_painted(measured[row, column], clip, camera), interpolation="nearest")
    for axis, title in zip(axes[0], ["frame", *columns], strict=True):
        axis.set_title(title, fontsize=11)
    about = f"ours alone, scale {results.scale}, seed {results.seeds[0]}"
    figure.suptitle(f"{results.experiment.title} ({about})", fontsize=10)
    _save(figure, path)
    return True


def _middle_frame(cell: Cell) -> Clip:
    """The middle of the first episode: early enough that little has happened, late enough that some has."""
    episodes, task = cell.episode_sets("last")[0], single_tasks(cell.config.task)[0]
    source = evaluated_source(episodes, task, cell.config.policy.n_obs_steps, 0)
    (clip,) = draw_clips([(source, 3, "even")])
    return clip_of(clip, np.array([1 if len(clip) > 1 else 0]))


def _painted(cell: Cell, clip: Clip, camera: str) -> np.ndarray:
    """The crop that a cell's policy sees of a camera, painted with its input gradient: uint8 (h, w, 3)."""
    policy = load_policy(cell.folder)
    maps = saliency_maps(policy, clip, Attribution())
    frames = centre_crop(clip.observation["images"][camera][:, -1], policy.encoder.config.crop)
    return paint(frames[0], strength(maps[camera])[0])


def _save(figure: Figure, path: Path) -> None:
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
