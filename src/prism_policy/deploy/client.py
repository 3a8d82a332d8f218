"""The robot's side of `prism serve`: a frame in, an action out, at every control step. Loads no torch, no simulator."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.sync.client import ClientConnection, connect

from prism_policy.deploy.msgpack_numpy import pack, unpack
from prism_policy.errors import PrismError


class PolicyClient:
    """A policy behind a server, for a robot's control loop.

    It keeps the frames that the policy looks back on and the actions of the chunk that is being executed, so that the
    server is asked once a chunk, and always gets frames that are one control step apart.

    Usage::

        with PolicyClient("ws://127.0.0.1:8000") as policy:
            policy.reset()
            while not done:  # at policy.metadata["control_hz"]
                action = policy.act({"agentview": image}, proprio)  # uint8 (H, W, 3), (P,) -> float32 (A,)

    Args:
        url: of the server.
        api_key: what the server was given as PRISM_API_KEY.
        connect_s: how long to try, as a server takes a while to start [s].
        answer_s: how long to wait for an answer [s].

    Raises:
        PrismError: nobody answers there, or not to us.
    """

    def __init__(
        self, url: str = "ws://127.0.0.1:8000", api_key: str | None = None, connect_s: float = 10, answer_s: float = 30
    ) -> None:
        self.url, self.answer_s = url, answer_s
        self._open = ExitStack()
        with ExitStack() as stack:
            self._connection = stack.enter_context(_connected(url, api_key, connect_s))
            self.metadata = unpack(self._received())
            """What the server says of its policy: `cameras`, `proprio_dim`, `n_obs_steps`, `instructions`, ..."""
            self._open = stack.pop_all()
        self.round_trips_s: deque[float] = deque(maxlen=10_000)
        """How long each of the latest answers took, on the way included [s]."""
        self.reset()

    def reset(self, instruction: str | None = None, seed: int | None = None) -> None:
        """Begin an episode.

        Args:
            instruction: for a policy of several tasks.
            seed: of its noise; None goes on with the server's.
        """
        self._frames: deque[Mapping[str, Any]] = deque(maxlen=self.metadata["n_obs_steps"])
        self._actions: deque[np.ndarray] = deque()
        self._told = {} if instruction is None else {"task": instruction}
        self._first = {} if seed is None else {"seed": seed}

    def act(self, images: Mapping[str, np.ndarray], proprio: np.ndarray) -> np.ndarray:
        """The action to execute now, float32 (A,); to be called at every control step.

        Args:
            images: the cameras' frames, uint8 (H, W, 3), row 0 at the top.
            proprio: (P,).

        Raises:
            PrismError: as `infer`.
        """
        # Copies: a camera's driver may write its next frame where this one is.
        frame = {"images": {c: np.array(x) for c, x in images.items()}, "proprio": np.array(proprio, np.float32)}
        self._frames.extend([frame] * (1 if self._frames else self._frames.maxlen or 1))
        if not self._actions:
            frames = list(self._frames)
            request = {
                "images": {c: np.stack([f["images"][c] for f in frames]) for c in images},
                "proprio": np.stack([f["proprio"] for f in frames]),
            }
            self._actions.extend(self.infer({**request, **self._told, **self._first})["actions"])
            self._first = {}
        return self._actions.popleft()

    def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """One question and its answer, as docs/serving.md has them.

        Raises:
            PrismError: what the server does not accept, in its words; it is gone, or too slow.
        """
        started = time.perf_counter()
        try:
            self._connection.send(pack(dict(request)))
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
            raise PrismError(
                f"{self.url} did not answer within {self.answer_s:g} s; the connection is closed"
            ) from error
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
                    raise PrismError(
                        f"no policy server at {url} ({error}); start one with `prism serve RUN`"
                    ) from error
                time.sleep(0.1)
        yield connection
