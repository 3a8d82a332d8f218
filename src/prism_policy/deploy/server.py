"""`prism serve`: a trained policy behind a websocket, in the protocol of openpi's policy servers."""

from __future__ import annotations

import asyncio
import hmac
import http
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as listen
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from prism_policy.config import config_json
from prism_policy.config.presets import encoder_name
from prism_policy.config.settings import Device, RunConfig
from prism_policy.data.actions import decode_absolute
from prism_policy.deploy.msgpack_numpy import pack, unpack
from prism_policy.errors import PrismError
from prism_policy.policies import Policy
from prism_policy.run_folder import load_policy
from prism_policy.tasks.spec import CONTROL_HZ
from prism_policy.utils.device import pick_device
from prism_policy.utils.observations import Observation, stack_history
from prism_policy.utils.progress import console

ABOUT_PROPRIO = "position x y z [m], quaternion x y z w, two fingers [m]"
ABOUT_ACTIONS = {
    "delta": "change of position x y z and rotation x y z as shares of the controller's range, gripper; in [-1, 1]",
    "absolute": "position x y z [m], rotation vector [rad], gripper",
}
LARGEST_MESSAGE = 64 * 2**20
"""Bytes; some hundred frames of 240 px."""


class Session:
    """One connection's history of frames and its noise."""

    def __init__(self, policy: Policy, absolute: bool, seed: int) -> None:
        self.policy, self.absolute = policy, absolute
        self.generator = torch.Generator().manual_seed(seed)
        self.frames: list[Observation] = []

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The actions to execute now, float32 (n_action_steps, A), and `server_timing`.

        Args:
            request: `images` {camera: uint8 (H, W, 3)} and `proprio` (P,) of this control step, to which the server
                adds the history; or all of the last n_obs_steps frames, (To, H, W, 3) and (To, P). A policy of several
                tasks needs `task` (or `prompt`), the instruction. `reset` clears the history; so does `seed`, which
                also begins the noise anew.
        """
        known = {"images", "proprio", "task", "prompt", "reset", "seed"}
        if other := [key for key in request if key not in known]:
            raise PrismError(f"unknown key {other[0]!r}; expected {', '.join(sorted(known))}")
        images, proprio = request.get("images"), request.get("proprio")
        if not isinstance(images, dict) or not isinstance(proprio, np.ndarray):
            raise PrismError("expected 'images', a map of a camera's name to its frame, and 'proprio', an array")
        if other := [camera for camera, x in images.items() if not isinstance(x, np.ndarray)]:
            raise PrismError(f"camera {other[0]!r}: expected an array, got {type(images[other[0]]).__name__}")
        if request.get("reset") or "seed" in request:
            self.frames.clear()
        if "seed" in request:
            seed = request["seed"]
            if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool) or not 0 <= seed < 2**63:
                raise PrismError(f"seed: expected an integer from 0 to 2^63 - 1, got {seed!r}")
            self.generator.manual_seed(int(seed))
        frames = {"images": images, "proprio": proprio}
        batch = stack_history([self._with_history(frames) if proprio.ndim == 1 else frames])  # of one
        if instruction := request.get("task", request.get("prompt")):
            if not isinstance(instruction, str):
                raise PrismError(f"task: expected an instruction, got {type(instruction).__name__}")
            batch["task"] = instruction
        started = time.perf_counter()
        actions = self.policy.act(batch, self.generator)[0].cpu().numpy()  # (Ta, A)
        seconds = time.perf_counter() - started
        if self.absolute:
            actions = decode_absolute(actions)
        return {"actions": actions.astype(np.float32), "server_timing": {"infer_ms": 1000 * seconds}}

    def _with_history(self, frame: Observation) -> Observation:
        """This frame with those before it; the first one stands for them, too, as in training."""
        steps = self.policy.config.n_obs_steps
        frames = [*self.frames, frame][-steps:] if self.frames else [frame] * steps
        try:
            if frame["images"].keys() != frames[0]["images"].keys():
                raise ValueError("other cameras")
            stacked = stack_history(frames)
        except ValueError as error:
            raise PrismError("expected the cameras and sizes of the frames before; 'reset' begins anew") from error
        self.frames = frames
        return stacked


@dataclass
class Server:
    """A policy behind a websocket: `Server(load_policy(run), metadata).run(host, port)`."""

    policy: Policy
    metadata: dict[str, Any]
    seed: int = 0
    """Of the noise; each connection has its own."""
    api_key: str | None = None
    """What clients must send; None admits everyone."""
    answers_s: deque[float] = field(default_factory=lambda: deque(maxlen=100_000))
    """Duration of each of the latest answers [s]."""
    answers: int = 0
    _connections: int = 0

    def session(self) -> Session:
        """Start the session of a new connection."""
        self._connections += 1
        return Session(self.policy, self.metadata["action_mode"] == "absolute", self.seed + self._connections)

    def warm_up(self) -> None:
        """Act once, on a frame in the middle of the training data: the first call lays out the weights."""
        images = {c: np.full((*size, 3), 128, np.uint8) for c, size in self.policy.encoder.cameras.items()}
        zeros = torch.zeros(1, self.policy.proprio_dim, device=self.policy.device)
        middle = self.policy.normalizer["proprio"].invert(zeros)  # type: ignore[operator]
        request: dict[str, Any] = {"images": images, "proprio": middle[0].cpu().numpy()}
        if instructions := self.metadata["instructions"]:
            request["task"] = instructions[0]
        Session(self.policy, False, 0).answer(request)

    def run(self, host: str, port: int, ready: Callable[[str], None] = lambda url: None) -> None:
        """Answer requests until SIGINT or SIGTERM; `ready` is called with the address. Port 0 is any that is free."""
        asyncio.run(self._run(host, port, ready))

    async def _run(self, host: str, port: int, ready: Callable[[str], None]) -> None:
        loop, stopped = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stopped.set)
        try:
            listening = await listen(
                self._handle, host, port, compression=None, max_size=LARGEST_MESSAGE, process_request=self._authorize
            )
        except (OSError, OverflowError) as error:
            raise PrismError(f"cannot listen at {host}:{port} ({error}); choose another --host or --port") from error
        async with listening as server:
            address = next(iter(server.sockets)).getsockname()
            ready(f"ws://{host}:{address[1]}")
            await stopped.wait()

    def _authorize(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        given = request.headers.get("Authorization", "")
        if self.api_key and not hmac.compare_digest(given.encode(), f"Api-Key {self.api_key}".encode()):
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, "expected Authorization: Api-Key ...\n")
        return None

    async def _handle(self, connection: ServerConnection) -> None:
        session = self.session()
        try:
            await connection.send(pack(self.metadata))
            async for data in connection:
                try:
                    # Here, not in a thread of its own: on two cores that took 50 ms longer (benchmarks/RESULTS.md), and
                    # two calls at a time would share the cores and both be late.
                    answer = self._answer(session, data)
                except PrismError as error:
                    await self._refuse(connection, str(error))
                    return
                except Exception:
                    console.print(*traceback.format_exc().splitlines())
                    await self._refuse(connection, "the server failed; its log says where")
                    return
                await connection.send(answer)
        except ConnectionClosed:  # by the robot, or a network that broke
            return

    def _answer(self, session: Session, data: bytes | str) -> bytes:
        if isinstance(data, str):
            raise PrismError("expected a binary message, got text")
        started = time.perf_counter()
        answer = pack(session.answer(unpack(data)))
        self.answers_s.append(time.perf_counter() - started)
        self.answers += 1
        return answer

    async def _refuse(self, connection: ServerConnection, sentence: str) -> None:
        await connection.send(sentence)
        await connection.close(1011, "the message before says why")


def describe(folder: Path, checkpoint: str, config: RunConfig, policy: Policy) -> dict[str, Any]:
    """The metadata that a client receives first: all it needs to send requests."""
    task = config.task
    return {
        "protocol": "prism-policy 1",
        "run": folder.resolve().name,
        "checkpoint": checkpoint,
        "weights": policy.fingerprint(),
        "task": task.name,
        "instructions": list(policy.instructions.known) if policy.instructions else [],
        "policy": config.policy.kind,
        "encoder": encoder_name(config.policy.encoder),
        "cameras": {camera: [*size, 3] for camera, size in policy.encoder.cameras.items()},
        "proprio_dim": policy.proprio_dim,
        "proprio": ABOUT_PROPRIO,
        "n_obs_steps": policy.config.n_obs_steps,
        "n_action_steps": policy.config.n_action_steps,
        "action_mode": task.action_mode,
        "actions": ABOUT_ACTIONS[task.action_mode],
        "control_hz": CONTROL_HZ,
    }


def serve(
    folder: Path,
    checkpoint: str = "last",
    host: str = "127.0.0.1",
    port: int = 8000,
    device: Device = "auto",
    seed: int = 0,
    api_key: str | None = None,
) -> None:
    """Serve the policy of a run folder until it is stopped, then print how fast it was."""
    config = config_json.load(RunConfig, folder / "config.json")
    policy = load_policy(folder, checkpoint).to(pick_device(device))
    server = Server(policy, describe(folder, checkpoint, config, policy), seed, api_key)
    server.warm_up()

    def ready(url: str) -> None:
        about = server.metadata
        frames = ", ".join(f"{camera} {size[0]} x {size[1]}" for camera, size in about["cameras"].items())
        console.print(
            f"Serving {folder} ({about['policy']}, {about['encoder']}, checkpoint {checkpoint}) at {url}",
            f"It expects {frames} and proprio ({about['proprio_dim']},): {about['proprio']}",
            f"It answers with {about['n_action_steps']} actions at {about['control_hz']} Hz: {about['actions']}",
        )
        if host not in ("127.0.0.1", "localhost", "::1") and not api_key:
            console.print("Anyone who reaches this machine can send requests; set PRISM_API_KEY to require a key")
        console.print("Ctrl-C stops it")

    server.run(host, port, ready)
    speed = ""
    if len(server.answers_s) > 1:
        median, slow = (1000 * seconds for seconds in np.quantile(server.answers_s, (0.5, 0.95)))
        speed = f": median {median:.0f} ms, 95% within {slow:.0f} ms"
    console.print(f"Served {server.answers} chunks{speed}")
