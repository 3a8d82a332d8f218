"""What a check finds: what, where, how bad; and of each check why that matters and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from prism_policy.utils.text import one_line

Severity = Literal["error", "warning", "note"]
"""`error`: training fails or learns something wrong; `warning`: it learns less than it could; `note`: good to know."""
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Place:
    """Where something was found."""

    episode: str = ""
    """Name of the episode; "" is the dataset."""
    steps: tuple[int, int] | None = None
    """First and last step, from 0; None is all of them."""
    part: str = ""
    """A camera, or a number of state or action."""

    def __str__(self) -> str:
        steps = ""
        if self.steps is not None:
            first, last = self.steps
            steps = f"step {first}" if first == last else f"steps {first} to {last}"
        return ", ".join(text for text in (one_line(self.episode, 60), steps, one_line(self.part, 40)) if text)


@dataclass(frozen=True)
class Mark:
    """A fault at one place of one episode; `amount` is what the check measures there."""

    check: str
    place: Place
    amount: float = 0.0


@dataclass(frozen=True)
class Advice:
    """What is known of a check beforehand."""

    severity: Severity
    title: str
    why: str
    do: str


@dataclass(frozen=True)
class Finding:
    """One fault, wherever it occurs."""

    check: str
    """Name of the check, a key of `ADVICE`."""
    severity: Severity
    what: str
    why: str
    do: str
    where: tuple[Place, ...] = ()

    @property
    def title(self) -> str:
        """The check in a few words."""
        return ADVICE[self.check].title

    def as_json(self) -> dict[str, Any]:
        """Plain values, with the title."""
        return {"title": self.title, **asdict(self)}


def finding(check: str, what: str, where: Iterable[Place] = (), severity: Severity | None = None) -> Finding:
    """A finding of a check, as bad as the check says by default."""
    advice = ADVICE[check]
    return Finding(check, severity or advice.severity, what, advice.why, advice.do, tuple(where))


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Errors, then warnings, then notes; within each in the order of `ADVICE`."""
    order = list(ADVICE)
    return sorted(findings, key=lambda one: (SEVERITIES.index(one.severity), order.index(one.check)))


def runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """First and last index of each stretch of True in (T,)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(a), int(b) - 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def numbered(count: int, what: str, of: int | None = None) -> str:
    """`3 of 10 episodes`, `1 episode`."""
    if of is not None:
        return f"{count} of {of} {what}{'s' * (of != 1)}"
    return f"{count} {what}{'s' * (count != 1)}"


def spread(values: Sequence[float], unit: str = "") -> str:
    """`3 to 7 steps`, or the one value."""
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return (low if low == high else f"{low} to {high}") + unit


ADVICE: dict[str, Advice] = {
    "served-otherwise": Advice(
        "error",
        "The server shows the policy other images than training did",
        "A policy knows only what training showed it; a pixel's shift is enough to make it worse.",
        "Train again with this version, or restore config.json and data.json of the run: data.resize and data.crop.",
    ),
    "other-demonstrations": Advice(
        "warning",
        "The run learned from other demonstrations",
        "What is said of its policy below is measured on these and not on its own.",
        "Name the demonstrations that it learned from, or train again.",
    ),
    "cannot-overfit": Advice(
        "error",
        "A fresh policy cannot learn ten windows by heart",
        "What cannot learn ten windows learns nothing: settings or data are broken, not the amount of data.",
        "Look at the learning rate (train.lr), the scale of state and actions above, and whether images and actions "
        "belong together.",
    ),
    "no-better-than-still": Advice(
        "error",
        "No better than holding still",
        "The policy's actions are as far from the demonstrated ones as none at all.",
        "Train longer and look at the loss; if it is low, the episodes that are held out are unlike the others.",
    ),
    "no-better-than-repeating": Advice(
        "warning",
        "No better than repeating the last action",
        "It has learned where actions usually go on, but not what the images ask for.",
        "Train longer, with more demonstrations; if actions come after the motion (see above), repair that first.",
    ),
    "encoder-blind": Advice(
        "warning",
        "The encoder does not see where things are",
        "A linear map of its numbers says little more about the positions than their mean does, so the policy acts on "
        "the state alone.",
        "Larger images (data.resize) or a crop around the workspace (data.crop), another camera, an encoder that keeps "
        "positions (--encoder prism); `prism saliency` shows what it looks at.",
    ),
    "unusable-episode": Advice(
        "error",
        "Episodes that cannot be read",
        "Training stops at the first one.",
        "Repair the episode as the sentence says, or take it out of the dataset.",
    ),
    "not-finite": Advice(
        "error",
        "NaN or infinity",
        "One such number makes the loss NaN, and every weight after it.",
        "Repair the steps (interpolate a sensor's dropouts), or take the episode out.",
    ),
    "masks-share": Advice(
        "error",
        "Held-out episodes are learned",
        "The held-out error then says nothing about new situations: it is too good.",
        "Write the masks anew, each episode in one of them.",
    ),
    "unusable-masks": Advice(
        "error",
        "Masks that training refuses",
        "Which episodes are learned and which are held out is not known.",
        "Write the masks anew (`prism_policy.data.robomimic.write_masks`), or take them out of the file.",
    ),
    "swapped-cameras": Advice(
        "error",
        "Cameras are swapped",
        "Each camera has an encoder of its own; here it is shown another camera's view.",
        "Exchange the two cameras' images in these episodes, or leave the episodes out. Cameras that are opened by "
        "number change places after a reboot: open them by serial number.",
    ),
    "black-frames": Advice(
        "error",
        "Black or blank frames",
        "The policy sees nothing there and learns to act blindly.",
        "Cut these steps, or leave the episodes out; check the camera's cable, exposure and warm-up.",
    ),
    "frozen-frames": Advice(
        "error",
        "Frozen frames",
        "The robot moves while the image stands still, so the policy learns actions that the image does not explain.",
        "Leave these episodes out, or cut the steps; the camera's driver or network stalled.",
    ),
    "duplicated-frames": Advice(
        "warning",
        "Duplicated frames",
        "The camera is slower than the recording: many images are as old as the frame before, the state is not.",
        "Record at the camera's own rate, or keep every second step of images, state and actions alike.",
    ),
    "camera-delay": Advice(
        "warning",
        "A camera is out of step with the state",
        "The policy sees the past of one and the present of the other; on the robot the delay may be another.",
        "Shift the images by the delay when you convert the recording, or take each image's own time stamp.",
    ),
    "time-jumps": Advice(
        "warning",
        "Time stamps jump",
        "Steps are missing: the policy learns that things leap, and its actions come at another rate than learned.",
        "Split the episode at the jump, or leave it out; find what blocked the recorder (often writing to disk).",
    ),
    "missing-steps": Advice(
        "warning",
        "The state leaps",
        "Steps were lost or two recordings joined; a chunk across the leap asks for a motion that no robot makes.",
        "Split the episode there, or leave it out.",
    ),
    "wrong-rate": Advice(
        "warning",
        "Time stamps are of another rate than recorded",
        "The policy's actions are executed at the recorded rate: the robot is then faster or slower than it was shown.",
        "Correct the rate (fps, control_freq) in the dataset's metadata.",
    ),
    "action-range": Advice(
        "warning",
        "Actions leave the controller's range",
        "The controller clips them, so they are clipped here, too: what was recorded is not what was executed.",
        "If only a few steps are: nothing. If many: record what was executed, or scale the device's sensitivity down.",
    ),
    "action-late": Advice(
        "error",
        "Actions come after the motion",
        "The action of a step describes what the robot did already, so the policy learns to repeat the past and "
        "hardly moves when it starts from rest.",
        "Pair each frame with the action that was sent after it: shift the actions earlier by this many steps.",
    ),
    "action-early": Advice(
        "warning",
        "Actions come long before the motion",
        "The robot reacts later than controllers do; frames are delayed, or actions are paired with too early frames.",
        "Shift the actions later by about this many steps, unless your robot really is that slow.",
    ),
    "spikes": Advice(
        "warning",
        "Single numbers leap out and back",
        "Numbers are scaled by their lowest and highest: one outlier squeezes all others into a corner of the range.",
        "Repair these steps, or train with --data.clip-quantile 0.001.",
    ),
    "gripper-mixed": Advice(
        "error",
        "Two conventions of the gripper",
        "The same number means another thing in other episodes, so the policy learns neither.",
        "Bring all episodes to one convention (2 x - 1 makes -1 and 1 of 0 and 1).",
    ),
    "gripper-inverted": Advice(
        "error",
        "The gripper's command is inverted",
        "Where the others close it opens: the policy will do either at random, or the wrong one in the simulator.",
        "Negate the gripper's command in these episodes.",
    ),
    "gripper-zero-one": Advice(
        "warning",
        "Gripper commands are 0 and 1",
        "robosuite opens at -1 and closes at 1; at 0 it holds still, so nothing would ever open.",
        "Write 2 x - 1 in place of each command x.",
    ),
    "gripper-still": Advice(
        "warning",
        "The gripper never moves",
        "The policy cannot learn to grasp from these.",
        "If the task needs a grasp, check which channel the gripper's command was recorded from; else leave the part "
        "out (--data.action).",
    ),
    "quaternion-norm": Advice(
        "error",
        "Quaternions that are no rotations",
        "A quaternion has the length 1; others are another quantity, another order of columns, or filtered badly.",
        "Divide by the length; where it is near 0 or changes much, look at which columns the quaternion was read from.",
    ),
    "quaternion-flips": Advice(
        "warning",
        "Quaternions change sign",
        "q and -q are one rotation but two inputs: the policy sees a leap where nothing moved.",
        "Make each quaternion's product with the one before positive, and with the first episode's start.",
    ),
    "duplicate-episodes": Advice(
        "warning",
        "The same episode twice",
        "It counts twice, and if one of them is held out, the held-out error is too good.",
        "Keep one of them.",
    ),
    "idle-start": Advice(
        "warning",
        "Idle at the start",
        "The policy learns to stand still where it starts, and often never begins.",
        "Cut these steps from the beginning, all but a few.",
    ),
    "idle-end": Advice(
        "warning",
        "Idle at the end",
        "Many steps teach only to stand still; they weigh as much as those that do the task.",
        "Cut these steps from the end, all but half a second.",
    ),
    "odd-length": Advice(
        "warning",
        "Episodes of another length",
        "Much longer ones are often failed attempts or forgotten recorders, much shorter ones cut off.",
        "Look at them (prism info DATA draws frames) and leave out those that do not show the task.",
    ),
    "odd-start": Advice(
        "warning",
        "Episodes that start elsewhere",
        "One start far from all others cannot be learned from a single example, and widens every scale.",
        "Leave them out, or add more that start there.",
    ),
    "odd-images": Advice(
        "warning",
        "Episodes that look different",
        "Light, exposure or the camera's place differ from all others; from so few the policy learns no invariance.",
        "Look at them; leave them out, or record more like them on purpose.",
    ),
    "odd-actions": Advice(
        "error",
        "Episodes whose actions have another scale",
        "Other units (mm against m, degrees against radians) or another sensitivity; all others are squeezed.",
        "Convert the actions to the units of the others, or leave the episodes out.",
    ),
    "few-episodes": Advice(
        "warning",
        "Few demonstrations for how much the starts differ",
        "Between starts that were never shown the policy guesses.",
        "Record more demonstrations, or vary the start less.",
    ),
    "slow-numbers": Advice(
        "note",
        "Numbers that are sampled more slowly than recorded",
        "Between samples the policy sees old values: up to that many steps late, and then a leap.",
        "Nothing if the robot will report them as slowly; else read the sensor at the recording's rate.",
    ),
    "constant-numbers": Advice(
        "note",
        "Numbers that never change",
        "They carry nothing; constant ones are passed through and do no harm.",
        "Nothing, or leave the part out (--data.state, --data.action).",
    ),
    "small-motion": Advice(
        "note",
        "Numbers that hardly move",
        "Each number is scaled to its own range, which makes their noise as loud as the others' motion.",
        "If the limb takes no part in the task, leave it out of state and action (--data.state, --data.action) where "
        "it is a part of its own.",
    ),
    "unknown-rate": Advice(
        "note",
        "No rate is recorded",
        "A policy's actions have to be executed at the rate of the demonstrations; nobody can tell which it is.",
        "Write it into the dataset (`control_freq` in env_args, fps in meta/info.json).",
    ),
    "reader": Advice("note", "What the reader says", "It decides what is learned from.", "As the sentence says."),
}
"""Every check, roughly the worst first."""
