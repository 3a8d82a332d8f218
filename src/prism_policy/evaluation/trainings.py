"""Statistics whose unit is the training: what other training seeds would give, not other episodes of these networks.

A training is a row of outcomes, one an episode. Rows must be equally long: then the mean over all episodes is the mean
of the trainings' rates, and Student's interval over those rates is the mixed-effects interval (training random,
episodes within). The rates of a handful of trainings may agree by luck, so their variance is never taken to be smaller
than what the episodes alone would give. tests/evaluation/test_trainings.py simulates the coverage: 95%, but less for
the rate of trainings that differ much near 0 or 100% (mean 95%, deviation 10 points: 80% with six trainings).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prism_policy.errors import PrismError

Outcomes = Sequence[Sequence[bool]]
"""A row a training, an outcome an episode."""
Floats = NDArray[np.float64]
FEWEST = 2
"""Trainings without which nothing can be said of other trainings."""


@dataclass(frozen=True)
class OverTrainings:
    """A success rate, or a difference of two, with a 95% interval over trainings."""

    mean: float
    low: float
    high: float
    deviation: float
    """Standard deviation between trainings; it holds the chance of the episodes, too."""
    n: int
    """Trainings."""
    p_value: float = math.nan
    """Of no difference; NaN of a rate."""

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval; infinitely wide for a single training, which says nothing of others."""
        return self.low, self.high


def rate_over_trainings(outcomes: Outcomes) -> OverTrainings:
    """The success rate of trainings like these: Wilson's interval with as many episodes as they are worth.

    Episodes of a training are alike, so m trainings of n are worth m n / d, where d >= 1 is the variance of the
    trainings' rates over the binomial one (Dean and Pagano 2015); Student's quantile takes the place of the normal one.
    """
    table = _table(outcomes)
    m, n = table.shape
    rates = table.mean(1)
    p = float(table.mean())
    if m < FEWEST:
        return OverTrainings(p, 0.0, 1.0, math.nan, m)
    deviation = float(rates.std(ddof=1))
    # A little of one half, so that rates of exactly 0 or 1 have a variance.
    smooth = (p * m * n + 1) / (m * n + 2)
    worth = m * n / max(1.0, deviation**2 * n / (smooth * (1 - smooth)))
    t = _quantile(m - 1)
    middle = (p + t * t / (2 * worth)) / (1 + t * t / worth)
    half = t * math.sqrt(p * (1 - p) / worth + t * t / (4 * worth * worth)) / (1 + t * t / worth)
    return OverTrainings(p, max(0.0, middle - half), min(1.0, middle + half), deviation, m)


def difference_over_trainings(a: Outcomes, b: Outcomes) -> OverTrainings:
    """The rate of A less that of B, paired by training seed (same data) and episode (same start).

    Raises:
        PrismError: the two are not of the same seeds and episodes.
    """
    first, second = _table(a), _table(b)
    if first.shape != second.shape:
        expected = "expected the same trainings and episodes of both"
        raise PrismError(
            f"{expected}, got {first.shape[0]} x {first.shape[1]} and {second.shape[0]} x {second.shape[1]}"
        )
    pairs = first - second
    m, n = pairs.shape
    mean = float(pairs.mean())
    if m < FEWEST:
        return OverTrainings(mean, -1.0, 1.0, math.nan, m)
    deviation = float(pairs.mean(1).std(ddof=1))
    # Of the episodes alone, with one more discordant pair each way (Agresti and Min 2005), so that it is never zero.
    shares = (np.array([(pairs > 0).sum(), (pairs < 0).sum()]) + 0.5) / (m * n + 2)
    episodes = (shares.sum() - (shares[0] - shares[1]) ** 2) / n
    error = math.sqrt(max(deviation**2, episodes) / m)
    half = _quantile(m - 1) * error
    from scipy.special import stdtr  # takes a while to import

    p_value = 2 * float(stdtr(m - 1, -abs(mean) / error))
    return OverTrainings(mean, max(-1.0, mean - half), min(1.0, mean + half), deviation, m, p_value)


