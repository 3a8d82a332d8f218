"""The report's charts as inline SVG in the page's own colours (CSS variables of `report.css`), light and dark alike."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape


def percent(share: float) -> str:
    """0.95 as 95%, 0.955 as 95.5%."""
    return f"{100 * share:.0f}%" if round(1000 * share) % 10 == 0 else f"{100 * share:.1f}%"


def interval(rate: float, low: float, high: float) -> str:
    """The rate as a dot on a line from 0 to 100%, its interval as a bar around it."""

    def x(share: float) -> float:
        return 24 + 412 * share

    ticks = "".join(
        f'<line x1="{x(t)}" x2="{x(t)}" y1="34" y2="39" stroke="var(--soft)"/>'
        f'<text x="{x(t)}" y="54" text-anchor="middle">{t:.0%}</text>'
        for t in (0, 0.25, 0.5, 0.75, 1)
    )
    label = f"95% interval {percent(low)} to {percent(high)} (Wilson)"
    # Text near an end of the line would leave the picture: keep its middle inside.
    middle = min(max(x((low + high) / 2), 130), 330)
    return f"""<svg viewBox="0 0 460 60" role="img" aria-label="{label}">
<line x1="{x(0)}" x2="{x(1)}" y1="30" y2="30" stroke="var(--track)" stroke-width="8" stroke-linecap="round"/>
<line x1="{x(low):.1f}" x2="{x(high):.1f}" y1="30" y2="30" stroke="var(--accent)" stroke-width="8" opacity=".55"/>
<circle cx="{x(rate):.1f}" cy="30" r="7" fill="var(--accent)" stroke="var(--paper)" stroke-width="2"/>
<text x="{middle:.1f}" y="14" text-anchor="middle">{label}</text>{ticks}
</svg>"""


def bars(rows: Sequence[tuple[str, str, float, float, float]]) -> str:
    """A bar a row: its name above it, what it counts beside it, its rate with the interval from low to high."""
    width, height, left = 900, 46, 8

    def x(share: float) -> float:
        return left + 720 * share

    parts = []
    for i, (name, count, rate, low, high) in enumerate(rows):
        top = i * height
        parts.append(
            f'<text x="{left}" y="{top + 14}">{escape(name)}</text>'
            f'<rect x="{x(0)}" y="{top + 20}" width="{x(1) - x(0)}" height="14" rx="3" fill="var(--track)"/>'
            f'<rect x="{x(0)}" y="{top + 20}" width="{x(rate) - x(0):.1f}" height="14" rx="3" fill="var(--accent)"/>'
            f'<line x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{top + 27}" y2="{top + 27}" stroke="var(--ink)" '
            f'stroke-width="2"/><text x="{x(1) + 10}" y="{top + 32}">{escape(count)} ({percent(rate)})</text>'
        )
    label = "; ".join(f"{escape(name)}: {escape(count)}" for name, count, *_ in rows)
    return f'<svg viewBox="0 0 {width} {height * len(rows)}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _smoothed(values: Sequence[float]) -> Iterator[float]:
    """Exponential mean of the logarithm over about a twentieth of the curve, corrected for its start."""
    keep = 1 - 1 / max(1, len(values) / 20)
    mean, weight = 0.0, 0.0
    for value in values:
        mean, weight = keep * mean + (1 - keep) * math.log(value), keep * weight + (1 - keep)
        yield math.exp(mean / weight)


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers within [low, high]: powers of ten, with 2 and 5 between where there are few."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    decades = math.log10(high / low)
    digits = [1] if decades > 3 else [1, 2, 5] if decades > 0.5 else [1, 1.5, 2, 3, 4, 5, 6, 8]
    return [d * 10.0**e for e in exponents for d in digits if low <= d * 10.0**e <= high]


def loss_curve(points: Sequence[tuple[float, float]]) -> str:
    """Positive losses over their updates, (step, loss) in order, on a logarithmic axis: as they are, and smoothed."""
    width, height, left, right, top, bottom = 900, 300, 56, 12, 10, 40
    steps, losses = [s for s, _ in points], [v for _, v in points]
    smooth = list(_smoothed(losses))
    # One outlier must not flatten the curve: the axis spans the smoothed curve and the middle of the raw one.
    ordered = sorted(losses)
    margin = len(ordered) // 100
    low = min(*smooth, ordered[margin]) / 1.1
    high = max(*smooth, ordered[-1 - margin]) * 1.1
    last = max(*steps, 1)

    def x(step: float) -> float:
        return left + (width - left - right) * step / last

    def y(loss: float) -> float:
        share = math.log(min(max(loss, low), high) / low) / math.log(high / low)
        return top + (height - top - bottom) * (1 - share)

    def line(values: Sequence[float], style: str) -> str:
        at = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in zip(steps, values, strict=True))
        return f'<polyline points="{at}" fill="none" stroke="var(--accent)" stroke-linejoin="round" {style}/>'

    rows = "".join(
        f'<line x1="{left}" x2="{width - right}" y1="{y(t):.1f}" y2="{y(t):.1f}" stroke="var(--line)"/>'
        f'<text x="{left - 8}" y="{y(t) + 4:.1f}" text-anchor="end">{t:.4g}</text>'
        for t in _log_ticks(low, high)
    )
    columns = "".join(
        f'<text x="{x(s):.1f}" y="{height - bottom + 18}" text-anchor="{anchor}">{s:,.0f}</text>'
        for s, anchor in ((0, "start"), (last / 2, "middle"), (last, "end"))
    )
    return f"""<svg viewBox="0 0 {width} {height}" role="img" aria-label="loss curve">
{rows}{columns}<text x="{(left + width - right) / 2}" y="{height - 4}" text-anchor="middle">update</text>
{line(losses, 'stroke-width="1" opacity=".3"')}
{line(smooth, 'stroke-width="2.2"')}
</svg>"""
