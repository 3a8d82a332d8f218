"""Recorded demonstrations run again here, from their actions and from their states, and shown on a contact sheet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from prism_policy.config.settings import TaskConfig
from prism_policy.data import hdf5
from prism_policy.data.episode import observations, read_actions, states_of
from prism_policy.data.robomimic import open_demos
from prism_policy.envs.make import kept_env
from prism_policy.envs.workers import WorkerPool
from prism_policy.utils.files import atomic
from prism_policy.utils.video import FAILURE_COLOUR, SUCCESS_COLOUR

COLUMNS, CELL, MARGIN = 8, 120, 4
"""Moments of a demonstration on the sheet, and the size of one frame and the gap between rows [px]."""


@dataclass(frozen=True)
class Replay:
    """How a demonstration went here."""

    demo: str
    steps: int
    actions_succeed: bool
    """Whether its actions, executed from its first state without looking, reach success by robosuite's rule."""
    states_succeed: bool
    """Whether one of its states, or the last action from the last state, is a success by that rule."""
    deviation_mm: float  # largest distance of the hand between that execution and the recorded states [mm]
    frames: np.ndarray = field(repr=False)
    """uint8 (C, K, H, W, 3): K moments in time seen by C cameras, drawn from the recorded states."""


def replay_demos(
    path: Path, names: Sequence[str], task: TaskConfig, progress: Callable[[int, int], None] | None = None
) -> list[Replay]:
    """Replay demonstrations of a file with states, each in a simulator process.

    `task` is as they were recorded, from `RecordedEnv.task_config`; its cameras draw the frames.
    """
    with WorkerPool(None) as pool:
        futures = [pool.submit(_replay, task, path, name) for name in names]
        for done, _ in enumerate(as_completed(futures), start=1):
            if progress:
                progress(done, len(names))
        return [future.result() for future in futures]


def _replay(task: TaskConfig, path: Path, name: str) -> Replay:
    env = kept_env(task, render_images=False)
    with open_demos(path) as file:
        demo = file["data"][name]
        actions, model = read_actions(demo), hdf5.text(demo, "model_file")
        states = env.whole_states(states_of(demo), model, f"{path}, {name}")

    def hand(state: np.ndarray) -> np.ndarray:
        return np.asarray(env.observe(state)["state"][:3], np.float64)

    env.reset(options={"state": states[0]})
    outcomes = [env.advance(action) for action in actions]
    pairs = zip(env.states, states, strict=False)  # what the last action led to is not recorded
    deviation = max(float(np.linalg.norm(hand(ours) - hand(theirs))) for ours, theirs in pairs)

    def succeeds(state: np.ndarray) -> bool:
        env.set_state(state)
        return bool(env.success)

    env.reset(options={"state": states[-1]})
    states_succeed = bool(env.advance(actions[-1])) or any(succeeds(state) for state in states[::-1])

    moments = states[_moments(len(states))]
    frames = np.stack([[env.render(camera, CELL, state) for state in moments] for camera in task.cameras])
    return Replay(name, len(actions), any(outcomes), states_succeed, 1000 * deviation, frames)


def _moments(steps: int) -> np.ndarray:
    return np.linspace(0, steps - 1, COLUMNS).round().astype(int)


def recorded_frames(path: Path, name: str) -> np.ndarray:
    """Frames of a demonstration as the file holds them: uint8 (C, K, H, W, 3), its cameras in the file's order."""
    with open_demos(path) as file:
        demo = file["data"][name]
        with hdf5.read_errors(f"{path}, {name}: images"):
            images = [demo[f"obs/{key}"] for key, shape in observations(demo).values() if len(shape) == 3]
            return contact_frames(images)


def contact_frames(images: Sequence[Any]) -> np.ndarray:
    """Some frames of each camera's images (T, H, W, 3), for a contact sheet: uint8 (C, K, CELL, CELL, 3)."""
    rows = []
    for camera in images:
        frames = [Image.fromarray(camera[i]) for i in _moments(len(camera))]
        rows.append([np.asarray(ImageOps.pad(frame, (CELL, CELL))) for frame in frames])
    return np.asarray(rows)


def write_contact_sheet(path: Path, rows: Sequence[tuple[str, bool | None, np.ndarray]]) -> None:
    """Write a PNG with a demonstration a row, time running to the right, the cameras below one another.

    A row is text, success (none where unknown, which leaves the text grey) and frames (C, K, H, W, 3).
    """
    height = sum(CELL * len(frames) + 20 + MARGIN for _, _, frames in rows)
    sheet = Image.new("RGB", (CELL * COLUMNS, height), "white")
    draw, font, top = ImageDraw.Draw(sheet), ImageFont.load_default(size=13), 0
    for text, success, frames in rows:
        colour = (90, 90, 90) if success is None else SUCCESS_COLOUR if success else FAILURE_COLOUR
        draw.rectangle((0, top, sheet.width, top + 19), fill=colour)
        draw.text((6, top + 10), text, "white", font, anchor="lm")
        for i, moments in enumerate(frames):
            strip = np.concatenate(list(moments), axis=1)
            sheet.paste(Image.fromarray(strip), (0, top + 20 + i * CELL))
        top += CELL * len(frames) + 20 + MARGIN
    with atomic(path) as temporary:
        sheet.save(temporary, format="png")
