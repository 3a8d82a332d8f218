"""An experiment's results as tables: ours and the paper's numbers in columns of their own.

What was not measured is "missing", never a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from prism_policy.evaluation.statistics import Paired
from prism_policy.paper.cells import SCALES, Cell, Scale
from prism_policy.paper.experiments import Comparison, Entry, Experiment
from prism_policy.paper.scores import Cells, Score, difference, parameters, score, stages_reached
from prism_policy.tasks import task_spec

MISSING, UNPRINTED = "missing", "not printed"


@dataclass(frozen=True)
class Results:
    """All that is told about an experiment: computed once, then written in several forms."""

    experiment: Experiment
    scale: Scale
    seeds: tuple[int, ...]
    n_episodes: int
    cells: Cells
    data: str
    """What ours was trained on, as a sentence without its end."""
    scores: dict[tuple[str, str, str], Score | None]
    differences: list[tuple[Comparison, Paired | None]]

    @property
    def other_setting(self) -> bool:
        """Whether ours was measured at another scale or on other data than the paper's."""
        return self.scale != "paper" or "scripted" in self.data

    @property
    def note(self) -> str:
        """What stands under every table that holds both columns."""
        wide = any(e.partial for e in self.experiment.entries)
        return (
            f"Ours: measured here at scale {self.scale}, {self.data}; mean ± standard deviation over seeds, "
            f"{self.n_episodes} unseen episodes a seed and task. Paper: as printed in arXiv:2606.15232, trained on "
            "robomimic's or LIBERO's human demonstrations with the paper's recipe and measured by its authors. "
            + (
                "The two were measured on other data or at another scale: what can be compared are rows of one column, "
                "not ours with the paper's."
                if self.other_setting
                else "The recipe is the paper's, and the data where the files are those, too; what the paper leaves "
                "open, the simulator's version and the drawing of the images differ."
            )
            + (" †: the paper's mean is over more tasks or policies than ours." if wide else "")
        )


def results(
    experiment: Experiment, scale: Scale, seeds: tuple[int, ...], n_episodes: int, cells: Cells, data: str
) -> Results:
    """Read what the cells reached.

    Raises:
        PrismError: cells that are to be compared were measured on other starts.
    """
    entries = {e.key: e for e in experiment.entries}
    scores = {key: score(entry, cells, seeds, n_episodes) for key, entry in entries.items()}
    differences = [(c, difference(c, entries, cells, seeds, n_episodes)) for c in experiment.comparisons]
    return Results(experiment, scale, seeds, n_episodes, cells, data, scores, differences)


@dataclass(frozen=True)
class Grid:
    """A table with a heading, and what has to be said below it."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""
    paper: frozenset[int] = field(default_factory=frozenset)
    """Columns that hold the paper's numbers."""


def percent(share: float) -> str:
    """In percent with one digit, as the paper has it."""
    return f"{100 * share:.1f}"


def plus_minus(mean: float | None, deviation: float | None) -> str:
    """Mean ± deviation [%], or what there is of them."""
    if mean is None:
        return UNPRINTED
    return f"{mean:.1f}" + ("" if deviation is None else f" ± {deviation:.1f}")


def ours(found: Score | None, seeds: Sequence[int]) -> str:
    """Our entry, which says where seeds are missing."""
    if found is None:
        return MISSING
    mean, deviation = found.mean_and_std
    text = plus_minus(100 * mean, None if deviation is None else 100 * deviation)
    return text if len(found.seeds) == len(seeds) else f"{text} ({len(found.seeds)} of {len(seeds)} seeds)"


def grids(told: Results) -> list[Grid]:
    """Everything about the experiment, the paper's layout first."""
    blocks = dict.fromkeys(e.block for e in told.experiment.entries)
    found = [_block(told, block) for block in blocks]
    found.append(_intervals(told))
    if told.differences:
        found.append(_differences(told))
    if told.experiment.name == "fig5":
        found.append(_parameters(told))
    found += _stages(told)
    return [*found, _cells(told)]


def _block(told: Results, block: str) -> Grid:
    entries = {(e.row, e.column): e for e in told.experiment.entries if e.block == block}
    rows = list(dict.fromkeys(row for row, _ in entries))
    columns = list(dict.fromkeys(column for _, column in entries))
    header = [""] + [f"{column}, {whose}" for column in columns for whose in ("ours [%]", "paper [%]")]

    def cells(row: str, column: str) -> list[str]:
        entry = entries.get((row, column))
        if entry is None:
            return ["", ""]
        paper = plus_minus(entry.paper, entry.paper_std)
        return [ours(told.scores[entry.key], told.seeds), paper + "†" * (entry.partial and entry.paper is not None)]

    body = [[row, *(text for column in columns for text in cells(row, column))] for row in rows]
    return Grid(block, header, body, told.note, frozenset(range(2, len(header), 2)))


