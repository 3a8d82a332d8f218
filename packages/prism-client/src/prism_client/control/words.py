"""What a person reads about a robot and its episodes."""

from __future__ import annotations

from prism_client.control.check import Checkup
from prism_client.control.loop import Outcome


def about_checkup(checkup: Checkup) -> list[str]:
    """Lines: rates, latencies, frames, and what is wrong."""

    def ms(pair: tuple[float, float]) -> str:
        return f"median {1000 * pair[0]:.1f} ms, longest {1000 * pair[1]:.1f} ms"

    lines = [
        f"{checkup.seconds:.1f} s at {checkup.rate_hz:.1f} of {checkup.wanted_hz:g} control steps a second",
        f"{'observation':<24} {ms(checkup.observe_s)}",
        f"{'command':<24} {ms(checkup.hold_s)}",
    ]
    if checkup.moved_after_s is not None:
        lines.append(f"{'state moves after':<24} {1000 * checkup.moved_after_s:.0f} ms")
    for name, source in checkup.sources.items():
        lines.append(f"{name:<24} {source.rate_hz:.1f} a second, age {ms(source.age_s)}, {source.dropped} dropped")
    lines += [f"PROBLEM  {problem}" for problem in checkup.problems]
    return lines if checkup.problems else [*lines, "Ready"]


def about_outcome(outcome: Outcome) -> str:
    """One line of how an episode went."""
    pauses = f", {outcome.pauses} steps of waiting" if outcome.pauses else ", no pause"
    latency = sorted(outcome.latency_steps)
    late = f", answers after {latency[len(latency) // 2]} steps" if latency else ""
    guarded = ", ".join(f"{name} {count}" for name, count in sorted(outcome.guarded.items()))
    more = f" and {len(outcome.void) - 1} more" if len(outcome.void) > 1 else ""
    void = f"; VOID: {outcome.void[0]}{more}" if outcome.void else ""
    limited = f", limited: {guarded}" if guarded else ""
    why = f" ({outcome.reason})" if outcome.reason not in ("", *outcome.void) else ""
    return f"{outcome.ended}{why}: {outcome.steps} steps{pauses}{late}{limited}{void}"
