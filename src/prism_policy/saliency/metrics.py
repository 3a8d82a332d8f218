"""Metrics of "localised and consistent": how a saliency map lies over an image, and means of many with intervals.

All take maps >= 0, float (..., H, W), of what the network sees: the crop, not the whole image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Floats = NDArray[np.float64]


def density(maps: np.ndarray) -> Floats:
    """Maps (..., H, W) in units of their own mean: 1 where a pixel has as much as if all were alike.

    Gradients of two policies have no common unit; densities have. A map of zeros, which says nothing, is NaN.
    """
    mean = np.asarray(maps, np.float64).mean((-2, -1), keepdims=True)
    return np.divide(maps, mean, out=np.full(maps.shape, np.nan), where=mean > 0)


def share_on(maps: np.ndarray, mask: np.ndarray) -> Floats:
    """Share of the saliency that lies on a mask, bool (..., H, W): (...,) in [0, 1]."""
    return (density(maps) * mask).mean((-2, -1))


def lift_on(maps: np.ndarray, mask: np.ndarray) -> Floats:
    """How many times the mask's share of the area its share of the saliency is, (...,); NaN where the mask is empty.

    1 is a map that knows nothing of the mask. A share alone would praise a large mask.
    """
    share, area = np.broadcast_arrays(share_on(maps, mask), mask.mean((-2, -1)))
    return np.divide(share, area, out=np.full(area.shape, np.nan), where=area > 0)


def entropy(maps: np.ndarray) -> Floats:
    """-sum p log p / log N of the map as a distribution over its N pixels, (...,): 0 is one pixel, 1 is all alike."""
    pixels = maps.shape[-2] * maps.shape[-1]
    p = density(maps) / pixels
    terms = p * np.log(np.where(p > 0, p, 1.0))
    return -terms.sum((-2, -1)) / math.log(pixels)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> Floats:
    """Spearman's correlation over the pixels of maps (..., H, W), (...,); NaN where one of them is constant."""
    from scipy.stats import rankdata

    ranks = [rankdata(x.reshape(*x.shape[:-2], -1), axis=-1) for x in (a, b)]
    x, y = (r - r.mean(-1, keepdims=True) for r in ranks)
    scale = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    return np.divide((x * y).sum(-1), scale, out=np.full(scale.shape, np.nan), where=scale > 0)


def area_under(shares: Sequence[float], curve: np.ndarray) -> Floats:
    """Trapezoidal area under curves (..., S) over `shares` (S,)."""
    heights = (curve[..., 1:] + curve[..., :-1]) / 2
    return (heights * np.diff(shares)).sum(-1)


@dataclass(frozen=True)
class Estimate:
    """A mean with Student's 95% interval over independent values; fewer than two have none."""

    mean: float
    low: float | None
    high: float | None
    n: int

    def below(self, other: float | Estimate) -> bool:
        """Whether the whole interval lies below a number, or below all of another interval; without one it does not."""
        limit = other.low if isinstance(other, Estimate) else other
        return self.high is not None and limit is not None and self.high < limit

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:.3g}"
        return f"{self.mean:.3g} ({self.low:.3g} to {self.high:.3g})"


def over_episodes(values: np.ndarray) -> Estimate:
    """Over the means of episodes (E,), NaN left out: frames of one episode are alike and do not count each."""
    known = np.asarray(values, np.float64)[np.isfinite(values)]
    if len(known) == 0:
        return Estimate(math.nan, None, None, 0)
    mean, n = float(known.mean()), len(known)
    if n < 2:
        return Estimate(mean, None, None, n)
    half = float(stdtrit(n - 1, 0.975) * known.std(ddof=1) / math.sqrt(n))
    return Estimate(mean, mean - half, mean + half, n)


def over_seeds(a: Sequence[float], b: Sequence[float]) -> Estimate:
    """Difference of the means of two sets of trained networks, a number each (Student, equal variances).

    Two networks a side leave two degrees of freedom: an honest interval is then very wide.
    """
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    difference, n = float(x.mean() - y.mean()), len(x) + len(y)
    if min(len(x), len(y)) < 2:
        return Estimate(difference, None, None, n)
    pooled = (((x - x.mean()) ** 2).sum() + ((y - y.mean()) ** 2).sum()) / (n - 2)
    half = float(stdtrit(n - 2, 0.975) * math.sqrt(pooled * (1 / len(x) + 1 / len(y))))
    return Estimate(difference, difference - half, difference + half, n)


def direction(difference: Estimate) -> int:
    """+1 or -1 where the whole interval lies on that side of zero, else 0."""
    if difference.low is None or difference.high is None:
        return 0
    return int(difference.low > 0) - int(difference.high < 0)


def verdict(lift: Estimate, spread: Estimate) -> str:
    """Is A more localised than B: "supported", "refuted", "contradictory" (one number each way) or "undecided".

    Localised means more saliency on objects and gripper than their area has (A's lift less B's), without being spread
    wider (A's entropy less B's).
    """
    on_task, concentrated = direction(lift), -direction(spread)
    if on_task * concentrated < 0:
        return "contradictory"
    return {1: "supported", -1: "refuted", 0: "undecided"}[on_task]
