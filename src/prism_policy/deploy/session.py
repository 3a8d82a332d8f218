"""One robot's side of a served policy: its history of frames and its noise."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from prism_client.interface import Interface, limits
from prism_policy.config.settings import RunConfig
from prism_policy.data.actions import decode_absolute, encode_absolute
from prism_policy.data.schema import Part
from prism_policy.errors import PrismError
from prism_policy.policies import Policy
from prism_policy.policies.base import Known
from prism_policy.run_folder import RunData
from prism_policy.utils.images import Resize
from prism_policy.utils.observations import Observation, stack_history
from prism_policy.utils.text import one_line, quoted

KEYS = ("images", "known", "prompt", "state", "reset", "seed", "task")
"""Of a request."""


ABSOLUTE = (
    Part("position", 3, "position", ("x", "y", "z")),
    Part("rotation", 3, "rotation", ("rx", "ry", "rz")),
    Part("gripper", 1, "gripper", ("gripper",), shares=True),
)
"""A hand's pose as robots take it: [m], rotation vector [rad]."""


@dataclass(frozen=True)
class Adapter:
    """What stands between a policy and a robot: images are resized, rotations decoded, actions kept in their range."""

    interface: Interface
    absolute: bool = False
    """Rotation vectors, 7 numbers, for the policy's 10."""
    resize: Resize | None = None
    """Applied to images of the robot's size, as it was to the demonstrations'."""

    @classmethod
    def of(cls, policy: Policy, config: RunConfig | None = None, data: RunData | None = None) -> Adapter:
        """The adapter of a run's policy; by default of a simulated task's that makes steps."""
        schema, settings = policy.schema, policy.config
        absolute = config is not None and config.task.action_mode == "absolute"
        resize = Resize.parse(config.data.resize, config.data.crop) if config and data and data.recorded else None
        if resize and data and data.recorded:
            schema = replace(schema, cameras=data.recorded)
        if absolute:
            schema = replace(schema, action=ABSOLUTE)
        seen = data.action_range if config and data and not config.task.spec.own_robot else None
        counts = settings.n_obs_steps, settings.n_action_steps
        chunk = settings.horizon - settings.n_obs_steps + 1
        return cls(Interface(schema, *counts, *limits(schema.action, seen), chunk), absolute, resize)

    def known(self, actions: np.ndarray, policy: Policy) -> Known:
        """Actions (n, A) of the robot that are executed from the newest frame on, as a policy takes them."""
        size, first = policy.config.horizon, policy.config.n_obs_steps - 1
        values = torch.zeros(1, size, policy.action_dim)
        entries = torch.zeros(1, size, policy.action_dim, dtype=torch.bool)
        actions = encode_absolute(actions) if self.absolute else actions
        end = first + len(actions)
        values[0, first:end], entries[0, first:end] = torch.from_numpy(actions.astype(np.float32)), True
        return values, entries

    def seen(self, images: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Images as the policy sees them."""
        if self.resize is None:
            return images
        for camera, image in images.items():
            height, width = self.interface.schema.cameras[camera]
            if image.shape[-3:] != (height, width, 3):
                expected = f"expected the recording's {height}x{width}, which is resized here"
                raise PrismError(f"camera '{camera}': {expected}, got {one_line(image.shape, 60)}")
        return {camera: self.resize(image) for camera, image in images.items()}


class Session:
    """One connection's history of frames and its noise."""

    def __init__(self, policy: Policy, seed: int, adapter: Adapter | None = None) -> None:
        self.policy, self.adapter = policy, adapter or Adapter.of(policy)
        self.interface = self.adapter.interface
        self.generator = torch.Generator().manual_seed(seed)
        self.frames: list[Observation] = []

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The actions to execute now, float32 (n_action_steps, A), and `server_timing`.

        Args:
            request: `images` {camera: uint8 (H, W, 3)} and `state` (S,) of this control step, to which the server
                adds the history; or all of the last n_obs_steps frames, (To, H, W, 3) and (To, S). A policy of several
                tasks needs `task` (or `prompt`), the instruction. `reset` clears the history; so does `seed`, which
                also begins the noise anew. `known` (n, A), actions that are executed from this control step on, makes
                the others go with them: then all n_chunk_steps actions from this step on are returned.

        Raises:
            PrismError: the request does not fit, or the policy computes what no robot may execute.
        """
        frame, options = self._checked(request)
        known = self._known(request["known"]) if "known" in request else None
        if request.get("reset") or "seed" in request:
            self.frames = []
        if "seed" in request:
            self.generator.manual_seed(int(request["seed"]))
        single = frame["state"].ndim == 1
        history = self._history(frame) if single else []
        batch = stack_history([stack_history(history) if single else frame])  # of one
        started = time.perf_counter()
        observation, first = {**batch, **options}, self.policy.config.n_obs_steps - 1
        if known is None:
            actions = self.policy.act(observation, self.generator)[0].cpu().numpy()  # (Ta, A)
        else:
            chunk = self.policy.predict_chunk(observation, self.generator, self.adapter.known(known, self.policy))
            actions = chunk[0, first:].cpu().numpy()  # (T - To + 1, A)
        seconds = time.perf_counter() - started
        if self.adapter.absolute:
            actions = decode_absolute(actions)
        # What simulators do with actions beyond the controller's range; so a robot does what was evaluated.
        steps = None if known is None else self.interface.n_chunk_steps
        actions = self.interface.actions(self.interface.clipped(actions), steps)
        self.frames = history
        return {"actions": actions, "server_timing": {"infer_ms": 1000 * seconds}}

    def _checked(self, request: Mapping[str, Any]) -> tuple[Observation, dict[str, Any]]:
        """A request's frame or frames, and its instruction if any. Sizes are the policy's to check."""
        if other := [key for key in request if key not in KEYS]:
            raise PrismError(f"unknown key {quoted(other[0])}; expected {', '.join(KEYS)}")
        images, state = request.get("images"), request.get("state")
        if not isinstance(images, dict) or not isinstance(state, np.ndarray):
            raise PrismError("expected 'images', a map of a camera's name to its frame, and 'state', an array")
        cameras = {camera: images[camera] for camera in self.interface.schema.cameras if camera in images}
        if not cameras:
            got = ", ".join(quoted(camera) for camera in list(images)[:5]) or "none"
            raise PrismError(f"images: expected {', '.join(self.interface.schema.cameras)}, got {got}")
        for camera, image in cameras.items():
            if not isinstance(image, np.ndarray):
                raise PrismError(f"camera '{camera}': expected an array, got {type(image).__name__}")
            if image.dtype != np.uint8:
                raise PrismError(f"camera '{camera}': expected uint8 from 0 to 255, got {image.dtype}")
        seed, reset = request.get("seed", 0), request.get("reset", False)
        if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool) or not 0 <= seed < 2**63:
            raise PrismError(f"seed: expected an integer from 0 to 2^63 - 1, got {quoted(seed)}")
        if not isinstance(reset, (bool, int, np.bool_, type(None))):
            raise PrismError(f"reset: expected true or false, got {quoted(reset)}")
        with np.errstate(over="ignore"):  # the policy refuses infinity
            frame = {"images": self.adapter.seen(cameras), "state": state.astype(np.float32)}
        return frame, self._instruction(request.get("task", request.get("prompt")))

    def _known(self, actions: Any) -> np.ndarray:
        """Actions (n, A), as they were sent to the robot."""
        most, width = self.interface.n_chunk_steps, self.interface.schema.action_dim
        array = isinstance(actions, np.ndarray)
        if not array or actions.shape[1:] != (width,) or actions.ndim != 2 or len(actions) > most:
            got = one_line(actions.shape, 60) if array else type(actions).__name__
            raise PrismError(f"known: expected at most {most} actions of {width} numbers, got {got}")
        return self.interface.actions(actions, len(actions))

    def _instruction(self, instruction: Any) -> dict[str, Any]:
        if not isinstance(instruction, (str, type(None))):
            raise PrismError(f"task: expected an instruction, got {type(instruction).__name__}")
        if not instruction:
            return {}
        learned = self.policy.instructions
        if learned and learned.kind == "learned" and instruction not in learned.known:
            some = one_line("; ".join(learned.known), 200)
            raise PrismError(f"unknown instruction {quoted(instruction)}; this policy learned {some}")
        return {"task": instruction}

    def _history(self, frame: Observation) -> list[Observation]:
        """This frame with those before it; the first one stands for them, too, as in training."""
        steps = self.policy.config.n_obs_steps
        frames = [*self.frames, frame][-steps:] if self.frames else [frame] * steps
        for before in frames:
            if shapes(before) != shapes(frame):
                raise PrismError("expected the cameras and sizes of the frames before; 'reset' begins anew")
        return frames


def shapes(frame: Observation) -> dict[str, tuple[int, ...]]:
    """Of a frame's images and its state."""
    return {"state": frame["state"].shape, **{camera: x.shape for camera, x in frame["images"].items()}}
