"""The numbers of a table: success rates of cells with intervals, and differences episode by episode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from prism_policy.data.schema import task_schema
from prism_policy.evaluation.compare import paired_outcomes
from prism_policy.evaluation.statistics import Paired, mean_and_std, pair, wilson_interval
from prism_policy.paper.cells import Cell, run_config
from prism_policy.paper.experiments import Comparison, Entry, Experiment, Key, Variant
from prism_policy.run_folder import make_policy
from prism_policy.tasks import task_spec

Cells = Mapping[tuple[Variant, int], Cell]
"""By variant and seed."""


@dataclass(frozen=True)
class Score:
    """An entry's successes over the seeds of which every cell was measured."""

    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    """Of each seed, the mean over the entry's variants."""
    successes: int
    n: int
    """Episodes."""

    @property
    def mean_and_std(self) -> tuple[float, float | None]:
        """Over seeds; of a single one there is no deviation."""
        return mean_and_std(self.rates)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's, over all episodes."""
        return wilson_interval(self.successes, self.n)


def score(entry: Entry, cells: Cells, seeds: Sequence[int], n_episodes: int) -> Score | None:
    """Success of an entry's cells; None where no seed has all of them."""
    rates, successes, n, complete = [], 0, 0, []
    for seed in seeds:
        records = [cells[v, seed].records(entry.checkpoint, n_episodes) for v in entry.variants if (v, seed) in cells]
        if len(records) < len(entry.variants) or not all(records):
            continue
        outcomes = [r["success"] for one in records for r in one]
        complete.append(seed)
        rates.append(sum(outcomes) / len(outcomes))
        successes, n = successes + sum(outcomes), n + len(outcomes)
    return Score(tuple(complete), tuple(rates), successes, n) if complete else None


def difference(
    comparison: Comparison, entries: Mapping[Key, Entry], cells: Cells, seeds: Sequence[int], n_episodes: int
) -> Paired | None:
    """Two entries on the same starts, over the seeds that both have complete; None where there is none."""
    a, b = entries[comparison.a], entries[comparison.b]
    scores = [score(entry, cells, seeds, n_episodes) for entry in (a, b)]
    shared = [seed for seed in seeds if all(s is not None and seed in s.seeds for s in scores)]
    outcomes: tuple[list[bool], list[bool]] = ([], [])
    for seed in shared:
        for ours, theirs in zip(a.variants, b.variants, strict=True):
            sets = cells[ours, seed].episode_sets(a.checkpoint), cells[theirs, seed].episode_sets(b.checkpoint)
            for one, other in zip(*sets, strict=True):
                for collected, new in zip(outcomes, paired_outcomes(one, other, n_episodes), strict=True):
                    collected += new
    return pair(*outcomes) if shared else None


def stages_reached(
    experiment: Experiment, cells: Cells, seeds: Sequence[int], n_episodes: int
) -> dict[str, dict[Variant, Counter[str]]]:
    """By task and variant, how many episodes (of weights `last`) came how far: a task's stages, or "" for none."""
    reached: dict[str, dict[Variant, Counter[str]]] = {}
    for variant in dict.fromkeys(v for e in experiment.entries for v in e.variants):
        measured = [cells[variant, s].records("last", n_episodes) for s in seeds if (variant, s) in cells]
        final = task_spec(variant.task).stages[-1]
        counts = Counter(final if r["success"] else r.get("stage", "") for records in measured for r in records)
        if counts:
            reached.setdefault(variant.task, {})[variant] = counts
    return reached


def parameters(entry: Entry) -> int:
    """Of a policy with the entry's encoder at the paper's size, whatever the scale: they are counted, not trained."""
    config = run_config(entry.variants[0], 0, "paper")
    schema = task_schema(replace(config.task, action_mode="absolute"))
    with torch.device("meta"):
        return sum(p.numel() for p in make_policy(config, schema).parameters())
