"""Several processes as one: started by torch's elastic launcher, gradients averaged by its DistributedDataParallel."""

from __future__ import annotations

import logging
import os
import platform
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from prism_policy.config.settings import Device, RunConfig
from prism_policy.errors import PrismError
from prism_policy.run_folder import differences
from prism_policy.utils.cores import available_cores
from prism_policy.utils.device import pick_device
from prism_policy.utils.progress import console
from prism_policy.utils.terminal import errors
from prism_policy.utils.text import shown

TIMEOUT = timedelta(hours=6)  # how long a process waits for the others: the main process measures rollouts meanwhile

_RUN_ID = "prism"
"""By which a process knows that `launch` started it, and not torchrun."""
_CPU = torch.device("cpu")
_SENTENCE, _STOPPED = "PrismError: ", "KeyboardInterrupt: "
"""How `record_failure` begins the errors that a user can act on."""


@dataclass(frozen=True)
class ProcessGroup:
    """This process among those that train one policy. For a single process, all of it costs nothing."""

    rank: int = 0  # its number
    world_size: int = 1  # how many processes there are
    local_rank: int = 0  # its number on this machine, and that of its GPU

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def local_rows(self, batch_size: int) -> slice:
        """This process's rows of every batch."""
        rows, rest = divmod(batch_size, self.world_size)
        if rest:
            among = f"among {self.world_size} processes; choose a multiple"
            raise PrismError(f"batch_size {batch_size} does not divide {among}")
        return slice(self.rank * rows, (self.rank + 1) * rows)

    def check(self, config: RunConfig) -> None:
        """Refuse what several processes cannot do."""
        self.local_rows(config.train.batch_size)
        if self.world_size > 1 and config.policy.encoder.norm == "batch":
            choose = "choose --policy.encoder.norm group, or one process"
            raise PrismError(f"norm 'batch' with several processes: each would normalise by its own rows; {choose}")

    def wrap(self, policy: nn.Module, device: torch.device) -> nn.Module:
        """The policy whose backward averages the gradients of all processes."""
        if self.world_size == 1:
            return policy
        devices = [device] if device.type == "cuda" else None
        wrapped = nn.parallel.DistributedDataParallel(policy, devices, gradient_as_bucket_view=True)
        # Buffers are constants, equal from the start, as `check` refuses BatchNorm: they need not be sent again.
        wrapped.broadcast_buffers = False
        # It would cut what is compiled within at its buckets' borders, and fails in MeanFlow's derivative. The policy
        # is compiled in parts already.
        torch._dynamo.config.optimize_ddp = False
        return wrapped

    def any(self, *flags: bool) -> list[bool]:
        """Whether each flag is set in some process."""
        if self.world_size == 1:
            return list(flags)
        together = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(together, dist.ReduceOp.MAX)  # on the CPU, by gloo: no GPU waits for it
        return [bool(flag) for flag in together.tolist()]

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes."""
        if self.world_size == 1:
            return values
        values = values.cpu()
        dist.all_reduce(values)
        return values / self.world_size

    def of_main(self, value: Any) -> Any:
        """The main process's value, in every process: those on other machines do not see what lies in its folders."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, device=_CPU)
        return values[0]

    def broadcast(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite these tensors, in the CPU's memory, with the main process's."""
        for name in sorted(tensors) if self.world_size > 1 else ():
            dist.broadcast(tensors[name], 0)

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in their order."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait until all processes are here."""
        self.any(False)

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Run the block in the main process, then in the others, which find what it made if they see its folders.

        Raises:
            PrismError: in every process what any of them raised, the others after the main process's not begun.
        """
        if not self.is_main_process:
            self._raise_together(None)
        failure: PrismError | None = None
        try:
            yield
        except PrismError as error:
            failure = error
        self._raise_together(failure)
        if self.is_main_process:
            self._raise_together(None)

    def _raise_together(self, failure: PrismError | None) -> None:
        """Raise this process's failure, or that of another one."""
        here = platform.node()
        failures = self.gather(failure and (here, str(failure)))
        if failure:
            raise failure
        for machine, sentence in filter(None, failures):
            raise PrismError(sentence if machine == here else f"on machine {machine}: {sentence}")

    def check_alike(self, settings: Mapping[str, Any], sentence: str) -> None:
        """Refuse settings that are not the same in every process; `sentence` says what to do."""
        every = self.gather((platform.node(), settings))
        (main, expected), *others = every
        for machine, found in others:
            for field, ours, theirs in differences(dict(expected), dict(found)):
                values = f"{field} is {shown(ours)} in the first process (machine {main})"
                raise PrismError(f"{values} and {shown(theirs)} in another (machine {machine}); {sentence}")


SINGLE_PROCESS = ProcessGroup()


@contextmanager
def join(device: Device = "auto") -> Iterator[ProcessGroup]:
    """Join the processes that `launch` or torchrun started; without them, be a single one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield SINGLE_PROCESS
        return
    group = ProcessGroup(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    picked = pick_device(device, group.local_rank)
    if picked.type == "cuda":
        torch.cuda.set_device(picked)
    dist.init_process_group("cpu:gloo,cuda:nccl" if picked.type == "cuda" else "gloo", timeout=TIMEOUT)
    quiet, console.quiet = console.quiet, not group.is_main_process
    try:
        yield group
    finally:
        console.quiet = quiet
        dist.destroy_process_group()


def is_launched() -> bool:
    """Whether `launch` or torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def record_failure(error: BaseException) -> bool:
    """Record why this process ends, for the one that launched it; whether that is said to the user then.

    `launch` prints one sentence. torchrun prints a report, beside which the first process of each machine speaks.
    """
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().record_exception(error)
    return os.environ.get("TORCHELASTIC_RUN_ID") == _RUN_ID or os.environ.get("LOCAL_RANK") != "0"


def failure_priority(failure: Any) -> int:
    """How likely a process that failed is the cause: 0 is the likeliest."""
    text = failure.message["message"] if isinstance(failure.message, dict) else ""
    killed = failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM
    return [text.startswith(_SENTENCE), killed, text.startswith(_STOPPED), True].index(True)


def launch(processes: int, arguments: Sequence[str]) -> None:
    """Run `prism` with these arguments in several processes of this machine, and wait for them.

    Raises:
        PrismError: one of them failed or died; the others are stopped then.
        KeyboardInterrupt: after Ctrl-C or SIGTERM.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.CRITICAL)  # the launcher's messages become one sentence below
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // processes)))
    rendezvous: dict[str, Any] = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
    config = LaunchConfig(1, 1, processes, run_id=_RUN_ID, max_restarts=0, **rendezvous)
    try:
        elastic_launch(config, sys.executable)("-m", "prism_policy", *arguments)
    except SignalException as error:
        raise KeyboardInterrupt from error
    except ChildFailedError as error:
        # The others lose their connection to one that fails, and may end sooner; those left get a SIGTERM.
        rank, failure = min(error.failures.items(), key=lambda item: (failure_priority(item[1]), item[1].timestamp))
        text: Any = failure.message
        message, trace = (text["message"], text["extraInfo"]["py_callstack"]) if isinstance(text, dict) else (text, "")
        if message.startswith(_SENTENCE):
            raise PrismError(message.removeprefix(_SENTENCE)) from error
        if message.startswith(_STOPPED):
            raise KeyboardInterrupt from error
        errors.print(*trace.splitlines())
        how = f"was killed by signal {-failure.exitcode}" if failure.exitcode < 0 else f"failed ({message})"
        raise PrismError(
            f"process {rank} of {processes} {how} and the others were stopped; the last checkpoint is kept: the same "
            "command goes on from it, with any number of processes"
        ) from error
