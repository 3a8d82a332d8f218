"""Seeded cases for the fuzz suite, and what each of them has to end in.

`make test` runs a few hundred cases of one seed; `make fuzz SEED=7` runs 20,000 in all. A case is its file's name, the
seed and a number, so a failure can be run again alone: `FUZZ_SEED=7 FUZZ_ONLY=123 pytest tests/fuzz/test_messages.py`.
"""

from __future__ import annotations

import hashlib
import os
import resource
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from prism_policy.errors import PrismError

CASES = int(os.environ.get("FUZZ_CASES", "200"))
"""Of the whole suite; a file takes its share."""
SEED = int(os.environ.get("FUZZ_SEED", "0"))
LONGEST_MESSAGE = 500
MOST_SECONDS = 10.0
MOST_MEMORY = 512 * 2**20
"""Bytes by which all cases of a test together may raise the process's peak."""


def cases(name: str, share: float) -> Iterator[tuple[int, np.random.Generator]]:
    """The number and the generator of each case of `name`, which is `share` of the suite."""
    only = os.environ.get("FUZZ_ONLY")
    numbers = [int(only)] if only else range(max(1, round(CASES * share)))
    before = _peak()
    for number in numbers:
        yield number, np.random.default_rng([SEED, zlib.crc32(name.encode()), number])
    grown = _peak() - before
    assert grown <= MOST_MEMORY, f"{name}: memory grew by {grown / 2**20:.0f} MiB"


def clean(case: int, action: Callable[[], object]) -> PrismError | None:
    """Run `action`: it gives an answer, or one short PrismError, which is returned; in bounded time."""
    started = time.perf_counter()
    error = None
    try:
        action()
    except PrismError as refusal:
        error = refusal
        text = str(refusal)
        assert 0 < len(text) <= LONGEST_MESSAGE, f"case {case} of seed {SEED}: {len(text)} characters: {text[:300]}"
        assert "\n" not in text, f"case {case} of seed {SEED}: several lines: {text}"
    except Exception as other:
        raise AssertionError(f"case {case} of seed {SEED}: {type(other).__name__}: {str(other)[:300]}") from other
    took = time.perf_counter() - started
    assert took <= MOST_SECONDS, f"case {case} of seed {SEED} took {took:.1f} s"
    return error


def digest(folder: Path) -> str:
    """Of all files below `folder`, with their names: equal where nothing was changed, added or removed."""
    state = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        state.update(str(path.relative_to(folder)).encode())
        if path.is_file():
            state.update(path.read_bytes())
    return state.hexdigest()


def flipped(rng: np.random.Generator, data: bytes, most: int = 16) -> bytes:
    """`data` with some bytes changed, a stretch overwritten, cut out, repeated, or its end missing."""
    changed = bytearray(data)
    kind = rng.integers(5)
    start, length = (int(rng.integers(1, max(2, len(data)))) for _ in range(2))
    length = min(length, 64)
    if kind == 0:
        for place in rng.integers(len(data), size=rng.integers(1, most + 1)):
            changed[place] = rng.integers(256)
    elif kind == 1:
        changed[start : start + length] = rng.bytes(length)
    elif kind == 2:
        del changed[start : start + length]
    elif kind == 3:
        changed[start:start] = changed[start : start + length]
    else:
        del changed[start:]
    return bytes(changed)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
