"""Checks of all episodes together, each over the summaries that one pass leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from prism_policy.data.schema import Schema, slices
from prism_policy.doctor.episode import MOST_SHIFT, Summary, is_gripper, motion, number_names
from prism_policy.doctor.finding import Finding, Place, finding, numbered, spread
from prism_policy.utils.text import listed

Check = Callable[[Sequence[Summary], Schema], Iterator[Finding]]

FEWEST = 5
"""Episodes from which on one can be unlike the others."""
FAR = 6.0
"""Robust deviations (median absolute deviation times 1.48) from which on an episode is unlike the others."""


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
    correlation is at least 0.5, the best usual one leaves a quarter more unexplained (smooth motion correlates at all
    shifts), and most episodes say so.
    """
    shifts = np.arange(-MOST_SHIFT, MOST_SHIFT + 1)
    usual = (shifts >= 0) & (shifts <= max(4, round(0.4 * (schema.fps or 10))))
    for part in schema.action:
        curves = [one.responses[part.name] for one in summaries if part.name in one.responses]
        if not curves:
            continue
        mean = np.mean(curves, axis=0)  # (2, 2K + 1): steps, targets
        kind = 0 if part.shares or mean[0].max() >= mean[1].max() else 1
        curve = mean[kind]
        best, left = int(shifts[curve.argmax()]), 1 - curve.max()
        clearer = 1 - curve[usual].max() > 1.25 * left + 0.002
        if curve.max() < 0.5 or not clearer or not _agree([one[kind] for one in curves], best):
            continue
        seconds = f" ({abs(best) / schema.fps:.2g} s)" if schema.fps else ""
        numbers = f"correlation {curve.max():.2f}, without a shift {curve[MOST_SHIFT]:.2f}"
        if best < 0:
            yield finding(
                "action-late", f"{part.name}: actions fit the motion best {-best} steps{seconds} earlier: {numbers}"
            )
        else:
            yield finding(
                "action-early", f"{part.name}: the state follows the action after {best} steps{seconds}: {numbers}"
            )


def _agree(curves: Sequence[np.ndarray], best: int) -> bool:
    """Whether six in ten episodes have their own best shift there, or one step beside it."""
    own = np.array([int(curve.argmax()) - MOST_SHIFT for curve in curves])
    return bool((np.abs(own - best) <= 1).mean() >= 0.6)


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
        clear = curve.max() >= 0.5 and curve.max() > curve[usual].max() + 0.1
        if clear and abs(best) < MOST_SHIFT and _agree(curves, best):
            seconds = f" ({abs(best) / schema.fps:.2g} s)" if schema.fps else ""
            way = "later" if best > 0 else "earlier"
            numbers = f"correlation {curve.max():.2f}, without a shift {curve[MOST_SHIFT]:.2f}"
            yield finding(
                "camera-delay",
                f"camera {camera}: images change {abs(best)} steps{seconds} {way} than the state: {numbers}",
            )


def gripper(summaries: Sequence[Summary], schema: Schema) -> Iterator[Finding]:
    """Commands of 0 and 1 or of -1 and 1, whether they ever change, and whether the fingers obey in the same sense."""
    shares = {name: p.shares for p in schema.action for name in [p.name] if is_gripper(p)}
    for name in dict.fromkeys(name for one in summaries for name in one.grippers):
        held = {one.name: one.grippers[name] for one in summaries if name in one.grippers}
        moving = {e: (low, high, way) for e, (low, high, way) in held.items() if high > low}
        if not moving:
            value = spread([low for low, _, _ in held.values()])
            yield finding(
                "gripper-still", f"{name} is {value} in every step of {numbered(len(held), 'episode', len(held))}"
            )
            continue
        if len(held) >= FEWEST and 0 < len(held) - len(moving) < 0.5 * len(held):
            places = [Place(episode) for episode in held if episode not in moving]
            yield finding(
                "gripper-still", f"{name} never changes in {numbered(len(places), 'episode', len(held))}", places
            )
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
    """Numbers that never change (other than grippers), and those that move a fiftieth of their part's range or less.

    The latter only where no spike makes a range wider than it is.
    """
    spiky = any(mark.check == "spikes" for one in summaries for mark in one.marks)
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
        if small and not spiky:
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


def lengths(summaries: Sequence[Summary], schema: Schema) -> Iterator[Finding]:
    """Episodes whose length is far from all others', and three times as large or small."""
    if len(summaries) < FEWEST:
        return
    steps = np.array([one.steps for one in summaries], float)
    ratio = steps / np.median(steps)
    odd = np.flatnonzero((robust(np.log(steps)) > FAR) & ((ratio > 3) | (ratio < 1 / 3)))
    if len(odd):
        count, got = numbered(len(odd), "episode", len(summaries)), spread(steps[odd].tolist(), " steps")
        sentence = f"{count}: {got}, in the others about {np.median(steps):.3g}"
        yield finding("odd-length", sentence, [Place(summaries[i].name) for i in odd])