def mean_over_trainings(values: Sequence[float]) -> OverTrainings:
    """The mean of a number of each training with Student's interval, and the p value of a mean of zero."""
    from scipy.special import stdtr

    x = np.array(values, float)
    if len(x) < FEWEST or not np.isfinite(x).all():
        raise PrismError(f"expected numbers of at least {FEWEST} trainings, all finite, got {x.tolist()}")
    mean, deviation = float(x.mean()), float(x.std(ddof=1))
    error = deviation / math.sqrt(len(x))
    half = _quantile(len(x) - 1) * error
    p_value = 2 * float(stdtr(len(x) - 1, -abs(mean) / error)) if error else float(mean == 0)
    return OverTrainings(mean, mean - half, mean + half, deviation, len(x), p_value)


def trainings_needed(deviation: float, difference: float = 0.1, power: float = 0.8, level: float = 0.05) -> int:
    """How many trainings a side a paired t-test needs to see `difference`; at most 1000.

    Args:
        deviation: standard deviation between trainings of the paired difference of their rates.
    """
    from scipy.stats import nct, t

    if deviation < 0 or difference <= 0:
        raise PrismError(f"expected a deviation >= 0 and a difference > 0, got {deviation:g} and {difference:g}")
    for m in range(FEWEST, 1000):
        shift, limit = difference * math.sqrt(m) / max(deviation, 1e-9), t.ppf(1 - level / 2, m - 1)
        chance = 1 - nct.cdf(limit, m - 1, min(shift, 30.0)) + nct.cdf(-limit, m - 1, min(shift, 30.0))
        if chance >= power:
            return m
    return 1000


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for their number (Holm 1979), in the order given; NaN stays NaN and does not count."""
    known = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    corrected, largest = [math.nan] * len(p_values), 0.0
    for rank, i in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def rank_correlation_over_trainings(
    x: Sequence[float], y: Sequence[float], strata: Sequence[str], clusters: Sequence[int], draws: int = 2000
) -> OverTrainings:
    """Spearman's correlation of two numbers of each cell, as its mean over strata, with a cluster bootstrap's interval.

    Args:
        strata: what is compared only within itself, such as the task, which may change both numbers.
        clusters: what is drawn again as a whole, such as the training seed, whose cells share demonstrations.
    """
    data = np.array([x, y], float)
    kept = np.isfinite(data).all(0)
    data, groups, seeds = data[:, kept], np.array(strata)[kept], np.array(clusters)[kept]
    unique = np.unique(seeds)
    if len(unique) < FEWEST:
        return OverTrainings(_spearman(data, groups), -1.0, 1.0, math.nan, len(unique))
    places, rng = [np.flatnonzero(seeds == s) for s in unique], np.random.default_rng(0)
    values = []
    for _ in range(draws):
        chosen = np.concatenate([places[i] for i in rng.integers(len(unique), size=len(unique))])
        values.append(_spearman(data[:, chosen], groups[chosen]))
    known = np.array(values)[np.isfinite(values)]
    if not len(known):  # one of the two never varies
        return OverTrainings(math.nan, -1.0, 1.0, math.nan, len(unique))
    low, high = np.quantile(known, [0.025, 0.975])
    return OverTrainings(_spearman(data, groups), float(low), float(high), float(known.std()), len(unique))


def _spearman(data: Floats, groups: NDArray[np.str_]) -> float:
    """Mean over groups of the correlation of ranks; groups in which one of the two is constant do not count."""
    from scipy.stats import rankdata

    values = []
    for group in np.unique(groups):
        x, y = (rankdata(row[groups == group]) for row in data)
        if len(x) > 2 and x.std() > 0 and y.std() > 0:
            values.append(float(np.corrcoef(x, y)[0, 1]))
    return float(np.mean(values)) if values else math.nan


def _table(outcomes: Outcomes) -> Floats:
    lengths = {len(row) for row in outcomes}
    if len(lengths) != 1 or 0 in lengths:
        raise PrismError(f"expected trainings of equally many episodes, got {sorted(lengths) or 'none'}")
    return np.array(outcomes, float)


def _quantile(freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))