def _intervals(told: Results) -> Grid:
    """Ours alone, with what the paper does not give."""
    rows = []
    for entry in told.experiment.entries:
        found = told.scores[entry.key]
        start = [entry.block, entry.row, entry.column]
        if found is None:
            rows.append([*start, MISSING, "", "", ""])
            continue
        low, high = found.interval
        seeds = ", ".join(f"{seed}: {percent(rate)}" for seed, rate in zip(found.seeds, found.rates, strict=True))
        counts, interval = f"{found.successes} of {found.n}", f"{percent(low)} to {percent(high)}"
        rows.append([*start, counts, percent(found.successes / found.n), interval, seeds])
    header = ["", "", "", "successes of episodes", "rate [%]", "95% interval [%]", "each seed [%]"]
    return Grid(
        "Ours, with intervals",
        header,
        rows,
        "Wilson's interval over all episodes. It says what other episodes would do to these policies; what other "
        "training seeds would do is the deviation over seeds.",
    )


def _differences(told: Results) -> Grid:
    entries = {e.key: e for e in told.experiment.entries}
    rows = []
    for comparison, found in told.differences:
        a, b = entries[comparison.a], entries[comparison.b]
        printed = _printed_difference(comparison, a, b)
        name = _places(a, b)
        if found is None:
            rows.append([*name, MISSING, "", "", "", printed])
            continue
        low, high = found.interval()
        mine = [f"{100 * found.difference:+.1f}", f"{100 * low:+.1f} to {100 * high:+.1f}", f"{found.p_value:.2g}"]
        rows.append([*name, *mine, f"{found.only_a} : {found.only_b} of {found.n}", printed])
    header = ["", "against", "ours [points]", "95% interval", "p", "only one succeeds", "paper [points]"]
    return Grid(
        "Differences, episode by episode",
        header,
        rows,
        "Ours: the same starts for both, over all seeds; Tango's interval of the paired difference, exact McNemar "
        f"test, without correction for the number of comparisons ({len(rows)}). " + told.note,
        frozenset({6}),
    )


def _places(a: Entry, b: Entry) -> list[str]:
    """What tells two entries apart, after where both are."""
    pairs = list(zip(a.key, b.key, strict=True))
    shared = ", ".join(x for x, y in pairs if x == y)
    return [f"{shared}: {', '.join(x for x, y in pairs if x != y)}", ", ".join(y for x, y in pairs if x != y)]


def _printed_difference(comparison: Comparison, a: Entry, b: Entry) -> str:
    if comparison.paper is not None:
        return f"{comparison.paper:+.1f}" + "†" * (a.partial or b.partial)
    if a.paper is None or b.paper is None:
        return UNPRINTED
    return f"{a.paper - b.paper:+.1f}" + "†" * (a.partial or b.partial)


def added_parameters(told: Results) -> dict[str, tuple[int, int]]:
    """By row, the parameters of the first column's policy and how many the last column's has more."""
    found: dict[str, list[int]] = {}
    for entry in told.experiment.entries:
        found.setdefault(entry.row, []).append(parameters(entry))
    return {row: (counts[0], counts[-1] - counts[0]) for row, counts in found.items()}


def _parameters(told: Results) -> Grid:
    rows = [
        [row, f"{base / 1e6:.2f}", f"{(base + more) / 1e6:.2f}", f"{more / 1e6:+.2f} ({more / base:+.1%})"]
        for row, (base, more) in added_parameters(told).items()
    ]
    header = ["", "last stage [M]", "multiscale [M]", "added [M]"]
    return Grid("Parameters", header, rows, "Ours: counted in whole policies with two cameras, at the paper's size.")


def _stages(told: Results) -> list[Grid]:
    """How far episodes came, a table a task."""
    found = []
    for task, by_variant in stages_reached(told.experiment, told.cells, told.seeds, told.n_episodes).items():
        names = ["", *task_spec(task).stages]
        header = [task, "episodes", *(name or "nothing" for name in names[:-1]), f"{names[-1]} (success)"]
        rows = [
            [variant.name, str(counts.total()), *(str(counts[name]) for name in names)]
            for variant, counts in by_variant.items()
        ]
        found.append(
            Grid(
                f"How far the episodes came: {task}",
                header,
                rows,
                "Ours: episodes by the furthest stage reached, last weights, all seeds measured so far.",
            )
        )
    return found


def _cells(told: Results) -> Grid:
    rows = [[*name, _state(cell, told), str(cell.folder)] for name, cell in _listed(told)]
    note = "Each is an ordinary run folder: `prism evaluate FOLDER`, `prism report FOLDER`."
    return Grid("Cells", ["cell", "seed", "state", "folder"], rows, note)


def _listed(told: Results) -> list[tuple[list[str], Cell]]:
    return [([variant.name, str(seed)], cell) for (variant, seed), cell in told.cells.items()]


def _state(cell: Cell, told: Results) -> str:
    found = cell.records("last", told.n_episodes)
    if found:
        return f"{sum(r['success'] for r in found)} of {len(found)}"
    return "trained" if cell.trained else MISSING


def facts(told: Results) -> list[str]:
    """What was measured, on what, and what the scale means."""
    done = sum(bool(cell.records("last", told.n_episodes)) for cell in told.cells.values())
    return [
        f"{done} of {len(told.cells)} cells measured; seeds {', '.join(map(str, told.seeds))}; {told.data}.",
        f"Scale {told.scale}: {SCALES[told.scale]}",
    ]