def gains(summaries: Sequence[Summary], schema: Schema) -> Iterator[Finding]:
    """Episodes whose actions are three times as large or small, for the same motion, as in all others."""
    known = [one for one in summaries if one.gain is not None]
    if len(known) < FEWEST:
        return
    values = np.array([one.gain for one in known])
    ratio = values / np.median(values)
    odd = np.flatnonzero((robust(np.log(values)) > FAR) & ((ratio > 3) | (ratio < 1 / 3)))
    if len(odd):
        count, got = numbered(len(odd), "episode", len(known)), spread(ratio[odd].tolist())
        sentence = f"{count}: actions are {got} times as large, for the same motion, as in the others"
        yield finding("odd-actions", sentence, [Place(known[i].name) for i in odd])


def starts(summaries: Sequence[Summary], schema: Schema) -> Iterator[Finding]:
    """Episodes that start far from all others, and a third of the state's range away."""
    if len(summaries) < FEWEST or not (scaled := scaled_starts(summaries, schema)).shape[1]:
        return
    away = np.abs(scaled - np.median(scaled, axis=0)).max(axis=1)
    odd = np.flatnonzero((robust(away) > FAR) & (away > 1 / 3))
    if len(odd):
        count, far = numbered(len(odd), "episode", len(summaries)), spread((100 * away[odd]).tolist(), "%")
        sentence = f"{count} start {far} of the state's range away from the others"
        yield finding("odd-start", sentence, [Place(summaries[i].name, (0, 0)) for i in odd])


def views(summaries: Sequence[Summary], schema: Schema) -> Iterator[Finding]:
    """Episodes whose mean picture is far from all others', by 12 of 255 grey levels or more.

    Not those whose frames are black or swapped, which is said already.
    """
    said = {(place.episode, place.part) for one in swaps(summaries, schema) for place in one.where}
    said |= {(m.place.episode, m.place.part) for o in summaries for m in o.marks if m.check == "black-frames"}
    for camera in schema.cameras if len(summaries) >= FEWEST else ():
        pictures = np.stack([one.views[camera] for one in summaries])
        away = np.abs(pictures - np.median(pictures, axis=0)).mean(axis=(1, 2, 3))
        odd = np.flatnonzero((robust(away) > FAR) & (away > 12))
        odd = np.array([i for i in odd if (summaries[i].name, camera) not in said], int)
        if len(odd):
            count, grey = numbered(len(odd), "episode", len(summaries)), spread(away[odd].tolist())
            sentence = f"camera {camera}: {count} differ by {grey} of 255 grey levels from the usual view"
            yield finding("odd-images", sentence, [Place(summaries[i].name, None, camera) for i in odd])


def scaled_starts(summaries: Sequence[Summary], schema: Schema) -> np.ndarray:
    """Starts (N, D) of positions and joints, as shares of the range that their part has in all episodes."""
    first = np.stack([one.start for one in summaries])
    low = np.min([one.low["state"] for one in summaries], axis=0)
    high = np.max([one.high["state"] for one in summaries], axis=0)
    frame = np.concatenate([first, low[None], high[None]])  # so that the scale is that of all steps
    return motion(frame, schema.state, tail=0.0)[:-2]


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
    """Fewer episodes than five, or than two for each direction in which their starts differ.

    Directions are counted by the participation ratio of the variances of state and first images: n equal ones count n.
    """
    if not summaries:
        return
    columns = [scaled_starts(summaries, schema)]
    columns += [np.stack([o.first_views[c].reshape(-1) for o in summaries]) / 255 for c in schema.cameras]
    directions = max(participation(x) for x in columns)
    count = numbered(len(summaries), "demonstration")
    if len(summaries) < FEWEST:
        yield finding("few-episodes", f"{count}; with fewer than {FEWEST} nothing shows how a start may differ")
    elif len(summaries) < 2 * directions:
        about = f"their starts differ in about {directions:.0f} directions"
        yield finding("few-episodes", f"{count}, and {about}; 2 demonstrations for each is the least")


def participation(values: np.ndarray) -> float:
    """How many directions the rows (N, D) differ in; 0 where they hardly do, by a fiftieth."""
    centred = values - values.mean(0)
    if not values.size or float(np.abs(centred).max()) < 0.02:
        return 0.0
    variances = np.linalg.svd(centred, compute_uv=False) ** 2
    return float(variances.sum() ** 2 / (variances**2).sum())


CHECKS: tuple[Check, ...] = (
    swaps, rates, action_range, action_timing, camera_delays, gripper, quaternion_starts, duplicates, constants, slow,
    lengths, gains, starts, views, few,
)  # fmt: skip
"""All of them."""
