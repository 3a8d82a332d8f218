"""A connection that takes no more than its share of a server's time and memory, whatever its other end does."""

from __future__ import annotations

import asyncio
import http
import math
import os
import socket
import time
from typing import Any, cast

from websockets.asyncio.server import Server, ServerConnection
from websockets.http11 import Request, Response

from prism_policy.utils.text import one_line

READ_BYTES = 8 * 2**10
"""What is read at a time: some thousand of the smallest frames, which are dear to read one by one."""
COSTLY_S = 0.002
"""Processor time for what was read at a time, from which the connection makes a pause of three times as long [s]."""
REQUEST_BYTES = 16 * 2**10
"""Of a connection's HTTP request."""
MOST_OPENING = 64
"""Connections that have not made their request yet; with more, the oldest one is dropped."""
ACCEPTED_AT_ONCE, BACKLOG = 2, 128
"""Connections that are accepted before those who have one are heard again, and that the kernel keeps waiting: asyncio
has one number for both, and a hundred handshakes at once take a fifth of a second."""
STUCK_S = 20.0
"""How long the other end may leave what it was sent unread [s]."""
PING_S = (1.0, 600.0)
"""Least and most time between a robot's pings, and for its answer to one, which is its `answer_s` by default [s]."""


class FairConnection(ServerConnection):
    """A server's end of a connection.

    While it has an unread message, takes its pause, or its other end does not read, nothing more is read from it.

    Args:
        opening: all those of a server that have not made their request yet, in order; each enters and leaves by itself.
    """

    def __init__(self, opening: dict[FairConnection, None], *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._opening = opening

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Read little at a time."""
        super().connection_made(transport)
        encrypted = getattr(transport, "_ssl_protocol", None)  # asyncio has no public name for what TLS reads with
        cast(Any, transport if encrypted is None else encrypted).max_size = READ_BYTES
        self._opening[self] = None
        if len(self._opening) > MOST_OPENING:
            next(iter(self._opening)).transport.abort()
        self._reasons: set[str] = set()
        self._request_bytes = 0
        self._stuck: asyncio.TimerHandle | None = None
        self.recv_messages.pause = lambda: self._pause("message")
        self.recv_messages.resume = lambda: self._resume("message")

    def data_received(self, data: bytes) -> None:
        """Take in what was read; a pause follows where that was costly."""
        if self.request is None:
            self._request_bytes += len(data)
            if self._request_bytes > REQUEST_BYTES:
                self.transport.abort()
                return
        started = time.thread_time()
        super().data_received(data)
        if (spent := time.thread_time() - started) > COSTLY_S:
            self._pause("cost")
            self.loop.call_later(3 * spent, self._resume, "cost")
        if self.request is not None:
            self._opening.pop(self, None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave."""
        super().connection_lost(exc)
        self._opening.pop(self, None)

    def pause_writing(self) -> None:
        """The other end does not read: wait for it, but not for ever."""
        super().pause_writing()
        self._pause("unread")
        self._stuck = self.loop.call_later(STUCK_S, self.transport.abort)

    def resume_writing(self) -> None:
        """The other end has read."""
        super().resume_writing()
        self._resume("unread")
        if self._stuck is not None:
            self._stuck.cancel()

    def _pause(self, reason: str) -> None:
        self._reasons.add(reason)
        self.transport.pause_reading()

    def _resume(self, reason: str) -> None:
        self._reasons.discard(reason)
        if not self._reasons:
            self.transport.resume_reading()


def let_many_wait(server: Server) -> None:
    """Have the kernel keep `BACKLOG` connections of a server that was made to accept `ACCEPTED_AT_ONCE`."""
    for each in server.sockets:
        with socket.socket(fileno=os.dup(each.fileno())) as same:
            same.listen(BACKLOG)


def patience(request: Request) -> float | None:
    """How long a robot waits for an answer, as its client says; None where it says nothing [s]."""
    said = request.headers.get_all("Prism-Answer-S")
    try:
        seconds = float(said[0]) if len(said) == 1 else math.nan
    except ValueError:
        return None
    return None if math.isnan(seconds) else min(max(seconds, PING_S[0]), PING_S[1])


def shortened(connection: ServerConnection, request: Request, response: Response) -> Response | None:
    """Refusals of websockets quote what was sent at any length."""
    if response.status_code >= 400 and response.body and len(response.body) > 300:
        return connection.respond(http.HTTPStatus(response.status_code), one_line(bytes(response.body).decode(), 300))
    return None
