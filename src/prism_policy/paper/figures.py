"""An experiment's results as a picture: bars as in the paper's figures, or the saliency of several policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from prism_policy.evaluation.videos import observe_moments
from prism_policy.paper.tables import Results, added_parameters
from prism_policy.run_folder import load_policy
from prism_policy.saliency.attribution import Attribution, saliency
from prism_policy.saliency.figures import strength
from prism_policy.saliency.heatmaps import paint
from prism_policy.saliency.metrics import density
from prism_policy.saliency.study import seen
from prism_policy.utils.files import atomic

GREY = "#666666"


def draw_bars(told: Results, path: Path) -> None:
    """A panel a block, a group a column, a bar a row: ours with Wilson's interval, the paper's number as a diamond.

    Figure 5 has its gains and parameters in two more panels.
    """
    entries = told.experiment.entries
    blocks = list(dict.fromkeys(e.block for e in entries))
    rows = list(dict.fromkeys(e.row for e in entries))
    colours = {row: mpl.colormaps["viridis"](0.1 + 0.75 * i / max(len(rows) - 1, 1)) for i, row in enumerate(rows)}
    counts = [len({e.column for e in entries if e.block == block}) for block in blocks]
    widths = [max(1.0, count * (0.32 * len(rows) + 0.5)) for count in counts]
    more = [2.0, 2.0] if told.experiment.name == "fig5" else []
    figure = Figure(figsize=(max(7.0, sum(widths + more) + 1.2), 4.4), layout="constrained")
    panels = figure.subplots(1, len(blocks) + len(more), squeeze=False, width_ratios=widths + more)[0]
    for axis, block in zip(panels, blocks, strict=False):
        _panel(axis, told, block, rows, colours)
    if more:
        _gains(panels[-2], told, rows, colours)
        _added(panels[-1], told, colours)
    panels[0].set_ylabel("success [%]")
    handles: list[Any] = [Patch(color=colour, label=row) for row, colour in colours.items()]
    handles.append(Line2D([], [], color="black", label="ours, 95% interval (Wilson)"))
    other = "data, scale and tasks" if any(e.partial for e in entries) else "data and scale"
    if any(e.paper is not None for e in entries):
        handles.append(_diamond(f"the paper's number: other {other}" if told.other_setting else "the paper's number"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle(f"{told.experiment.title}\nours at scale {told.scale}, {told.data}", fontsize=9)
    _save(figure, path)


def _panel(axis: Axes, told: Results, block: str, rows: Sequence[str], colours: Mapping[str, Any]) -> None:
    entries = [e for e in told.experiment.entries if e.block == block]
    columns = list(dict.fromkeys(e.column for e in entries))
    here = [row for row in rows if any(e.row == row for e in entries)]
    width = 0.8 / len(here)
    for entry in entries:
        x = columns.index(entry.column) + width * (here.index(entry.row) - (len(here) - 1) / 2)
        found = told.scores[entry.key]
        if found is None:
            axis.text(x, 1, "missing", rotation=90, ha="center", va="bottom", fontsize=7, color=GREY)
        else:
            mean = 100 * found.mean_and_std[0]
            low, high = (100 * share for share in found.interval)
            axis.bar(x, mean, 0.9 * width, color=colours[entry.row])
            axis.plot([x - 0.15 * width] * 2, [low, high], color="black", linewidth=1.2)
        if entry.paper is not None:
            axis.plot([x + 0.2 * width], [entry.paper], **_HOLLOW)
    axis.set_xticks(range(len(columns)), columns)
    axis.set_xlim(-0.5, len(columns) - 0.5)
    axis.set_ylim(0, 103)
    axis.set_title(block, fontsize=9)
    axis.grid(axis="y", alpha=0.2)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _gains(axis: Axes, told: Results, rows: Sequence[str], colours: Mapping[str, Any]) -> None:
    """Differences in points with Tango's interval."""
    for comparison, found in told.differences:
        x = rows.index(comparison.a[1])
        if found is None:
            axis.text(x, 0, "missing", rotation=90, ha="center", va="bottom", fontsize=7, color=GREY)
            continue
        axis.bar(x, 100 * found.difference, 0.75, color=colours[comparison.a[1]])
        axis.plot([x, x], [100 * share for share in found.interval()], color="black", linewidth=1.2)
    axis.axhline(0, color=GREY, linewidth=0.8)
    _bare(axis, rows, "gain [points], 95% interval (Tango)")


