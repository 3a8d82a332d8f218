"""Checks of all episodes together, over summaries that one pass through the recording leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from prism_policy.data.schema import Schema, slices
from prism_policy.data.source import FolderSource, Source
from prism_policy.doctor.episode import (
    MOST_SHIFT,
    Summary,
    grippers_of,
    is_gripper,
    motion,
    number_names,
    summarise,
)
from prism_policy.doctor.finding import Finding, Place, finding, numbered, spread
from prism_policy.errors import PrismError
from prism_policy.utils.text import listed, one_line

Check = Callable[[Sequence[Summary], Schema], Iterator[Finding]]

FEWEST = 5
"""Episodes from which on one can be unlike the others."""
FAR = 6.0
"""Robust deviations (median absolute deviation times 1.48) from which on an episode is unlike the others."""


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
    findings += [finding("reader", sentence) for sentence in getattr(source, "reading", source.findings)]
    findings += masks(source, summaries)
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


def masks(source: Source, summaries: Sequence[Summary]) -> Iterator[Finding]:
    """Episodes that are both in `train` and in `valid`, by name."""
    train, valid = (source.masks.get(name, ()) for name in ("train", "valid"))
    if both := [name for name in valid if name in train]:
        yield finding(
            "masks-share",
            f"masks 'train' and 'valid' share {numbered(len(both), 'episode', len(valid))}",
            map(Place, both),
        )


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


def rates(summaries: Sequence[Summary], schema: Schema) -> Iterator[Finding]:
    """Time between steps against the recorded rate, to a twentieth."""
    if schema.fps is None:
        if not any(one.step_s for one in summaries):
            yield finding("unknown-rate", "the dataset does not say how many steps a second it has")
        return
    odd = [one for one in summaries if one.step_s and abs(one.step_s * schema.fps - 1) > 0.05]
    if odd:
        got = spread([1 / one.step_s for one in odd if one.step_s])
        where = numbered(len(odd), "episode", len(summaries))
        yield finding("wrong-rate", f"{got} steps a second by the time stamps of {where}, recorded as {schema.fps:g}",
                      [Place(one.name) for one in odd])  # fmt: skip


def action_range(summaries: Sequence[Summary], schema: Schema) -> Iterator[Finding]:
    """Shares of the controller's range beyond [-1, 1]; below one step in a hundred a note."""
    beyond = [one for one in summaries if one.clipped]
    if not beyond:
        return
    steps, total = sum(one.clipped for one in beyond), sum(one.steps for one in summaries)
    what = f"{steps} of {total} actions ({steps / total:.1%}) leave [-1, 1] and are clipped, as robosuite does"
    worst = sorted(beyond, key=lambda one: -one.clipped / one.steps)
    places = [Place(one.name, None, f"{one.clipped / one.steps:.0%} of its steps") for one in worst]
    yield finding("action-range", what, places, "warning" if steps > 0.01 * total else "note")


def action_timing(summaries: Sequence[Summary], schema: Schema) -> Iterator[Finding]:
    """The shift at which the state's change goes best with the action.

    A controller answers within some steps: from 0 to 0.4 s (or 4 steps) is usual. Another shift is reported where its
    correlation is at least 0.5 and beats the best usual one by 0.02, as smooth motion correlates at all of them.
    """
    shifts = np.arange(-MOST_SHIFT, MOST_SHIFT + 1)
    usual = (shifts >= 0) & (shifts <= max(4, round(0.4 * (schema.fps or 10))))
    for part in schema.action:
        curves = [one.responses[part.name] for one in summaries if part.name in one.responses]
        if not curves:
            continue
        mean = np.mean(curves, axis=0)  # (2, 2K + 1): steps, targets
        curve = mean[0] if part.shares or mean[0].max() >= mean[1].max() else mean[1]
        best = int(shifts[curve.argmax()])
        if curve.max() < 0.5 or curve.max() < curve[usual].max() + 0.02:
            continue
        seconds = f" ({abs(best) / schema.fps:.2g} s)" if schema.fps else ""
        numbers = f"correlation {curve.max():.2f}, without a shift {curve[MOST_SHIFT]:.2f}"
        if best < 0:
            yield finding("action-late", f"{part.name}: actions fit the motion best {-best} steps{seconds} earlier: {numbers}")
        else:
            yield finding("action-early", f"{part.name}: the state follows the action after {best} steps{seconds}: {numbers}")


