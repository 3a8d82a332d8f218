"""The results of a study: as JSON, as a Markdown table, and in sentences."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prism_policy.config.options import Attribution
from prism_policy.saliency.faithfulness import SHARES
from prism_policy.saliency.metrics import Estimate, over_episodes
from prism_policy.saliency.study import (
    MEASURED,
    METRICS,
    Contrast,
    Study,
    contrast,
    per_episode,
    per_run,
    sides,
    summary,
)
from prism_policy.utils.files import write_text

MOST_ALIKE = 0.5
"""Rank correlation with the map of random weights that is taken for a likeness: half-way to the same map."""


def contrasts(study: Study) -> list[Contrast]:
    """The first side against each other one."""
    first, *others = sides(study.subjects)
    return [contrast(study, first, other) for other in others]


def in_words(one: Contrast, study: Study) -> str:
    """The tested sentence and its verdict for these runs."""
    places = sides(study.subjects)
    runs = [len(places[side]) for side in (one.a, one.b)]
    lift, spread = one.episodes["lift"], one.episodes["entropy"]
    text = (
        f'"{one.a} is more localised than {one.b}": {one.these} for these networks. Saliency on objects and gripper, '
        f"in times of their area: {_signed(lift)}; entropy: {_signed(spread)} ({one.a} less {one.b}, 95% interval over "
        f"{lift.n} episodes, paired)."
    )
    if lift.low is None:
        return text + " One episode has no interval: look at more (--episodes)."
    if min(runs) < 2:
        return text + " Of one training each, it says nothing of other seeds."
    trained, wide = one.seeds["lift"], one.seeds["entropy"]
    return (
        f"{text} For networks trained alike from other seeds: {one.trained_alike} ({_signed(trained)}; entropy "
        f"{_signed(wide)}; Student's interval over {runs[0]} + {runs[1]} trainings)."
    )


def randomised_in_words(study: Study) -> list[str]:
    """Of each side, whether its maps fail to resemble those of random weights, as maps of what was learned must."""
    lines = []
    for side, means in summary(study).items():
        alike, lift, chance = means["randomised"], means["lift"], means["randomised_lift"]
        if alike.low is not None and lift.low is not None:
            passed = alike.below(MOST_ALIKE) and chance.below(lift)
            verdict = "passed" if passed else "not passed, the map may be of the image"
            lines.append(
                f"{side}: with random weights the map's rank correlation with the trained one's is {alike} and its "
                f"lift {chance}, against {lift}: {verdict}."
            )
    return lines


def _signed(estimate: Estimate) -> str:
    if estimate.low is None:
        return f"{estimate.mean:+.3g}"
    return f"{estimate.mean:+.3g} ({estimate.low:+.3g} to {estimate.high:+.3g})"


def markdown(study: Study, how: Attribution) -> str:
    """The table of all sides, what its columns mean, and the tested sentences."""
    means, places = summary(study), sides(study.subjects)
    frames, several = sum(len(clip) for clip in study.clips), len(study.clips) > 1
    lines = [
        f"# What the policy looks at: {study.subjects[0].config.task.name}",
        "",
        f"Method `{how.method}`, target `{how.target}`, "
        + ("through the sampler" if how.noise_level is None else f"of the network at noise level {how.noise_level:g}")
        + f"; {frames} frames of {len(study.clips)} episode{'s' * several}, the same for all runs; mean of "
        + ", ".join(study.cameras)
        + " (95% interval over episodes: Student's t over their means, for these networks)" * several
        + ".",
        "",
        f"| side | runs | {' | '.join(METRICS)} |",
        "|---" * (len(METRICS) + 2) + "|",
    ]
    for side, numbers in means.items():
        cells = [str(numbers[c]) if c in numbers and math.isfinite(numbers[c].mean) else "" for c in METRICS]
        lines.append(f"| {side} | {len(places[side])} | {' | '.join(cells)} |")
    lines += ["", *(f"- `{name}`: {meaning}." for name, meaning in METRICS.items()), ""]
    if len(study.cameras) > 1:
        heads = [f"lift, {c}" for c in study.cameras]
        lines += [f"| side | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
        for side in means:
            cells = [str(over_episodes(per_episode(study, "lift", places[side], c))) for c in study.cameras]
            lines.append(f"| {side} | {' | '.join(cells)} |")
        lines.append("")
    tested = [*(in_words(one, study) for one in contrasts(study)), *randomised_in_words(study)]
    lines += ["## Tested", "", *(f"- {sentence}" for sentence in tested)] if tested else []
    return "\n".join(lines).rstrip() + "\n"


def as_json(study: Study, how: Attribution) -> dict[str, Any]:
    """All results; an unknown number is null."""
    means, places = summary(study), sides(study.subjects)
    return {
        "task": study.subjects[0].config.task.name,
        "how": asdict(how),
        "cameras": study.cameras,
        "clips": [{"title": c.title, "steps": c.steps.tolist()} for c in study.clips],
        "numbers": METRICS,
        "sides": {
            side: {
                "runs": [study.subjects[p].folder.name for p in places[side]],
                "over_episodes": {n: _known(e) for n, e in means[side].items()},
                "per_run": {n: [_or_none(x) for x in per_run(study, n, places[side])] for n in MEASURED},
            }
            for side in means
        },
        "contrasts": [
            {
                "a": one.a,
                "b": one.b,
                "these_networks": one.these,
                "trained_alike": one.trained_alike,
                "over_episodes": {n: _known(e) for n, e in one.episodes.items()},
                "over_seeds": {n: _known(e) for n, e in one.seeds.items()},
            }
            for one in contrasts(study)
        ],
        "curves": {
            "shares": SHARES,
            **{n: {s: x[places[s]].mean((0, 1)).tolist() for s in means} for n, x in study.curves.items()},
        },
    }


def _known(estimate: Estimate) -> dict[str, float | int | None]:
    return {"mean": _or_none(estimate.mean), "low": estimate.low, "high": estimate.high, "n": estimate.n}


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def write_tables(study: Study, how: Attribution, folder: Path) -> None:
    """table.md and numbers.json."""
    write_text(folder / "table.md", markdown(study, how))
    write_text(folder / "numbers.json", json.dumps(as_json(study, how), indent=1) + "\n")
