"""The robot's side of `prism serve`: a frame in, an action out, at every control step. No torch, no simulator."""

from __future__ import annotations

import concurrent.futures
import inspect
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np
from websockets.exceptions import InvalidHandshake, InvalidStatus, InvalidURI, WebSocketException
from websockets.sync.client import ClientConnection, connect

from prism_client.errors import PrismError
from prism_client.interface import Interface
from prism_client.msgpack_numpy import pack, unpack
from prism_client.observations import Observation, stack_history
from prism_client.text import one_line, quoted

LARGEST_ANSWER = 2**20
"""Bytes; the metadata of a policy of a hundred tasks have 10 kB."""
PIECE = 2**20
"""Bytes that are sent at a time."""
CLOSE_S = 1.0
"""How long `close` waits for the server's goodbye [s]."""


class PolicyClient:
    """A policy behind a server, for a robot's control loop.

    It keeps the history of frames that the policy needs and the actions of the chunk that is being executed: one
    request a chunk, with frames that are one control step apart. Every failure is a PrismError, and every wait ends at
    its limit, whatever the server does; the connection is of no more use then.

    Usage::

        with pp.PolicyClient("ws://127.0.0.1:8000") as policy:
            policy.reset()
            while not done:  # at policy.metadata["control_hz"]
                action = policy.act({"agentview": image}, state)  # uint8 (H, W, 3), (S,) -> float32 (A,)

    Args:
        api_key: what the server was given as PRISM_API_KEY.
        connect_s: how long to try to reach the server, as one takes a while to start [s].
        answer_s: how long a request may take, with sending it and its answer [s].
        reconnect: make a new connection for the question after a failed one, which has to be to the same policy.
        ca: of wss://, a file of the certificates to trust, such as the server's own; by default the system's.
    """

    def __init__(
        self,
        url: str = "ws://127.0.0.1:8000",
        api_key: str | None = None,
        connect_s: float = 10,
        answer_s: float = 30,
        reconnect: bool = False,
        ca: str | None = None,
    ) -> None:
        self.url, self.answer_s, self.connect_s = url, _seconds("answer_s", answer_s), _seconds("connect_s", connect_s)
        self.reconnect, self._key, self._ca = reconnect, api_key, ca
        self._asking = threading.Lock()
        self._lost = False
        self.metadata, self.interface = self._connect()
        """Of the policy (`cameras`, `state_dim`, `instructions`, ...); of frames and actions, checked."""
        self.round_trips_s: deque[float] = deque(maxlen=10_000)
        """Duration of each of the latest requests, the network included [s]."""
        self.reset()

    def _connect(self) -> tuple[dict[str, Any], Interface]:
        end = time.monotonic() + self.connect_s
        self._open, self._connection = _connected(self.url, self._key, self._ca, self.answer_s, end)
        limit = min(self.connect_s, self.answer_s)
        with self._exchange(limit, min(end, time.monotonic() + limit)):
            metadata = unpack(self._received())
            interface = Interface.of(metadata)
        self._lost = False
        return metadata, interface

    def latency_s(self, share: float = 0.5) -> float | None:
        """How long this share of the latest requests took at most, the network included [s]; None before the first."""
        return float(np.quantile(list(self.round_trips_s), share)) if self.round_trips_s else None

    def reset(self, instruction: str | None = None, seed: int | None = None) -> None:
        """Begin an episode: of this instruction, for a policy of several tasks; a seed begins its noise anew."""
        if not isinstance(instruction, (str, type(None))):
            raise PrismError(f"instruction: expected text, got {quoted(instruction)}")
        if not isinstance(seed, (int, np.integer, type(None))) or not 0 <= (seed or 0) < 2**63:
            raise PrismError(f"seed: expected an integer from 0 to 2^63 - 1, got {quoted(seed)}")
        self._frames: list[Observation] = []
        self._actions: deque[np.ndarray] = deque()
        options = {"task": instruction, "seed": None if seed is None else int(seed)}
        self._options = {name: value for name, value in options.items() if value is not None}

    def act(self, images: Mapping[str, np.ndarray], state: np.ndarray) -> np.ndarray:
        """The action to execute now, float32 (A,), of uint8 (H, W, 3) a camera, row 0 at the top, and state (S,).

        Call it at every control step. A frame that does not fit raises a PrismError and is forgotten again.
        """
        started = time.monotonic()
        frame, steps = self.interface.frame(images, state), self.interface.n_obs_steps
        frames = [*self._frames, frame][-steps:] if self._frames else [frame] * steps
        if not self._actions:
            self._actions.extend(self._ask({**stack_history(frames), **self._options}, started)["actions"])
            self._options.pop("seed", None)
        self._frames = frames
        return self._actions.popleft()

    def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request and return its answer, with `actions` checked; docs/serving.md describes both.

        With `known` actions (n, A) in it, `actions` are those of the whole chunk from the newest frame on.

        Raises:
            PrismError: the server refuses the request, is gone, or too slow; or the request is no message; or the
                answer holds no actions that a robot may execute.
        """
        return self._ask(request, time.monotonic())

    def _ask(self, request: Mapping[str, Any], started: float) -> dict[str, Any]:
        if not self._asking.acquire(blocking=False):
            raise PrismError("another thread waits for an answer; give each thread a PolicyClient of its own")
        try:
            try:
                message = pack(dict(request), self.interface.largest_question)
            except (TypeError, ValueError, OverflowError) as error:
                raise PrismError(f"cannot send this request: {one_line(error, 200)}") from error
            if self._lost and self.reconnect:
                self._again()
                started = time.monotonic()
            with self._exchange(self.answer_s, started + self.answer_s):
                with suppress(TimeoutError):
                    self._received(timeout=0)
                    raise PrismError(f"{self.url} sent an answer that nobody asked for; make a new PolicyClient")
                # In pieces: the library works on each for a while before it looks at the socket again.
                pieces = [message[i : i + PIECE] for i in range(0, len(message), PIECE)]
                self._connection.send(pieces[0] if len(pieces) == 1 else pieces)
                answer = unpack(self._received())
                steps = self.interface.n_chunk_steps if "known" in request else None
                answer["actions"] = self.interface.actions(answer.get("actions"), steps)
            self.round_trips_s.append(time.monotonic() - started)
        finally:
            self._asking.release()
        return answer

    def _again(self) -> None:
        """Connect anew, after a failure. Frames that were seen before it are no history any more."""
        self.close()
        metadata, interface = self._connect()
        if (metadata.get("weights"), interface) != (self.metadata.get("weights"), self.interface):
            self._lost = True
            self._drop()
            raise PrismError(f"{self.url} serves another policy than before; make a new PolicyClient")

    @contextmanager
    def _exchange(self, limit: float, end: float) -> Iterator[None]:
        """End every wait in the block at the time `end`, which is `limit` seconds after it began, and the connection
        with any failure: else an answer that comes late would be taken for that of the next question.
        """
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self._drop()

        timer = threading.Timer(max(end - time.monotonic(), 0), give_up)
        timer.daemon = True
        timer.start()
        done = False
        try:
            yield
            done = True
        except (WebSocketException, OSError) as error:
            if not late.is_set():
                hint = "make a new PolicyClient when it is back"
                raise PrismError(f"the server {self.url} is gone ({one_line(error, 200)}); {hint}") from error
        finally:
            timer.cancel()
            if not done:
                self._drop()
        if late.is_set():
            raise PrismError(f"{self.url} did not answer within {limit:g} s; the connection is closed")

    def _drop(self) -> None:
        """Wake up whatever waits for the socket, in any thread, and say no goodbye."""
        self._lost = True
        with suppress(OSError):
            # An ssl.SSLSocket's own shutdown is not to be called beside a thread that reads.
            socket.socket.shutdown(self._connection.socket, socket.SHUT_RDWR)

    def _received(self, timeout: float | None = None) -> bytes:
        answer = self._connection.recv(timeout)
        if isinstance(answer, str):
            raise PrismError(f"{self.url}: {one_line(answer, 400)}")
        return answer

    def close(self) -> None:
        """Leave the server."""
        timer = threading.Timer(CLOSE_S, self._drop)
        timer.daemon = True
        timer.start()
        try:
            self._open.close()
        finally:
            timer.cancel()

    def __enter__(self) -> PolicyClient:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _seconds(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1e6:
        raise PrismError(f"{name}: expected seconds, more than 0 and at most a million, got {quoted(value)}")
    return value


def _connected(
    url: str, api_key: str | None, ca: str | None, answer_s: float, end: float
) -> tuple[ExitStack, ClientConnection]:
    """The connection, and what closes it, by the time `end`. A name server has no limit that could be set, so this
    waits for a thread, and leaves it alone where it takes too long.
    """
    if not isinstance(url, str) or not url.isprintable():
        raise PrismError(f"expected an address such as ws://127.0.0.1:8000, got {quoted(url)}")
    if api_key is not None and not (isinstance(api_key, str) and api_key.isascii() and api_key.isprintable()):
        raise PrismError("api_key: expected letters, digits and signs of ASCII on one line; got others")
    if ca is not None and not url.startswith("wss://"):
        raise PrismError(f"ca: expected an address wss://... with it, got {quoted(url)}")
    context = _trusting(ca) if ca is not None else None
    # The server's pings follow what the robot waits for, so that it notices in time that a robot is gone.
    headers = {"Prism-Answer-S": f"{answer_s:g}", **({"Authorization": f"Api-Key {api_key}"} if api_key else {})}
    result: concurrent.futures.Future[tuple[ExitStack, ClientConnection]] = concurrent.futures.Future()

    def work() -> None:
        try:
            opened = _open(url, headers, context, end)
        except BaseException as error:
            if result.set_running_or_notify_cancel():
                result.set_exception(error)
            return
        if result.set_running_or_notify_cancel():
            result.set_result(opened)
        else:
            opened[0].close()

    threading.Thread(target=work, daemon=True).start()
    with suppress(concurrent.futures.TimeoutError):
        return result.result(max(end - time.monotonic(), 0))
    if not result.cancel():
        return result.result()
    raise PrismError(f"no policy server at {url} (no answer in time); start one with `prism serve RUN`")


def _trusting(ca: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, TypeError, ValueError) as error:  # ssl.SSLError is an OSError
        expected = "expected a file of certificates (PEM)"
        raise PrismError(f"ca: {expected}, got {quoted(ca)} ({one_line(error, 100)})") from error


def _open(
    url: str, headers: dict[str, str], context: ssl.SSLContext | None, end: float
) -> tuple[ExitStack, ClientConnection]:
    """Try until `end`, then say why not."""
    options: dict[str, Any] = {
        "compression": None, "max_size": LARGEST_ANSWER, "max_queue": 1, "additional_headers": headers, "proxy": None,
        # Of limits there is one, in `_exchange`; a ping's would end the wait for a slow answer before.
        "ping_interval": None, "close_timeout": CLOSE_S,
    }  # fmt: skip
    known = inspect.signature(connect).parameters  # Python 3.8's websockets has neither a proxy nor pings
    options = {name: value for name, value in options.items() if name in known}
    if context is not None:
        options["ssl"] = context
    while True:
        left = end - time.monotonic()
        try:
            stack = ExitStack()
            return stack, stack.enter_context(connect(url, open_timeout=max(left, 0.01), **options))
        except InvalidStatus as error:
            status = error.response.status_code
            said = one_line(f"HTTP {status} {(error.response.body or b'').decode(errors='replace')}", 200)
            hint = "is PRISM_API_KEY the server's?" if status == 401 else "is this the address of `prism serve`?"
            raise PrismError(f"{url} refuses the connection ({said}); {hint}") from error
        except InvalidHandshake as error:
            hint = "is this the address of `prism serve`?"
            raise PrismError(f"{url} refuses the connection ({one_line(error, 200)}); {hint}") from error
        except ssl.SSLCertVerificationError as error:
            hint = "name the server's certificate with `ca`"
            raise PrismError(f"{url} is not to be trusted ({one_line(error, 200)}); {hint}") from error
        except (OSError, EOFError) as error:
            if time.monotonic() + 0.1 > end:
                missing = f"no policy server at {url} ({one_line(error, 200)})"
                raise PrismError(f"{missing}; start one with `prism serve RUN`") from error
            time.sleep(0.1)
        except (InvalidURI, ValueError, OverflowError) as error:
            raise PrismError(f"expected an address such as ws://127.0.0.1:8000, got {quoted(url)}") from error