def camera_delays(summaries: Sequence[Summary], schema: Schema) -> Iterator[Finding]:
    """The shift at which an image's change goes best with the state's speed: two steps or more, and clearly so."""
    shifts = np.arange(-MOST_SHIFT, MOST_SHIFT + 1)
    usual = np.abs(shifts) <= 1
    for camera in schema.cameras:
        curves = [one.delays[camera] for one in summaries if camera in one.delays]
        curves = [curve for curve in curves if not np.isnan(curve).any()]
        if not curves:
            continue
        curve = np.mean(curves, axis=0)
        best = int(shifts[curve.argmax()])
        if curve.max() >= 0.5 and curve.max() > curve[usual].max() + 0.1:
            seconds = f" ({abs(best) / schema.fps:.2g} s)" if schema.fps else ""
            way = "later" if best > 0 else "earlier"
            numbers = f"correlation {curve.max():.2f}, without a shift {curve[MOST_SHIFT]:.2f}"
            yield finding("camera-delay", f"camera {camera}: images change {abs(best)} steps{seconds} {way} than the state: {numbers}")


def gripper(summaries: Sequence[Summary], schema: Schema) -> Iterator[Finding]:
    """Commands of 0 and 1 or of -1 and 1, whether they ever change, and whether the fingers obey in the same sense."""
    shares = {name: p.shares for p in schema.action for name in [p.name] if is_gripper(p)}
    for name in dict.fromkeys(name for one in summaries for name in one.grippers):
        held = {one.name: one.grippers[name] for one in summaries if name in one.grippers}
        moving = {e: (low, high, way) for e, (low, high, way) in held.items() if high > low}
        if not moving:
            value = spread([low for low, _, _ in held.values()])
            yield finding("gripper-still", f"{name} is {value} in every step of {numbered(len(held), 'episode', len(held))}")
            continue
        if len(held) >= FEWEST and 0 < len(held) - len(moving) < 0.5 * len(held):
            places = [Place(episode) for episode in held if episode not in moving]
            yield finding("gripper-still", f"{name} never changes in {numbered(len(places), 'episode', len(held))}", places)
        zero = [e for e, (low, high, _) in moving.items() if (low, high) == (0, 1)]
        signed = [e for e, (low, high, _) in moving.items() if low < -0.5]
        if zero and signed:
            fewer, other = (zero, "0 and 1") if len(zero) <= len(signed) else (signed, "-1 and 1")
            rest = "-1 and 1" if fewer is zero else "0 and 1"
            what = f"{name} is {other} in {numbered(len(fewer), 'episode', len(moving))} and {rest} in the others"
            yield finding("gripper-mixed", what, map(Place, fewer))
        elif zero and any(shares.values()):
            yield finding("gripper-zero-one", f"{name} is 0 and 1 in {numbered(len(zero), 'episode', len(moving))}")
        ways = {e: way for e, (_, _, way) in moving.items() if abs(way) > 0.3}
        opens = [e for e, way in ways.items() if way > 0]
        closes = [e for e, way in ways.items() if way < 0]
        if opens and any(shares.values()) and not closes:
            yield finding("gripper-inverted", f"{name}: the fingers open where the command rises, in all episodes; "
                          "robosuite closes them")  # fmt: skip
        elif opens and closes:
            fewer, does = (opens, "open") if len(opens) <= len(closes) else (closes, "close")
            what = f"{name}: the fingers {does} where the command rises in {numbered(len(fewer), 'episode', len(ways))}"
            yield finding("gripper-inverted", f"{what}, unlike in the others", map(Place, fewer))


def quaternion_starts(summaries: Sequence[Summary], schema: Schema) -> Iterator[Finding]:
    """Quaternions that have the other sign at the start of some episodes."""
    for part, where in zip(schema.state, slices(schema.state).values(), strict=True):
        if part.kind != "rotation" or part.size != 4 or not summaries:
            continue
        starts = np.stack([one.start[where] for one in summaries])
        side = starts @ starts[0]
        if (np.abs(side) < 0.5).any():  # starts that differ much have no common sign
            continue
        signs = np.sign(side)
        fewer = -1 if (signs < 0).sum() <= (signs > 0).sum() else 1
        odd = [one.name for one, sign in zip(summaries, signs, strict=True) if sign == fewer]
        if 0 < len(odd) < len(summaries):
            what = f"{part.name} starts with the other sign in {numbered(len(odd), 'episode', len(summaries))}"
            yield finding("quaternion-flips", what, [Place(name, (0, 0), part.name) for name in odd])


