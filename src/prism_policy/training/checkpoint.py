"""The state of a training and its checkpoints: atomic, written in a thread beside the loop."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from prism_policy.config.settings import TrainConfig
from prism_policy.config.typed_json import open_file
from prism_policy.errors import PrismError
from prism_policy.policies import Policy
from prism_policy.run_folder import check_tensors, read_tensors, write_tensors
from prism_policy.training.distributed import SINGLE_PROCESS, ProcessGroup
from prism_policy.utils.files import atomic
from prism_policy.utils.progress import console


class TrainState:
    """Weights, their moving average and the optimiser's moments."""

    def __init__(self, policy: Policy, config: TrainConfig) -> None:
        self.parameters: dict[str, Tensor] = dict(policy.named_parameters())
        # BatchNorm's running statistics; the normaliser's are the data's and lie in a file of their own.
        others = {name: x for name, x in policy.state_dict().items() if name not in self.parameters}
        self.buffers = {name: x for name, x in others.items() if not name.startswith("normalizer.")}
        self.ema: dict[str, Tensor] = {}
        self.begin_average()
        # Fused: one pass over all weights, which is what the memory's bandwidth allows.
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), config.lr, config.betas, config.eps, config.weight_decay, fused=True
        )
        self.done, self.most = 0, config.steps  # numbers of updates

    def begin_average(self) -> None:
        """Let the moving average begin with the weights as they are."""
        self.ema = {name: p.detach().clone() for name, p in self.parameters.items()}

    def update(self, lr: float, ema_decay: float) -> None:
        """One step of the optimiser and of the moving average."""
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.values()), list(self.parameters.values()), 1 - ema_decay)
        self.done += 1

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the policy the averaged weights for the block; afterwards its own again, to the bit."""

        def swap() -> None:
            for name, parameter in self.parameters.items():
                parameter.data, self.ema[name] = self.ema[name], parameter.data

        swap()
        try:
            yield
        finally:
            swap()

    def weights(self) -> dict[str, Tensor]:
        """Averaged weights and buffers: what a policy acts with."""
        return self.ema | self.buffers

    def tensors(self) -> dict[str, Tensor]:
        """Everything that is needed to resume."""
        tensors = {f"buffers/{name}": buffer for name, buffer in self.buffers.items()}
        for name, parameter in self.parameters.items():
            tensors |= {f"model/{name}": parameter.detach(), f"ema/{name}": self.ema[name]}
            state = self.optimizer.state[parameter]
            tensors |= {f"optimizer/{key}/{name}": value for key, value in state.items()}
        return tensors

    def expected(self) -> dict[str, Tensor]:
        """Tensors of the names, shapes and types that `tensors` returns after some updates."""
        expected = {f"buffers/{name}": x for name, x in self.buffers.items()}
        for name, x in self.parameters.items():
            moments = {f"optimizer/{moment}/{name}": x for moment in ("exp_avg", "exp_avg_sq")}
            expected |= {f"model/{name}": x, f"ema/{name}": x, **moments}
            expected[f"optimizer/step/{name}"] = torch.zeros(())
        return expected

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor], done: int) -> None:
        """Load what `tensors` returned after `done` updates, in place."""
        for name, buffer in self.buffers.items():
            buffer.copy_(tensors[f"buffers/{name}"])
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[f"model/{name}"])
            self.ema[name].copy_(tensors[f"ema/{name}"])
        index = {name: i for i, name in enumerate(self.parameters)}
        state: dict[int, dict[str, Tensor]] = {i: {} for i in index.values()}
        for key, value in tensors.items():
            if key.startswith("optimizer/"):
                _, field, name = key.split("/", 2)
                like = self.parameters[name]
                # The file holds plain layout; the fused update walks memory and needs the weight's own.
                state[index[name]][field] = torch.empty_like(like).copy_(value) if value.shape == like.shape else value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})
        self.done = done


class Checkpoints:
    """The checkpoints of a run folder, written by a thread while training goes on: the loop only waits for a copy.

    `last.safetensors` holds all that is needed to resume, `previous.safetensors` is the one before it.
    `best.safetensors` and `update_NNNNNN.safetensors` hold only the averaged weights. Where the disk was full, the next
    call or the end of the block raises.

    Usage::

        with Checkpoints(run_folder) as checkpoints:
            checkpoints.restore(state)
            checkpoints.save(state)
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkpoints"
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def save(self, state: TrainState) -> None:
        """Write a checkpoint to resume from; the one before it is kept as a spare."""
        self._write(self.folder / "last.safetensors", state.tensors(), state.done)

    def save_weights(self, state: TrainState, name: str) -> None:
        """Write only the averaged weights."""
        self._write(self.folder / f"{name}.safetensors", state.weights(), state.done)

    def _write(self, path: Path, tensors: dict[str, Tensor], done: int) -> None:
        self.wait()
        copies = {name: _plain_copy(tensor) for name, tensor in tensors.items()}
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._writing = self._thread.submit(_write_file, path, copies, done)

    def wait(self) -> None:
        """Wait until what was saved is on the disk."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def restore(self, state: TrainState, group: ProcessGroup = SINGLE_PROCESS) -> bool:
        """Load the newest sound checkpoint; whether there was one.

        Of several processes the main one reads it and sends it to the others, which may not see its folder.
        """
        tensors, done = self._newest(state) if group.is_main_process else ({}, None)
        if (done := group.of_main(done)) is None:
            return False
        if not group.is_main_process:
            tensors = {name: torch.empty(x.shape, dtype=x.dtype) for name, x in state.expected().items()}
        group.broadcast(tensors)
        state.load(tensors, done)
        return True

    def _newest(self, state: TrainState) -> tuple[dict[str, Tensor], int | None]:
        """The newest sound checkpoint's tensors and number of updates; none where there is none."""
        for name, then in (("last", "going back to the checkpoint before it"), ("previous", "starting anew")):
            path = self.folder / f"{name}.safetensors"
            if not path.exists():
                continue
            open_file(path).close()  # a folder, or a file that cannot be read, is not passed over
            try:
                tensors, metadata = read_tensors(path)
                check_tensors(state.expected(), tensors, f"{path} is of another network", "")
                if not (done := metadata.get("updates", "")).isdecimal() or int(done[:20]) > state.most:
                    raise PrismError(f"{path} is damaged (it does not say after how many updates it was written)")
            except PrismError as error:
                console.print(f"{error.problem}; {then}")
                continue
            return tensors, int(done)
        return {}, None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if error is None:
                self.wait()
        finally:
            self._thread.shutdown()


def _plain_copy(tensor: Tensor) -> Tensor:
    """Copy a tensor to the CPU's memory, in the plain layout of files; from a GPU without waiting for it."""
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return copy.copy_(tensor.detach(), non_blocking=True)


def _write_file(path: Path, tensors: dict[str, Tensor], done: int) -> None:
    with atomic(path) as temporary:
        write_tensors(temporary, tensors, {"updates": str(done)})
        if path.name == "last.safetensors" and path.exists():
            path.replace(path.with_name("previous.safetensors"))
