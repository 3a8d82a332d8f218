"""Intervals over trainings cover the truth as often as they say, for trainings that differ and for such that do not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from prism_policy.errors import PrismError
from prism_policy.evaluation.trainings import (
    difference_over_trainings,
    holm,
    rank_correlation_over_trainings,
    rate_over_trainings,
    trainings_needed,
)

SETTINGS = [(m, p, sd) for m in (3, 6, 12) for p in (0.1, 0.3, 0.5, 0.95) for sd in (0.0, 0.1)]


def simulated(rng: np.random.Generator, m: int, p: float, sd: float, n: int = 50) -> tuple[np.ndarray, float]:
    """Outcomes (m, n) of trainings whose true rates are Beta with this mean and deviation, and that mean."""
    sd = min(sd, 0.9 * math.sqrt(p * (1 - p)))
    if sd == 0:
        rates = np.full(m, p)
    else:
        total = p * (1 - p) / sd**2 - 1
        rates = rng.beta(p * total, (1 - p) * total, m)
    return rng.random((m, n)) < rates[:, None], p


def rate_coverage(m: int, p: float, sd: float, draws: int) -> float:
    rng = np.random.default_rng(m)
    hits = 0
    for _ in range(draws):
        outcomes, truth = simulated(rng, m, p, sd)
        low, high = rate_over_trainings(outcomes.tolist()).interval
        hits += low <= truth <= high
    return hits / draws


def difference_coverage(m: int, p: float, sd: float, draws: int, gap: float) -> float:
    """Seeds share their difficulty (half of it), episodes their starts."""
    rng = np.random.default_rng(m)
    hits = 0
    for _ in range(draws):
        shared = rng.normal(0, sd, (m, 1))
        start = rng.normal(0, 1, (m, 50))
        sides = []
        for side in (p, p + gap):
            # A probit: the truth of the mean rate is known in closed form.
            own = rng.normal(0, sd, (m, 1))
            sides.append(_probit_mean_threshold(side, sd) + shared + own + start + rng.normal(0, 1, (m, 50)) > 0)
        found = difference_over_trainings(sides[1].tolist(), sides[0].tolist())
        hits += found.low <= gap <= found.high
    return hits / draws


def _probit_mean_threshold(rate: float, sd: float) -> float:
    from scipy.stats import norm

    return float(norm.ppf(rate) * math.sqrt(2 * sd**2 + 2))


@pytest.mark.parametrize(("m", "p", "sd"), [(6, 0.5, 0.1), (6, 0.95, 0.0), (3, 0.5, 0.1)])
def test_a_rates_interval_covers(m: int, p: float, sd: float) -> None:
    assert rate_coverage(m, p, sd, 400) >= 0.92


@pytest.mark.parametrize(("m", "p", "sd", "gap"), [(6, 0.5, 0.3, 0.1), (6, 0.5, 0.0, 0.0), (3, 0.4, 0.3, 0.2)])
def test_a_differences_interval_covers(m: int, p: float, sd: float, gap: float) -> None:
    assert difference_coverage(m, p, sd, 400, gap) >= 0.92


@pytest.mark.slow
@pytest.mark.parametrize(("m", "p", "sd"), SETTINGS)
def test_intervals_cover_everywhere(m: int, p: float, sd: float) -> None:
    skewed = sd > 0 and not 0.2 < p < 0.8  # rare failures of whole trainings, which a handful of them may not show
    assert rate_coverage(m, p, sd, 1500) >= (0.78 if skewed else 0.93)
    for gap in (0.0, 0.04):
        assert difference_coverage(m, p, 4 * sd, 1500, gap) >= 0.93


def test_an_interval_over_episodes_alone_would_be_too_narrow() -> None:
    """Why the unit is the training: one that pretends to 300 independent episodes misses the truth far too often."""
    from prism_policy.evaluation.statistics import wilson_interval

    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(500):
        outcomes, truth = simulated(rng, 6, 0.5, 0.15)
        low, high = wilson_interval(int(outcomes.sum()), outcomes.size)
        hits += low <= truth <= high
    assert hits / 500 < 0.75


def test_trainings_that_agree_by_luck_still_have_the_chance_of_their_episodes() -> None:
    alike = [[True] * 5 + [False] * 5] * 4
    assert difference_over_trainings(alike, alike).high > 0.05
    assert rate_over_trainings(alike).low < 0.4
    certain = [[True] * 50] * 6
    assert 0.9 < rate_over_trainings(certain).low < 1
    assert rate_over_trainings(certain).high == 1
    assert difference_over_trainings(certain, certain).low < 0 < difference_over_trainings(certain, certain).high


def test_the_difference_is_a_paired_t_interval_of_the_trainings() -> None:
    from scipy.stats import ttest_1samp

    rng = np.random.default_rng(1)
    a, b = (rng.random((8, 20)) < rng.beta(2, 2, (8, 1)) for _ in range(2))
    found = difference_over_trainings(a.tolist(), b.tolist())
    expected = ttest_1samp(a.mean(1) - b.mean(1), 0)
    interval = expected.confidence_interval()
    assert found.interval == pytest.approx((interval.low, interval.high))
    assert found.p_value == pytest.approx(expected.pvalue)


def test_one_training_says_nothing_of_others() -> None:
    assert rate_over_trainings([[True] * 50]).interval == (0, 1)
    assert difference_over_trainings([[True] * 50], [[False] * 50]).interval == (-1, 1)


def test_bad_tables_are_refused() -> None:
    with pytest.raises(PrismError, match="equally many episodes, got \\[1, 2\\]"):
        rate_over_trainings([[True], [True, False]])
    with pytest.raises(PrismError, match="same trainings and episodes of both, got 1 x 2 and 2 x 2"):
        difference_over_trainings([[True, True]], [[True, True]] * 2)


def test_as_many_trainings_as_the_table_of_the_t_test_says() -> None:
    """A paired t-test at a standardised effect of 1 needs 10 pairs for 80%, at 0.5 34 (Cohen; G*Power)."""
    assert trainings_needed(0.1, 0.1) == 10
    assert trainings_needed(0.2, 0.1) == 34
    assert trainings_needed(0.0, 0.1) == 2
    assert trainings_needed(10.0, 0.01) == 1000


def test_the_power_is_what_a_simulation_finds() -> None:
    rng = np.random.default_rng(2)
    m = trainings_needed(0.12, 0.1)
    x = rng.normal(0.1, 0.12, (20_000, m))
    t = x.mean(1) / (x.std(1, ddof=1) / math.sqrt(m))
    from scipy.stats import t as student

    assert 0.79 < float((np.abs(t) > student.ppf(0.975, m - 1)).mean()) < 0.87


def test_holm_is_textbook() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, math.nan, 0.9])[0] == 1.0
    assert math.isnan(holm([0.5, math.nan])[1])


def test_rank_correlation_compares_within_strata() -> None:
    x = [*range(10), *range(100, 110)]
    y = [*range(10), *range(-100, -90)]
    strata, clusters = ["a"] * 10 + ["b"] * 10, [*range(10)] * 2
    found = rank_correlation_over_trainings(x, y, strata, clusters, draws=200)
    assert found.mean == pytest.approx(1)
    assert found.low > 0.9
    noise = np.random.default_rng(0).normal(size=(2, 20))
    found = rank_correlation_over_trainings(noise[0], noise[1], strata, clusters, draws=500)  # type: ignore[arg-type]
    assert found.low < 0 < found.high