def _added(axis: Axes, told: Results, colours: Mapping[str, Any]) -> None:
    added = added_parameters(told)
    for x, (row, (_, more)) in enumerate(added.items()):
        axis.bar(x, more / 1e6, 0.75, color=colours[row])
    axis.set_yscale("log")
    _bare(axis, list(added), "added parameters [M], at full size")


def _bare(axis: Axes, rows: Sequence[str], title: str) -> None:
    axis.set_xticks(range(len(rows)), rows, rotation=45, ha="right", fontsize=8)
    axis.set_title(title, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)


_HOLLOW: dict[str, Any] = {
    "marker": "D",
    "linestyle": "",
    "markersize": 6,
    "markerfacecolor": "white",
    "markeredgecolor": "black",
    "markeredgewidth": 1.0,
}


def _diamond(label: str) -> Line2D:
    return Line2D([], [], label=label, **_HOLLOW)


def draw_saliency_grid(told: Results, path: Path) -> bool:
    """Tasks down, encoders across: one frame a task with each policy's input gradient; False where nothing is there.

    All policies of a task see the same frame, from the middle of the first episode of the first one that was measured,
    whatever its outcome. Brightness is relative to the mean of each picture, as in `prism saliency`: the gradients of
    different policies have no other common unit.
    """
    entries = told.experiment.entries
    rows, columns = (list(dict.fromkeys(names)) for names in zip(*((e.column, e.row) for e in entries), strict=True))
    cells = {(e.column, e.row): told.cells[e.variants[0], told.seeds[0]] for e in entries}
    measured = {key: cell for key, cell in cells.items() if cell.records("last", told.n_episodes)}
    if not measured:
        return False
    figure = Figure(figsize=(2.3 * (len(columns) + 1) + 0.3, 2.3 * len(rows) + 0.5), layout="constrained")
    axes = figure.subplots(len(rows), len(columns) + 1, squeeze=False)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_box_aspect(1)
    for line, row in zip(axes, rows, strict=True):
        line[0].set_ylabel(row)
        first = next((measured[row, c] for c in columns if (row, c) in measured), None)
        if first is not None:
            # Three moments, of which the middle one: early enough that little has happened, late enough that some has.
            states = first.streams("last")[0].folder / "states" / "episode_000.npy"
            moments = observe_moments(first.config.task, states, 3, first.config.policy.n_obs_steps)
            found = list(moments.values())[1 if len(moments) > 1 else 0]
            camera = first.config.task.cameras[0]
            line[0].imshow(found["images"][camera][-1])
        for axis, column in zip(line[1:], columns, strict=True):
            if first is None or (row, column) not in measured:
                axis.text(0.5, 0.5, "missing", ha="center", va="center", color=GREY, transform=axis.transAxes)
                continue
            axis.imshow(_looks_at(measured[row, column].folder, found, camera), interpolation="nearest")
    for axis, title in zip(axes[0], ["frame", *columns], strict=True):
        axis.set_title(title, fontsize=11)
    figure.suptitle(f"{told.experiment.title} (ours alone, scale {told.scale}, seed {told.seeds[0]})", fontsize=10)
    _save(figure, path)
    return True


def _looks_at(folder: Path, observation: Mapping[str, Any], camera: str) -> np.ndarray:
    """The crop that the folder's policy sees of a camera, painted with its input gradient: uint8 (h, w, 3)."""
    policy = load_policy(folder)
    batch: Any = {
        "images": {c: torch.from_numpy(x)[None] for c, x in observation["images"].items()},
        "proprio": torch.from_numpy(observation["proprio"])[None],
    }
    share = policy.encoder.config.crop
    found = seen(saliency(policy, batch, Attribution())[camera][:, -1], share)  # (1, h, w)
    return paint(seen(observation["images"][camera][-1:], share)[0], strength(np.nan_to_num(density(found)))[0])


def _save(figure: Figure, path: Path) -> None:
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
