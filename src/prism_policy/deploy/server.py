"""`prism serve`: a trained policy behind a websocket, in the protocol of openpi's policy servers.

Two threads: the main one computes, always, for a second one that did would make a second team of OpenMP threads, and on
few cores both would be slow (benchmarks/RESULTS.md); the other one talks to the network, so that robots can connect and
stay connected while the policy computes.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import gc
import hmac
import http
import ipaddress
import json
import logging
import signal
import ssl
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from websockets.asyncio.server import Server as WebsocketServer
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as listen
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.protocol import State

from prism_client.interface import Interface
from prism_client.msgpack_numpy import pack, unpack
from prism_policy.config import config_json
from prism_policy.config.presets import encoder_name
from prism_policy.config.settings import Device, RunConfig
from prism_policy.deploy.connection import ACCEPTED_AT_ONCE, FairConnection, let_many_wait, patience, shortened
from prism_policy.deploy.metrics import Metrics
from prism_policy.deploy.session import Adapter, Session
from prism_policy.deploy.turns import Turn, Turns
from prism_policy.errors import LONGEST_SENTENCE, PrismError
from prism_policy.policies import Policy
from prism_policy.run_folder import load_policy, read_data, read_run
from prism_policy.utils.device import pick_device
from prism_policy.utils.progress import console
from prism_policy.utils.text import one_line
from prism_policy.utils.threads import Threads

MOST_CONNECTIONS = 64
"""Of robots at a time: each may keep three of the longest questions in memory."""
OPEN_S, CLOSE_S = 5.0, 1.0
"""How long a connection may take to open and to close [s]."""
SWITCH_S = 0.0005
"""How long the network may keep Python's lock from the policy [s], which needs it again after every operator: with
Python's own 5 ms a chunk took seconds beside a busy network."""
STOPPING = "the server is stopping"
DRAIN_S = 10.0
"""How long questions that wait are answered after SIGTERM [s]."""
WAKE_S = 0.1
"""How often the main thread looks whether it shall stop [s]."""


