"""Health checks of a training: losses that diverge, a missing compiler, too little memory."""

from __future__ import annotations

import json
import math
import os
import shutil
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import psutil
import torch
from torch import Tensor

from prism_policy.config.settings import RunConfig
from prism_policy.data.schema import Schema
from prism_policy.data.windows import batch_indices
from prism_policy.errors import PrismError
from prism_policy.run_folder import weightless_policy
from prism_policy.training.prefetch import mapped
from prism_policy.utils.files import write_text
from prism_policy.utils.memory import release_freed_memory

EXPLODED = 10.0  # times the loss at the start from which no training recovers


def check_losses(
    folder: Path,
    config: RunConfig,
    groups: Sequence[np.ndarray],
    done: int,
    losses: Sequence[float],
    weights: Iterable[Tensor],
    metrics: Sequence[Mapping[str, Any]],
) -> None:
    """Stop where losses or weights are not finite, or losses far above the start's; bad_batch.json names the windows.

    `losses` are those of each update since the last line of `metrics`, the last ones of the `done` updates.
    """
    first = metrics[0]["loss"] if metrics else math.inf
    bad = [i for i, loss in enumerate(losses) if not math.isfinite(loss)]
    if bad:
        at, what = bad[0], f"the loss became {losses[bad[0]]}"
    elif sum(losses) / len(losses) > EXPLODED * first:
        at = max(range(len(losses)), key=losses.__getitem__)
        what = f"the loss rose to {losses[at]:.4g}, from {first:.4g} at the start,"
    elif not torch.nn.utils.get_total_norm(weights).isfinite():
        at, what = len(losses) - 1, "the weights became NaN or overflowed"
    else:
        return
    step = done - len(losses) + at
    indices = batch_indices(step, config.train.batch_size, groups, config.seed)
    write_text(folder / "bad_batch.json", json.dumps({"update": step + 1, "windows": indices.tolist()}))
    raise PrismError(
        f"{what} at update {step + 1}; the checkpoint before it is kept, and {folder / 'bad_batch.json'} names the "
        f"batch's windows. Lower the learning rate ({config.train.lr}) or look for odd actions in the demonstrations"
    )


def check_compiler() -> None:
    """Require the compiler that torch.compile needs."""
    if not shutil.which(os.environ.get("CXX", "g++")):
        raise PrismError("train.compile needs a C++ compiler, found no g++; install one, or choose --train.no-compile")


def check_memory(config: RunConfig, schema: Schema, device: torch.device, processes: int = 1) -> None:
    """Refuse what cannot fit into memory by arithmetic alone: the network's numbers, and the images of a batch.

    All that a training needs besides (features, gradients of activations) is more; what fits here may still not fit.
    """
    on_gpu = device.type == "cuda"
    total = torch.cuda.mem_get_info(device)[1] if on_gpu else psutil.virtual_memory().total
    place = f"the {total / 2**30:.0f} GiB of this {'GPU' if on_gpu else 'machine'}"
    here = 1 if on_gpu else processes
    # Weights, gradients, moving average and two moments, in float32.
    network = here * 20 * sum(p.numel() for p in weightless_policy(config, schema).parameters())
    if network > total:
        needs = f"training this network takes at least {network / 2**30:.0f} GiB, more than {place}"
        raise PrismError(f"policy: {needs}; choose smaller sizes")
    encoder, pixels = config.policy.encoder, sum(height * width for height, width in schema.cameras.values())
    # Each frame as bytes, and as the network's float32 input.
    window = config.policy.n_obs_steps * pixels * 3 * (1 + 4 * encoder.crop**2)
    most = int((total - network) / window) * processes // here
    if config.train.batch_size > most:
        expected = f"expected at most {most}, whose images alone fill {place}"
        raise PrismError(f"train.batch_size: {expected}, got {config.train.batch_size}")


def update_memory(config: RunConfig, schema: Schema, parameters: int, rows: int) -> int:
    """About how many bytes an update of `rows` windows takes on a GPU, beside the weights and their average.

    Gradients and moments in float32, and of each input pixel what is kept for the backward pass: with a trunk of width
    64, 850 bytes in bfloat16, half of that compiled, as counted on tensors without data. Float32 takes twice as many.
    """
    encoder = config.policy.encoder
    pixels = sum(height * width for height, width in schema.cameras.values()) * encoder.crop**2
    kept = (
        13.3 * encoder.width * (0.5 if config.train.compile else 1) * (2 if config.train.precision == "float32" else 1)
    )
    return 12 * parameters + int(rows * config.policy.n_obs_steps * pixels * kept)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of PyTorch, oneDNN, cuDNN or Python means too little memory, on the host or a GPU."""
    words = (
        "can't allocate memory",
        "out of memory",
        "could not create a ",  # oneDNN: memory object, primitive
        "ALLOC_FAILED",  # cuBLAS, cuDNN
        "unable to find an engine",  # cuDNN, for want of workspace
    )
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def advise_batch_size(
    error: BaseException, update: Callable[[dict[str, Any]], object], batch: dict[str, Any], batch_size: int
) -> NoReturn:
    """Find the largest batch that fits by halving, and stop with that advice; the weights are lost.

    `batch` is that of this process, `batch_size` of all, `error` that of the update that did not fit.
    """
    rows = len(batch["mask"])
    while rows > 1:
        rows //= 2
        traceback.clear_frames(error.__traceback__)  # they hold what is to be freed
        release_freed_memory()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        part = mapped(batch, lambda x: x[:rows] if x.ndim else x)  # noqa: B023 (called at once)
        try:
            # After oneDNN failed once to allocate generated code, it fails in that thread for good.
            with ThreadPoolExecutor(1) as thread:
                thread.submit(update, part).result()
        except (MemoryError, RuntimeError) as again:
            error = again
            continue
        share = batch_size * rows // len(batch["mask"])
        hint = f"{share} fit: --train.batch-size {share}, or more processes"
        raise PrismError(f"out of memory at a batch of {batch_size} windows; {hint}")
    hint = "in what is left even a single one found no room; try a far smaller train.batch_size"
    raise PrismError(f"out of memory at a batch of {batch_size} windows, and {hint}")
