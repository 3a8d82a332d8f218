"""Whether what a robot shows is what it sees now."""

from __future__ import annotations

import numpy as np

from prism_client.control.clock import Clock
from prism_client.control.limits import Limits
from prism_client.errors import PrismError
from prism_client.interface import Interface
from prism_client.observations import Observation
from prism_client.robots.robot import Frame
from prism_client.text import quoted

FUTURE_S = 0.02
"""By which a time may lie ahead of the loop's clock [s]."""


class Sight:
    """Checks each frame: sizes and numbers, its age, and that no camera shows the same image for ever."""

    def __init__(self, interface: Interface, limits: Limits, clock: Clock) -> None:
        self.interface, self.limits, self.clock = interface, limits, clock
        self._before: dict[str, tuple[np.ndarray, int]] = {}

    def checked(self, frame: Frame) -> Observation:
        """A copy of the frame, as the policy takes it.

        Raises:
            PrismError: what is wrong with it; the arm has to hold.
        """
        observation = self.interface.frame(frame["images"], frame["state"])
        now = self.clock.now()
        for name in ("state", *self.interface.schema.cameras):
            what = "the state" if name == "state" else f"camera {quoted(name)}"
            if not isinstance(frame["time"].get(name), (int, float)):
                raise PrismError(f"{what}: the robot does not say when it was taken")
            age = now - frame["time"][name]
            if age < -FUTURE_S:
                raise PrismError(f"{what}: taken {-age:.2f} s from now; its clock is not the robot's")
            if not age <= self.limits.frame_age_s and self.limits.frame_age_s:
                raise PrismError(f"{what}: {age:.2f} s old, expected at most {self.limits.frame_age_s:g} s")
        for camera, image in observation["images"].items():
            before, count = self._before.get(camera, (None, 0))
            count = count + 1 if before is not None and np.array_equal(before, image) else 0
            self._before[camera] = (image, count)
            if count >= self.limits.frozen_frames > 0:
                raise PrismError(f"camera {quoted(camera)}: {count + 1} images alike to the last bit; it is frozen")
        return observation
