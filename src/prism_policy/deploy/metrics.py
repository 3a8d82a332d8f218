"""What a server counts, as Prometheus' text (exposition format 0.0.4)."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import Any

from prism_policy.utils.text import one_line

BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper ends of the histograms [s]."""


class Histogram:
    """How many durations were at most as long as each of `BUCKETS_S`."""

    def __init__(self) -> None:
        self.counts, self.sum = [0] * (len(BUCKETS_S) + 1), 0.0

    def add(self, seconds: float) -> None:
        """Count a duration."""
        self.counts[bisect_left(BUCKETS_S, seconds)] += 1
        self.sum += seconds

    def lines(self, name: str) -> list[str]:
        """As Prometheus reads it: each bucket with those below it."""
        total, lines = 0, []
        for end, count in zip([*map(str, BUCKETS_S), "+Inf"], self.counts, strict=True):
            total += count
            lines.append(f'{name}_bucket{{le="{end}"}} {total}')
        return [*lines, f"{name}_sum {self.sum:.6f}", f"{name}_count {total}"]


class Metrics:
    """Counters and histograms of a server; gauges are asked for when the page is."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.counters = dict.fromkeys(("connections", "questions", "answers", "refusals", "failures"), 0)
        self.answer_s, self.waiting_s = Histogram(), Histogram()
        self.gauges: dict[str, tuple[str, Callable[[], float]]] = {}

    def count(self, name: str) -> None:
        """One more."""
        with self.lock:
            self.counters[name] += 1

    def answered(self, waited_s: float, took_s: float) -> None:
        """A question was answered that waited for its turn, then took its time."""
        with self.lock:
            self.counters["answers"] += 1
            self.waiting_s.add(waited_s)
            self.answer_s.add(took_s)

    def page(self, metadata: Mapping[str, Any]) -> str:
        """The page at /metrics."""
        about = {
            "connections": "Robots that have connected",
            "questions": "Questions that have come",
            "answers": "Questions answered with actions",
            "refusals": "Questions answered with a sentence, for they did not fit",
            "failures": "Questions at which the server itself failed",
        }
        with self.lock:
            lines = []
            for name, text in about.items():
                lines += _about(f"prism_{name}_total", "counter", text)
                lines.append(f"prism_{name}_total {self.counters[name]}")
            for name, text, histogram in (
                ("prism_answer_seconds", "Computing an answer", self.answer_s),
                ("prism_waiting_seconds", "Waiting for other robots' answers", self.waiting_s),
            ):
                lines += _about(name, "histogram", text) + histogram.lines(name)
        for name, (text, value) in self.gauges.items():
            lines += [*_about(f"prism_{name}", "gauge", text), f"prism_{name} {value():g}"]
        labels = ("run", "checkpoint", "weights", "policy", "encoder", "task")
        said = ",".join(f'{label}="{_label(metadata[label])}"' for label in labels if label in metadata)
        lines += [*_about("prism_policy_info", "gauge", "Which policy is served"), f"prism_policy_info{{{said}}} 1"]
        return "\n".join(lines) + "\n"


def _about(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {name} {text}.", f"# TYPE {name} {kind}"]


def _label(value: object) -> str:
    return one_line(value, 100).replace("\\", "\\\\").replace('"', '\\"')
