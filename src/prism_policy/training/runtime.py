"""What surrounds a training loop: arithmetic, signals, frames on the device."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from prism_policy.config.settings import RunConfig, TrainConfig
from prism_policy.data.windows import Windows
from prism_policy.utils.progress import console

ON_DEVICE = 0.5
"""Share of what updates leave of a GPU's free memory that all frames may take; more of them stay mapped."""


def resident(windows: Windows, device: torch.device, update_bytes: int = 0) -> Windows:
    """Move the windows' frames to the device where they fit; else leave them mapped from the disk.

    `update_bytes` are what an update is going to need besides, see `health.update_memory`.
    """
    if device.type != "cuda":
        return windows
    free, _ = torch.cuda.mem_get_info(device)
    return windows.to(device) if windows.frames.nbytes < ON_DEVICE * (free - update_bytes) else windows


def bfloat16_slowdown() -> float:
    """How many times as long as float32 a small convolution and its gradient take in bfloat16 on this processor.

    Without AVX-512 or AMX instructions for it PyTorch computes number by number. Measured, for what a processor says
    of itself has other names on each kind of them. It takes a quarter of a second where bfloat16 is slow.
    """
    layer = torch.nn.Conv2d(32, 32, 3, padding=1)
    x = torch.ones(4, 32, 24, 24)
    seconds = {torch.float32: 1e9, torch.bfloat16: 1e9}
    for _ in range(4):  # the least of several, as other processes take their turns
        for dtype in seconds:
            started = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                layer(x).sum().backward()
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - started)
    return seconds[torch.bfloat16] / seconds[torch.float32]


def warn_of_slow_bfloat16(config: RunConfig, device: torch.device) -> None:
    """Say it where bfloat16, which shall save time, costs some."""
    names = {"train.precision": config.train.precision, "policy.encoder.precision": config.policy.encoder.precision}
    chosen = [name for name, precision in names.items() if precision == "bfloat16"]
    if chosen and device.type == "cpu":
        with torch.random.fork_rng(devices=[]):
            slowdown = bfloat16_slowdown()
        if slowdown > 1.5:
            flags = " ".join(f"--{name} float32" for name in chosen)
            console.print(f"bfloat16 is {slowdown:.0f} times slower than float32 on this processor: prefer {flags}")


@contextmanager
def arithmetic(settings: TrainConfig, device: torch.device) -> Iterator[None]:
    """Set precision and determinism for the block, where autocast does not reach.

    On a GPU, what a bfloat16 run computes in float32 may round to TensorFloat-32; a float32 run does not.
    """
    precision, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    deterministic, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if settings.precision == "bfloat16" else "highest")
        torch.backends.cudnn.allow_tf32 = settings.precision == "bfloat16"
        torch.backends.cudnn.benchmark = not settings.deterministic
        if settings.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = tf32
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark = benchmark


@contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
    """Note Ctrl-C and SIGTERM in the block instead of acting on them, so that the loop can stop between two updates."""
    received: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    try:
        before = [signal.signal(s, lambda number, _: received.append(number)) for s in signals]
    except ValueError:  # not in the main thread, which owns the signals
        yield lambda: False
        return
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
