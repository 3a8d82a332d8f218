"""What the study's cells say of the paper's claims, with the training as the unit; the rules are results/PLAN.md's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from prism_policy.evaluation.trainings import (
    FEWEST,
    OverTrainings,
    difference_over_trainings,
    holm,
    mean_over_trainings,
    rank_correlation_over_trainings,
    rate_over_trainings,
    trainings_needed,
)
from prism_policy.paper.study import ENCODERS, Line

ALIKE = 0.05
"""Differences within this many are none worth a name: 5 points."""
SEEN = 0.10
"""The difference that the plan asks to see with 80%."""
LEVEL = 0.05
Expected = Literal["more", "less", "alike"]
CHEAP = {
    "valid_loss": ("validation loss", -1),
    "valid_action_error": ("held-out action error", -1),
    "probe_cm": ("error of the spatial probe", -1),
    "saliency_lift": ("saliency on object and gripper", 1),
    "saliency_entropy": ("entropy of the saliency", -1),
}
"""Numbers that cost less than rollouts -> their name, and the sign that a good one's correlation with success has."""


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, as encoder `a` against `b`."""

    name: str
    says: str
    a: str
    b: str
    expected: Expected
    paper: str
    """The paper's difference [points], and where it stands."""
    measure: Literal["success", "saliency_lift"] = "success"


CLAIMS = (
    Claim("C1", "SSPool above AvgPool", "sspool", "avgpool", "more", "+2.7 (Table 1, FM)"),
    Claim("C1", "SSPool above MaxPool", "sspool", "maxpool", "more", "+13.6 (Table 1, FM)"),
    Claim("C1", "SSPool above NoPool", "sspool", "nopool", "more", "+10.5 (Table 1, FM)"),
    Claim("C2", "shuffling keypoints hurts", "sspool-shuffled", "sspool", "less", "-62.9 (Table 2, FM)"),
    Claim("C3", "truncation harms AvgPool", "avgpool-truncated", "avgpool", "less", "+1.1 (Table 1, FM), -3.5 (mean)"),
    Claim("C3", "truncation leaves SSPool", "sspool-truncated", "sspool", "alike", "+2.6 (Table 1, FM), -0.2 (mean)"),
    Claim("C4", "multiscale helps", "ms_sspool", "sspool", "more", "+6.6 (Table 3, ToolHang)"),
    Claim("C5", "attention adds to multiscale", "prism", "ms_sspool-refined", "more", "not printed (Figure 4)"),
    Claim("C6", "PRISM above SSPool", "prism", "sspool", "more", "+7.7 Square, +9.3 ToolHang (Table 4, FM)"),
    Claim(
        "C8", "SSPool looks at less than AvgPool", "sspool", "avgpool", "more", "pictures (Figure 2)", "saliency_lift"
    ),
    Claim(
        "C8", "SSPool looks at less than MaxPool", "sspool", "maxpool", "more", "pictures (Figure 2)", "saliency_lift"
    ),
    Claim("C8", "SSPool looks at less than NoPool", "sspool", "nopool", "more", "pictures (Figure 2)", "saliency_lift"),
)


@dataclass(frozen=True)
class Finding:
    """What the cells of a regime say of a claim."""

    claim: Claim
    regime: str
    estimate: OverTrainings | None
    """None where fewer than two seeds have both encoders."""
    corrected: float
    """P value after Holm's correction over all claims about the same measure in all regimes."""

    @property
    def verdict(self) -> str:
        """supported, refuted or undecided, as the plan defines them."""
        found, claim = self.estimate, self.claim
        if found is None:
            return "not measured"
        if claim.measure == "success" and found.low > -ALIKE and found.high < ALIKE:
            return "supported" if claim.expected == "alike" else "refuted (alike within 5 points)"
        if self.corrected >= LEVEL:
            return "undecided"
        direction = "more" if found.mean > 0 else "less"
        return "supported" if direction == claim.expected else "refuted"

    @property
    def needed(self) -> int | None:
        """Trainings of each that would see 10 points with 80%, at the deviation found; None for other measures."""
        if self.estimate is None or self.claim.measure != "success":
            return None
        return trainings_needed(self.estimate.deviation, SEEN)


def findings(lines: Sequence[Line], claims: Sequence[Claim] = CLAIMS) -> list[Finding]:
    """Every claim in every regime, in order."""
    regimes = list(dict.fromkeys(line["regime"] for line in lines))
    pairs = [(claim, regime) for claim in claims for regime in regimes]
    estimates = [_estimate(lines, claim, regime) for claim, regime in pairs]
    corrected = [math.nan] * len(pairs)
    for measure in dict.fromkeys(claim.measure for claim in claims):
        places = [i for i, (claim, _) in enumerate(pairs) if claim.measure == measure]
        p_values = [math.nan if (e := estimates[i]) is None else e.p_value for i in places]
        for i, p in zip(places, holm(p_values), strict=True):
            corrected[i] = p
    return [Finding(*pair, *found) for pair, found in zip(pairs, zip(estimates, corrected, strict=True), strict=True)]


