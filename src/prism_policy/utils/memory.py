"""Memory of processes: peak use, and how malloc treats what is freed."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # glibc's malloc.h


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Have malloc keep what is freed within the block, as the next update needs pieces of the same sizes.

    glibc gives each large block back to the kernel, which clears every page again at its next use: a tenth of a
    training step's time on a CPU. Without glibc nothing happens.
    """
    if libc := _glibc():
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_TOP_PAD, 256 * 2**20)
    try:
        yield
    finally:
        release_freed_memory()


def release_freed_memory() -> None:
    """Give freed memory back to the kernel, now and from here on."""
    if libc := _glibc():
        libc.mallopt(_M_MMAP_MAX, 65536)  # glibc's defaults
        libc.mallopt(_M_TRIM_THRESHOLD, 128 * 2**10)
        libc.mallopt(_M_TOP_PAD, 128 * 2**10)
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None


class PeakMemory:
    """Samples the resident memory of the process tree twice a second; pages shared between processes count for each."""

    def __init__(self) -> None:
        self.peak_mib = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        root = psutil.Process()
        while True:
            total = 0
            with suppress(psutil.Error):
                for process in (root, *root.children(recursive=True)):
                    with suppress(psutil.Error):  # it ended between the listing and the reading
                        total += process.memory_info().rss
            self.peak_mib = max(self.peak_mib, total / 2**20)
            if self._stop.wait(0.5):
                return

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
