"""Checks of one episode, and what is kept of it: a summary of some kilobytes, however long it is."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from prism_policy.data.episode import Episode
from prism_policy.data.schema import Part, Schema, slices
from prism_policy.doctor.finding import Mark, Place, runs
from prism_policy.doctor.images import blank, look, mean_view, still

MOST_SHIFT = 12
"""Steps by which signals are shifted against one another, at most."""
NEIGHBOURS = 3
"""Steps before and after one with which it is compared."""


@dataclass
class Summary:
    """What is kept of an episode."""

    name: str
    steps: int
    marks: list[Mark] = field(default_factory=list)
    digest: str = ""
    """Of state and actions."""
    clipped: int = 0
    start: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """State of the first step (S,)."""
    low: dict[str, np.ndarray] = field(default_factory=dict)
    """Lowest of each number of `state` and `action`."""
    high: dict[str, np.ndarray] = field(default_factory=dict)
    held: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    """Steps between changes of each number of the state that is sampled more slowly than recorded, else 0."""
    gain: float | None = None
    """Size of the actions as a multiple of the motion; None where it is unknown what they move."""
    step_s: float | None = None
    """Median time between steps [s]."""
    views: dict[str, np.ndarray] = field(default_factory=dict)
    """Camera -> mean picture (8, 8, 3), grey levels from 0 to 255."""
    first_views: dict[str, np.ndarray] = field(default_factory=dict)
    """Camera -> picture (8, 8, 3) of the first frame."""
    delays: dict[str, np.ndarray] = field(default_factory=dict)
    """Camera -> correlation of the image's change with the state's, the image being later by -K to K steps."""
    responses: dict[str, np.ndarray] = field(default_factory=dict)
    """Part of the action -> correlations of the state's change with it, -K to K steps later: see `responses`."""
    grippers: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    """Gripper's number -> lowest and highest command, and correlation of the command with the opening that follows."""


def summarise(episode: Episode, schema: Schema) -> Summary:
    """Check an episode by itself, and keep what the checks of all episodes together need."""
    summary = Summary(episode.name, len(episode), clipped=episode.clipped)
    arrays = {"state": episode.state.astype(np.float64), "action": episode.actions.astype(np.float64)}
    parts = {"state": schema.state, "action": schema.action}
    for name, values in arrays.items():
        if not (finite := np.isfinite(values).all(axis=1)).all():
            for first, last in runs(~finite):
                summary.marks.append(Mark("not-finite", Place(episode.name, (first, last), name)))
    if summary.marks:
        return summary  # nothing else can be computed of them
    summary.digest = hashlib.sha256(episode.state.tobytes() + episode.actions.tobytes()).hexdigest()
    for name, values in arrays.items():
        summary.low[name], summary.high[name] = values.min(0), values.max(0)
        summary.marks += spikes(episode.name, values, parts[name])
    summary.start, summary.held = arrays["state"][0], held(arrays["state"])
    summary.gain = gain(arrays["state"], arrays["action"], schema)
    moving = motion(arrays["state"], schema.state)
    summary.marks += [*quaternions(episode.name, arrays["state"], schema.state), *leaps(episode.name, moving)]
    if not moving.shape[1]:
        moving = motion(arrays["action"], schema.action)
    if arrays["state"].shape[1]:
        everything = np.concatenate([moving, grippers_of(arrays["state"], schema.state)], axis=1)
        summary.marks += idle(episode.name, everything, schema.fps)
    if episode.times is not None:
        summary.marks += times(episode.name, episode.times)
        summary.step_s = float(np.median(np.diff(episode.times))) if len(episode) > 1 else None
    for camera, images in episode.images.items():
        own = of_arm(camera, arrays["state"], schema)
        speed = np.abs(np.diff(moving if own is None else own, axis=0)).max(axis=1, initial=0)
        summary.views[camera], summary.first_views[camera] = mean_view(images), mean_view(images[:1])
        change, dull = look(images)
        place = Place(episode.name, None, camera)
        summary.marks += [*blank(place, dull), *still(place, change, speed, schema.fps)]
        summary.delays[camera] = correlations(speed, change)
    summary.responses = responses(arrays["state"], arrays["action"], schema)
    summary.grippers = grippers(arrays["state"], arrays["action"], schema)
    return summary


