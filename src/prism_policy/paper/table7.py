"""Table 7 from trials on a robot, or on a simulated one and marked so, beside the paper's two rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from prism_policy.errors import PrismError
from prism_policy.evaluation.sequential import sequential
from prism_policy.evaluation.statistics import pair, wilson_interval
from prism_policy.evaluation.trainings import difference_over_trainings, rate_over_trainings
from prism_policy.paper.printed import printed_table7
from prism_policy.robots.results import TrialFolder
from prism_policy.utils.files import write_text
from prism_policy.utils.progress import console
from prism_policy.utils.text import quoted

COLUMNS = {"stack": "StackCube", "key_pick": "KeyPick"}
ROWS = {"sspool": "Base.", "prism": "PRISM"}
MISSING = "not run"


@dataclass(frozen=True)
class Trials:
    """Outcomes of a policy from some starts, in their order."""

    column: str
    row: str
    seed: int | None
    """Of its training; none where its server does not say."""
    outcomes: tuple[bool, ...]
    starts: tuple[int, ...]
    folder: Path
    judge: str
    simulated: bool


def read_trials(places: Sequence[str]) -> list[Trials]:
    """The trials in folders, `FOLDER` or `COLUMN=FOLDER`.

    Raises:
        PrismError: there are none, of another task or encoder than the table's, or the same twice.
    """
    if not places:
        raise PrismError("table7 is made of trials; give the folders of `prism trials` with --trials (docs/robot.md)")
    found: dict[tuple[str, str, int | None], Trials] = {}
    for place in places:
        column, equals, path = place.partition("=")
        folder = TrialFolder.read(Path(path if equals else place))
        about = folder.about
        column = column if equals else COLUMNS.get(about.task, "")
        if column not in COLUMNS.values():
            columns = " or ".join(COLUMNS.values())
            raise PrismError(f"{place}: {quoted(about.task)} is no task of Table 7; say which as {columns}=FOLDER")
        for name, policy in about.policies.items():
            if policy.encoder not in ROWS:
                rows = " or ".join(ROWS)
                raise PrismError(f"{folder.path}: policy {quoted(name)} has encoder {policy.encoder!r}, not {rows}")
            valid = {start: line for (start, who), line in sorted(folder.valid().items()) if who == name}
            key = (column, ROWS[policy.encoder], policy.seed)
            if key in found:
                raise PrismError(f"{folder.path}: {key[1]} of training seed {key[2]} is in {found[key].folder}, too")
            outcomes = tuple(bool(line["success"]) for line in valid.values())
            found[key] = Trials(*key, outcomes, tuple(valid), folder.path, about.judge, about.simulated)
    return list(found.values())


def _of(results: Sequence[Trials], column: str, row: str) -> list[Trials]:
    cells = [one for one in results if (one.column, one.row) == (column, row) and one.outcomes]
    return sorted(cells, key=lambda one: -1 if one.seed is None else one.seed)


def rate_text(cells: Sequence[Trials]) -> str:
    """Successes of trials with their interval, or that there are none."""
    if not cells:
        return MISSING
    successes, n = sum(sum(one.outcomes) for one in cells), sum(len(one.outcomes) for one in cells)
    low, high = wilson_interval(successes, n)
    text = f"{100 * successes / n:.1f} ({successes} of {n}; {100 * low:.0f} to {100 * high:.0f})"
    return text + " simulated" * all(one.simulated for one in cells)


def difference_lines(results: Sequence[Trials], column: str) -> list[str]:
    """PRISM less Base. in a column, paired by training seed and start; nothing where no pair was run."""
    base = {one.seed: one for one in _of(results, column, "Base.")}
    pairs = [(one, base[one.seed]) for one in _of(results, column, "PRISM") if one.seed in base]
    pairs = [(a, b) for a, b in pairs if a.folder == b.folder]  # of one schedule, so the starts are the same
    rows: tuple[list[list[bool]], list[list[bool]]] = ([], [])
    for a, b in pairs:
        both = sorted(set(a.starts) & set(b.starts))
        for outcomes, one in zip(rows, (a, b), strict=True):
            outcomes.append([one.outcomes[one.starts.index(start)] for start in both])
    flat = [[success for row in side for success in row] for side in rows]
    if not flat[0]:
        return []
    paired, anytime = pair(*flat), sequential(flat[0], flat[1])
    low, high = (100 * share for share in paired.interval())
    lines = [
        f"PRISM less Base.: {100 * paired.difference:+.1f} points over {paired.n} paired trials, 95% interval "
        f"{low:+.1f} to {high:+.1f}, exact McNemar test p = {paired.p_value:.3g} (only one succeeds: "
        f"{paired.only_a} to {paired.only_b})"
    ]
    low, high = (100 * share for share in anytime.interval)
    lines.append(f"Whenever one stops: {low:+.1f} to {high:+.1f} points, p = {anytime.p_value:.3g}")
    if len(pairs) > 1 and len({len(row) for row in rows[0]}) == 1:
        over = difference_over_trainings(*rows)
        low, high = (100 * share for share in over.interval)
        lines.append(
            f"Over {len(pairs)} trainings: {low:+.1f} to {high:+.1f} points, p = {over.p_value:.3g}; so much for "
            "other training seeds"
        )
    return lines


def print_table7(results: Sequence[Trials]) -> None:
    """Print the table, ours beside the paper's."""
    numbers = printed_table7()["numbers"]
    table = Table("", *(f"{c}, {who}" for c in COLUMNS.values() for who in ("ours [%]", "paper [%]")))
    for row in ROWS.values():
        cells = ((rate_text(_of(results, c, row)), f"{numbers[row][c]:.1f}") for c in COLUMNS.values())
        table.add_row(row, *(text for both in cells for text in both))
    console.print(table)
    for column in COLUMNS.values():
        console.print(*(f"{column}: {line}" for line in difference_lines(results, column)))


