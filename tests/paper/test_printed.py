"""The paper's numbers against its own lines, copied from arXiv:2606.15232, and the cells that each table takes."""

from __future__ import annotations

import re

import pytest

from prism_policy.errors import PrismError
from prism_policy.paper.experiments import Entry, Experiment, Variant, select
from prism_policy.paper.printed import NAMES, experiment

TABLE1 = """
SSPool 64 89.7 88.7 91.6 90.0 87.3 (-2.4) 91.3 (+2.6) 90.7 (-0.9) 89.8 (-0.2)
AvgPool 512 70.9 86.0 86.4 81.1 61.6 (-9.3) 87.1 (+1.1) 84.2 (-2.2) 77.6 (-3.5)
MaxPool 512 68.4 75.1 72.2 71.9 67.1 (-1.3) 72.4 (-2.7) 66.0 (-6.2) 68.5 (-3.4)
NoPool 4608 68.2 78.2 65.8 70.7 67.1 (-1.1) 78.4 (+0.2) 73.1 (+7.3) 72.9 (+2.2)
"""
TABLE2 = """
DP 77±6 2±2 23±6 34.0 (-55.7)
FM 65±29 3±2 9±7 25.8 (-62.9)
MF 65±8 2±0 51±8 39.3 (-52.3)
Avg. 69.0 2.3 27.7 33.0 (-56.3)
"""
TABLE3 = """
AvgPool 512 7.3
MaxPool 512 8.0
NoPool 4608 8.7
SSPool 64 4.7
SSPool (Trunc.) 64 7.3
MS-SSPool 384 11.3
"""
TABLE4 = """
Flow Matching Base. 99.0±1.0 90.0±3.0 77.0±4.0 4.7±1.2 67.7
PRISM 96.7±4.6 92.7±4.6 84.7±2.3 14.0±4.0 72.0
Gain -2.3 +2.7 +7.7 +9.3 +4.4
Diffusion Base. 97.0±2.0 96.0±2.0 76.0±6.0 5.3±2.3 67.1
PRISM 96.7±3.1 96.7±3.1 77.3±7.0 12.7±8.1 70.9
Gain -0.3 +0.7 +1.3 +7.4 +3.8
"""
TABLE5 = """
DP 14 26 22 42 32 30
FM 16 20 18 30 26 30
MF 22 26 16 32 30 44
"""

NUMBER = r"[+-]?\d+(?:\.\d+)?"


def lines(text: str, names: tuple[str, ...]) -> dict[str, str]:
    """What follows each name at the beginning of a line."""
    actual = {}
    for line in text.strip().splitlines():
        name = max((n for n in names if line.startswith(n)), key=len)
        actual[name] = line[len(name) :]
    return actual


def at(actual: Experiment, block: str, row: str, column: str) -> Entry:
    (entry,) = [e for e in actual.entries if e.key == (block, row, column)]
    return entry


def printed(actual: Experiment, a: tuple[str, str, str], b: tuple[str, str, str]) -> float | None:
    (comparison,) = [c for c in actual.comparisons if (c.a, c.b) == (a, b)]
    return comparison.paper


def test_table_1_is_as_printed() -> None:
    actual, trunks = experiment("table1"), ("Standard ResNet18", "Truncated ResNet18")
    for row, rest in lines(TABLE1, ("SSPool", "AvgPool", "MaxPool", "NoPool")).items():
        numbers = [float(x) for x in re.findall(NUMBER, rest)][1:]  # less the dimension
        columns = ("DP", "FM", "MF", "Avg.")
        assert [at(actual, trunks[0], row, c).paper for c in columns] == numbers[:4]
        assert [at(actual, trunks[1], row, c).paper for c in columns] == numbers[4::2]
        changes = [printed(actual, (trunks[1], row, c), (trunks[0], row, c)) for c in columns]
        assert changes == numbers[5::2]


def test_table_2_is_as_printed() -> None:
    actual, block, plain = experiment("table2"), "SSPool, shuffled", "SSPool, in order (from Table 1)"
    for row, rest in lines(TABLE2, ("DP", "FM", "MF", "Avg.")).items():
        *tasks, average, change = re.findall(rf"({NUMBER})(?:±({NUMBER}))?", rest)
        entries = [at(actual, block, row, c) for c in ("Lift", "Can", "Square")]
        assert [e.paper for e in entries] == [float(mean) for mean, _ in tasks]
        assert [e.paper_std for e in entries] == [float(std) if std else None for _, std in tasks]
        assert at(actual, block, row, "Avg.").paper == float(average[0])
        assert printed(actual, (block, row, "Avg."), (plain, row, "Avg.")) == float(change[0])


def test_table_3_is_as_printed() -> None:
    actual = experiment("table3")
    rows = lines(TABLE3, tuple(e.row for e in actual.entries))
    assert {e.row: e.paper for e in actual.entries} == {row: float(rest.split()[-1]) for row, rest in rows.items()}


