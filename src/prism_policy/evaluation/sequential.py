"""Paired trials that may be looked at after each one and stopped at any time, for robot hours are dear.

A fixed-n test holds at the n that was chosen before; who looks after every trial and stops at p < 0.05 is wrong far
more often than in 5% of all studies. The evidence here is an e-process: a wager against a claimed difference m, whose
capital grows only by luck where the claim is true, so that it reaches 20 in at most 5% of all studies, however often
one looks (Ville's inequality; Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting, JRSS B
86, 2024).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prism_policy.evaluation.statistics import pair

DECIDED = 20.0
"""Evidence at which a claim is given up: 1 / 5%."""
MOST_MORE = 1000
"""Trials that the forecast looks ahead."""
_FUTURES, _CLAIMS, _STAKES, _LOOKS = 400, 801, 64, 200


@dataclass(frozen=True)
class Sequential:
    """What n trials of two policies on the same placements say, whenever one stops."""

    n: int
    evidence: float
    """Against "the two are alike"; it may have been higher before."""
    p_value: float
    """Holds at any time: 1 / the highest evidence so far, at most 1."""
    decided_at: int | None
    """Trial at which the evidence first reached 20; none where it has not."""
    interval: tuple[float, float]
    """Confidence sequence of A's success rate less B's: all of them together hold the truth in 95% of all studies."""
    more: int | None
    """Trials until a decision, the median of what may come; 0 where there is one, none where it is over `MOST_MORE`."""


def sequential(a: Sequence[bool], b: Sequence[bool], seed: int = 0) -> Sequential:
    """The anytime-valid comparison of A and B, given outcomes on the same starts in the order of the trials.

    `seed` is of the forecast alone. The wager is spread over all stakes by the arcsine law, which for m = 0 makes it
    the Krichevsky-Trofimov mixture over how discordant pairs split: with b and c of them 2^(b + c) B(b + 1/2, c + 1/2)
    / B(1/2, 1/2).
    """
    counts = pair(a, b)
    only_a = np.cumsum([x and not y for x, y in zip(a, b, strict=True)])
    only_b = np.cumsum([y and not x for x, y in zip(a, b, strict=True)])
    evidence = log_evidence(only_a, only_b)
    reached = np.flatnonzero(evidence >= math.log(DECIDED))
    return Sequential(
        n=counts.n,
        evidence=float(np.exp(evidence[-1])),
        p_value=float(min(1.0, np.exp(-evidence.max()))),
        decided_at=int(reached[0]) + 1 if len(reached) else None,
        interval=confidence_sequence(only_a, only_b),
        more=0 if len(reached) else _forecast(int(only_a[-1]), int(only_b[-1]), counts.n, seed),
    )


def log_evidence(only_a: np.ndarray, only_b: np.ndarray) -> np.ndarray:
    """Logarithm of the evidence against "alike" for these numbers of discordant pairs, element by element."""
    from scipy.special import betaln  # takes a second to import

    return np.asarray((only_a + only_b) * math.log(2) + betaln(only_a + 0.5, only_b + 0.5) - betaln(0.5, 0.5))


def confidence_sequence(only_a: np.ndarray, only_b: np.ndarray) -> tuple[float, float]:
    """The differences that no wager so far has made 20 of 1 against, from the lowest to the highest.

    `only_a` and `only_b` (n,) count, after each trial, those in which A or B alone succeeded.
    """
    from scipy.special import logsumexp

    n = len(only_a)
    claims = np.linspace(-1, 1, _CLAIMS)[1:-1, None]
    # Stakes with which no single trial ruins the wager; at Gauss-Chebyshev nodes the mean is the mixture's integral.
    angles = (np.arange(_STAKES) + 0.5) * np.pi / _STAKES
    low, high = -1 / (1 - claims), 1 / (1 + claims)
    stakes = (low + high) / 2 + (high - low) / 2 * np.cos(angles)
    gains = [np.log1p(stakes * (outcome - claims)) for outcome in (1.0, -1.0, 0.0)]
    held = np.ones(len(claims), bool)
    for t in np.unique(np.linspace(1, n, min(n, _LOOKS)).astype(int)):
        counts = (only_a[t - 1], only_b[t - 1], t - only_a[t - 1] - only_b[t - 1])
        log_capital = sum(count * gain for count, gain in zip(counts, gains, strict=True))
        held &= logsumexp(log_capital, axis=1) < math.log(DECIDED * _STAKES)
    kept = np.flatnonzero(held)
    if not len(kept):  # every claim was given up, a chance of 5%: no interval is left but the outcomes' own
        return (float(only_a[-1] - only_b[-1]) / n,) * 2
    step = 2 / (_CLAIMS - 1)  # to the next claim, which is given up
    return float(claims[kept[0], 0]) - step, float(claims[kept[-1], 0]) + step


def _forecast(only_a: int, only_b: int, n: int, seed: int) -> int | None:
    """Median number of trials until the evidence is reached, over rates as likely as the outcomes make them."""
    rng = np.random.default_rng(seed)
    rates = rng.dirichlet([only_a + 0.5, only_b + 0.5, n - only_a - only_b + 0.5], _FUTURES)
    drawn = rng.random((_FUTURES, MOST_MORE))
    a = only_a + np.cumsum(drawn < rates[:, :1], axis=1)
    b = only_b + np.cumsum((drawn >= rates[:, :1]) & (drawn < rates[:, :2].sum(1, keepdims=True)), axis=1)
    reached = log_evidence(a, b) >= math.log(DECIDED)
    needed = np.where(reached.any(axis=1), reached.argmax(axis=1) + 1, MOST_MORE + 1)
    median = int(np.median(needed))
    return median if median <= MOST_MORE else None