def write_table7(results: Sequence[Trials], out: Path) -> Path:
    """Write OUT/table.md and OUT/table.csv; returns the former."""
    about = printed_table7()
    simulated, judges = {one.simulated for one in results}, sorted({one.judge for one in results})
    where = {frozenset({True}): "**SimRobot: simulated, not a robot**", frozenset({False}): "a robot"}
    said = where.get(frozenset(simulated), "a robot and SimRobot (each entry says simulated where it is)")
    columns = [f"{c}, {who} [%]" for c in COLUMNS.values() for who in ("ours", "paper")]
    lines = [f"# {about['title']}", "", f"Ours: measured on {said}, judged by the {' or the '.join(judges)}.", ""]
    lines += ["| | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 1) + "|"]
    for row in ROWS.values():
        cells = [
            text for c in COLUMNS.values()
            for text in (rate_text(_of(results, c, row)), f"{about['numbers'][row][c]:.1f}")
        ]  # fmt: skip
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    lines += ["", "In brackets: successes of trials, and Wilson's 95% interval over all trials [%]."]
    for column in COLUMNS.values():
        lines += ["", f"## {column}", "", *(f"- {line}" for line in difference_lines(results, column) or [MISSING])]
        for row in ROWS.values():
            cells_of = _of(results, column, row)
            seeds = ", ".join(f"seed {one.seed}: {sum(one.outcomes)} of {len(one.outcomes)}" for one in cells_of)
            lines.append(f"- {row}: {seeds or MISSING}{_over_trainings(cells_of)}")
    lines += ["", "## How the paper was read", "", *(f"- {line}" for line in about["readings"])]
    write_text(out / "table.md", "\n".join(lines) + "\n")
    write_text(out / "table.csv", _csv(results))
    return out / "table.md"


def _over_trainings(cells: Sequence[Trials]) -> str:
    if len(cells) < 2 or len({len(one.outcomes) for one in cells}) > 1:
        return ""
    over = rate_over_trainings([one.outcomes for one in cells])
    return f"; over trainings {100 * over.mean:.1f}% ({100 * over.low:.0f} to {100 * over.high:.0f}%)"


def _csv(results: Sequence[Trials]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["column", "row", "training_seed", "successes", "trials", "simulated", "judge", "paper_percent"])
    numbers = printed_table7()["numbers"]
    for one in results:
        counts = sum(one.outcomes), len(one.outcomes)
        seed = "" if one.seed is None else one.seed
        writer.writerow([one.column, one.row, seed, *counts, one.simulated, one.judge, numbers[one.row][one.column]])
    return text.getvalue()
