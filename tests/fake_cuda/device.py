"""The CUDA path without a GPU: fake tensors stand for the device's, so that devices, types and waits are checked.

A fake tensor has a shape, a type, a layout and a device, and no data. Operators run as far as their checks: a tensor on
the wrong device fails as it would on a GPU, `autocast("cuda")` casts as it does there. What is not checked: kernels,
numbers, pinned memory, NCCL, Triton. Import it before torch, in a process of its own; g++ compiles a device guard that
does nothing (autograd asks every device for one), once, in 7 s.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock


def load_guard() -> None:
    """Give a build of PyTorch without CUDA a guard and streams of "cuda" that do nothing; before torch is imported."""
    assert "torch" not in sys.modules, "PyTorch looks its hooks up once, when it is imported"
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    torch_folder, source = Path(spec.origin).parent, Path(__file__).with_name("noop_cuda_guard.cpp")
    stamp = (torch_folder / "version.py").stat().st_mtime_ns
    library = Path(tempfile.gettempdir()) / f"prism-noop-cuda-guard-{stamp}.so"
    if not library.exists():
        options = ["-std=c++20", "-O1", "-shared", "-fPIC", "-w", f"-I{torch_folder}/include", f"-L{torch_folder}/lib"]
        built = library.with_suffix(f".{id(library)}")
        subprocess.run(["g++", *options, "-o", str(built), str(source), "-lc10", "-ltorch_cpu"], check=True)
        built.replace(library)
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(torch_folder / "lib" / name), ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


load_guard()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten

SAME_TYPES = {  # kernels of these refuse tensors of unequal types; the fake ones do not always
    aten.convolution.default,
    aten.convolution_backward.default,
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.baddbmm.default,
    aten.native_group_norm.default,
    aten.native_group_norm_backward.default,
}

UNREPEATABLE = {  # those of `torch.use_deterministic_algorithms` that raise on CUDA and that a network may hold
    aten.adaptive_max_pool2d_backward.default,
    aten._adaptive_avg_pool2d_backward.default,
    aten.fractional_max_pool2d_backward.default,
    aten.max_pool3d_with_indices_backward.default,
    aten.grid_sampler_2d_backward.default,
    aten.reflection_pad2d_backward.default,
    aten.replication_pad2d_backward.default,
    aten.upsample_bilinear2d_backward.default,
    aten.upsample_bicubic2d_backward.default,
    aten.histc.default,
    aten.kthvalue.default,
    aten.bincount.default,
}


class Watch(TorchDispatchMode):
    """Notes for which operators the host waits for the device, and what it would do badly or not at all.

    `mixed`: operators on types that a kernel refuses together. `laid_out_anew`: convolutions of channels-last weights
    whose feature map is not. `unrepeatable`: operators that deterministic training refuses.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.mixed: list[str] = []
        self.laid_out_anew: list[str] = []
        self.unrepeatable: list[str] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        on_cuda = any(x.is_cuda for x in inputs)
        if on_cuda and op is aten._local_scalar_dense.default:
            self.waits.append(f"{op} at {_line()}")
            if inputs[0].dtype == torch.bool:  # all is finite, nothing is far off
                return ".any()" not in _line()
            return 1.0 if inputs[0].is_floating_point() else 1
        if on_cuda and op in (aten.nonzero.default, aten.masked_select.default, aten.equal.default):
            self.waits.append(f"{op} at {_line()}")
        if on_cuda and op is aten.index.Tensor and any(x is not None and x.dtype == torch.bool for x in args[1]):
            self.waits.append(f"{op} with a mask at {_line()}")
            return inputs[0].new_zeros(1)
        if op in SAME_TYPES and len(kinds := {x.dtype for x in inputs if x.is_floating_point()}) > 1:
            self.mixed.append(f"{op} of {', '.join(sorted(map(str, kinds)))} at {_line()}")
        if op in UNREPEATABLE:
            self.unrepeatable.append(f"{op} at {_line()}")
        if op in (aten.convolution.default, aten.convolution_backward.default) and inputs[0].ndim == 4:
            features, weight = inputs[:2] if op is aten.convolution.default else inputs[1:3]
            if _channels_last(weight) and not _channels_last(features):
                self.laid_out_anew.append(f"{op} of {tuple(features.shape)}, {features.stride()} at {_line()}")
        out = op(*args, **kwargs)
        outputs = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        crosses = {x.device.type for x in (*inputs, *outputs)} == {"cpu", "cuda"}
        asynchronous = bool(kwargs.get("non_blocking")) or (len(args) > 2 and args[2] is True)
        if crosses and op in (aten._to_copy.default, aten.copy_.default) and not asynchronous:
            self.waits.append(f"{op} at {_line()}")
        return out


def _channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def _line() -> str:
    """The line of this project that called."""
    for frame in reversed(traceback.extract_stack()):
        if "prism_policy/" in frame.filename:
            return f"{frame.filename.partition('prism_policy/')[2]}:{frame.lineno} {frame.line}"
    return "autograd"


@contextlib.contextmanager
def fake_cuda() -> Iterator[Watch]:
    """Within, "cuda" exists, of fake tensors."""
    watch = Watch()
    with contextlib.ExitStack() as stack:
        # autocast("cuda") turns itself off where there is no GPU.
        stack.enter_context(mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False))
        stack.enter_context(mock.patch("torch.cuda.is_bf16_supported", return_value=True))
        stack.enter_context(mock.patch.object(Tensor, "pin_memory", lambda self, *_: self))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(watch)
        yield watch
