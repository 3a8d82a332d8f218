"""Every planted fault is found and named, where it is, and nothing else; a clean recording has none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from made_recording import CAMERAS, SCHEMA, MadeSource, clean, picture
from prism_policy.data.episode import Episode
from prism_policy.doctor.dataset import examine
from prism_policy.doctor.finding import ADVICE, Finding

Episodes = list[Episode]
Plant = Callable[[Episodes], object]
"""Changes the episodes in place, or returns a source of its own."""


@cache
def originals() -> tuple[Episode, ...]:
    return tuple(clean())


def found(planted: object) -> list[Finding]:
    source = planted if isinstance(planted, MadeSource) else MadeSource(planted)  # type: ignore[arg-type]
    return examine(source).findings


def test_a_clean_recording_has_no_fault() -> None:
    assert found(list(originals())) == []


def images(one: Episode, camera: str, change: Callable[[np.ndarray], np.ndarray]) -> Episode:
    return replace(one, images={**one.images, camera: change(one.images[camera].copy())})


def numbers(one: Episode, name: str, change: Callable[[np.ndarray], np.ndarray]) -> Episode:
    return replace(one, **{name: change(getattr(one, name).copy()).astype(np.float32)})


def rows(one: Episode, index: np.ndarray) -> Episode:
    """These steps of an episode, with times as if nothing were missing or repeated."""
    pictures = {camera: x[index] for camera, x in one.images.items()}
    kept = {"state": one.state[index], "actions": one.actions[index], "disturbed": one.disturbed[index]}
    return replace(one, images=pictures, sim_states=one.sim_states[index], times=np.arange(len(index)) / 20, **kept)


def put(where: object, value: object) -> Callable[[np.ndarray], np.ndarray]:
    def change(x: np.ndarray) -> np.ndarray:
        x[where] = value  # type: ignore[call-overload]
        return x

    return change


def time_jump(e: Episodes) -> None:
    e[3] = replace(e[3], times=e[3].times + 0.4 * (np.arange(len(e[3])) > 20))


def wrong_rate(e: Episodes) -> None:
    e[:] = [replace(one, times=one.times * 2) for one in e]


def frozen(e: Episodes) -> None:
    e[4] = images(e[4], "wrist", lambda x: put(slice(31, 43), x[30])(x))


def dead(e: Episodes) -> None:
    e[4] = images(e[4], "wrist", lambda x: put(slice(None), x[0])(x))


def duplicated(e: Episodes) -> None:
    e[:] = [images(one, "front", lambda x: x[np.arange(len(x)) // 2 * 2]) for one in e]


def black(e: Episodes) -> None:
    e[2] = images(e[2], "front", put(slice(0, 4), 0))


def green(e: Episodes) -> None:
    e[2] = images(e[2], "front", put(slice(10, 12), np.array([0, 135, 0])))


def swapped(e: Episodes) -> None:
    e[6] = replace(e[6], images={"front": e[6].images["wrist"], "wrist": e[6].images["front"]})


def camera_delay(e: Episodes) -> None:
    e[:] = [images(one, "wrist", lambda x: x[np.maximum(np.arange(len(x)) - 4, 0)]) for one in e]


def idle(one: Episode, first: int, last: int) -> Episode:
    index = np.concatenate([np.zeros(first, int), np.arange(len(one)), np.full(last, len(one) - 1)])
    still = rows(one, index)
    stands = (np.arange(len(index)) < first) | (np.arange(len(index)) >= len(index) - last)
    return numbers(still, "actions", put((stands, slice(0, 6)), 0))


def idle_start(e: Episodes) -> None:
    e[5] = idle(e[5], 30, 0)


def idle_end(e: Episodes) -> None:
    e[5] = idle(e[5], 0, 30)


def beyond(e: Episodes) -> None:
    e[7] = replace(e[7], clipped=20)


def late(e: Episodes) -> None:
    e[:] = [numbers(one, "actions", lambda x: x[np.maximum(np.arange(len(x)) - 2, 0)]) for one in e]


def early(e: Episodes) -> None:
    moved = [*range(6)]

    def change(x: np.ndarray) -> np.ndarray:
        x[:, moved] = x[np.minimum(np.arange(len(x)) + 10, len(x) - 1)][:, moved]
        return x

    e[:] = [numbers(one, "actions", change) for one in e]


def gripper_zero_one(e: Episodes) -> None:
    e[:] = [numbers(one, "actions", lambda x: put((slice(None), 6), (x[:, 6] + 1) / 2)(x)) for one in e]


def gripper_mixed(e: Episodes) -> None:
    for i in (1, 8):
        e[i] = numbers(e[i], "actions", lambda x: put((slice(None), 6), (x[:, 6] + 1) / 2)(x))


def gripper_inverted(e: Episodes) -> None:
    e[9] = numbers(e[9], "actions", lambda x: put((slice(None), 6), -x[:, 6])(x))


def gripper_inverted_everywhere(e: Episodes) -> None:
    e[:] = [numbers(one, "actions", lambda x: put((slice(None), 6), -x[:, 6])(x)) for one in e]


def gripper_still(e: Episodes) -> None:
    e[:] = [numbers(one, "actions", put((slice(None), 6), -1)) for one in e]


def constant(e: Episodes) -> None:
    e[:] = [numbers(one, "actions", put((slice(None), 4), 0.25)) for one in e]


def small_motion(e: Episodes) -> None:
    e[:] = [numbers(one, "state", lambda x: put((slice(None), 1), 0.2 + 0.01 * x[:, 1])(x)) for one in e]


def slow_sensor(e: Episodes) -> None:
    e[:] = [
        numbers(one, "state", lambda x: put((slice(None), slice(0, 3)), x[np.arange(len(x)) // 4 * 4, :3])(x))
        for one in e
    ]


def quaternion_flip(e: Episodes) -> None:
    e[0] = numbers(e[0], "state", lambda x: put((slice(33, None), slice(3, 7)), -x[33:, 3:7])(x))


def quaternion_start(e: Episodes) -> None:
    e[8] = numbers(e[8], "state", lambda x: put((slice(None), slice(3, 7)), -x[:, 3:7])(x))


def quaternion_norm(e: Episodes) -> None:
    e[2] = numbers(e[2], "state", lambda x: put((slice(5, 15), slice(3, 7)), 0.8 * x[5:15, 3:7])(x))


def long_episode(e: Episodes) -> None:
    there_and_back = np.concatenate([np.arange(len(e[1])), np.arange(len(e[1]))[::-1]])
    one = rows(e[1], np.concatenate([there_and_back, there_and_back]))
    signs = np.sign(np.gradient(np.concatenate([there_and_back, there_and_back]).astype(float)))
    moves = slice(0, 6)
    e[1] = numbers(one, "actions", lambda x: put((slice(None), moves), x[:, moves] * signs[:, None])(x))


def odd_start(e: Episodes) -> None:
    def change(x: np.ndarray) -> np.ndarray:
        x[:, :3] += [1.5, 0, 0]
        return x

    e[3] = numbers(e[3], "state", change)


def odd_light(e: Episodes) -> None:
    e[10] = images(e[10], "front", lambda x: (x.astype(np.float32) * 0.5 + 120).clip(0, 255).astype(np.uint8))


def odd_units(e: Episodes) -> None:
    e[4] = numbers(e[4], "actions", lambda x: put((slice(None), slice(0, 6)), 0.1 * x[:, :6])(x))


def few(e: Episodes) -> None:
    del e[3:]


def not_a_number(e: Episodes) -> None:
    e[6] = numbers(e[6], "state", put((12, 1), np.nan))


def infinite(e: Episodes) -> None:
    e[6] = numbers(e[6], "actions", put((slice(12, 14), 1), np.inf))


def twice(e: Episodes) -> None:
    e.append(replace(e[3], name="demo_99"))


def shared(e: Episodes) -> MadeSource:
    names = tuple(one.name for one in e)
    return MadeSource(e, masks={"train": names[:10], "valid": names[9:]})


def missing_steps(e: Episodes) -> None:
    e[7] = rows(e[7], np.r_[0:30, 44 : len(e[7])])


def unreadable(e: Episodes) -> MadeSource:
    return MadeSource([*e[:4], ValueError("broken video"), *e[4:]])


def spike(e: Episodes) -> None:
    e[5] = numbers(e[5], "state", put((25, 2), 9.0))


def no_rate(e: Episodes) -> MadeSource:
    return MadeSource([replace(one, times=None) for one in e], replace(SCHEMA, fps=None))


PLANTED: dict[str, tuple[Plant, str, str]] = {
    "a gap in the time stamps": (time_jump, "time-jumps", "demo_3, steps 20 to 21"),
    "time stamps of half the rate": (wrong_rate, "wrong-rate", "demo_0"),
    "a frozen camera": (frozen, "frozen-frames", "demo_4, steps 30 to 42, wrist"),
    "a camera that never changes": (dead, "frozen-frames", "demo_4, steps 0 to "),
    "a camera of half the rate": (duplicated, "duplicated-frames", "demo_0, front"),
    "black frames": (black, "black-frames", "demo_2, steps 0 to 3, front"),
    "frames of one colour": (green, "black-frames", "demo_2, steps 10 to 11, front"),
    "swapped cameras": (swapped, "swapped-cameras", "demo_6, front"),
    "a camera that is late": (camera_delay, "camera-delay", ""),
    "an idle start": (idle_start, "idle-start", "demo_5, steps 0 to 3"),
    "an idle end": (idle_end, "idle-end", "demo_5"),
    "actions beyond the range": (beyond, "action-range", "demo_7"),
    "actions that are late": (late, "action-late", ""),
    "actions that are early": (early, "action-early", ""),
    "a gripper of 0 and 1": (gripper_zero_one, "gripper-zero-one", ""),
    "two grippers' conventions": (gripper_mixed, "gripper-mixed", "demo_1"),
    "an inverted gripper": (gripper_inverted, "gripper-inverted", "demo_9"),
    "a gripper inverted everywhere": (gripper_inverted_everywhere, "gripper-inverted", ""),
    "a gripper that never moves": (gripper_still, "gripper-still", ""),
    "a constant number": (constant, "constant-numbers", ""),
    "a number that hardly moves": (small_motion, "small-motion", ""),
    "a sensor that is slower": (slow_sensor, "slow-numbers", ""),
    "a quaternion's flip": (quaternion_flip, "quaternion-flips", "demo_0, step 33, robot0_eef_quat"),
    "a start with the other sign": (quaternion_start, "quaternion-flips", "demo_8, step 0, robot0_eef_quat"),
    "quaternions of another length": (quaternion_norm, "quaternion-norm", "demo_2, steps 5 to 14, robot0_eef_quat"),
    "a long episode": (long_episode, "odd-length", "demo_1"),
    "a start elsewhere": (odd_start, "odd-start", "demo_3, step 0"),
    "another light": (odd_light, "odd-images", "demo_10, front"),
    "actions in other units": (odd_units, "odd-actions", "demo_4"),
    "few episodes": (few, "few-episodes", ""),
    "NaN": (not_a_number, "not-finite", "demo_6, step 12, state"),
    "infinity": (infinite, "not-finite", "demo_6, steps 12 to 13, action"),
    "an episode twice": (twice, "duplicate-episodes", "demo_99, as demo_3"),
    "masks that share": (shared, "masks-share", "demo_9"),
    "missing steps": (missing_steps, "missing-steps", "demo_7, steps 29 to 30"),
    "an unreadable episode": (unreadable, "unusable-episode", "broken_4"),
    "a spike": (spike, "spikes", "demo_5, step 25, robot0_eef_pos.z"),
    "no rate": (no_rate, "unknown-rate", ""),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found_where_it_is_and_nothing_else(name: str) -> None:
    plant, check, place = PLANTED[name]
    episodes = list(originals())
    findings = found(plant(episodes) or episodes)
    assert [one.check for one in findings] == [check], [(one.check, one.what) for one in findings]
    (one,) = findings
    assert place == "" or str(one.where[0]).startswith(place), one.where
    assert one.severity == ADVICE[check].severity
    assert one.what[-1] not in ".:"


def waiting(e: Episodes) -> None:
    """The hand leaves the picture for a while, and comes back as slowly."""

    def hidden(x: np.ndarray) -> np.ndarray:
        ground = picture("front", np.full((1, 3), 9.0), np.ones(1))
        share = np.clip(np.abs(np.arange(len(x)) - 35) / 8 - 1, 0, 1)[:, None, None, None]
        return (x * share + ground * (1 - share)).astype(np.uint8)

    e[4] = images(e[4], "front", hidden)


def video(e: Episodes) -> None:
    """What a codec does: a little noise in every frame."""
    rng = np.random.default_rng(0)
    e[:] = [
        images(one, "front", lambda x: (x + rng.integers(0, 3, x.shape)).clip(0, 255).astype(np.uint8)) for one in e
    ]


def one_goes_slowly(e: Episodes) -> None:
    """Smaller actions for smaller motion are no other units."""
    place = np.arange(0, len(e[3]) - 1, 0.6)
    one = rows(e[3], place.astype(int))
    state = np.stack([np.interp(place, np.arange(len(e[3])), x) for x in e[3].state.T], axis=1)
    slower = put((slice(None), slice(0, 6)), 0.6 * one.actions[:, :6])(one.actions.copy())
    pictures = {camera: picture(camera, state[:, :3], state[:, 7] / 0.04) for camera in CAMERAS}
    e[3] = replace(one, actions=slower, state=state.astype(np.float32), images=pictures)


def sensors(e: Episodes) -> None:
    """Noise of a thousandth of the range."""
    rng = np.random.default_rng(0)
    e[:] = [numbers(one, "state", lambda x: x + rng.normal(0, 3e-4, x.shape)) for one in e]


@pytest.mark.parametrize("change", [waiting, video, one_goes_slowly, sensors])
def test_what_is_usual_is_no_fault(change: Plant) -> None:
    change(episodes := list(originals()))
    assert [(one.check, one.what) for one in found(episodes)] == []


def test_a_recording_is_read_in_one_pass_and_counted() -> None:
    episodes, counts = list(originals()), list[tuple[int, int]]()
    examination = examine(MadeSource(episodes), lambda *done: counts.append(done))
    assert counts == [(i + 1, 12) for i in range(12)]
    assert (examination.episodes, examination.steps) == (12, sum(map(len, episodes)))


def test_a_recording_of_numbers_alone_can_be_checked() -> None:
    bare = [replace(one, images={}, state=one.state[:, :0]) for one in originals()]
    assert found(MadeSource(bare, replace(SCHEMA, cameras={}, state=()))) == []
