"""One robot's side of a served policy: its history of frames and its noise."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from prism_policy.data.actions import decode_absolute
from prism_policy.deploy.schema import Schema
from prism_policy.errors import PrismError
from prism_policy.policies import Policy
from prism_policy.utils.observations import Observation, stack_history
from prism_policy.utils.text import one_line, quoted

KEYS = ("images", "prompt", "state", "reset", "seed", "task")
"""Of a request."""


def schema_of(policy: Policy, absolute: bool) -> Schema:
    """What a served policy takes and gives: absolute actions with a rotation vector, 7 numbers for its 10."""
    config, images = policy.config, {camera: (*size, 3) for camera, size in policy.encoder.cameras.items()}
    width, mode = (policy.action_dim - 3, "absolute") if absolute else (policy.action_dim, "delta")
    return Schema(images, policy.state_dim, config.n_obs_steps, config.n_action_steps, width, mode)


class Session:
    """One connection's history of frames and its noise."""

    def __init__(self, policy: Policy, absolute: bool, seed: int) -> None:
        self.policy, self.absolute, self.schema = policy, absolute, schema_of(policy, absolute)
        self.generator = torch.Generator().manual_seed(seed)
        self.frames: list[Observation] = []

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The actions to execute now, float32 (n_action_steps, A), and `server_timing`.

        Args:
            request: `images` {camera: uint8 (H, W, 3)} and `state` (S,) of this control step, to which the server
                adds the history; or all of the last n_obs_steps frames, (To, H, W, 3) and (To, S). A policy of several
                tasks needs `task` (or `prompt`), the instruction. `reset` clears the history; so does `seed`, which
                also begins the noise anew.

        Raises:
            PrismError: the request does not fit, or the policy computes what no robot may execute.
        """
        frame, options = self._checked(request)
        if request.get("reset") or "seed" in request:
            self.frames = []
        if "seed" in request:
            self.generator.manual_seed(int(request["seed"]))
        single = frame["state"].ndim == 1
        history = self._history(frame) if single else []
        batch = stack_history([stack_history(history) if single else frame])  # of one
        started = time.perf_counter()
        actions = self.policy.act({**batch, **options}, self.generator)[0].cpu().numpy()  # (Ta, A)
        seconds = time.perf_counter() - started
        if self.absolute:
            actions = decode_absolute(actions)
        # What simulators do with actions beyond the controller's range; so a robot does what was evaluated.
        actions = self.schema.actions(self.schema.clipped(actions))
        self.frames = history
        return {"actions": actions, "server_timing": {"infer_ms": 1000 * seconds}}

    def _checked(self, request: Mapping[str, Any]) -> tuple[Observation, dict[str, Any]]:
        """A request's frame or frames, and its instruction if any. Sizes are the policy's to check."""
        if other := [key for key in request if key not in KEYS]:
            raise PrismError(f"unknown key {quoted(other[0])}; expected {', '.join(KEYS)}")
        images, state = request.get("images"), request.get("state")
        if not isinstance(images, dict) or not isinstance(state, np.ndarray):
            raise PrismError("expected 'images', a map of a camera's name to its frame, and 'state', an array")
        cameras = {camera: images[camera] for camera in self.schema.cameras if camera in images}
        if not cameras:
            got = ", ".join(quoted(camera) for camera in list(images)[:5]) or "none"
            raise PrismError(f"images: expected {', '.join(self.schema.cameras)}, got {got}")
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
            frame = {"images": cameras, "state": state.astype(np.float32)}
        return frame, self._instruction(request.get("task", request.get("prompt")))

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