def _estimate(lines: Sequence[Line], claim: Claim, regime: str) -> OverTrainings | None:
    sides = [{x["seed"]: x for x in lines if (x["regime"], x["encoder"]) == (regime, e)} for e in (claim.a, claim.b)]
    shared = sorted(sides[0].keys() & sides[1].keys())
    if len(shared) < FEWEST:
        return None
    if claim.measure == "success":
        a, b = ([outcomes(side[seed]) for seed in shared] for side in sides)
        return difference_over_trainings(a, b)
    values = [float(sides[0][seed][claim.measure]) - float(sides[1][seed][claim.measure]) for seed in shared]
    return mean_over_trainings(values)


def outcomes(line: Line) -> list[bool]:
    """Success of each episode of a cell."""
    return [mark == "1" for mark in line["successes"]]


def correlations(lines: Sequence[Line]) -> dict[str, OverTrainings]:
    """Of each cheap number Spearman's correlation with success: within a regime, over encoders and seeds."""
    rates = [float(np.mean(outcomes(line))) for line in lines]
    regimes, seeds = [line["regime"] for line in lines], [line["seed"] for line in lines]
    return {
        name: rank_correlation_over_trainings([float(x.get(name, math.nan)) for x in lines], rates, regimes, seeds)
        for name in CHEAP
    }


def report(lines: Sequence[Line]) -> str:
    """All of it in Markdown."""
    regimes = {line["regime"]: line["settings"] for line in lines}
    seeds = sorted({line["seed"] for line in lines})
    hours = sum(line["train_s"] + line["evaluate_s"] + line["probe_s"] for line in lines) / 3600
    marks = {name: ", ".join(sorted({str(line[name]) for line in lines})) for name in ("commit", "processor")}
    parts = [
        "# The study: encoders over training seeds",
        f"{len(lines)} cells, seeds {', '.join(map(str, seeds))}, {hours:.1f} h of one core; commit {marks['commit']}; "
        f"{marks['processor']}. Plan and rules: [PLAN.md](../PLAN.md). Command: `prism reproduce study`.",
        "\n".join(f"- **{name}**: {text}" for name, text in regimes.items()),
        "## Claim by claim",
        _claims_table(lines),
        "Differences of success in points (C8: of the saliency's lift), paired by training seed and start; Student's "
        "95% interval over trainings; p after Holm's correction over all claims on the measure in all regimes. Needed: "
        "trainings of each encoder that would see 10 points with 80%.",
        "## Success",
        _rates_table(lines),
        "Wilson's 95% interval with the trainings' variance (design effect); deviation between trainings.",
        "## What predicts success",
        _correlations_table(lines),
        "Spearman's correlation with success over all cells of a regime, mean over regimes; cluster bootstrap over "
        "training seeds.",
    ]
    return "\n\n".join(parts) + "\n"


def _claims_table(lines: Sequence[Line]) -> str:
    rows = []
    for found in findings(lines):
        claim, e = found.claim, found.estimate
        scale, form = (100, "+.1f") if claim.measure == "success" else (1, "+.2f")
        numbers = ["missing", "", "", ""]
        if e is not None:
            low, high = (format(scale * x, form) for x in e.interval)
            numbers = [format(scale * e.mean, form), f"{low} to {high}", f"{found.corrected:.2g}", str(e.n)]
        rows.append([claim.name, claim.says, claim.paper, found.regime, *numbers, found.verdict, found.needed or ""])
    header = ["", "claim", "paper [points]", "regime", "ours", "95%", "p", "trainings", "verdict", "needed"]
    return _table(header, rows)


def _rates_table(lines: Sequence[Line]) -> str:
    rows = []
    for regime in dict.fromkeys(line["regime"] for line in lines):
        for encoder in ENCODERS:
            mine = [line for line in lines if (line["regime"], line["encoder"]) == (regime, encoder)]
            if not mine:
                continue
            e = rate_over_trainings([outcomes(line) for line in mine])
            spread = "" if math.isnan(e.deviation) else f"{100 * e.deviation:.1f}"
            each = ", ".join(f"{line['seed']}: {line['successes'].count('1')}" for line in mine)
            interval = f"{100 * e.low:.0f} to {100 * e.high:.0f}%"
            rows.append([regime, encoder, f"{100 * e.mean:.1f}%", interval, spread, e.n, each])
    return _table(["regime", "encoder", "success", "95%", "deviation", "trainings", "successes by seed"], rows)


def _correlations_table(lines: Sequence[Line]) -> str:
    rows = []
    for name, e in correlations(lines).items():
        title, sign = CHEAP[name]
        wanted = "a good one is near " + ("+1" if sign > 0 else "-1")
        rows.append([title, f"{e.mean:+.2f}", f"{e.low:+.2f} to {e.high:+.2f}", wanted])
    return _table(["number", "correlation", "95%", ""], rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in [header, ["---"] * len(header), *rows])
