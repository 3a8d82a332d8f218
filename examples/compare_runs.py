"""Are two evaluated runs different? Success of each, and of their difference on the same starts, with intervals.

prism evaluate runs/a runs/b --n-episodes 50
python examples/compare_runs.py runs/a runs/b
"""

from pathlib import Path
from typing import Annotated

import tyro

from prism_policy.evaluation.compare import paired_outcomes
from prism_policy.evaluation.results import EpisodeSet, episode_sets
from prism_policy.evaluation.statistics import Paired, pair, wilson_interval


def evaluated(run: Path) -> dict[tuple[int, str], EpisodeSet]:
    """Episodes of the last weights on the split `evaluate`, by seed and task."""
    return {(one.seed, one.task): one for one in episode_sets(run, "last", "evaluate")}


def main(run_a: Annotated[Path, tyro.conf.Positional], run_b: Annotated[Path, tyro.conf.Positional]) -> Paired:
    """Print what the shared episodes say."""
    sets_a, sets_b = evaluated(run_a), evaluated(run_b)
    a: list[bool] = []
    b: list[bool] = []
    for key in sets_a.keys() & sets_b.keys():
        outcomes = paired_outcomes(sets_a[key], sets_b[key])  # refuses episodes that start differently
        a += outcomes[0]
        b += outcomes[1]
    if not a:
        raise SystemExit("no episode was measured of both: run `prism evaluate` on each")
    for run, outcome in ((run_a, a), (run_b, b)):
        low, high = wilson_interval(sum(outcome), len(outcome))
        print(f"{run}: {sum(outcome)} of {len(outcome)}, 95% interval {low:.0%} to {high:.0%}")
    paired = pair(a, b)
    low, high = paired.interval()  # Tango's, 95%
    print(f"only A succeeds in {paired.only_a}, only B in {paired.only_b}")
    print(f"A less B: {100 * paired.difference:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})")
    print(f"exact McNemar test: p = {paired.p_value:.3g}")
    if low <= 0 <= high:
        print("Not told apart: evaluate more episodes (prism evaluate ... --n-episodes), or train more seeds")
    return paired


if __name__ == "__main__":
    tyro.cli(main)