def _of_each(parts: Sequence[Part]) -> list[Part]:
    """The part of each number."""
    return [part for part in parts for _ in range(part.size)]


def number_names(parts: Sequence[Part]) -> list[str]:
    """What each number is called, with its part's name where that says more."""
    return [
        name if len(parts) == 1 or name.startswith(part.name) else f"{part.name}.{name}"
        for part in parts
        for name in part.number_names
    ]


def is_gripper(part: Part) -> bool:
    """Whether a part is of a gripper, by its kind or its name."""
    return part.kind == "gripper" or "gripper" in part.name.lower()


def motion(values: np.ndarray, parts: Sequence[Part], tail: float = 0.02) -> np.ndarray:
    """Positions and joints (T, D), each part as a share of the widest range that one of its numbers has here.

    A share of the part's and not the number's own range, so that the noise of what stands still stays small; between
    quantiles, without the `tail` at each end, so that a spike is no range. Where there are neither positions nor
    joints, everything but rotations and grippers.
    """
    chosen = [part for part in parts if part.kind in ("position", "joint") and not is_gripper(part)]
    chosen = chosen or [part for part in parts if part.kind == "other"]
    columns, where = [np.zeros((len(values), 0))], slices(parts)
    for part in chosen:
        of_part = values[:, where[part.name]]
        low, high = np.quantile(of_part, (tail, 1 - tail), axis=0)
        if (widest := float((high - low).max())) > 1e-6:
            columns.append(of_part / widest)
    return np.concatenate(columns, axis=1)


def of_arm(camera: str, state: np.ndarray, schema: Schema) -> np.ndarray | None:
    """Motion (T, D) of the arm that a camera is named after, as robosuite does: what it carries waits with the arm."""
    found = re.match(r"robot[0-9]+_", camera)
    own = [part for part in schema.state if found and part.name.startswith(found[0])]
    if not own or len(own) == len(schema.state):
        return None
    where = slices(schema.state)
    return motion(np.concatenate([state[:, where[part.name]] for part in own], axis=1), own)


def grippers_of(values: np.ndarray, parts: Sequence[Part]) -> np.ndarray:
    """How far grippers are open (T, n), as a share of their range here: fingers that move are no idleness."""
    columns, where = [np.zeros((len(values), 0))], slices(parts)
    for part in parts:
        if is_gripper(part) and "vel" not in part.name:
            opening = np.abs(values[:, where[part.name]]).sum(axis=1, keepdims=True)
            if (widest := float(np.ptp(opening))) > 1e-4:
                columns.append(opening / widest)
    return np.concatenate(columns, axis=1)


def spikes(episode: str, values: np.ndarray, parts: Sequence[Part]) -> list[Mark]:
    """Steps where a number leaves and returns at once, by more than it ranges over in all other steps.

    A median of five steps keeps motion and leaps that last, and drops what lasts one or two steps.
    """
    if len(values) < 2 * NEIGHBOURS or not parts:
        return []
    padded = np.pad(values, ((2, 2), (0, 0)), mode="edge")
    smooth = np.median(np.stack([padded[i : i + len(values)] for i in range(5)]), axis=0)
    each = np.ptp(smooth, axis=0)
    widest = np.concatenate(
        [np.full(part.size, each[of].max()) for part, of in zip(parts, slices(parts).values(), strict=True)]
    )
    beyond = np.abs(values - smooth) > np.maximum(1.5 * widest, 1e-4)
    names, kinds = number_names(parts), _of_each(parts)
    return [
        Mark("spikes", Place(episode, stretch, names[i]), float(values[stretch[0], i]))
        for i in np.flatnonzero(beyond.any(axis=0)).tolist()
        if not is_gripper(kinds[i]) and not kinds[i].shares and kinds[i].kind != "rotation"
        for stretch in runs(beyond[:, i])
    ]


