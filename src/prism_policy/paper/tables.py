"""An experiment's results as tables, ours beside the paper's; what was not measured is "missing", never a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from prism_policy.evaluation.statistics import Paired
from prism_policy.paper.cells import SCALES, Scale
from prism_policy.paper.experiments import Comparison, Entry, Experiment
from prism_policy.paper.scores import Cells, Score, difference, parameters, score, stages_reached
from prism_policy.tasks import task_spec

MISSING, UNPRINTED = "missing", "not printed"


@dataclass(frozen=True)
class Results:
    """An experiment's results, computed once and written in several forms."""

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
        """The note under every table that holds both columns."""
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
            + " †: the paper's mean is over more tasks or policies than ours." * wide
        )


def collect_results(
    experiment: Experiment, scale: Scale, seeds: tuple[int, ...], n_episodes: int, cells: Cells, data: str
) -> Results:
    """Read the cells' results."""
    entries = {e.key: e for e in experiment.entries}
    scores = {key: score(entry, cells, seeds, n_episodes) for key, entry in entries.items()}
    differences = [(c, difference(c, entries, cells, seeds, n_episodes)) for c in experiment.comparisons]
    return Results(experiment, scale, seeds, n_episodes, cells, data, scores, differences)


@dataclass(frozen=True)
class Grid:
    """A table with a heading and a note below it."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""
    paper: frozenset[int] = field(default_factory=frozenset)
    """Columns that hold the paper's numbers."""


def points(share: float) -> str:
    """Percent with one digit and no sign, as the paper has it."""
    return f"{100 * share:.1f}"


def mean_and_deviation(mean: float | None, deviation: float | None) -> str:
    """Mean ± deviation [%], or what there is of them."""
    if mean is None:
        return UNPRINTED
    return f"{mean:.1f}" + ("" if deviation is None else f" ± {deviation:.1f}")


def ours(entry_score: Score | None, seeds: Sequence[int]) -> str:
    """Our entry, which says where seeds are missing."""
    if entry_score is None:
        return MISSING
    mean, deviation = entry_score.mean_and_std
    text = mean_and_deviation(100 * mean, None if deviation is None else 100 * deviation)
    n = len(entry_score.seeds)
    return text if n == len(seeds) else f"{text} ({n} of {len(seeds)} seeds)"


def grids(results: Results) -> list[Grid]:
    """Everything about the experiment, the paper's layout first."""
    blocks = dict.fromkeys(e.block for e in results.experiment.entries)
    tables = [*(_block(results, block) for block in blocks), _intervals(results)]
    if results.differences:
        tables.append(_differences(results))
    if results.experiment.name == "fig5":
        tables.append(_parameters(results))
    return [*tables, *_stages(results), _cells(results)]


def _block(results: Results, block: str) -> Grid:
    entries = {(e.row, e.column): e for e in results.experiment.entries if e.block == block}
    rows = list(dict.fromkeys(row for row, _ in entries))
    columns = list(dict.fromkeys(column for _, column in entries))
    header = [""] + [f"{column}, {whose}" for column in columns for whose in ("ours [%]", "paper [%]")]

    def cells(row: str, column: str) -> list[str]:
        entry = entries.get((row, column))
        if entry is None:
            return ["", ""]
        paper = mean_and_deviation(entry.paper, entry.paper_std) + "†" * (entry.partial and entry.paper is not None)
        return [ours(results.scores[entry.key], results.seeds), paper]

    body = [[row, *(text for column in columns for text in cells(row, column))] for row in rows]
    return Grid(block, header, body, results.note, frozenset(range(2, len(header), 2)))


def _intervals(results: Results) -> Grid:
    """Ours alone, with what the paper does not give."""
    rows = []
    for entry in results.experiment.entries:
        one = results.scores[entry.key]
        cells = [MISSING, "", "", ""]
        if one is not None:
            low, high = map(points, one.interval)
            seeds = ", ".join(f"{seed}: {points(rate)}" for seed, rate in zip(one.seeds, one.rates, strict=True))
            cells = [f"{one.successes} of {one.n}", points(one.successes / one.n), f"{low} to {high}", seeds]
        rows.append([*entry.key, *cells])
    header = ["", "", "", "successes of episodes", "rate [%]", "95% interval [%]", "each seed [%]"]
    note = (
        "Wilson's interval over all episodes. It says what other episodes would do to these policies; what other "
        "training seeds would do is the deviation over seeds."
    )
    return Grid("Ours, with intervals", header, rows, note)


