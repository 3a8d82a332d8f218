"""Batches prepared one ahead, in a thread, while the device works on the one before."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor


class Prefetcher:
    """Calls `make` for each of `items`, in a thread, one ahead of the consumer: iterate over it."""

    def __init__(self, make: Callable[[int], Any], items: Iterable[int]) -> None:
        self.make, self.items = make, items
        self.waited_s = 0.0  # how long the consumer waited [s]

    def __iter__(self) -> Iterator[Any]:
        with ThreadPoolExecutor(1, "batches") as thread:
            pending: deque[Future[Any]] = deque()
            for item in self.items:
                pending.append(thread.submit(self.make, item))
                if len(pending) == 2:
                    yield self._result(pending.popleft())
            while pending:
                yield self._result(pending.popleft())

    def _result(self, future: Future[Any]) -> Any:
        started = time.perf_counter()
        try:
            return future.result()
        finally:
            self.waited_s += time.perf_counter() - started


def mapped(batch: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to every tensor of a batch, which is nested dictionaries."""
    if isinstance(batch, dict):
        return {key: mapped(value, function) for key, value in batch.items()}
    return function(batch)


def pinned(batch: Any) -> Any:
    """Copy the batch to pinned memory, from which a GPU copies while it computes."""
    return mapped(batch, Tensor.pin_memory)


def moved(batch: Any, device: torch.device) -> Any:
    """Copy the batch to the device; from pinned memory without waiting for it."""
    return mapped(batch, lambda x: x.to(device, non_blocking=True))
