"""Results of the spatial probe, as a table and as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from scipy import stats

from prism_policy.config.ranges import Natural, NonNegative, Resolution, Seed
from prism_policy.config.settings import EncoderConfig
from prism_policy.utils.files import atomic


class ProbeLine(TypedDict):
    """A line of results.jsonl."""

    encoder: str
    resolution: Resolution
    seed: Seed
    numbers: Natural
    parameters: Natural
    seconds: NonNegative
    errors: dict[str, NonNegative]
    constant: dict[str, NonNegative]
    config: EncoderConfig


Line = dict[str, Any]
"""One training: `encoder`, `resolution`, `seed`, `numbers`, `parameters`, `seconds`, and `errors` by quantity."""


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of its 95% interval (Student's t over seeds); the half-width of a single value is NaN."""
    n = len(values)
    if n == 1:
        return values[0], math.nan
    half = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return float(np.mean(values)), half


@dataclass(frozen=True)
class Row:
    """An encoder at a resolution, over its seeds."""

    encoder: str
    resolution: int
    numbers: int
    parameters: int
    seeds: int
    position: tuple[float, float]
    """Mean distance over all things and half-width of its 95% interval [m]."""
    errors: dict[str, tuple[float, float]]
    """The same by quantity: a thing's distance [m], or its angle [rad]."""
    values: dict[str, list[float]]
    """The same for each seed."""


def rows(lines: Sequence[Line]) -> list[Row]:
    """Rows by resolution, the smallest mean distance first."""
    groups: dict[tuple[int, str], list[Line]] = {}
    for line in lines:
        groups.setdefault((line["resolution"], line["encoder"]), []).append(line)
    table_rows = []
    for (resolution, encoder), group in groups.items():
        values = {key: [line["errors"][key] for line in group] for key in group[0]["errors"]}
        distances = [_mean_distance(line["errors"]) for line in group]
        errors = {key: mean_interval(v) for key, v in values.items()}
        sizes = group[0]["numbers"], group[0]["parameters"]
        table_rows.append(Row(encoder, resolution, *sizes, len(group), mean_interval(distances), errors, values))
    return sorted(table_rows, key=lambda row: (row.resolution, row.position[0]))


def _mean_distance(errors: dict[str, float]) -> float:
    return float(np.mean([value for key, value in errors.items() if not key.endswith(" angle")]))


def table(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Header and cells: distances in millimetres, angles in radians, with half-widths of 95% intervals over seeds."""
    quantities = list(lines[0]["errors"])
    units = {q: "rad" if q.endswith(" angle") else "mm" for q in quantities}
    about = ["encoder", "px", "numbers", "parameters", "seeds", "mean [mm]"]
    header = [*about, *(f"{q} [{units[q]}]" for q in quantities)]

    def cell(pair: tuple[float, float], unit: str) -> str:
        scale, digits = (1000, 1) if unit == "mm" else (1, 3)
        mean = f"{pair[0] * scale:.{digits}f}"
        return mean if math.isnan(pair[1]) else f"{mean} ± {pair[1] * scale:.{digits}f}"

    cells = []
    for row in rows(lines):
        start = [row.encoder, str(row.resolution), str(row.numbers), f"{row.parameters / 1e6:.2f} M", str(row.seeds)]
        cells.append([*start, cell(row.position, "mm"), *(cell(row.errors[q], units[q]) for q in quantities)])
    constant = lines[0]["constant"]
    guess = [cell((constant[q], math.nan), units[q]) for q in quantities]
    cells.append(["(always the mean)", "", "", "", "", cell((_mean_distance(constant), math.nan), "mm"), *guess])
    return header, cells


def markdown_table(lines: Sequence[Line]) -> str:
    """`table` in Markdown."""
    header, cells = table(lines)
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, ["---"] * len(header), *cells))


def draw(lines: Sequence[Line], path: Path, title: str) -> None:
    """Draw the error of every encoder: a panel a quantity, a colour a resolution, a dot a seed, a bar the interval."""
    results = rows(lines)
    order = {name: i for i, name in enumerate(dict.fromkeys(row.encoder for row in results))}
    resolutions = sorted({row.resolution for row in results})
    quantities = list(results[0].errors)
    columns = min(len(quantities), 2 if len(quantities) == 4 else 3)
    panels = -(-len(quantities) // columns)
    figure = Figure(figsize=(3.6 * columns + 1.4, panels * (0.3 * len(order) + 1.1)), layout="constrained")
    axes = figure.subplots(panels, columns, squeeze=False, sharey=True)
    for axis in axes.flat[len(quantities) :]:
        axis.set_visible(False)
    for axis, quantity in zip(axes.flat, quantities, strict=False):
        angle = quantity.endswith(" angle")
        scale, unit = (1, "rad") if angle else (1000, "mm")
        axis.axvline(lines[0]["constant"][quantity] * scale, color="#999999", linestyle=(0, (3, 3)), linewidth=1)
        for row in results:
            place = resolutions.index(row.resolution)
            colour = mpl.colormaps["viridis"](0.15 + 0.6 * place / max(len(resolutions) - 1, 1))
            y = order[row.encoder] + 0.24 * (place - (len(resolutions) - 1) / 2)
            mean, half = row.errors[quantity]
            if not math.isnan(half):
                low = max(mean - half, mean / 10)  # the axis is logarithmic
                axis.plot([low * scale, (mean + half) * scale], [y, y], color=colour, linewidth=5, alpha=0.25)
            axis.scatter([v * scale for v in row.values[quantity]], [y] * row.seeds, s=10, color=colour, alpha=0.6)
            label = f"{row.resolution} px" if order[row.encoder] == 0 else None
            axis.scatter([mean * scale], [y], s=34, marker="|", color=colour, linewidths=2, label=label)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel(f"{quantity} error [{unit}]")
        axis.set_yticks(list(order.values()), list(order))
        axis.grid(axis="x", which="both", alpha=0.15)
        axis.spines[["top", "right", "left"]].set_visible(False)
    axes[0, 0].invert_yaxis()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    note = "held-out error (dots are seeds, bars 95% intervals, dashed: always the mean)"
    figure.suptitle(f"{title}: {note}", fontsize=10)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
