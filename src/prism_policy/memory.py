"""Peak memory of this process and all its children together."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil


class PeakMemory:
    """Samples the resident memory of the process tree twice a second; pages shared between processes count for each.

    Usage::

        with PeakMemory() as memory:
            ...
        print(memory.peak_mib)
    """

    def __init__(self) -> None:
        self.peak_mib = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        root = psutil.Process()
        while True:
            total = 0
            try:
                for process in (root, *root.children(recursive=True)):
                    try:
                        total += process.memory_info().rss
                    except psutil.Error:  # it ended between the listing and the reading
                        continue
            except psutil.Error:
                pass
            self.peak_mib = max(self.peak_mib, total / 2**20)
            if self._stop.wait(0.5):
                return

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
