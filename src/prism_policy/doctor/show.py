"""Findings for people and for programs: lines of text, JSON, and a page."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prism_policy.doctor.finding import SEVERITIES, Finding, Place, worst_first
from prism_policy.reports.html import render
from prism_policy.reports.report import FoundFault, findings_path, write_report
from prism_policy.utils.files import write_text
from prism_policy.utils.progress import console
from prism_policy.utils.text import one_line

MOST_PLACES = 6
"""Places of a finding that are shown as text; JSON holds all."""
WIDTH = 110
STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def as_json(
    data: str, run: str, episodes: int, steps: int, findings: Sequence[Finding], measured: Sequence[str]
) -> dict[str, Any]:
    """All that was found, worst first, and what was measured of the run."""
    counts = Counter(one.severity for one in findings)
    return {
        "data": data,
        "run": run,
        "episodes": episodes,
        "steps": steps,
        **{f"{severity}s": counts[severity] for severity in SEVERITIES},
        "measured": list(measured),
        "findings": [one.as_json() for one in worst_first(findings)],
    }


def print_json(report: dict[str, Any]) -> None:
    """Write the report to standard output."""
    console.data(json.dumps(report, indent=2))


def counted(findings: Sequence[Finding]) -> str:
    """`1 error, 2 warnings`, or `nothing found`."""
    counts = Counter(one.severity for one in findings)
    texts = [f"{counts[s]} {s}{'s' * (counts[s] != 1)}" for s in SEVERITIES if counts[s]]
    return ", ".join(texts) or "nothing found"


def print_findings(findings: Sequence[Finding]) -> None:
    """Print each finding in a few lines, worst first."""
    for one in worst_first(findings):
        console.print("", f"{one.severity}: {one.title}", style=STYLES[one.severity])
        console.print(
            *textwrap.wrap(one_line(capital(one.what), 2000), WIDTH, initial_indent="  ", subsequent_indent="  ")
        )
        for label, text in {"where": places(one.where), "why": one.why, "do": one.do}.items():
            if text:
                lines = textwrap.wrap(one_line(text, 2000), WIDTH - 10)
                console.print(*(f"    {label if i == 0 else '':<6}{line}" for i, line in enumerate(lines)))


def capital(sentence: str) -> str:
    """A sentence that begins with a capital, unless it begins with a name."""
    first = sentence.partition(" ")[0]
    return sentence if not first.isalpha() or first != first.lower() else sentence[:1].upper() + sentence[1:]


def places(where: Sequence[Place], most: int = MOST_PLACES) -> str:
    """The first few places, and how many more there are."""
    some = "; ".join(map(str, where[:most]))
    return f"{some} and {len(where) - most} more" if len(where) > most else some


def rows(findings: Sequence[Finding]) -> list[FoundFault]:
    """The findings as the page shows them."""
    return [
        FoundFault(
            severity=one.severity,
            title=one.title,
            what=capital(one.what),
            where=places(one.where, 40),
            why=one.why,
            do=one.do,
        )
        for one in worst_first(findings)
    ]


def write_page(path: Path, report: dict[str, Any], findings: Sequence[Finding]) -> None:
    """Write a page that loads nothing from elsewhere."""
    facts = {"Episodes": report["episodes"], "Steps": report["steps"], "Found": counted(findings)}
    title = f"{Path(report['data']).name}: what the doctor found"
    about = {name: report[name] for name in ("run", "measured")}
    write_text(path, render("doctor/doctor.html", title=title, facts=facts, findings=rows(findings), **about))


def keep(run: Path, report: dict[str, Any], findings: Sequence[Finding]) -> Path | None:
    """Keep what was found in the run folder; returns its report, if it has one, with that in it."""
    write_text(findings_path(run), json.dumps({**report, "shown": rows(findings)}, indent=2) + "\n")
    return write_report(run) if (run / "report.html").is_file() else None
