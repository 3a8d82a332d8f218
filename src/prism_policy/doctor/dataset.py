"""One pass through the demonstrations, and all that was found in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from prism_policy.data.source import FolderSource, Source, split_demos
from prism_policy.doctor.episode import Summary, summarise
from prism_policy.doctor.finding import Finding, Place, finding, numbered, spread
from prism_policy.doctor.together import CHECKS
from prism_policy.errors import PrismError
from prism_policy.utils.text import one_line


@dataclass(frozen=True)
class Examination:
    """What was looked at, and what was found."""

    episodes: int
    steps: int
    findings: list[Finding]


def examine(source: Source, progress: Callable[[int, int], None] = lambda done, total: None) -> Examination:
    """Check the demonstrations of a source: one pass, in the memory of a few episodes.

    Raises:
        PrismError: there is no episode that can be read.
    """
    schema, summaries = source.schema, list[Summary]()
    unusable = [(name, reason) for name, reason in _left_out(source)]
    total, first, names = len(source.names), 0, list(source.names)
    while first < len(names):
        try:
            for episode in source.episodes(names[first:], schema):
                summaries.append(summarise(episode, schema))
                first += 1
                progress(first, total)
        except PrismError as error:  # of the next one; go on behind it
            reason = str(error).removeprefix(f"{source.path}, {names[first]}: ")
            unusable.append((names[first], reason))
            first += 1
            continue
        break
    findings = [_unusable(unusable, len(names) + len(_left_out(source)))] if unusable else []
    reading = [sentence for sentence in getattr(source, "reading", source.findings) if not sentence.startswith("mask ")]
    findings += [finding("reader", sentence) for sentence in reading]
    findings += masks(source)
    sound = [summary for summary in summaries if summary.digest]
    findings += marked(summaries)
    for check in CHECKS:
        findings += check(sound, schema)
    return Examination(len(summaries), sum(one.steps for one in summaries), findings)


def _left_out(source: Source) -> list[tuple[str, str]]:
    """Episodes that the reader refused before any was read, and why."""
    if isinstance(source, FolderSource):
        return [(f"{name}/{bad}", why) for name, one in source.sources.items() for bad, why in _left_out(one)]
    return list(getattr(source, "bad", {}).items())


def _unusable(unusable: Sequence[tuple[str, str]], total: int) -> Finding:
    """Those with NaN or infinity apart, as that is the usual reason."""
    reasons = list(dict.fromkeys(one_line(reason, 240) for _, reason in unusable))
    more = f" (and {len(reasons) - 1} other reasons)" if len(reasons) > 1 else ""
    what = f"{numbered(len(unusable), 'episode', total)} cannot be read: {reasons[0]}{more}"
    infinite = all("finite" in reason for reason in reasons)
    check = "not-finite" if infinite else "unusable-episode"
    return finding(check, what, [Place(name) for name, _ in unusable])


def masks(source: Source) -> Iterator[Finding]:
    """Episodes that are both in `train` and in `valid`, by name; else masks that training refuses."""
    train, valid = set(source.masks.get("train", ())), source.masks.get("valid", ())
    if both := [name for name in valid if name in train]:
        sentence = f"masks 'train' and 'valid' share {numbered(len(both), 'episode', len(valid))}"
        yield finding("masks-share", sentence, map(Place, both))
        return
    try:
        split_demos(source, hold_out=True)
    except PrismError as error:
        yield finding("unusable-masks", str(error).removeprefix(f"{source.path}: "))


TEXTS: dict[str, tuple[str, str]] = {
    "not-finite": ("state or action is NaN or infinite in {}", ""),
    "spikes": ("a number leaps out of its range and back in {}", ""),
    "quaternion-norm": ("quaternions of the length {amounts} instead of 1 in {}", ""),
    "quaternion-flips": ("quaternions change sign from one step to the next in {}", ""),
    "missing-steps": ("the state moves {amounts} of its range in one step in {}", "share"),
    "idle-start": ("nothing moves for the first {amounts} steps of {}", ""),
    "idle-end": ("nothing moves for the last {amounts} steps of {}", ""),
    "time-jumps": ("{amounts} s pass between two steps in {}", ""),
    "black-frames": ("frames are black or of one colour in {}", ""),
    "frozen-frames": ("the image stands still for {amounts} steps while the robot moves in {}", ""),
    "duplicated-frames": ("{amounts} of the frames repeat the one before while the robot moves in {}", "share"),
}
"""Of checks of single episodes: what is said of them, and whether amounts are shares."""


def marked(summaries: Sequence[Summary]) -> Iterator[Finding]:
    """What was found in single episodes, a finding for each check and camera or part."""
    marks = [mark for summary in summaries for mark in summary.marks]
    for check, (text, kind) in TEXTS.items():
        of_check = [mark for mark in marks if mark.check == check]
        cameras = check in ("black-frames", "frozen-frames", "duplicated-frames")
        for part in dict.fromkeys(mark.place.part if cameras else "" for mark in of_check):
            chosen = [mark for mark in of_check if not cameras or mark.place.part == part]
            episodes = len({mark.place.episode for mark in chosen})
            amounts = [100 * mark.amount for mark in chosen] if kind else [mark.amount for mark in chosen]
            where = numbered(episodes, "episode", len(summaries))
            sentence = text.format(where, amounts=spread(amounts, "%" * bool(kind)))
            yield finding(check, f"camera {part}: {sentence}" if cameras else sentence, [m.place for m in chosen])
