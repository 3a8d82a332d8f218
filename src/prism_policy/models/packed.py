"""Layers with their weights laid out once: two to five times as fast on a CPU for a single observation.

With so few columns a convolution is bound by reading its weights, and PyTorch lays them out anew at every call. Done
once, the U-Net's forward comes near the memory's bandwidth. The operators are oneDNN's, those that `torch.compile` puts
in place of frozen layers, and FBGEMM's; calling them needs no compiler and no waiting.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
import weakref
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook

from prism_policy.utils.progress import console

M = TypeVar("M", bound=nn.Module)

NO_ACTIVATION: tuple[str, list[float], str] = ("none", [], "")  # the operators can apply one after the sum

_PACKED: weakref.WeakKeyDictionary[nn.Module, tuple[Any, nn.Module]] = weakref.WeakKeyDictionary()


@functools.cache
def _forget_after_optimizer_steps() -> None:
    """Drop all that was packed after a step of any optimiser: a fused one changes weights but not their version."""
    register_optimizer_step_post_hook(lambda *_: _PACKED.clear())


def packed(module: M) -> M:
    """A stand-in that computes what `module` does, without gradients: from its parameters, some of them laid out anew.

    It is kept, and made again when the module's weights, buffers or mode have changed since: the first call registers a
    hook with torch's optimisers. Off the CPU, or where this build of PyTorch has no oneDNN, it is the module itself. It
    costs the memory of the weights once more.
    """
    tensors = list(itertools.chain(module.parameters(), module.buffers()))
    if not torch.backends.mkldnn.is_available() or any(p.device.type != "cpu" for p in tensors):  # type: ignore[no-untyped-call]
        return module
    _forget_after_optimizer_steps()
    state = (module.training, [(p.data_ptr(), p._version, p.dtype) for p in tensors])
    packed_state, stand_in = _PACKED.get(module, (None, None))
    if stand_in is None or packed_state != state:
        stand_in = _pack_layers(copy.deepcopy(module, {id(t): t for t in tensors}))
        _PACKED[module] = (state, stand_in)
    return stand_in  # type: ignore[return-value]


def _pack_layers(module: nn.Module) -> nn.Module:
    """`module` with every layer that can be packed in place of its plain one."""
    if getattr(module, "weight", None) is not None and module.weight.dtype == torch.float32:
        if isinstance(module, nn.Linear):
            return PackedLinear(module)
        if isinstance(module, nn.Conv1d) and HalfConv1d.suits(module):
            return HalfConv1d(module)
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d):
            return PackedConv(module)
    for name, child in module.named_children():
        setattr(module, name, _pack_layers(child))
    return module


@functools.cache
def reads_half() -> bool:
    """Whether weights in float16 are read faster than oneDNN's float32 ones: on processors without AVX-512.

    FBGEMM has the product, which widens the weights again and sums in float32, so only their rounding shows: as of a
    GPU's TF32, 10 bits, and a chunk is off by at most a thousandth of its range (benchmarks/RESULTS.md).
    """
    return torch.backends.cpu.get_cpu_capability() == "AVX2" and "fbgemm" in torch.backends.quantized.supported_engines


@functools.cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this processor has oneDNN's operators in this arithmetic: bfloat16 and float16 need AVX-512."""
    with torch.random.fork_rng(devices=[]):  # the trial's weights cost the caller no random numbers
        layers: tuple[Any, ...] = (nn.Linear(8, 8), nn.Conv1d(8, 8, 3), nn.ConvTranspose1d(8, 8, 3))
    try:
        with torch.no_grad():
            for layer, pack in zip(layers, (PackedLinear, PackedConv, PackedConv), strict=True):
                x, trial = torch.zeros(1, 8, 8, dtype=dtype), pack(layer)
                trial.apply_packed(x, trial.pack(layer.weight.detach().to(dtype), x.shape[1:]), layer.bias.to(dtype))
    except (RuntimeError, AttributeError, TypeError):  # not on this processor, or not in this PyTorch
        console.print(f"oneDNN's packed {str(dtype)[6:]} layers are missing here: plain ones compute, and take longer")
        return False
    return True


