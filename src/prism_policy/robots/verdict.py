"""What trials say: while they run without naming the better one, in the end at any time and at fixed n."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

from rich.table import Table

from prism_policy.evaluation.sequential import DECIDED, MOST_MORE, Sequential, sequential
from prism_policy.evaluation.statistics import pair, wilson_interval
from prism_policy.robots.results import TrialFolder
from prism_policy.utils.files import write_text
from prism_policy.utils.terminal import console, shell


def evidence_so_far(folder: TrialFolder, planned: int) -> tuple[str, bool]:
    """A line for who may not know yet which policy is which, and whether every pair is decided."""
    parts: list[str] = []
    decided = True
    names = list(folder.about.policies)
    for a, b in combinations(names, 2):
        outcomes = folder.outcomes(a, b)
        found = sequential(*outcomes)
        decided &= found.decided_at is not None
        state = f"evidence {found.evidence:.2g} of {DECIDED:.0f} that two differ; {_more(found)}"
        parts.append(state if len(names) == 2 else f"pair {len(parts) + 1}: {state}")
    n = len({start for start, _ in folder.valid()})
    return f"{n} of {planned} starts" + "".join(f"; {part}" for part in parts), bool(parts) and decided


def finished(folder: TrialFolder, planned: int, until: str) -> bool:
    """Whether every policy has met all planned starts; with `until` "decided", also whether every pair is decided."""
    valid, names = folder.valid(), list(folder.about.policies)
    if all((start, name) in valid for start in range(planned) for name in names):
        return True
    met = all(folder.outcomes(a, b)[0] for a, b in combinations(names, 2))
    return until == "decided" and len(names) > 1 and met and evidence_so_far(folder, planned)[1]


def _more(found: Sequential) -> str:
    if found.decided_at is not None:
        return f"decided at start {found.decided_at}, you may stop"
    more = f"more than {MOST_MORE}" if found.more is None else f"about {found.more}"
    return f"{more} more starts would decide"


def write_summary(folder: TrialFolder, planned: int) -> dict[str, Any]:
    """Compute what the trials say, and write it to FOLDER/summary.json and FOLDER/trials.md."""
    about, valid = folder.about, folder.valid()
    lines = folder.lines()
    policies: dict[str, Any] = {}
    for name in about.policies:
        outcomes = [line["success"] for (_, policy), line in sorted(valid.items()) if policy == name]
        if outcomes:
            low, high = wilson_interval(sum(outcomes), len(outcomes))
            rate = {"n_success": sum(outcomes), "n": len(outcomes), "wilson_95": [low, high]}
            rate |= {"void": sum(bool(line["void"]) for line in lines if line["policy"] == name)}
            policies[name] = {"encoder": about.policies[name].encoder, **rate}
    pairs = []
    for a, b in combinations(policies, 2):
        outcomes_of = folder.outcomes(a, b)
        if not outcomes_of[0]:
            continue
        paired = pair(*outcomes_of)
        pairs.append(
            {
                "a": a, "b": b, "n": paired.n, "only_a": paired.only_a, "only_b": paired.only_b, "both": paired.both,
                "difference": paired.difference, "difference_95": list(paired.interval()), "mcnemar_p": paired.p_value,
                "complete": paired.n >= planned, "sequential": asdict(sequential(*outcomes_of)),
            }
        )  # fmt: skip
    summary = {
        "task": about.task, "robot": about.robot["robot"], "simulated": about.simulated, "judge": about.judge,
        "seed": about.seed, "starts_planned": planned, "void": sum(bool(line["void"]) for line in lines),
        "policies": policies, "pairs": pairs,
    }  # fmt: skip
    write_text(folder.path / "summary.json", json.dumps(summary, indent=2) + "\n")
    write_text(folder.path / "trials.md", _page(folder, summary, lines))
    return summary


def pair_lines(one: dict[str, Any], planned: int) -> list[str]:
    """What a pair's trials say, a sentence each: at fixed n, and whenever one stops."""
    low, high = (100 * share for share in one["difference_95"])
    test = f"exact McNemar test p = {one['mcnemar_p']:.3g}"
    caution = "" if one["complete"] else f" (of a plan of {planned} that was left early: do not use these two)"
    anytime = one["sequential"]
    found = Sequential(**{**anytime, "interval": tuple(anytime["interval"])})
    bounds = [100 * share for share in found.interval]
    return [
        f"{one['a']} less {one['b']}: {100 * one['difference']:+.1f} points over {one['n']} paired trials; only "
        f"{one['a']} succeeds from {one['only_a']} starts, only {one['b']} from {one['only_b']}",
        f"Fixed n: 95% interval {low:+.1f} to {high:+.1f}, {test}{caution}",
        f"Whenever you stop: {bounds[0]:+.1f} to {bounds[1]:+.1f}, p = {found.p_value:.3g}; {_more(found)}",
    ]


def _page(folder: TrialFolder, summary: dict[str, Any], lines: list[dict[str, Any]]) -> str:
    about = folder.about
    where = "simulated (SimRobot), not on a robot" if about.simulated else f"on a robot ({about.robot['robot']})"
    text = [f"# Trials of {about.task}: {where}", ""]
    text += [f"Judged by the {about.judge}. Void trials are left out: a policy with many of them may be why.", ""]
    text += ["| policy | encoder | successes | rate | 95% interval | void |", "| --- | --- | --- | --- | --- | --- |"]
    for name, one in summary["policies"].items():
        low, high = one["wilson_95"]
        rate = f"{one['n_success']} of {one['n']} | {one['n_success'] / one['n']:.0%} | {low:.0%} to {high:.0%}"
        text.append(f"| {name} | {one['encoder']} | {rate} | {one['void']} |")
    for one in summary["pairs"]:
        text += ["", *(f"{line}  " for line in pair_lines(one, summary["starts_planned"]))]
    text += ["", "| trial | start | policy | outcome | stage | note |", "| --- | --- | --- | --- | --- | --- |"]
    for line in lines:
        outcome = f"void: {line['void'][0]}" if line["void"] else "success" if line["success"] else "failure"
        cells = [line["trial"] + 1, line["start"] + 1, line["policy"], outcome, line["stage"], line["note"]]
        text.append("| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |")
    return "\n".join(text) + "\n"


def print_summary(folder: TrialFolder, out: Path) -> None:
    """The closing lines: rates, differences, where the results lie, what to run next."""
    summary = json.loads((folder.path / "summary.json").read_text(encoding="utf-8"))
    table = Table("policy", "encoder", "successes", "95% interval")
    for name, one in summary["policies"].items():
        low, high = one["wilson_95"]
        rate = f"{one['n_success']} of {one['n']} ({one['n_success'] / one['n']:.0%})"
        table.add_row(name, one["encoder"], rate, f"{low:.0%} to {high:.0%}")
    console.print(table)
    for one in summary["pairs"]:
        console.print(*pair_lines(one, summary["starts_planned"]))
    where = "simulated" if summary["simulated"] else summary["robot"]
    console.print(f"Judged by the {summary['judge']}, {where}; {summary['void']} void trials left out")
    console.print(f"Result: {out / 'trials.md'} (each policy: {out}/NAME/report.html)")
    if len(summary["policies"]) > 1:
        a, b = list(summary["policies"])[:2]
        console.print(f"Next:   {shell('prism', 'compare', out / a, out / b, '--split', 'trials')}")