def duplicates(summaries: Sequence[Summary], schema: Schema) -> Iterator[Finding]:
    """Episodes with the same state and actions to the bit."""
    first: dict[str, str] = {}
    places = []
    for one in summaries:
        if (other := first.setdefault(one.digest, one.name)) != one.name:
            places.append(Place(one.name, None, f"as {other}"))
    if places:
        yield finding("duplicate-episodes", f"{numbered(len(places), 'episode', len(summaries))} repeat another one to "
                      "the bit", places)  # fmt: skip


def constants(summaries: Sequence[Summary], schema: Schema) -> Iterator[Finding]:
    """Numbers that never change (other than grippers), and those that move a fiftieth of their part's range or less."""
    for of, parts in (("state", schema.state), ("action", schema.action)):
        if not summaries or not parts:
            continue
        low, high = np.min([o.low[of] for o in summaries], 0), np.max([o.high[of] for o in summaries], 0)
        names, ranges, constant, small = number_names(parts), high - low, list[str](), list[str]()
        for part, where in zip(parts, slices(parts).values(), strict=True):
            if is_gripper(part):
                continue
            widest = float(ranges[where].max())
            for i in range(where.start, where.stop):
                if ranges[i] == 0:
                    constant.append(names[i])
                elif part.kind in ("position", "joint") and not part.shares and ranges[i] < 0.02 * widest:
                    small.append(names[i])
        if constant:
            yield finding("constant-numbers", f"{numbered(len(constant), 'number', len(names))} of the {of} never "
                          f"change: {listed(constant, 6)}")  # fmt: skip
        if small:
            yield finding("small-motion", f"{numbered(len(small), 'number', len(names))} of the {of} move less than a "
                          f"fiftieth of what their part does: {listed(small, 6)}")  # fmt: skip


def slow(summaries: Sequence[Summary], schema: Schema) -> Iterator[Finding]:
    """Numbers of the state that are held for several steps in half of the episodes or more."""
    if not summaries:
        return
    periods = np.median([one.held for one in summaries], axis=0)
    names = number_names(schema.state)
    for period in np.unique(periods[periods >= 2]):
        chosen = [names[i] for i in np.flatnonzero(periods == period)]
        rate = f", {schema.fps / period:.3g} times a second" if schema.fps else ""
        yield finding("slow-numbers", f"{numbered(len(chosen), 'number', len(names))} of the state change only every "
                      f"{period:g} steps{rate}: {listed(chosen, 4)}")  # fmt: skip


def robust(values: np.ndarray) -> np.ndarray:
    """Distance of each value (N,) from the median, in robust deviations."""
    away = np.abs(values - np.median(values))
    return np.asarray(away / max(1.4826 * float(np.median(away)), 1e-9))


def unlike(summaries: Sequence[Summary], schema: Schema) -> Iterator[Finding]:
    """Episodes whose length, action's scale, start or images are far from all others' and differ by something that
    matters: twice the length or scale, a third of the state's range, 12 of 255 grey levels.
    """
    if len(summaries) < FEWEST:
        return
    for check, what, values in (
        ("odd-length", "steps", np.array([one.steps for one in summaries], float)),
        ("odd-actions", "root mean square of the actions", np.array([one.action_size for one in summaries])),
    ):
        if values.min() <= 0:
            continue
        ratio = values / np.median(values)
        odd = np.flatnonzero((robust(np.log(values)) > FAR) & ((ratio > 2) | (ratio < 0.5)))
        if len(odd):
            got = spread(values[odd].tolist())
            yield finding(check, f"{numbered(len(odd), 'episode', len(summaries))}: {what} {got}, in the others about "
                          f"{np.median(values):.3g}", [Place(summaries[i].name) for i in odd])  # fmt: skip
    starts = scaled_starts(summaries, schema)
    if starts.shape[1]:
        away = np.abs(starts - np.median(starts, axis=0)).max(axis=1)
        odd = np.flatnonzero((robust(away) > FAR) & (away > 1 / 3))
        if len(odd):
            yield finding("odd-start", f"{numbered(len(odd), 'episode', len(summaries))} start {spread((100 * away[odd]).tolist())}% "
                          "of the state's range away from the others", [Place(summaries[i].name, (0, 0)) for i in odd])  # fmt: skip
    swapped = {(p.episode, p.part) for f in swaps(summaries, schema) for p in f.where}
    for camera in schema.cameras:
        views = np.stack([one.views[camera] for one in summaries])
        away = np.abs(views - np.median(views, axis=0)).mean(axis=(1, 2, 3))
        dark = {m.place.episode for one in summaries for m in one.marks if m.check == "black-frames"}
        odd = np.flatnonzero((robust(away) > FAR) & (away > 12))
        chosen = [i for i in odd if (summaries[i].name, camera) not in swapped and summaries[i].name not in dark]
        if chosen:
            grey = spread(away[chosen].tolist())
            yield finding("odd-images", f"camera {camera}: {numbered(len(chosen), 'episode', len(summaries))} differ by {grey} of 255 "
                          "grey levels from the usual view", [Place(summaries[i].name, None, camera) for i in chosen])  # fmt: skip


