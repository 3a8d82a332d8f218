"""Inductor's lowering of a compiled step to Triton's source for an H100, with neither a GPU nor Triton.

`python -m fake_cuda.lower` prints a line of JSON for each graph: the kernels that its host code launches. What is not
checked: whether Triton compiles them, and their numbers.
"""

from __future__ import annotations

# isort: off
from fake_cuda.device import CUDA, fake_cuda  # before torch

# isort: on
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._dynamo.device_interface import CudaInterface
from torch._functorch.aot_autograd import aot_function, make_boxed_func
from torch._inductor import compile_fx, graph, scheduler
from torch._inductor import config as inductor
from torch._inductor.decomposition import select_decomp_table

from prism_policy.config import presets
from prism_policy.data.schema import task_schema
from prism_policy.policies import Policy
from prism_policy.policies.base import LossInputs
from prism_policy.run_folder import make_policy
from prism_policy.training.compiled import compiled

H100 = SimpleNamespace(
    name="H100",
    type="cuda",
    index=0,
    major=9,
    minor=0,
    multi_processor_count=132,
    regs_per_multiprocessor=65_536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    shared_memory_per_block_optin=232_448,
    total_memory=80 * 2**30,
)
BATCH = 32


class Lowered(Exception):
    """There is source: nothing is to be built of it."""


@contextlib.contextmanager
def h100(sources: list[tuple[str, bool]]) -> Iterator[None]:
    """Within, Inductor takes "cuda" for an H100 with Triton, and stops with `Lowered` at the source."""

    def stop(self: graph.GraphLowering) -> None:
        source = self.codegen()[0]
        sources.append((getattr(source, "value", source), self.layout_opt))
        raise Lowered

    answers: dict[str, Any] = {
        "get_device_properties": H100,
        "get_compute_capability": 90,
        "is_available": True,
        "is_bf16_supported": True,
        "current_device": 0,
    }
    off = {"fx_graph_cache": False, "joint_graph_constant_folding": False, "shape_padding": False}  # these run kernels
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            function = staticmethod(lambda *_, answer=answer, **__: answer)
            stack.enter_context(mock.patch.object(CudaInterface, name, function))
        worker = staticmethod(lambda *_: H100)
        stack.enter_context(mock.patch.object(CudaInterface.Worker, "get_device_properties", worker))
        stack.enter_context(mock.patch("torch.cuda.get_device_properties", return_value=H100))
        stack.enter_context(mock.patch("torch.cuda.get_device_capability", return_value=(9, 0)))
        stack.enter_context(mock.patch("torch.version.cuda", "13.0"))
        stack.enter_context(mock.patch("torch.utils._triton.triton_hash_with_backend", return_value="none"))
        stack.enter_context(mock.patch.object(scheduler, "has_triton", return_value=True))
        stack.enter_context(mock.patch.object(compile_fx, "has_triton", return_value=True))
        stack.enter_context(mock.patch.object(graph.GraphLowering, "compile_to_module", stop))
        stack.enter_context(inductor.patch(off))
        yield


def launches(module: nn.Module, *inputs: Any) -> dict[str, Any]:
    """Kernels that the forward and backward graph of a module launch, and whether convolutions are channels last."""
    sources: list[tuple[str, bool]] = []

    def lower(traced: torch.fx.GraphModule, example: Any) -> Any:
        with h100(sources), contextlib.suppress(Lowered):
            try:
                compile_fx.compile_fx_inner(traced, example)
            except Exception as error:
                if "Lowered" not in repr(error):
                    raise
        return make_boxed_func(traced.forward)

    parameters = {**dict(module.named_parameters()), **dict(module.named_buffers())}

    def call(parameters: dict[str, Tensor], *inputs: Any) -> Any:
        return torch.func.functional_call(module, parameters, inputs)

    compile_: Any = aot_function
    function = compile_(call, fw_compiler=lower, bw_compiler=lower, decompositions=select_decomp_table())
    with mock.patch("torch.compiler.is_compiling", return_value=True), torch.autocast("cuda", torch.bfloat16):
        out = function(parameters, *inputs)
    out.sum().backward()
    counts = [source.count(".run(") + source.count("extern_kernels.") for source, _ in sources]
    return {"kernels": counts, "channels_last": [decided for _, decided in sources]}


def settings(policy: Policy) -> dict[str, Any]:
    """What Inductor is told by `compiled`."""
    seen: list[dict[str, Any]] = []

    def note(function: Callable[..., Any], **arguments: Any) -> Callable[..., Any]:
        seen.append(arguments["options"])
        return function

    with mock.patch("torch.compile", note):
        compiled(policy)
    assert all(options == seen[0] for options in seen)
    return seen[0]


class Loss(nn.Module):
    """`Policy.chunk_loss` as a module."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, *inputs: Tensor) -> Tensor:
        """Of `LossInputs`, in their order."""
        return self.policy.chunk_loss(LossInputs(*inputs))


def main() -> None:
    """Lower each part of a compiled step."""
    torch.set_num_threads(1)

    def tell(name: str, counts: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps({"graph": name, **counts}) + "\n")
        sys.stdout.flush()

    for kind in ("flow_matching", "ddpm", "meanflow"):
        config = presets.nano(policy=kind)  # type: ignore[arg-type]
        policy = make_policy(config, task_schema(config.task))
        options = settings(policy)
        noise, times = policy.draw_chunk(BATCH)
        with fake_cuda(), inductor.patch(options):
            policy = policy.to(CUDA, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
            if kind == "flow_matching":
                camera, images = (
                    next(iter(policy.encoder.encoders.values())),
                    torch.empty(BATCH, 76, 76, 3, device=CUDA),
                )
                tell("encoder", launches(camera, images.permute(0, 3, 1, 2)))
            cond = policy.net.blocks[0].film.in_features - policy.net.step_embed_dim
            numbers = [x.to(CUDA) for x in (torch.rand(noise.shape), torch.rand(BATCH, cond), noise, times)]
            tell(kind, launches(Loss(policy), *numbers))


if __name__ == "__main__":
    main()
