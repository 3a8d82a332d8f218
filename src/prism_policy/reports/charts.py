"""Geometry of a report's loss curve, which charts.html draws."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

LEFT, RIGHT, TOP, BOTTOM = 56, 888, 10, 260  # [px] of the plot, in a picture of 900 by 300


def loss_curve(points: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Positive losses over their updates, (step, loss) in order, on a logarithmic axis: as they are, and smoothed."""
    steps, losses = [s for s, _ in points], [v for _, v in points]
    smooth = list(_smoothed(losses))
    # One outlier must not flatten the curve: the axis spans the smoothed curve and the middle of the raw one.
    ordered = sorted(losses)
    margin = len(ordered) // 100
    low = max(min(*smooth, ordered[margin]) / 1.1, sys.float_info.min)
    high = max(min(max(*smooth, ordered[-1 - margin]), sys.float_info.max / 1.1) * 1.1, 2 * sys.float_info.min)
    last = max(*steps, 1)

    def x(step: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * step / last, 1)

    def y(loss: float) -> float:
        share = (math.log(min(max(loss, low), high)) - math.log(low)) / (math.log(high) - math.log(low))
        return round(TOP + (BOTTOM - TOP) * (1 - share), 1)

    def polyline(values: Sequence[float]) -> str:
        return " ".join(f"{x(s)},{y(v)}" for s, v in zip(steps, values, strict=True))

    return {
        "left": LEFT,
        "right": RIGHT,
        "bottom": BOTTOM,
        "raw": polyline(losses),
        "smooth": polyline(smooth),
        "rows": [(y(tick), f"{tick:.4g}") for tick in _log_ticks(low, high)],
        "columns": [(x(s), anchor, f"{s:,.0f}") for s, anchor in ((0, "start"), (last / 2, "middle"), (last, "end"))],
    }


def _smoothed(values: Sequence[float]) -> Iterator[float]:
    """Exponential mean of the logarithm over about a twentieth of the curve, corrected for its start."""
    keep = 1 - 1 / max(1, len(values) / 20)
    mean, weight = 0.0, 0.0
    for value in values:
        mean, weight = keep * mean + (1 - keep) * math.log(value), keep * weight + (1 - keep)
        yield math.exp(mean / weight)


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers within [low, high]: powers of ten, with 2 and 5 between where there are few."""
    first, last = math.log10(low), math.log10(high)
    decades = last - first
    every = max(1, int(decades / 10))
    exponents = range(math.floor(first), min(math.ceil(last), sys.float_info.max_10_exp) + 1, every)
    digits = [1] if decades > 3 else [1, 2, 5] if decades > 0.5 else [1, 1.5, 2, 3, 4, 5, 6, 8]
    return [d * 10.0**e for e in exponents for d in digits if low <= d * 10.0**e <= high]