class PackedLayer(nn.Module):
    """A layer whose weight is laid out at the first call, when the size of its input is known.

    The layout follows from the size of one sample, so that results do not depend on the batch that came first. Under
    autocast the layer computes in that arithmetic, as the plain one does, and is the plain one where the processor
    lacks the operators.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.plain = [layer]  # in a list: its parameters are already this module's
        self.tensors: dict[torch.dtype, tuple[Tensor, Tensor | None]] = {}

    def forward(self, x: Tensor) -> Tensor:
        """What the layer computes."""
        autocast = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if autocast else self.weight.dtype
        if not can_pack(dtype):
            return self.plain[0](x)
        if dtype not in self.tensors:
            bias = None if self.bias is None else self.bias.detach().to(dtype)
            self.tensors[dtype] = self.pack(self.weight.detach().to(dtype), x.shape[1:]), bias
        return self.apply_packed(x.to(dtype), *self.tensors[dtype])

    def pack(self, weight: Tensor, sample: torch.Size) -> Tensor:
        """The weight laid out for samples of this shape."""
        raise NotImplementedError

    def apply_packed(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's function with its packed weight."""
        raise NotImplementedError


class PackedLinear(PackedLayer):
    """`nn.Linear`."""

    def pack(self, weight: Tensor, sample: torch.Size) -> Tensor:  # noqa: D102 (inherited)
        return torch.ops.mkldnn._reorder_linear_weight(weight, math.prod(sample[:-1]))

    def apply_packed(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: D102 (inherited)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, *NO_ACTIVATION)


class PackedConv(PackedLayer):
    """`nn.Conv1d`, `nn.Conv2d` and `nn.ConvTranspose1d`; one dimension is two with a height of one."""

    def __init__(self, layer: Any) -> None:
        super().__init__(layer)
        self.flat, self.transposed = layer.weight.ndim == 3, isinstance(layer, nn.ConvTranspose1d)
        first = ([0], [1], [1]) if self.flat else ([], [], [])
        sizes = zip(first, (layer.padding, layer.stride, layer.dilation), strict=True)
        self.padding, self.stride, self.dilation = ([*one, *size] for one, size in sizes)
        self.rest = [self.stride, self.dilation, layer.groups]

    def pack(self, weight: Tensor, sample: torch.Size) -> Tensor:  # noqa: D102 (inherited)
        weight, size = (weight.unsqueeze(2), [1, sample[0], 1, sample[1]]) if self.flat else (weight, [1, *sample])
        if not self.transposed:
            return torch.ops.mkldnn._reorder_convolution_weight(weight, self.padding, *self.rest, size)
        return torch.ops.mkldnn._reorder_convolution_transpose_weight(weight, self.padding, [0, 0], *self.rest, size)

    def apply_packed(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: D102 (inherited)
        x = x.unsqueeze(2) if self.flat else x
        ops, padding = torch.ops.mkldnn, [self.padding, [0, 0]] if self.transposed else [self.padding]
        function = ops._convolution_transpose_pointwise if self.transposed else ops._convolution_pointwise
        y = function(x, weight, bias, *padding, *self.rest, *NO_ACTIVATION)
        return y.squeeze(2) if self.flat else y


class HalfConv1d(PackedLayer):
    """`nn.Conv1d` as a product of its unfolded input with weights in float16; sums are in float32.

    Under autocast it is the plain layer: a processor that `reads_half` has no faster arithmetic.
    """

    LARGEST = 65504.0  # of float16's numbers

    @classmethod
    def suits(cls, layer: nn.Conv1d) -> bool:
        """Whether it is as precise and faster."""
        plain = layer.groups == 1 and layer.dilation == (1,) and layer.padding_mode == "zeros"
        return plain and reads_half() and bool(layer.weight.detach().abs().max() <= cls.LARGEST)

    def __init__(self, layer: nn.Conv1d) -> None:
        super().__init__(layer)
        (self.taps,), (self.stride,), (self.padding,) = layer.kernel_size, layer.stride, cast(Any, layer.padding)

    def forward(self, x: Tensor) -> Tensor:
        """What the layer computes."""
        return self.plain[0](x) if torch.is_autocast_enabled("cpu") else super().forward(x)

    def pack(self, weight: Tensor, sample: torch.Size) -> Any:  # noqa: D102 (inherited)
        rows = weight.transpose(1, 2).flatten(1)  # (C_out, taps C_in)
        return torch.ops.quantized.linear_prepack_fp16(rows, self.bias)

    def apply_packed(self, x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:  # noqa: D102 (inherited)
        x = F.pad(x.transpose(1, 2), (0, 0, self.padding, self.padding)).contiguous()  # (B, T, C), in one copy
        batch, steps, channels = x.shape
        size = (batch, (steps - self.taps) // self.stride + 1, self.taps * channels)
        unfolded = x.as_strided(size, (steps * channels, self.stride * channels, 1))
        return torch.ops.quantized.linear_dynamic_fp16(unfolded, weight).transpose(1, 2)