def quaternions(episode: str, state: np.ndarray, parts: Sequence[Part]) -> list[Mark]:
    """Quaternions whose length differs from 1 by more than a hundredth, and where they change sign.

    Two steps are never half a turn apart, so a negative product of successive ones is a change of sign.
    """
    marks = []
    for part, where in zip(parts, slices(parts).values(), strict=True):
        if part.kind != "rotation" or part.size != 4:
            continue
        q = state[:, where]
        length = np.linalg.norm(q, axis=1)
        for stretch in runs(np.abs(length - 1) > 0.01):
            worst = length[stretch[0] : stretch[1] + 1]
            marks.append(
                Mark("quaternion-norm", Place(episode, stretch, part.name), float(worst[np.abs(worst - 1).argmax()]))
            )
        flips = np.flatnonzero((q[1:] * q[:-1]).sum(1) < 0) + 1
        marks += [Mark("quaternion-flips", Place(episode, (i, i), part.name)) for i in flips.tolist()]
    return marks


def held(values: np.ndarray) -> np.ndarray:
    """Which numbers of (T, D) are sampled more slowly than they are recorded: steps between changes, 0 for others.

    At least seven changes, hardly ever (one in ten) one right after the other, and half of them after the usual number
    of steps or one more or less: a finger at rest changes rarely, too, but not regularly.
    """
    found = np.zeros(values.shape[1], int)
    for i, changes in enumerate((np.diff(values, axis=0) != 0).T):
        between = np.diff(np.flatnonzero(changes))
        if len(between) < 6 or (between == 1).mean() > 0.1:
            continue
        usual = int(np.bincount(between).argmax())
        if (np.abs(between - usual) <= 1).mean() >= 0.5:
            found[i] = usual
    return found


def leaps(episode: str, moving: np.ndarray) -> list[Mark]:
    """Steps where the state moves six times as far as in any of the three steps before and after.

    Motors have inertia: a true motion speeds up over several steps, and a lost stretch does not. Less than a twentieth
    of the range is left to noise, and what is sampled more slowly leaps anyway.
    """
    moving = moving[:, held(moving) == 0]
    step = np.abs(np.diff(moving, axis=0)).max(axis=1, initial=0)
    if len(step) < 2 * NEIGHBOURS:
        return []
    padded = np.pad(step, NEIGHBOURS, mode="reflect")
    around = [padded[i : i + len(step)] for i in range(2 * NEIGHBOURS + 1) if i != NEIGHBOURS]
    far = (step > 6 * np.max(around, axis=0)) & (step > 0.05) & (step > 3 * np.median(step))
    return [Mark("missing-steps", Place(episode, (i, i + 1)), float(step[i])) for i in np.flatnonzero(far).tolist()]


IDLE_S = 1.0
IDLE_STEPS = 15
"""Where no rate is recorded."""


