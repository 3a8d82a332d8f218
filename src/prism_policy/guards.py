"""What stops a training with a reason and a way on, instead of a crash or a wasted night."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from prism_policy.config import RunConfig
from prism_policy.data.loader import mapped
from prism_policy.data.windows import batch_indices
from prism_policy.errors import PrismError
from prism_policy.files import write_text
from prism_policy.policies import Policy

EXPLODED = 10.0
"""Times the loss at the start that no training comes back from."""


def check_losses(
    folder: Path,
    config: RunConfig,
    n_windows: int,
    done: int,
    losses: Sequence[float],
    metrics: Sequence[Mapping[str, Any]],
) -> None:
    """Stop at a loss that is not finite, or far above that of the start, and write down which windows made it.

    Args:
        folder: of the run, for bad_batch.json.
        config: of the run.
        n_windows: how many there are.
        done: updates, the last `losses` among them.
        losses: of each update since the last line of `metrics`.
        metrics: lines so far.

    Raises:
        PrismError: that is so.
    """
    first = metrics[0]["loss"] if metrics else math.inf
    bad = [i for i, loss in enumerate(losses) if not math.isfinite(loss)]
    if not bad and sum(losses) / len(losses) <= EXPLODED * first:
        return
    at = bad[0] if bad else max(range(len(losses)), key=losses.__getitem__)
    step = done - len(losses) + at
    indices = batch_indices(step, config.train.batch_size, n_windows, config.seed)
    write_text(folder / "bad_batch.json", json.dumps({"update": step + 1, "windows": indices.tolist()}))
    what = f"became {losses[at]}" if bad else f"rose to {losses[at]:.4g}, from {first:.4g} at the start,"
    raise PrismError(
        f"the loss {what} at update {step + 1}; the checkpoint before it is kept, and {folder / 'bad_batch.json'} "
        f"names the batch's windows. Lower the learning rate ({config.train.lr}) or look for odd actions in the "
        "demonstrations"
    )


def check_compiler() -> None:
    """Find out beforehand that torch.compile has nothing to compile with.

    Raises:
        PrismError: that is so.
    """
    if not shutil.which(os.environ.get("CXX", "g++")):
        raise PrismError("train.compile needs a C++ compiler, found no g++; install one, or set train.compile=false")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of PyTorch, oneDNN or Python is for want of memory, on the host or a GPU."""
    words = ("can't allocate memory", "out of memory", "could not create a memory object")
    return isinstance(error, MemoryError) or any(part in str(error) for part in words)


def advise_batch_size(policy: Policy, batch: Mapping[str, Any], batch_size: int) -> NoReturn:
    """Find by halving what fits, and stop with that advice.

    Raises:
        PrismError: always.
    """
    policy.zero_grad()
    rows = len(batch["mask"])
    while rows > 1:
        rows //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        with contextlib.suppress(MemoryError, RuntimeError):
            part = mapped(batch, lambda x: x[:rows] if x.ndim else x)  # noqa: B023 (called at once)
            policy(part)[0].backward()
            share = batch_size * rows // len(batch["mask"])
            raise PrismError(
                f"out of memory at a batch of {batch_size} windows; {share} fit: --set train.batch_size={share}, or "
                "more processes"
            )
        policy.zero_grad()
    raise PrismError(f"out of memory at a batch of {batch_size} windows, and a single one does not fit either")