def _differences(results: Results) -> Grid:
    entries = {e.key: e for e in results.experiment.entries}
    rows = []
    for comparison, paired in results.differences:
        a, b = entries[comparison.a], entries[comparison.b]
        cells = [MISSING, "", "", ""]
        if paired is not None:
            low, high = (100 * share for share in paired.interval())
            cells = [f"{100 * paired.difference:+.1f}", f"{low:+.1f} to {high:+.1f}", f"{paired.p_value:.2g}"]
            cells.append(f"{paired.only_a} : {paired.only_b} of {paired.n}")
        rows.append([*_places(a, b), *cells, _printed_difference(comparison, a, b)])
    header = ["", "against", "ours [points]", "95% interval", "p", "only one succeeds", "paper [points]"]
    note = (
        "Ours: the same starts for both, over all seeds; Tango's interval of the paired difference, exact McNemar "
        f"test, without correction for the number of comparisons ({len(rows)}). {results.note}"
    )
    return Grid("Differences, episode by episode", header, rows, note, frozenset({6}))


def _places(a: Entry, b: Entry) -> list[str]:
    """Name two entries by where both are and by what differs."""
    pairs = list(zip(a.key, b.key, strict=True))
    shared = ", ".join(x for x, y in pairs if x == y)
    return [f"{shared}: {', '.join(x for x, y in pairs if x != y)}", ", ".join(y for x, y in pairs if x != y)]


def _printed_difference(comparison: Comparison, a: Entry, b: Entry) -> str:
    printed = comparison.paper
    if printed is None:
        if a.paper is None or b.paper is None:
            return UNPRINTED
        printed = a.paper - b.paper
    return f"{printed:+.1f}" + "†" * (a.partial or b.partial)


def added_parameters(results: Results) -> dict[str, tuple[int, int]]:
    """By row, the parameters of the first column's policy and how many the last column's has more."""
    counts_of: dict[str, list[int]] = {}
    for entry in results.experiment.entries:
        counts_of.setdefault(entry.row, []).append(parameters(entry))
    return {row: (counts[0], counts[-1] - counts[0]) for row, counts in counts_of.items()}


def _parameters(results: Results) -> Grid:
    rows = [
        [row, f"{base / 1e6:.2f}", f"{(base + more) / 1e6:.2f}", f"{more / 1e6:+.2f} ({more / base:+.1%})"]
        for row, (base, more) in added_parameters(results).items()
    ]
    header = ["", "last stage [M]", "multiscale [M]", "added [M]"]
    return Grid("Parameters", header, rows, "Ours: counted in whole policies with two cameras, at the paper's size.")


def _stages(results: Results) -> list[Grid]:
    """How far episodes came, a table a task."""
    note = "Ours: episodes by the furthest stage reached, last weights, all seeds measured so far."
    reached = stages_reached(results.experiment, results.cells, results.seeds, results.n_episodes)
    tables = []
    for task, by_variant in reached.items():
        names = ["", *task_spec(task).stages]
        header = [task, "episodes", *(name or "nothing" for name in names[:-1]), f"{names[-1]} (success)"]
        rows = [[v.name, *map(str, [counts.total(), *(counts[n] for n in names)])] for v, counts in by_variant.items()]
        tables.append(Grid(f"How far the episodes came: {task}", header, rows, note))
    return tables


def _cells(results: Results) -> Grid:
    rows = []
    for (variant, seed), cell in results.cells.items():
        records = cell.records("last", results.n_episodes)
        measured = f"{sum(r['success'] for r in records)} of {len(records)}"
        state = measured if records else "trained" if cell.trained else MISSING
        rows.append([variant.name, str(seed), state, str(cell.folder)])
    note = "Each is an ordinary run folder: `prism evaluate FOLDER`, `prism report FOLDER`."
    return Grid("Cells", ["cell", "seed", "state", "folder"], rows, note)


def facts(results: Results) -> list[str]:
    """How much was measured, on what data, and what the scale means."""
    done = sum(bool(cell.records("last", results.n_episodes)) for cell in results.cells.values())
    return [
        f"{done} of {len(results.cells)} cells measured; seeds {', '.join(map(str, results.seeds))}; {results.data}.",
        f"Scale {results.scale}: {SCALES[results.scale]}",
    ]