def idle(episode: str, moving: np.ndarray, fps: float | None) -> list[Mark]:
    """A stretch at start or end in which nothing leaves its place by more than a fiftieth of its range.

    Reported from one second that is also a tenth of the episode: less is a demonstrator's reaction.
    """
    least = max(round(IDLE_S * fps) if fps else IDLE_STEPS, len(moving) // 10)
    marks = []
    for check, values in (("idle-start", moving), ("idle-end", moving[::-1])):
        away = (np.abs(values - values[0]) > 0.02).any(axis=1)
        count = int(away.argmax()) if away.any() else len(moving)
        if least <= count < len(moving):
            steps = (0, count - 1) if check == "idle-start" else (len(moving) - count, len(moving) - 1)
            marks.append(Mark(check, Place(episode, steps), count))
    return marks


def times(episode: str, stamps: np.ndarray) -> list[Mark]:
    """Steps between which half as much or half more time passes than usual, or none at all."""
    steps = np.diff(stamps)
    if not len(steps):
        return []
    usual = float(np.median(steps))
    odd = ~(np.abs(steps - usual) < 0.5 * abs(usual))
    return [Mark("time-jumps", Place(episode, (i, i + 1)), float(steps[i])) for i in np.flatnonzero(odd).tolist()]


def correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's correlation of x (T,) with y (T,) that is k steps later, for k from -K to K; NaN where one is still."""
    found = np.full(2 * MOST_SHIFT + 1, np.nan)
    for i, k in enumerate(range(-MOST_SHIFT, MOST_SHIFT + 1)):
        a, b = (x[: len(x) - k], y[k:]) if k >= 0 else (x[-k:], y[: len(y) + k])
        if len(a) >= 3 * MOST_SHIFT // 2 and a.std() > 1e-9 and b.std() > 1e-9:
            found[i] = np.corrcoef(a, b)[0, 1]
    return found


def counterpart(part: Part, schema: Schema) -> str | None:
    """The part of the state that a part of the action moves: positions of a hand, joints of as many joints."""
    alike = [one.name for one in schema.state if one.kind == part.kind and one.size == part.size]
    named = [name for name in alike if "eef" in name or name in (part.name, "state")]
    if part.kind not in ("position", "joint") or not alike:
        return None
    arm = part.name.partition("_")[0]  # robot0_position goes with robot0_eef_pos, where there are several arms
    return next((name for name in named if name.startswith(arm)), (named or alike)[0])


def gain(state: np.ndarray, action: np.ndarray, schema: Schema) -> float | None:
    """How large the first part of the action with a counterpart is, as a multiple of the motion; None unknown."""
    of_state, of_action = slices(schema.state), slices(schema.action)
    for part in schema.action:
        if (name := counterpart(part, schema)) is None or len(state) < 3:
            continue
        values, moved = action[:, of_action[part.name]], state[:, of_state[name]]
        if part.shares:
            sizes = [np.abs(x) for x in (values, np.diff(moved, axis=0))]
        else:
            sizes = [np.abs(x - np.median(x, axis=0)) for x in (values, moved)]
        own, caused = (float(np.quantile(x.max(axis=1), 0.8)) for x in sizes)  # which no spike changes
        return own / caused if min(own, caused) > 0 else None
    return None


def responses(state: np.ndarray, action: np.ndarray, schema: Schema) -> dict[str, np.ndarray]:
    """How the state's change goes with each part of the action that has a counterpart in the state, (2, 2K + 1).

    First with the action itself, which suits steps, then with its change, which suits targets; mean over the numbers
    that move.
    """
    found, of_state, of_action = {}, slices(schema.state), slices(schema.action)
    for part in schema.action:
        name = counterpart(part, schema)
        if name is None or len(state) < 3 * MOST_SHIFT:
            continue
        values, moved = action[:, of_action[part.name]], state[:, of_state[name]]
        steps, ranges = np.diff(moved, axis=0), np.ptp(moved, axis=0)
        active = np.flatnonzero(ranges > 0.1 * ranges.max(initial=0))
        if not len(active):
            continue
        curves = np.array(
            [
                [np.abs(correlations(x[:, i], steps[:, i])) for i in active]
                for x in (values[:-1], np.diff(values, axis=0))
            ]
        )  # (2, n, 2K + 1)
        kept = ~np.isnan(curves).any(axis=(0, 2))
        if kept.any():
            found[part.name] = curves[:, kept].mean(axis=1)
    return found


def grippers(state: np.ndarray, action: np.ndarray, schema: Schema) -> dict[str, tuple[float, float, float]]:
    """Of each number that commands a gripper: lowest, highest, and how the fingers' opening goes with it, NaN unknown.

    The opening is taken a quarter of a second later: fingers take their time.
    """
    found, where = {}, slices(schema.state)
    fingers = [part for part in schema.state if is_gripper(part) and "vel" not in part.name]
    opening = np.abs(state[:, where[fingers[0].name]]).sum(axis=1) if len(fingers) == 1 else None
    names, later = number_names(schema.action), max(2, round(0.25 * (schema.fps or 20)))
    for i, part in enumerate(_of_each(schema.action)):
        if not is_gripper(part):
            continue
        command, together = action[:, i], float("nan")
        if opening is not None and len(command) > 2 * later:
            a, b = command[:-later], opening[later:]
            if a.std() > 1e-6 and b.std() > 1e-6:
                together = float(np.corrcoef(a, b)[0, 1])
        found[names[i]] = float(command.min()), float(command.max()), together
    return found
