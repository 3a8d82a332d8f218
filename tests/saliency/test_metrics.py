"""The numbers of saliency maps against closed forms and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from prism_policy.saliency.metrics import (
    Estimate,
    area_under,
    density,
    direction,
    entropy,
    lift_on,
    over_episodes,
    over_seeds,
    rank_correlation,
    share_on,
    verdict,
)

MASK = np.zeros((8, 10), bool)
MASK[2:4, 3:8] = True  # 10 of 80 pixels


def one_pixel(row: int, column: int) -> np.ndarray:
    values = np.zeros((8, 10))
    values[row, column] = 3.0
    return values


def test_a_uniform_map_is_chance() -> None:
    uniform = np.full((2, 8, 10), 0.7)
    assert share_on(uniform, MASK) == pytest.approx([10 / 80] * 2)
    assert lift_on(uniform, MASK) == pytest.approx([1, 1])
    assert entropy(uniform) == pytest.approx([1, 1])
    assert density(uniform) == pytest.approx(np.ones((2, 8, 10)))


def test_a_map_of_one_pixel_is_as_localised_as_can_be() -> None:
    maps = np.stack([one_pixel(2, 3), one_pixel(0, 0)])
    assert share_on(maps, MASK).tolist() == [1, 0]
    assert lift_on(maps, MASK).tolist() == [8, 0]
    assert entropy(maps) == pytest.approx([0, 0])


def test_entropy_of_k_equal_pixels_is_log_k() -> None:
    maps = MASK.astype(float)
    assert entropy(maps) == pytest.approx(math.log(10) / math.log(80))


def test_what_says_nothing_is_no_number() -> None:
    assert np.isnan(share_on(np.zeros((8, 10)), MASK))
    assert np.isnan(entropy(np.zeros((8, 10))))
    assert np.isnan(lift_on(np.ones((8, 10)), np.zeros((8, 10), bool)))
    assert np.isnan(rank_correlation(np.ones((8, 10)), one_pixel(0, 0)))


def test_rank_correlation_is_spearmans() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((3, 8, 10)), rng.integers(0, 4, (3, 8, 10)).astype(float)  # with ties
    reference = [stats.spearmanr(x.ravel(), y.ravel()).statistic for x, y in zip(a, b, strict=True)]
    assert rank_correlation(a, b) == pytest.approx(reference)
    assert rank_correlation(a, np.exp(5 * a)) == pytest.approx([1, 1, 1])
    assert rank_correlation(a, -a) == pytest.approx([-1, -1, -1])


def test_area_under_a_line() -> None:
    shares = (0.0, 0.1, 0.5, 1.0)
    assert area_under(shares, np.array([shares, [1.0] * 4])) == pytest.approx([0.5, 1])


def test_interval_over_episodes_is_students() -> None:
    values = np.array([1.0, 2.0, 4.0, np.nan, 3.5])
    known = values[np.isfinite(values)]
    low, high = stats.t.interval(0.95, 3, known.mean(), stats.sem(known))
    actual = over_episodes(values)
    assert (actual.mean, actual.low, actual.high, actual.n) == pytest.approx((known.mean(), low, high, 4))
    assert over_episodes(np.array([2.0])) == Estimate(2.0, None, None, 1)


def test_interval_over_seeds_is_the_two_sample_t_tests() -> None:
    a, b = [1.0, 1.2, 1.1], [0.7, 0.9]
    reference = stats.ttest_ind(a, b).confidence_interval(0.95)
    actual = over_seeds(a, b)
    assert (actual.low, actual.high) == pytest.approx((reference.low, reference.high))
    assert over_seeds(a, [1.0]).low is None


@pytest.mark.parametrize(
    ("lift", "spread", "said"),
    [
        ((0.1, 0.3), (-0.2, -0.1), "supported"),
        ((0.1, 0.3), (-0.2, 0.1), "supported"),
        ((-0.3, -0.1), (0.1, 0.2), "refuted"),
        ((-0.3, 0.1), (-0.2, -0.1), "undecided"),
        ((0.1, 0.3), (0.1, 0.2), "contradictory"),
    ],
)
def test_the_verdict_follows_the_intervals(lift: tuple, spread: tuple, said: str) -> None:
    assert verdict(Estimate(0, *lift, 9), Estimate(0, *spread, 9)) == said


def test_without_an_interval_nothing_is_decided() -> None:
    assert direction(Estimate(5.0, None, None, 1)) == 0
    assert verdict(Estimate(5.0, None, None, 1), Estimate(-5.0, None, None, 1)) == "undecided"
