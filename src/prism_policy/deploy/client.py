"""The robot's side of `prism serve`: a frame in, an action out, at every control step. No torch, no simulator."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.sync.client import ClientConnection, connect

from prism_policy.deploy.msgpack_numpy import pack, unpack
from prism_policy.errors import PrismError
from prism_policy.utils.observations import Observation, stack_history


class PolicyClient:
    """A policy behind a server, for a robot's control loop; raises a PrismError where none is, or it refuses the key.

    It keeps the history of frames that the policy needs and the actions of the chunk that is being executed: one
    request a chunk, with frames that are one control step apart.

    Usage::

        with pp.PolicyClient("ws://127.0.0.1:8000") as policy:
            policy.reset()
            while not done:  # at policy.metadata["control_hz"]
                action = policy.act({"agentview": image}, proprio)  # uint8 (H, W, 3), (P,) -> float32 (A,)

    Args:
        api_key: what the server was given as PRISM_API_KEY.
        connect_s: how long to try, as a server takes a while to start [s].
        answer_s: how long to wait for an answer [s].
    """

    def __init__(
        self, url: str = "ws://127.0.0.1:8000", api_key: str | None = None, connect_s: float = 10, answer_s: float = 30
    ) -> None:
        self.url, self.answer_s = url, answer_s
        self._open = ExitStack()
        with ExitStack() as stack:
            self._connection = stack.enter_context(_connected(url, api_key, connect_s))
            self.metadata = unpack(self._received())
            """Of the policy: `cameras`, `proprio_dim`, `n_obs_steps`, `instructions`, ..."""
            self._open = stack.pop_all()
        self.round_trips_s: deque[float] = deque(maxlen=10_000)
        """Duration of each of the latest requests, the network included [s]."""
        self.reset()

    def reset(self, instruction: str | None = None, seed: int | None = None) -> None:
        """Begin an episode: of this instruction, for a policy of several tasks; a seed begins its noise anew."""
        self._frames: list[Observation] = []
        self._actions: deque[np.ndarray] = deque()
        options = {"task": instruction, "seed": seed}
        self._options = {name: value for name, value in options.items() if value is not None}

    def act(self, images: Mapping[str, np.ndarray], proprio: np.ndarray) -> np.ndarray:
        """The action to execute now, float32 (A,), of uint8 (H, W, 3) a camera, row 0 at the top, and proprio (P,).

        Call it at every control step. A frame that does not fit raises a PrismError and is forgotten again.
        """
        frame, steps = self._frame(images, proprio), self.metadata["n_obs_steps"]
        frames = [*self._frames, frame][-steps:] if self._frames else [frame] * steps
        if not self._actions:
            self._actions.extend(self.infer({**stack_history(frames), **self._options})["actions"])
            self._options.pop("seed", None)
        self._frames = frames
        return self._actions.popleft()

    def _frame(self, images: Mapping[str, np.ndarray], proprio: np.ndarray) -> Observation:
        """A copy of what the policy needs: a camera's driver may write its next image where this one is."""
        cameras, proprio_dim = self.metadata["cameras"], self.metadata["proprio_dim"]
        if not isinstance(images, Mapping):
            raise PrismError(f"images: expected a dict of {', '.join(cameras)}, got {type(images).__name__}")
        if missing := [camera for camera in cameras if camera not in images]:
            raise PrismError(f"camera '{missing[0]}' is missing; the policy needs {', '.join(cameras)}")
        try:
            copies = {camera: np.array(images[camera]) for camera in cameras}
            state = np.array(proprio, np.float32)
        except (TypeError, ValueError, OverflowError) as error:
            raise PrismError(f"images and proprio: expected arrays of numbers ({error})") from error
        for camera, size in cameras.items():
            image = copies[camera]
            if image.shape != tuple(size) or image.dtype != np.uint8:
                raise PrismError(f"camera '{camera}': expected uint8 {tuple(size)}, got {image.dtype} {image.shape}")
        if state.shape != (proprio_dim,) or not np.isfinite(state).all():
            raise PrismError(f"proprio: expected ({proprio_dim},) finite numbers, got {state.shape}: {state}")
        return {"images": copies, "proprio": state}

    def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request and return its answer; docs/serving.md describes both.

        Raises:
            PrismError: the server refuses the request, is gone, or too slow; or the request is no message.
        """
        started = time.perf_counter()
        try:
            message = pack(dict(request))
        except (TypeError, ValueError, OverflowError) as error:
            raise PrismError(f"cannot send this request: {error}") from error
        try:
            self._connection.send(message)
        except ConnectionClosed as error:
            raise self._lost(error) from error
        answer = unpack(self._received())
        self.round_trips_s.append(time.perf_counter() - started)
        return answer

    def _received(self) -> bytes:
        try:
            answer = self._connection.recv(timeout=self.answer_s)
        except ConnectionClosed as error:
            raise self._lost(error) from error
        except TimeoutError as error:
            self.close()
            late = f"did not answer within {self.answer_s:g} s"
            raise PrismError(f"{self.url} {late}; the connection is closed") from error
        if isinstance(answer, str):
            raise PrismError(f"{self.url}: {answer}")
        return answer

    def _lost(self, error: ConnectionClosed) -> PrismError:
        return PrismError(f"the server {self.url} is gone ({error}); make a new PolicyClient when it is back")

    def close(self) -> None:
        """Leave the server."""
        self._open.close()

    def __enter__(self) -> PolicyClient:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@contextmanager
def _connected(url: str, api_key: str | None, connect_s: float) -> Iterator[ClientConnection]:
    headers = {"Authorization": f"Api-Key {api_key}"} if api_key else None
    end = time.monotonic() + connect_s
    with ExitStack() as stack:
        while True:
            try:
                attempt = connect(url, compression=None, max_size=None, additional_headers=headers, proxy=None)
                connection = stack.enter_context(attempt)
                break
            except InvalidURI as error:
                raise PrismError(f"expected an address such as ws://127.0.0.1:8000, got {url!r}") from error
            except InvalidHandshake as error:
                raise PrismError(f"{url} refuses the connection ({error}); is PRISM_API_KEY the server's?") from error
            except (OSError, EOFError) as error:
                if time.monotonic() > end:
                    missing = f"no policy server at {url} ({error})"
                    raise PrismError(f"{missing}; start one with `prism serve RUN`") from error
                time.sleep(0.1)
        yield connection