def scaled_starts(summaries: Sequence[Summary], schema: Schema) -> np.ndarray:
    """Starts (N, D) of positions and joints, as shares of the range that their part has in all episodes."""
    starts = np.stack([one.start for one in summaries])
    low = np.min([one.low["state"] for one in summaries], axis=0)
    high = np.max([one.high["state"] for one in summaries], axis=0)
    frame = np.concatenate([starts, low[None], high[None]])  # so that the scale is that of all steps
    return np.concatenate([motion(frame, schema.state), grippers_of(frame, schema.state)[:, :0]], axis=1)[:-2]


def swaps(summaries: Sequence[Summary], schema: Schema) -> Iterator[Finding]:
    """Two cameras' mean pictures that are each at most half as far from the other's usual one as from their own."""
    cameras = list(schema.cameras)
    if len(summaries) < 3:
        return
    usual = {camera: np.median([one.views[camera] for one in summaries], axis=0) for camera in cameras}
    for i, a in enumerate(cameras):
        for b in cameras[i + 1 :]:
            odd = [one.name for one in summaries if _exchanged(one, a, b, usual)]
            if odd:
                places = [Place(name, None, camera) for name in odd for camera in (a, b)]
                what = f"{a} and {b} show each other's view in {numbered(len(odd), 'episode', len(summaries))}"
                yield finding("swapped-cameras", what, places)


def _exchanged(one: Summary, a: str, b: str, usual: dict[str, np.ndarray]) -> bool:
    def away(camera: str, other: str) -> float:
        return float(np.abs(one.views[camera] - usual[other]).mean())

    return 2 * away(a, b) < away(a, a) and 2 * away(b, a) < away(b, b)


def few(summaries: Sequence[Summary], schema: Schema) -> Iterator[Finding]:
    """Fewer episodes than five, or than three for each direction in which their starts differ.

    Directions are counted by the participation ratio of the variances of state and first images: n equal ones count n.
    """
    if not summaries:
        return
    columns = [scaled_starts(summaries, schema)]
    columns += [np.stack([o.first_views[c].reshape(-1) for o in summaries]) / 255 for c in schema.cameras]
    directions = max(participation(x) for x in columns)
    if len(summaries) < max(FEWEST, 3 * directions):
        about = f"starts differ in about {directions:.0f} directions; 3 demonstrations for each is the least"
        count = numbered(len(summaries), "demonstration")
        yield finding("few-episodes", f"{count}" + (f", and their {about}" if directions >= 1.5 else ""))


def participation(values: np.ndarray) -> float:
    """How many directions the rows (N, D) differ in; 0 where they hardly do, by a fiftieth."""
    centred = values - values.mean(0)
    if not values.size or float(np.abs(centred).max()) < 0.02:
        return 0.0
    variances = np.linalg.svd(centred, compute_uv=False) ** 2
    return float(variances.sum() ** 2 / (variances**2).sum())


CHECKS: tuple[Check, ...] = (
    swaps, rates, action_range, action_timing, camera_delays, gripper, quaternion_starts, duplicates, constants, slow, unlike, few,
)  # fmt: skip
