"""Evidence that may be looked at after every trial: its error by simulation, its formula by numerical integration."""

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import binomtest

from prism_policy.evaluation.sequential import DECIDED, confidence_sequence, log_evidence, sequential


def studies(a_alone: float, b_alone: float, trials: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Discordant pairs so far, (count, trials) each, of studies with these chances of one."""
    drawn = np.random.default_rng(1).random((count, trials))
    return np.cumsum(drawn < a_alone, axis=1), np.cumsum((drawn >= a_alone) & (drawn < a_alone + b_alone), axis=1)


@pytest.mark.parametrize("discordant", [0.1, 0.5, 1.0])
def test_policies_that_are_alike_are_told_apart_in_at_most_5_percent_of_studies(discordant: float) -> None:
    a, b = studies(discordant / 2, discordant / 2, 300, 4000)
    wrong = (log_evidence(a, b) >= math.log(DECIDED)).any(axis=1).mean()
    assert wrong < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 4000)


def test_a_fixed_n_test_that_is_looked_at_after_every_trial_errs_far_more_often() -> None:
    a, b = studies(0.25, 0.25, 100, 300)
    known = {
        (x, y): binomtest(x, x + y).pvalue if x + y else 1.0 for x in range(a.max() + 1) for y in range(b.max() + 1)
    }
    wrong = np.mean(
        [
            any(known[pair] < 0.05 for pair in zip(x, y, strict=True))
            for x, y in zip(a.tolist(), b.tolist(), strict=True)
        ]
    )
    assert wrong > 0.1


def test_policies_that_differ_are_told_apart() -> None:
    a, b = studies(0.5, 0.1, 60, 500)
    assert (log_evidence(a, b) >= math.log(DECIDED)).any(axis=1).mean() > 0.85


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (3, 1), (9, 0), (20, 14)])
def test_the_evidence_is_the_integral_over_all_stakes(only_a: int, only_b: int) -> None:
    def capital(angle: float) -> float:  # the arcsine law is uniform in the angle
        return float((1 + math.cos(angle)) ** only_a * (1 - math.cos(angle)) ** only_b / math.pi)

    expected, _ = quad(capital, 0, math.pi, limit=200)
    assert math.exp(log_evidence(np.array(only_a), np.array(only_b))) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("a_alone", "b_alone"), [(0.4, 0.1), (0.05, 0.05), (0.9, 0.0)])
def test_the_interval_holds_the_truth_whenever_one_stops(a_alone: float, b_alone: float) -> None:
    a, b = studies(a_alone, b_alone, 25, count := 60)
    # The interval of the last trial lies within those of all trials before it.
    intervals = np.array([confidence_sequence(*study) for study in zip(a, b, strict=True)])
    missed = (intervals[:, 0] > a_alone - b_alone) | (intervals[:, 1] < a_alone - b_alone)
    assert missed.mean() <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / count)


def test_what_is_decided_stays_so_and_agrees_with_the_interval() -> None:
    a, b = [True] * 9 + [False] * 9, [False] * 18
    result = sequential(a, b)
    assert result.decided_at == 7  # 2^7 B(7.5, 0.5) / B(0.5, 0.5) = 26.8, and 14.4 after six
    assert result.more == 0
    assert result.p_value < 1 / DECIDED
    assert result.interval[0] > 0
    undecided = sequential(a[:4], b[:4])
    assert undecided.decided_at is None
    assert undecided.interval[0] < 0
    assert undecided.more is not None
    assert 3 <= undecided.more <= 10


def test_only_outcomes_that_are_alike_say_nothing_against_it() -> None:
    result = sequential([True] * 30, [True] * 30)
    assert result.evidence == 1
    assert result.p_value == 1
    assert result.interval[0] < 0 < result.interval[1]
    assert result.interval[1] < 0.2


def test_of_mcnemars_table_only_the_discordant_pairs_count_for_the_evidence() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(60) < 0.7, rng.random(60) < 0.4
    whole = sequential(a.tolist(), b.tolist())
    discordant = a != b
    only = sequential(a[discordant].tolist(), b[discordant].tolist())
    assert whole.evidence == pytest.approx(only.evidence)
    assert whole.p_value == pytest.approx(only.p_value)


def test_rules_that_stop_at_the_best_moment_err_in_at_most_5_percent_of_studies() -> None:
    """Whole tables of two policies that are alike, looked at after each trial: the smallest p value ever shown."""
    rng, wrong, count = np.random.default_rng(2), 0, 600
    for _ in range(count):
        easy = rng.random(80) < 0.6  # starts that both find easy: the outcomes go together
        a, b = (np.where(easy, rng.random(80) < 0.9, rng.random(80) < 0.3) for _ in range(2))
        only_a, only_b = np.cumsum(a & ~b), np.cumsum(b & ~a)
        wrong += bool(np.exp(-log_evidence(only_a, only_b)).min() <= 0.05)
    assert wrong / count <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / count)