@dataclass
class Server:
    """A policy behind a websocket: `Server(load_policy(run), metadata).run(host, port)`."""

    policy: Policy
    metadata: dict[str, Any]
    adapter: Adapter | None = None
    """Between robots and the policy; by default that of steps of a hand."""
    seed: int = 0
    """Of the noise; each connection has its own."""
    api_key: str | None = None
    """What clients must send; None admits everyone."""
    tls: ssl.SSLContext | None = None
    """Of wss://; see `tls_context`."""
    answers_s: deque[float] = field(default_factory=lambda: deque(maxlen=100_000))
    """Duration of each of the latest answers [s]."""
    metrics: Metrics = field(default_factory=Metrics)
    _connections: int = 0
    _turns: Turns = field(default_factory=Turns)
    _threads: Threads = field(init=False)
    _asking: set[ServerConnection] = field(default_factory=set)
    _stopping: bool = False
    _draining: bool = False

    def __post_init__(self) -> None:
        """Choose what follows from the policy."""
        self._threads = Threads(useful=self.policy.gains_from_cores)

    def session(self) -> Session:
        """Start the session of a new connection."""
        self._connections += 1
        return Session(self.policy, self.seed + self._connections, self.adapter)

    def warm_up(self) -> None:
        """Act once, on a frame in the middle of the training data: the first call lays out the weights.

        Raises:
            PrismError: an action is NaN or infinite.
        """
        sizes = Interface.of(self.metadata).schema.cameras
        images = {c: np.full((*size, 3), 128, np.uint8) for c, size in sizes.items()}
        zeros = torch.zeros(1, self.policy.state_dim, device=self.policy.device)
        middle = self.policy.normalizer["state"].invert(zeros)  # type: ignore[operator]
        request: dict[str, Any] = {"images": images, "state": middle[0].cpu().numpy()}
        if instructions := self.metadata["instructions"]:
            request["task"] = instructions[0]
        Session(self.policy, self.seed, self.adapter).answer(request)

    def run(self, host: str, port: int, ready: Callable[[str], None] = lambda url: None) -> None:
        """Answer requests until SIGINT, or SIGTERM, after which the questions that have come are still answered, for at
        most `DRAIN_S`. `ready` is called with the address; port 0 is any that is free.

        Computes in the calling thread, which has to be the process's main one.
        """
        handlers = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        switch_s = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)
        gc.collect()
        gc.freeze()  # looking through all that PyTorch consists of, for garbage, would take a tenth of a second
        try:
            with self._threads, self._network(host, port) as url:
                ready(url)
                while not self._stopping:
                    if turn := self._turns.next(WAKE_S):
                        turn.take()
        finally:
            gc.unfreeze()
            sys.setswitchinterval(switch_s)
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _stop(self, number: int | None = None, frame: object = None) -> None:
        self._draining = number == signal.SIGTERM and not self._stopping  # a second one ends that, too
        self._stopping = True

    @contextmanager
    def _network(self, host: str, port: int) -> Iterator[str]:
        """Talk to robots in another thread; yields the address, and says goodbye to everyone in the end."""
        opened: concurrent.futures.Future[tuple[str, Callable[[], object]]] = concurrent.futures.Future()

        def talk() -> None:
            try:
                asyncio.run(self._listen(host, port, opened))
            except Exception as error:
                if opened.done():
                    raise
                opened.set_exception(error)
            finally:
                self._stop()

        thread = threading.Thread(target=talk, daemon=True)
        thread.start()
        url, close = opened.result()
        try:
            yield url
        finally:
            with suppress(RuntimeError):  # it broke down, and has said so
                close()
            while thread.is_alive():
                if turn := self._turns.next(WAKE_S):
                    turn.take() if self._draining else turn.drop()

    async def _listen(
        self, host: str, port: int, opened: concurrent.futures.Future[tuple[str, Callable[[], object]]]
    ) -> None:
        loop, closing = asyncio.get_running_loop(), asyncio.Event()
        logger = logging.getLogger("prism_policy.deploy.websockets")
        logger.disabled = True  # it would print a traceback for whatever others send
        logging.getLogger("asyncio").setLevel(logging.ERROR)  # a line for each write to a robot that has left
        try:
            listening = await listen(
                self._handle,
                host,
                port,
                compression=None,
                max_size=Interface.of(self.metadata).largest_question,
                max_queue=(0, 0),
                backlog=ACCEPTED_AT_ONCE,
                open_timeout=OPEN_S,
                close_timeout=CLOSE_S,
                process_request=self._admit,
                process_response=shortened,
                ssl=self.tls,
                ssl_handshake_timeout=None if self.tls is None else OPEN_S,
                create_connection=cast(Any, functools.partial(FairConnection, {})),
                logger=logger,
            )
        except (OSError, OverflowError, ValueError) as error:
            failed = f"cannot listen at {host}:{port} ({one_line(error, 200)})"
            raise PrismError(f"{failed}; choose another --host or --port") from error
        async with listening as server:
            let_many_wait(server)
            number = next(iter(server.sockets)).getsockname()[1]
            scheme = "ws" if self.tls is None else "wss"
            url = f"{scheme}://[{host}]:{number}" if ":" in host else f"{scheme}://{host or '0.0.0.0'}:{number}"
            gauges = self.metrics.gauges
            gauges["robots"] = ("Robots that are connected", lambda: len(server.connections))
            gauges["waiting"] = ("Questions that are computed or wait", lambda: len(self._asking))
            opened.set_result((url, lambda: loop.call_soon_threadsafe(closing.set)))
            await closing.wait()
            await self._drain(server)

    async def _drain(self, server: WebsocketServer) -> None:
        """Admit nobody any more, let go of who asks nothing, and wait until the others have their answers."""
        server.close(close_connections=False)
        end = time.monotonic() + DRAIN_S

        async def dismiss(one: ServerConnection) -> None:
            if one not in self._asking or not self._draining:
                await one.close(1001, STOPPING)

        leaving = [asyncio.create_task(dismiss(one)) for one in server.connections]
        await asyncio.sleep(0)  # handlers of questions that were already read run first, and count as asking
        while self._asking and self._draining and time.monotonic() < end:
            await asyncio.sleep(WAKE_S / 4)
        self._draining = False
        leaving += [asyncio.create_task(one.close(1001, STOPPING)) for one in server.connections]
        if leaving:
            await asyncio.wait(leaving)

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """None for a robot; or the answer to others."""
        if request.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if "Origin" in request.headers:  # a page in somebody's browser, which reaches machines that its site does not
            return connection.respond(http.HTTPStatus.FORBIDDEN, "expected a robot, got a browser's page (Origin)\n")
        keys = request.headers.get_all("Authorization")
        if len(keys) > 1:
            return connection.respond(http.HTTPStatus.BAD_REQUEST, "expected one Authorization header\n")
        given = "".join(keys).encode(errors="surrogateescape")
        if self.api_key and not hmac.compare_digest(given, f"Api-Key {self.api_key}".encode()):
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, "expected Authorization: Api-Key ...\n")
        if request.path == "/metrics":
            return connection.respond(http.HTTPStatus.OK, self.metrics.page(self.metadata))
        if len(connection.server.connections) >= MOST_CONNECTIONS:
            full = f"{MOST_CONNECTIONS} robots are connected, and more have to wait\n"
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, full)
        if (seconds := patience(request)) is not None:
            connection.ping_interval = connection.ping_timeout = seconds
        self.metrics.count("connections")
        return None

    async def _handle(self, connection: ServerConnection) -> None:
        session, gone = self.session(), asyncio.create_task(connection.wait_closed())
        self._turns.open(connection)
        try:
            await connection.send(pack(self.metadata))
            async for data in connection:
                if connection.state is not State.OPEN:  # asked after the goodbye: no answer could be sent
                    return
                self.metrics.count("questions")
                self._asking.add(connection)
                try:
                    turn = self._turn(connection, session, data)
                    waiting = asyncio.wrap_future(turn.answer)
                    await asyncio.wait((waiting, gone), return_when=asyncio.FIRST_COMPLETED)
                    if not waiting.done() or waiting.cancelled():  # the robot has left, or the server stops
                        turn.drop()
                        return
                    await connection.send(waiting.result())
                    if self._stopping:
                        await connection.close(1001, STOPPING)
                        return
                except PrismError as error:
                    self.metrics.count("refusals")
                    await self._refuse(connection, one_line(error, LONGEST_SENTENCE))
                    return
                except ConnectionClosed:
                    return
                except Exception:
                    self.metrics.count("failures")
                    console.print(*traceback.format_exc().splitlines())
                    await self._refuse(connection, "the server failed; its log says where")
                    return
                finally:
                    self._asking.discard(connection)
        except ConnectionClosed:  # by the robot, or a network that broke
            return
        finally:
            self._turns.close(connection)
            gone.cancel()

    def _turn(self, connection: ServerConnection, session: Session, data: bytes | str) -> Turn:
        """Have a question answered when it is its turn."""
        if isinstance(data, str):
            raise PrismError("expected a binary message, got text")
        request, came = unpack(data), time.perf_counter()

        def compute() -> bytes:
            started = time.perf_counter()
            with self._threads.work():
                answer = pack(session.answer(request))
            self.answers_s.append(time.perf_counter() - started)
            self.metrics.answered(started - came, self.answers_s[-1])
            return answer

        return self._turns.ask(connection, compute)

    async def _refuse(self, connection: ServerConnection, sentence: str) -> None:
        await connection.send(sentence)
        await connection.close(1011, "the message before says why")


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """What a server needs for wss://: its certificate (with those that signed it) and its key, as PEM.

    Raises:
        PrismError: they cannot be read, or are none, or do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password=lambda: "")  # it would ask the terminal
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        expected = f"expected a certificate and its key without a password (PEM) in {certificate} and {key}"
        raise PrismError(f"{expected}; got what is none ({one_line(error, 100)})") from error
    return context


def describe(folder: Path, checkpoint: str, config: RunConfig, policy: Policy) -> dict[str, Any]:
    """The metadata that a client receives first: all it needs to send requests."""
    task, interface = config.task, Adapter.of(policy, config, read_data(folder)).interface
    return {
        "protocol": "prism-policy 1",
        "run": folder.resolve().name,
        "checkpoint": checkpoint,
        "weights": policy.fingerprint(),
        "task": task.name,
        "instructions": list(policy.instructions.known) if policy.instructions else [],
        "policy": config.policy.kind,
        "encoder": encoder_name(config.policy.encoder),
        "action_mode": task.action_mode,
        **interface.metadata(),
        "control_hz": policy.schema.fps,  # none where the demonstrations do not say
        "config": json.loads(config_json.to_json(replace(config, dataset=Path(config.dataset).name))),
    }


def serve(
    folder: Path,
    checkpoint: str = "last",
    host: str = "127.0.0.1",
    port: int = 8000,
    device: Device = "auto",
    seed: int = 0,
    api_key: str | None = None,
    tls: tuple[Path, Path] | None = None,
) -> None:
    """Serve the policy of a run folder until it is stopped, then print how fast it was.

    `tls` has the files of certificate and key.
    """
    context = None if tls is None else tls_context(*tls)
    config = read_run(folder)
    policy = load_policy(folder, checkpoint).to(pick_device(device))
    adapter = Adapter.of(policy, config, read_data(folder))
    server = Server(policy, describe(folder, checkpoint, config, policy), adapter, seed, api_key, context)
    server.warm_up()

    def ready(url: str) -> None:
        about, schema = server.metadata, adapter.interface.schema
        frames = ", ".join(f"{camera} {size[0]} x {size[1]}" for camera, size in about["cameras"].items())
        rate = "a rate that its demonstrations do not record" if about["control_hz"] is None else "{:g} Hz"
        rate = rate.format(about["control_hz"])
        console.print(
            f"Serving {folder} ({about['policy']}, {about['encoder']}, checkpoint {checkpoint}) at {url}",
            f"It expects {frames} and state ({schema.state_dim},): {', '.join(map(str, schema.state))}",
            f"It answers with {about['n_action_steps']} actions at {rate}: {', '.join(map(str, schema.action))}",
        )
        if not _is_local(host) and context is None:
            console.print("What is sent can be read on the way; --tls-cert and --tls-key encrypt it")
        if not _is_local(host) and not api_key:
            console.print("Anyone who reaches this machine can send requests; set PRISM_API_KEY to require a key")
        console.print("Ctrl-C stops it")

    server.run(host, port, ready)
    speed = ""
    if len(server.answers_s) > 1:
        median, slow = (1000 * seconds for seconds in np.quantile(server.answers_s, (0.5, 0.95)))
        speed = f": median {median:.0f} ms, 95% within {slow:.0f} ms"
    console.print(f"Served {server.metrics.counters['answers']} chunks{speed}")


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
