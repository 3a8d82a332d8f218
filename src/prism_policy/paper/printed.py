"""The paper's simulated experiments: what each trains and how its table is laid out, over the data in printed.json.

That holds success rates in percent, as printed in arXiv:2606.15232, also where its columns do not add up. What the
paper does not say is decided here, and each decision is one of the experiment's `readings`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.resources import files
from typing import Any, Literal

from prism_policy.config.settings import PolicyKind
from prism_policy.errors import PrismError
from prism_policy.paper.experiments import Comparison, Entry, Experiment, Variant
from prism_policy.tasks.lift import LIFT_LADDER

POLICIES: dict[str, PolicyKind] = {"DP": "ddpm", "FM": "flow_matching", "MF": "meanflow"}
SHORT_TASKS: dict[str, str] = {"Lift": "lift", "Can": "can", "Square": "square"}
POOLINGS = {"SSPool": "sspool", "AvgPool": "avgpool", "MaxPool": "maxpool", "NoPool": "nopool"}

_PRINTED: dict[str, dict[str, Any]] = json.loads(
    files("prism_policy.paper").joinpath("printed.json").read_text(encoding="utf-8")
)
"""Experiment -> title, printed numbers, readings, and seeds where these are not three."""
FROM_TRIALS = "table7"
"""The table whose numbers come from `prism trials`, not from cells that are trained here."""
NAMES = tuple(name for name in _PRINTED if name != FROM_TRIALS)
Layout = tuple[Sequence[Entry], Sequence[Comparison]]


def _against(entries: Sequence[Entry], row: str) -> list[Comparison]:
    """Every entry against that of `row` in its block and column."""
    known = {e.key for e in entries}
    pairs = [(e.key, (e.block, row, e.column)) for e in entries if e.row != row and not e.reference]
    return [Comparison(a, b) for a, b in pairs if b in known]


def _table1(numbers: dict[str, Any]) -> Layout:
    trunks = ("Standard ResNet18", "Truncated ResNet18")
    kinds = {**{column: (kind,) for column, kind in POLICIES.items()}, "Avg.": tuple(POLICIES.values())}
    entries, changes = [], []
    for row, (*printed, change) in numbers.items():
        for block, rates in zip(trunks, printed, strict=True):
            for (column, policies), rate in zip(kinds.items(), rates, strict=True):
                pairs, truncate = itertools.product(policies, SHORT_TASKS.values()), block == trunks[1]
                variants = tuple(Variant(task, kind, POOLINGS[row], truncate) for kind, task in pairs)
                entries.append(Entry(block, row, column, variants, rate))
        for column, points in zip(kinds, change, strict=True):
            changes.append(Comparison((trunks[1], row, column), (trunks[0], row, column), points))
    return sorted(entries, key=lambda e: trunks.index(e.block)), [*_against(entries, "SSPool"), *changes]


def _table2(numbers: dict[str, Any]) -> Layout:
    in_order = dict(zip([*POLICIES, "Avg."], _PRINTED["table1"]["numbers"]["SSPool"][0], strict=True))
    block, plain = "SSPool, shuffled", "SSPool, in order (from Table 1)"
    columns = {**{column: (task,) for column, task in SHORT_TASKS.items()}, "Avg.": tuple(SHORT_TASKS.values())}
    entries, comparisons = [], []
    for row, average in in_order.items():
        kinds = tuple(POLICIES.values()) if row == "Avg." else (POLICIES[row],)
        for (column, tasks), (mean, std) in zip(columns.items(), numbers[row], strict=True):
            paper, change = (average, numbers["changes"][row]) if column == "Avg." else (None, None)
            ordered = tuple(Variant(task, kind, "sspool") for kind in kinds for task in tasks)
            shuffled = tuple(replace(v, shuffle=True) for v in ordered)
            entries.append(Entry(block, row, column, shuffled, mean, std))
            entries.append(Entry(plain, row, column, ordered, paper, reference=True))
            comparisons.append(Comparison((block, row, column), (plain, row, column), change))
    return sorted(entries, key=lambda e: e.reference), comparisons


def _table3(numbers: dict[str, Any]) -> Layout:
    encoders = {**POOLINGS, "SSPool (Trunc.)": "sspool", "MS-SSPool": "ms_sspool"}
    entries = []
    for row, rate in numbers.items():
        variant = Variant("tool_hang", "flow_matching", encoders[row], truncate="Trunc" in row, views=1)
        entries.append(Entry("ToolHang, one view, 84 px", row, "SR", (variant,), rate))
    return entries, _against(entries, "SSPool")


def _table4(numbers: dict[str, Any]) -> Layout:
    kinds: dict[str, PolicyKind] = {"Flow Matching": "flow_matching", "Diffusion": "ddpm"}
    views: dict[str, Literal[1, 2]] = {**dict.fromkeys(SHORT_TASKS.values(), 2), "tool_hang": 1}
    columns = (*SHORT_TASKS, "ToolHang", "Avg.")
    entries, comparisons = [], []
    for block, kind in kinds.items():
        for row, encoder in (("Base.", "sspool"), ("PRISM", "prism")):
            single = tuple(Variant(task, kind, encoder, views=n) for task, n in views.items())
            parts = [*((variant,) for variant in single), single]
            for column, variants, (mean, std) in zip(columns, parts, numbers[block][row], strict=True):
                entries.append(Entry(block, row, column, variants, mean, std))
        for column, gain in zip(columns, numbers[block]["gains"], strict=True):
            comparisons.append(Comparison((block, "PRISM", column), (block, "Base.", column), gain))
    return entries, comparisons


def _table5(numbers: dict[str, Any]) -> Layout:
    settings: dict[str, tuple[Literal[1, 2], int]] = {"2V-84": (2, 84), "1V-240": (1, 240), "2V-240": (2, 240)}
    entries, comparisons = [], []
    for i, (block, (views, resolution)) in enumerate(settings.items()):
        for row, kind in POLICIES.items():
            for column, encoder, rate in zip(("Base.", "PRISM"), ("sspool", "prism"), numbers[row][i], strict=True):
                variant = Variant("tool_hang", kind, encoder, views=views, resolution=resolution)
                entries.append(Entry(block, row, column, (variant,), rate))
            comparisons.append(Comparison((block, row, "PRISM"), (block, row, "Base.")))
    return entries, comparisons


def _table6(numbers: dict[str, Any]) -> Layout:
    suites, block = {"LIBERO-10": "libero_10", "LIBERO-Spatial": "libero_spatial"}, "Flow matching, one policy a suite"
    entries = []
    for row, encoder in (("Base.", "sspool"), ("PRISM", "prism")):
        for (column, suite), rate in zip(suites.items(), numbers[row], strict=True):
            entries.append(Entry(block, row, column, (Variant(suite, "flow_matching", encoder),), rate))
    return entries, _against(entries, "Base.")


def _fig2(numbers: dict[str, Any]) -> Layout:
    pairs = itertools.product(SHORT_TASKS.items(), POOLINGS.items())
    variants = [(row, column, Variant(task, "flow_matching", encoder)) for (column, task), (row, encoder) in pairs]
    return [Entry("Saliency", row, column, (variant,)) for row, column, variant in variants], []


def _fig4(numbers: dict[str, Any]) -> Layout:
    variants = {
        "SSPool": Variant("tool_hang", "flow_matching", "sspool", views=1),
        "MS-SS": Variant("tool_hang", "flow_matching", "ms_sspool", refine=True, views=1),
        "MS-SS + TDCA (PRISM)": Variant("tool_hang", "flow_matching", "prism", views=1),
    }
    block, large = "ToolHang, one view, 84 px", "SSPool at 240 px (from Table 5)"
    entries = [Entry(block, row, "Final SR", (v,), numbers.get(row)) for row, v in variants.items()]
    entries += [Entry(block, row, "Peak SR", (v,), checkpoint="best") for row, v in variants.items()]
    reference = replace(variants["SSPool"], resolution=240)
    entries.append(Entry(block, large, "Final SR", (reference,), numbers[large], reference=True))
    return entries, _against(entries, "SSPool")


def _precision(numbers: dict[str, Any]) -> Layout:
    entries = []
    for row, encoder in (("SSPool", "sspool"), ("MS-SSPool", "ms_sspool"), ("PRISM", "prism")):
        variant, printed = Variant("square", "flow_matching", encoder), numbers.get(row, (None, None))
        entries.append(Entry("Square, two views, 84 px", row, "SR", (variant,), *printed))
    return entries, _against(entries, "SSPool")


def _ladder(numbers: dict[str, Any]) -> Layout:
    rows = {"SSPool": "sspool", "AvgPool": "avgpool", "MS-SSPool": "ms_sspool", "PRISM": "prism"}
    steps = ("lift", *(spec.name for spec in LIFT_LADDER))
    entries = [
        Entry("One view, 84 px", row, step, (Variant(step, "flow_matching", encoder, views=1),))
        for row, encoder in rows.items()
        for step in steps
    ]
    return entries, _against(entries, "SSPool")


def _fig5(numbers: dict[str, Any]) -> Layout:
    block, entries = "Mean over Lift, Can and Square", []
    for column, prefix in (("Last stage", ""), ("Multiscale", "ms_")):
        for row, encoder in POOLINGS.items():
            variants = tuple(Variant(task, "flow_matching", prefix + encoder) for task in SHORT_TASKS.values())
            paper = None if prefix else _PRINTED["table1"]["numbers"][row][0][1]
            entries.append(Entry(block, row, column, variants, paper))
    return entries, [Comparison((block, row, "Multiscale"), (block, row, "Last stage")) for row in POOLINGS]


_LAYOUTS: dict[str, Callable[[dict[str, Any]], Layout]] = {
    layout.__name__[1:]: layout
    for layout in (_table1, _table2, _table3, _table4, _table5, _table6, _fig2, _fig4, _fig5, _precision, _ladder)
}


def printed_table7() -> dict[str, Any]:
    """Title, numbers [%] by row and column, and readings of Table 7."""
    return _PRINTED[FROM_TRIALS]


def experiment(name: str) -> Experiment:
    """The whole experiment of this name."""
    if name not in NAMES:
        raise PrismError(f"unknown experiment '{name}'; available: {', '.join((*NAMES, FROM_TRIALS))}")
    about = _PRINTED[name]
    entries, comparisons = _LAYOUTS[name](about.get("numbers", {}))
    readings, seeds = tuple(about["readings"]), tuple(about.get("seeds", (0, 1, 2)))
    return Experiment(name, about["title"], tuple(entries), tuple(comparisons), readings, seeds)
