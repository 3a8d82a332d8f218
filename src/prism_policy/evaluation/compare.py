"""Two runs compared episode by episode on the same starts: what chance alone would do, and how far apart they are."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from prism_policy.errors import PrismError
from prism_policy.evaluation.results import EpisodeSet, episode_sets, read_states
from prism_policy.evaluation.sequential import MOST_MORE, sequential
from prism_policy.evaluation.statistics import Paired, pair, wilson_interval
from prism_policy.run_folder import read_run
from prism_policy.utils.files import write_text
from prism_policy.utils.progress import console
from prism_policy.utils.terminal import shell
from prism_policy.utils.text import shown

TRIED = "policy.json"
"""In a folder of `prism trials`: what the server said of the policy that was tried."""


def compare(run_a: Path, run_b: Path, checkpoints: tuple[str, str], split: str, out: Path | None = None) -> Path:
    """Compare two runs, or checkpoints of one, on the episodes that both have; print, write JSON, return the file."""
    if (run_a.resolve(), checkpoints[0]) == (run_b.resolve(), checkpoints[1]):
        raise PrismError(f"expected two different runs or checkpoints, got {run_a} '{checkpoints[0]}' twice")
    ours = {(s.seed, s.task): s for s in _episode_sets(run_a, checkpoints[0], split)}
    theirs = {(s.seed, s.task): s for s in _episode_sets(run_b, checkpoints[1], split)}
    if not (shared := [key for key in ours if key in theirs]):
        got = f"{_names(ours)} of {run_a} and {_names(theirs)} of {run_b}"
        raise PrismError(f"expected a seed that both were measured on, got {got}")
    pairs: dict[int, tuple[list[bool], list[bool]]] = {}
    for seed, task in shared:
        outcomes = paired_outcomes(ours[seed, task], theirs[seed, task])
        for collected, new in zip(pairs.setdefault(seed, ([], [])), outcomes, strict=True):
            collected += new
    a, b = ([success for outcomes in pairs.values() for success in outcomes[i]] for i in (0, 1))
    result = {
        "a": {"run": str(run_a), "checkpoint": checkpoints[0]},
        "b": {"run": str(run_b), "checkpoint": checkpoints[1]},
        "split": split,
        **_metrics(pair(a, b)),
        "sequential": asdict(sequential(a, b)),
        "seeds": {str(seed): _metrics(pair(*outcomes)) for seed, outcomes in pairs.items()},
    }
    target = out or run_a / "results" / f"{checkpoints[0]}-against-{run_b.resolve().name}-{checkpoints[1]}.json"
    write_text(target, json.dumps(result, indent=2) + "\n")
    _print(result)
    return target


def _episode_sets(run: Path, checkpoint: str, split: str) -> list[EpisodeSet]:
    if not (run / TRIED).exists():
        read_run(run)  # is it a run folder?
    sets = [s for s in episode_sets(run, checkpoint, split) if s.records()]
    if not sets:
        there = ", ".join(s.name for s in episode_sets(run)) or "none"
        makes = f"run `{shell('prism', 'evaluate', run)} --checkpoints {checkpoint} --split {split}`"
        raise PrismError(
            f"{run} has no episodes of checkpoint '{checkpoint}' on split '{split}'; it has {there}: "
            f"{'`prism trials` makes them' if split == 'trials' else makes}"
        )
    return sets


def _names(sets: dict[tuple[int, str], EpisodeSet]) -> str:
    return "seed " + ", ".join(dict.fromkeys(" of ".join(filter(None, (str(seed), task))) for seed, task in sets))


def paired_outcomes(a: EpisodeSet, b: EpisodeSet, n_episodes: int | None = None) -> tuple[list[bool], list[bool]]:
    """Outcomes of the (first `n_episodes`) episodes that both sets have, in order."""
    sets, settings = (a, b), (a.settings(), b.settings())
    tasks = [one["task"] for one in settings]
    for field in ("name", "max_steps"):
        if tasks[0][field] != tasks[1][field]:
            got = " and ".join(f"{shown(task[field])} in {s.run}" for task, s in zip(tasks, sets, strict=True))
            raise PrismError(f"expected runs of one task, got task.{field} {got}")
    ours, theirs = ({r["episode"]: bool(r["success"]) for r in s.records()} for s in sets)
    both = [e for e in sorted(ours.keys() & theirs.keys()) if n_episodes is None or e < n_episodes]
    placements = [one.get("starts") for one in settings]
    if placements[0] != placements[1]:
        raise PrismError(
            f"expected trials of one schedule, with the same placements, got others in {a.run} and {b.run}"
        )
    for episode in both if placements[0] is None else ():
        if not np.array_equal(*(read_states(s.states(episode))[0] for s in sets)):
            raise PrismError(
                f"expected the same starts, but episode {episode} of {a.name} starts differently in {a.run} and "
                f"{b.run}: were they measured with another version of the simulator?"
            )
    return [ours[e] for e in both], [theirs[e] for e in both]


def _metrics(paired: Paired) -> dict[str, Any]:
    n = paired.n
    a, b = paired.both + paired.only_a, paired.both + paired.only_b
    return {
        "n_episodes": n,
        "success_rate_a": a / n,
        "wilson_95_a": list(wilson_interval(a, n)),
        "success_rate_b": b / n,
        "wilson_95_b": list(wilson_interval(b, n)),
        "both": paired.both,
        "only_a": paired.only_a,
        "only_b": paired.only_b,
        "neither": n - paired.both - paired.only_a - paired.only_b,
        "difference": paired.difference,
        "difference_95": list(paired.interval()),
        "mcnemar_p": paired.p_value,
    }


def _print(result: dict[str, Any]) -> None:
    n = result["n_episodes"]
    for name in ("a", "b"):
        low, high = result[f"wilson_95_{name}"]
        console.print(
            f"{name.upper()}: {result[name]['run']} ({result[name]['checkpoint']}): "
            f"{result[f'success_rate_{name}']:.1%} of {n} episodes, 95% interval {low:.1%} to {high:.1%}"
        )
    both, only_a, only_b, neither = (result[name] for name in ("both", "only_a", "only_b", "neither"))
    console.print(f"Both succeed in {both}, only A in {only_a}, only B in {only_b}, neither in {neither}")
    low, high = result["difference_95"]
    console.print(
        f"A less B: {100 * result['difference']:+.1f} points, 95% interval {100 * low:+.1f} to {100 * high:+.1f}; "
        f"exact McNemar test p = {result['mcnemar_p']:.3g}"
    )
    anytime = result["sequential"]
    low, high = anytime["interval"]
    more = f"over {MOST_MORE}" if anytime["more"] is None else f"about {anytime['more']}"
    state = f"decided at episode {anytime['decided_at']}" if anytime["decided_at"] else f"{more} more would decide"
    console.print(
        f"However often you look and add episodes: {100 * low:+.1f} to {100 * high:+.1f} points, "
        f"p = {anytime['p_value']:.3g}; {state}"
    )
