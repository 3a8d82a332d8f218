"""Walks an HDF5 file in a process of its own: on damaged files HDF5's library crashes, loops, or asks for all memory.

It knows nothing of this package, so that it starts in a fifth of a second: `python -P probe.py` reads a path a line and
answers each with how the walk ended: 0, or minus the signal that it died of. Each walk is a fork, so a death costs a
millisecond and what one file did to the library's memory is no other's trouble. It ends when nobody asks any more.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

STUCK_S = 4
"""Seconds that one object may take."""
IDLE_S = 20
"""Seconds without a question after which the process ends."""
MEMORY = 2 * 2**30
"""Bytes of address space."""
SMALL_FILE, SMALL_ARRAY = 32 * 2**20, 64 * 2**10
"""Bytes of a file that is read as a whole, and of the arrays that are read in a larger one."""
RATIO = 1100
"""No compression that comes with HDF5 makes data smaller: deflate, the strongest, reaches 1032."""
UNWRITTEN = 64 * 2**10
"""Bytes that an array may have beyond what the file can hold of it: one that was made and never written reads as 0."""
CHUNK = 16 * 2**20
"""The same of a chunk, which is read as a whole."""


def excess(dataset: h5py.Dataset, file_size: int) -> str:
    """How much more a dataset claims to hold than the file can; "" where it is believable."""
    stored = min(dataset.id.get_storage_size(), file_size)
    chunk = int(np.prod([float(n) for n in dataset.chunks])) * dataset.dtype.itemsize if dataset.chunks else 0
    size = float(dataset.dtype.itemsize)
    for length in dataset.shape or ():
        size *= length
    if size > RATIO * stored + UNWRITTEN or chunk > RATIO * stored + CHUNK:
        return f"claims {max(size, chunk) / 2**20:.4g} MiB, of which the file holds {stored / 2**20:.4g}"
    return ""


def attribute_size(item: Any, name: str) -> int:
    """Bytes that an attribute claims."""
    return int(h5py.h5a.open(item.id, name.encode()).get_storage_size())


def walk(path: str) -> None:
    """Visit every object of a file with its attributes, and read what is small; errors that HDF5 tells are no matter.

    Whoever reads the file after this meets nothing that was not met here, but the content of large arrays.
    """
    size = Path(path).stat().st_size
    seen: set[Any] = set()

    def visit(item: Any) -> None:
        signal.alarm(STUCK_S)
        for i in range(h5py.h5a.get_num_attrs(item)):
            with suppress(Exception):
                claimed = h5py.h5a.open(item, index=i)
                if claimed.get_storage_size() <= size:
                    (h5py.Dataset if isinstance(item, h5py.h5d.DatasetID) else h5py.Group)(item).attrs[claimed.name]
        if isinstance(item, h5py.h5d.DatasetID):
            array = h5py.Dataset(item)
            if item.get_create_plist().get_layout() != h5py.h5d.CHUNKED and array.dtype.kind != "O":
                return  # a copy of bytes
            if not excess(array, size) and (size <= SMALL_FILE or array.nbytes <= SMALL_ARRAY):
                array[()]
            elif array.chunks:
                item.get_num_chunks()
        elif isinstance(item, h5py.h5g.GroupID):
            for name in item:
                with suppress(Exception):
                    child = h5py.h5o.open(item, name)
                    about = h5py.h5o.get_info(child)
                    key = (about.fileno, str(about.addr))
                    if key not in seen:
                        seen.add(key)
                        visit(child)

    with h5py.File(path, "r", locking="best-effort") as file, suppress(RecursionError):
        visit(h5py.h5g.open(file.id, b"/"))


def main() -> None:
    """Answer paths, one a line, until nobody asks."""
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    memory = MEMORY if most == resource.RLIM_INFINITY else min(MEMORY, most)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who asks
    while True:
        signal.alarm(IDLE_S)
        if not (line := sys.stdin.readline()):
            return
        signal.alarm(0)  # each object of the walk has its own limit
        if not (walker := os.fork()):
            signal.alarm(STUCK_S)
            with suppress(Exception):
                walk(os.fsdecode(bytes.fromhex(line)))
            os._exit(0)
        _, status = os.waitpid(walker, 0)
        os.write(1, f"{os.waitstatus_to_exitcode(status)}\n".encode())


if __name__ == "__main__":
    main()