def test_table_4_is_as_printed() -> None:
    actual, columns, block = experiment("table4"), ("Lift", "Can", "Square", "ToolHang", "Avg."), ""
    for line in TABLE4.strip().splitlines():
        kind = next((name for name in ("Base.", "PRISM", "Gain") if name in line), "")
        start, _, rest = line.partition(kind)
        block = start.strip() or block
        numbers = re.findall(rf"({NUMBER})(?:±({NUMBER}))?", rest)
        if kind == "Gain":
            gains = [printed(actual, (block, "PRISM", c), (block, "Base.", c)) for c in columns]
            assert gains == [float(x) for x, _ in numbers]
            continue
        entries = [at(actual, block, kind, c) for c in columns]
        assert [(e.paper, e.paper_std) for e in entries] == [(float(m), float(s) if s else None) for m, s in numbers]


def test_table_5_is_as_printed() -> None:
    actual = experiment("table5")
    for row, rest in lines(TABLE5, ("DP", "FM", "MF")).items():
        places = [(block, column) for block in ("2V-84", "1V-240", "2V-240") for column in ("Base.", "PRISM")]
        assert [at(actual, block, row, column).paper for block, column in places] == [float(x) for x in rest.split()]


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("table1", 4 * 2 * 3 * 3 * 3),  # poolings, trunks, policies, tasks, seeds
        ("table2", 3 * 3 * 3),  # policies, tasks, seeds
        ("table3", 6 * 3),
        ("table4", 2 * 2 * 4 * 3),  # policies, encoders, tasks, seeds
        ("table5", 3 * 3 * 2),  # policies, settings, encoders: 50 rollouts are one seed
        ("fig2", 4 * 3),  # poolings, tasks
        ("fig4", 3 * 3),
        ("fig5", 4 * 2 * 3 * 3),
    ],
)
def test_each_takes_the_cells_that_the_paper_trained(name: str, cells: int) -> None:
    actual = experiment(name)
    assert len(actual.variants) * len(actual.seeds) == cells
    assert len({v.name for v in actual.variants}) == len(actual.variants)
    keys = [e.key for e in actual.entries]
    assert len(set(keys)) == len(keys)
    assert all({c.a, c.b} <= set(keys) for c in actual.comparisons)


def test_what_two_tables_have_in_common_is_one_cell() -> None:
    table1, table4 = (set(experiment(name).variants) for name in ("table1", "table4"))
    shared = {v.name for v in table1 & table4}
    assert shared == {f"{t}-{p}-sspool" for t in ("lift", "can", "square") for p in ("flow_matching", "ddpm")}
    assert set(experiment("fig2").variants) < table1
    assert len(set(experiment("fig5").variants) & table1) == 12
    one_view = Variant("tool_hang", "flow_matching", "sspool", views=1)
    for name in ("table3", "table4", "fig4"):
        assert one_view in experiment(name).variants


def test_peak_needs_the_best_weights_and_final_the_last() -> None:
    actual = experiment("fig4")
    assert {actual.checkpoints(v) for v in actual.variants} == {("last", "best")}
    assert {experiment("table4").checkpoints(v) for v in experiment("table4").variants} == {("last",)}


def test_on_one_task_means_are_partial_and_means_of_one_number_are_dropped() -> None:
    actual = select(experiment("table1"), ["lift"], ["flow_matching"])
    assert {e.column for e in actual.entries} == {"FM"}
    assert all(e.partial for e in actual.entries)
    assert [v.name for v in actual.variants][:2] == ["lift-flow_matching-sspool", "lift-flow_matching-avgpool"]
    table4 = select(experiment("table4"), ["lift", "can"])
    assert {e.column for e in table4.entries} == {"Lift", "Can", "Avg."}
    assert {e.column for e in table4.entries if e.partial} == {"Avg."}
    shuffled = select(experiment("table2"), None, ["ddpm"])
    assert {e.row for e in shuffled.entries} == {"DP"}
    assert [v.name for v in shuffled.variants] == [f"{t}-ddpm-sspool-shuffled" for t in ("lift", "can", "square")]


def test_bad_choices_are_named() -> None:
    with pytest.raises(PrismError, match="unknown experiment 'table8'; available: table1, table2"):
        experiment("table8")
    for name in NAMES:
        with pytest.raises(PrismError, match=r"tasks: expected at least one of .*, got none"):
            select(experiment(name), [])
        with pytest.raises(PrismError, match=r"policies: expected at least one of .*, got none"):
            select(experiment(name), None, [])
    with pytest.raises(PrismError, match="table3 has no tasks 'lift'; it has tool_hang"):
        select(experiment("table3"), ["lift"])
    with pytest.raises(PrismError, match="table4 has no policies 'meanflow'; it has flow_matching, ddpm"):
        select(experiment("table4"), None, ["meanflow"])
