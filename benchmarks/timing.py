"""What the benchmarks share: variants timed in turn, and their ratios within a round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch


def seconds_of(function: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, the device's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def in_turn(
    functions: Mapping[str, Callable[[], object]], rounds: int, device: torch.device, warm_up: int = 2, calls: int = 1
) -> dict[str, list[float]]:
    """Seconds of each function, a list over rounds; `calls` calls make one measurement, after `warm_up` rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for round_ in range(warm_up + rounds):
        for name, function in functions.items():
            if calls > 1:
                function()  # the variant before has filled the caches with its own weights
            elapsed = statistics.median(seconds_of(function, device) for _ in range(calls))
            if round_ >= warm_up:
                seconds[name].append(elapsed)
    return seconds


def ratio(values: Sequence[float], baseline: Sequence[float]) -> str:
    """Median (min to max) over rounds of values / baseline."""
    ratios = [v / b for v, b in zip(values, baseline, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def ms(seconds: Sequence[float]) -> str:
    """Median milliseconds."""
    return f"{1000 * statistics.median(seconds):.1f}"
