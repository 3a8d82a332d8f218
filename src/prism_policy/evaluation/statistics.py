"""Success rates and their differences, with intervals that hold for few episodes and near 0 and 100%."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prism_policy.errors import PrismError

Z95 = 1.959964
"""The normal distribution lies within this many standard deviations with a probability of 95%."""


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95% score interval of a proportion: sound for few episodes and at 0 and 100%, unlike the normal one."""
    if not 0 <= successes <= n or n == 0:
        raise PrismError(f"expected 0 <= successes <= n and n > 0, got {successes} of {n}")
    from scipy.stats import binomtest  # takes a second to import

    interval = binomtest(successes, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def mean_and_std(rates: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1) of rates, as papers give them; one rate alone has no deviation."""
    return statistics.fmean(rates), statistics.stdev(rates) if len(rates) > 1 else None


@dataclass(frozen=True)
class Paired:
    """Two policies on the same n starts."""

    n: int
    both: int
    only_a: int
    only_b: int

    @property
    def difference(self) -> float:
        """Success rate of A less that of B."""
        return (self.only_a - self.only_b) / self.n

    @property
    def p_value(self) -> float:
        """McNemar's exact test: how likely so uneven a split of the discordant pairs is if A and B are alike."""
        from scipy.stats import binomtest  # takes a second to import

        discordant = self.only_a + self.only_b
        return float(binomtest(self.only_a, discordant).pvalue) if discordant else 1.0

    def interval(self) -> tuple[float, float]:
        """Tango's 95% score interval of the difference (Statistics in Medicine 17, 1998).

        It holds what the score test of paired proportions does not refute, and so has a width without discordant pairs.
        """
        b, c, n = self.only_a, self.only_b, self.n

        def score(difference: float) -> float:
            # Likeliest share of pairs in which B alone succeeds, given the difference.
            p = -b - c + (2 * n - b + c) * difference
            q = -c * difference * (1 - difference)
            share = (math.sqrt(max(p * p - 8 * n * q, 0.0)) - p) / (4 * n)
            variance = n * (2 * share + difference * (1 - difference))
            distance = b - c - n * difference
            return distance / math.sqrt(variance) if variance > 1e-12 else math.copysign(math.inf, distance)

        here = self.difference
        low = -1.0 if here == -1 else _crossing(lambda d: score(d) - Z95, -1.0, here)
        high = 1.0 if here == 1 else _crossing(lambda d: score(d) + Z95, here, 1.0)
        return low, high


def pair(a: Sequence[bool], b: Sequence[bool]) -> Paired:
    """Count the outcomes of A and B on the same starts, given in the same order."""
    if not a or len(a) != len(b):
        raise PrismError(f"expected outcomes of the same episodes, at least one, got {len(a)} and {len(b)}")
    pairs = list(zip(a, b, strict=True))
    return Paired(len(pairs), pairs.count((True, True)), pairs.count((True, False)), pairs.count((False, True)))


def _crossing(falling: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function passes zero, by bisection to 1e-9."""
    while high - low > 1e-9:
        middle = (low + high) / 2
        if falling(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2
