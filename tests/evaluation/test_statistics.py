"""Intervals and tests against scipy, against maximisation without closed forms, and by enumeration of all outcomes."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import binomtest, norm

from prism_policy.errors import PrismError
from prism_policy.evaluation.statistics import Paired, mean_and_std, pair, wilson_interval


@pytest.mark.parametrize(("successes", "n"), [(0, 20), (1, 20), (19, 20), (20, 20), (7, 11), (500, 1000)])
def test_wilson_interval_is_scipys(successes: int, n: int) -> None:
    expected = binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson_interval(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_deviation_is_the_samples() -> None:
    mean, deviation = mean_and_std([0.9, 0.96, 0.94])
    assert mean == pytest.approx(np.mean([0.9, 0.96, 0.94]))
    assert deviation == pytest.approx(np.std([0.9, 0.96, 0.94], ddof=1))
    assert mean_and_std([0.5]) == (0.5, None)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (5, 0), (9, 2), (3, 3), (12, 30)])
def test_mcnemars_p_value_is_scipys_binomial_test(only_a: int, only_b: int) -> None:
    expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert Paired(50, 5, only_a, only_b).p_value == pytest.approx(expected)


def score_interval(n: int, b: int, c: int) -> tuple[float, float]:
    """The same interval with the restricted likelihood maximised numerically, and roots by Brent."""

    def score(difference: float) -> float:
        def loss(share: float) -> float:  # of pairs in which B alone succeeds
            cells = [(b, share + difference), (c, share), (n - b - c, 1 - 2 * share - difference)]
            return -sum(count * math.log(max(p, 1e-300)) for count, p in cells if count)

        least, most = max(0.0, -difference), (1 - difference) / 2
        share = minimize_scalar(loss, bounds=(least, most), method="bounded", options={"xatol": 1e-13}).x
        share = min((share, least, most), key=loss)
        variance = n * (2 * share + difference - difference**2)
        return (b - c - n * difference) / math.sqrt(max(variance, 1e-300))

    z, actual, edge = norm.ppf(0.975), (b - c) / n, 1 - 1e-12
    low = -1.0 if actual == -1 else brentq(lambda d: score(d) - z, -edge, actual - 1e-12)
    high = 1.0 if actual == 1 else brentq(lambda d: score(d) + z, actual + 1e-12, edge)
    return low, high


@pytest.mark.parametrize(
    ("n", "b", "c"), [(50, 9, 2), (50, 0, 0), (20, 5, 0), (20, 0, 5), (44, 0, 1), (100, 30, 30), (10, 10, 0), (7, 3, 4)]
)
def test_interval_of_the_difference_inverts_the_score_test(n: int, b: int, c: int) -> None:
    assert Paired(n, 0, b, c).interval() == pytest.approx(score_interval(n, b, c), abs=2e-5)


def test_a_published_example_of_the_interval() -> None:
    """Tango (1998): disinfection of 44 contact lenses, 43 agree and one does not."""
    low, high = Paired(44, 43, 0, 1).interval()
    assert (low, high) == pytest.approx((-0.118, 0.059), abs=2e-3)


@pytest.mark.parametrize(("p_a", "p_b", "p_both"), [(0.9, 0.8, 0.75), (0.5, 0.5, 0.3), (0.98, 0.9, 0.9)])
def test_interval_holds_the_true_difference_as_often_as_it_says(p_a: float, p_b: float, p_both: float) -> None:
    """Every outcome of 20 pairs with its probability: no simulation."""
    n, covered = 20, 0.0
    shares = (p_a - p_both, p_b - p_both, 1 - p_a - p_b + p_both)
    for b in range(n + 1):
        for c in range(n + 1 - b):
            ways = math.comb(n, b) * math.comb(n - b, c)
            rest = 1 - shares[0] - shares[1]
            low, high = Paired(n, 0, b, c).interval()
            if low <= p_a - p_b <= high:
                covered += ways * shares[0] ** b * shares[1] ** c * rest ** (n - b - c)
    assert covered > 0.93


def test_wilson_interval_holds_the_rate_as_often_as_it_says_on_average() -> None:
    n = 20
    rates = np.linspace(0.02, 0.98, 49)
    coverage = []
    for p in rates:
        inside = [k for k in range(n + 1) if wilson_interval(k, n)[0] <= p <= wilson_interval(k, n)[1]]
        coverage.append(sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in inside))
    assert 0.94 < statistics.fmean(coverage) < 0.97


def test_swapping_the_runs_mirrors_the_result() -> None:
    there, back = Paired(50, 30, 9, 2), Paired(50, 30, 2, 9)
    assert there.p_value == back.p_value
    assert there.interval() == pytest.approx(tuple(-x for x in reversed(back.interval())), abs=1e-8)


def test_pairs_are_counted() -> None:
    assert pair([True, True, False, False], [True, False, True, False]) == Paired(4, 1, 1, 1)
    with pytest.raises(PrismError, match="same episodes, at least one, got 2 and 1"):
        pair([True, False], [True])
    with pytest.raises(PrismError, match="got 0 and 0"):
        pair([], [])
