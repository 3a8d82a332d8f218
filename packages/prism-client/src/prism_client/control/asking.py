"""A question to the policy while the robot goes on."""

from __future__ import annotations

import threading
from typing import Any, Protocol

import numpy as np

from prism_client.client import PolicyClient
from prism_client.control.clock import Clock
from prism_client.errors import PrismError
from prism_client.text import one_line


class Asking(Protocol):
    """One question at a time."""

    @property
    def busy(self) -> bool:
        """Whether a question was asked whose answer has not been fetched."""

    def ask(self, request: dict[str, Any]) -> None:
        """Send a question; returns at once."""

    def poll(self) -> np.ndarray | None:
        """The actions (n, A), or None if they are not there yet.

        Raises:
            PrismError: there will be none.
        """


class ThreadedAsking:
    """Asks a server in a thread of its own."""

    def __init__(self, client: PolicyClient) -> None:
        self.client = client
        self.busy = False
        self._answer: np.ndarray | None = None
        self._error: PrismError | None = None

    def ask(self, request: dict[str, Any]) -> None:
        """Send a question; returns at once."""
        self.busy, self._answer, self._error = True, None, None
        self._done = threading.Event()
        threading.Thread(target=self._work, args=(request,), name="policy question", daemon=True).start()

    def _work(self, request: dict[str, Any]) -> None:
        try:
            self._answer = self.client.infer(request)["actions"]
        except PrismError as error:
            self._error = error
        except Exception as error:
            self._error = PrismError(f"the question failed ({one_line(f'{type(error).__name__}: {error}', 200)})")
        self._done.set()

    def poll(self) -> np.ndarray | None:
        """The actions (n, A), or None if they are not there yet; raises as `Asking.poll`."""
        if not self.busy or not self._done.is_set():
            return None
        self.busy = False
        if self._error is not None:
            raise self._error
        return self._answer


class DelayedAsking:
    """Asks at once and answers `latency_s` later by a simulated clock: a server far away, for simulations."""

    def __init__(self, client: Any, clock: Clock, latency_s: float) -> None:
        self.client, self.clock, self.latency_s = client, clock, latency_s
        self.busy = False

    def ask(self, request: dict[str, Any]) -> None:
        """Ask, and keep the answer back."""
        self.busy, self._due = True, self.clock.now() + self.latency_s
        self._answer = self.client.infer(request)["actions"]

    def poll(self) -> np.ndarray | None:
        """The actions (n, A), or None if they are not there yet."""
        if not self.busy or self.clock.now() < self._due - 1e-6:
            return None
        self.busy = False
        return self._answer
