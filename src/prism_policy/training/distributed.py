"""Several processes as one: started by torch's elastic launcher, gradients averaged by its DistributedDataParallel."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from prism_policy.config.settings import Device, RunConfig
from prism_policy.errors import PrismError
from prism_policy.utils.device import pick_device
from prism_policy.utils.progress import console

PATIENCE = timedelta(hours=6)
"""How long a process waits for the others: the first one measures rollouts meanwhile."""

_SENTENCE, _STOPPED = "PrismError: ", "KeyboardInterrupt: "
"""How `hand_over` begins what befell a process."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train one policy. Alone, all of it costs nothing."""

    rank: int = 0
    """Its number; 0 writes files and speaks."""
    world: int = 1
    """How many there are."""
    local: int = 0
    """Its number on this machine, and that of its GPU."""

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def share(self, batch_size: int) -> slice:
        """The rows of every batch that are this process's.

        Raises:
            PrismError: the batch does not divide among the processes.
        """
        if batch_size % self.world:
            raise PrismError(f"batch_size {batch_size} does not divide among {self.world} processes; choose a multiple")
        rows = batch_size // self.world
        return slice(self.rank * rows, (self.rank + 1) * rows)

    def check(self, config: RunConfig) -> None:
        """Find what several processes cannot do.

        Raises:
            PrismError: the batch does not divide among them, or BatchNorm's statistics would differ between them.
        """
        self.share(config.train.batch_size)
        if self.world > 1 and config.policy.encoder.norm == "batch":
            raise PrismError(
                "norm 'batch' with several processes: each would normalise by its own rows; choose "
                "policy.encoder.norm=group, or one process"
            )

    def wrap(self, policy: nn.Module, device: torch.device) -> nn.Module:
        """The policy whose backward averages the gradients of all processes."""
        if self.world == 1:
            return policy
        return nn.parallel.DistributedDataParallel(policy, [device] if device.type == "cuda" else None)

    def any(self, *flags: bool) -> list[bool]:
        """For each flag whether it is set in some process."""
        if self.world == 1:
            return list(flags)
        together = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(together, dist.ReduceOp.MAX)  # on the CPU, by gloo: no GPU waits for it
        return [bool(flag) for flag in together.tolist()]

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes."""
        if self.world == 1:
            return values
        values = values.cpu()
        dist.all_reduce(values)
        return values / self.world

    def wait(self) -> None:
        """Until all processes are here."""
        self.any(False)

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The block runs in the first process, then in the others, which find what it made."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()


@contextmanager
def join(device: Device = "auto") -> Iterator[Ranks]:
    """Become one of the processes that `launch` or torchrun started; without them, alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    ranks = Ranks(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    picked = pick_device(device, ranks.local)
    if picked.type == "cuda":
        torch.cuda.set_device(picked)
    dist.init_process_group("cpu:gloo,cuda:nccl" if picked.type == "cuda" else "gloo", timeout=PATIENCE)
    quiet, console.quiet = console.quiet, not ranks.first
    try:
        yield ranks
    finally:
        console.quiet = quiet
        dist.destroy_process_group()


def is_launched() -> bool:
    """Whether `launch` or torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def hand_over(error: BaseException) -> None:
    """Leave word of what befell this process to the one that launched it, which speaks for all."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().record_exception(error)


def _blame(failure: Any) -> int:
    """How surely a process that failed is the cause; 0 is the surest."""
    word = failure.message["message"] if isinstance(failure.message, dict) else ""
    killed = failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM
    return [word.startswith(_SENTENCE), killed, word.startswith(_STOPPED), True].index(True)


def launch(processes: int, arguments: Sequence[str]) -> None:
    """Run `prism` with these arguments in several processes of this machine, and wait for them.

    Raises:
        PrismError: one of them failed or died; the others are stopped then.
        KeyboardInterrupt: after Ctrl-C or SIGTERM.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.CRITICAL)  # what the launcher has to say is said below, in one sentence
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
    config = LaunchConfig(
        1, 1, processes, run_id="prism", rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0
    )
    try:
        elastic_launch(config, sys.executable)("-m", "prism_policy", *arguments)
    except SignalException as error:
        raise KeyboardInterrupt from error
    except ChildFailedError as error:
        # What befell one is the others' lost connection, perhaps sooner; and those that are left get a SIGTERM.
        rank, failure = min(error.failures.items(), key=lambda item: (_blame(item[1]), item[1].timestamp))
        word: Any = failure.message
        message, trace = (word["message"], word["extraInfo"]["py_callstack"]) if isinstance(word, dict) else (word, "")
        if message.startswith(_SENTENCE):
            raise PrismError(message.removeprefix(_SENTENCE)) from error
        if message.startswith(_STOPPED):
            raise KeyboardInterrupt from error
        sys.stderr.write(trace)
        how = f"was killed by signal {-failure.exitcode}" if failure.exitcode < 0 else f"failed ({message})"
        raise PrismError(
            f"process {rank} of {processes} {how} and the others were stopped; the last checkpoint is kept: the same "
            "command goes on from it, with any number of processes"
        ) from error
