"""The stages of `gpu_session.py`, which runs each in a process of its own: `gpu_stages.py STAGE --out ...`."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, get_args
from unittest import mock

import torch
from gpu_session import PART, UPDATES, parser
from gpu_update import Session, Update, batch_of, gradient, network, off, recipe, some_windows
from timing import seconds_of
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from prism_policy.config.settings import PolicyKind, RunConfig
from prism_policy.data.schema import task_schema
from prism_policy.errors import PrismError
from prism_policy.policies import Policy
from prism_policy.probe.encoder_cost import device_name
from prism_policy.run_folder import make_policy, open_run, read_tensors, write_tensors
from prism_policy.training.compiled import compiled
from prism_policy.training.distributed import ProcessGroup
from prism_policy.training.prefetch import mapped, moved
from prism_policy.training.runtime import arithmetic
from prism_policy.training.trainer import Trainer


def probe(session: Session) -> None:
    """The card, what is installed, and the two ceilings."""
    session.report("device", device_name(session.device))
    session.report("torch", torch.__version__)
    session.report("g++", bool(shutil.which("g++")))
    if session.on_gpu:
        session.report("cuDNN", torch.backends.cudnn.version())
        session.report("memory", torch.cuda.mem_get_info()[1] / 2**30, "GiB")
        subprocess.run(["nvidia-smi"], check=False)
    size = 8192 if session.on_gpu else 1024
    a = torch.randn(size, size, device=session.device, dtype=torch.bfloat16)
    product = min(seconds_of(lambda: a @ a, session.device) for _ in range(20 if session.on_gpu else 3))
    session.report("bfloat16 product", 2 * size**3 / product / 1e12, "TFLOP/s")
    source = torch.zeros(2**30 if session.on_gpu else 2**24, device=session.device)
    target = source.clone()
    copying = min(seconds_of(lambda: target.copy_(source), session.device) for _ in range(10))
    session.report("copying, read and written", 2 * source.nbytes / copying / 1e9, "GB/s")
    x = torch.randn(8, 32, 16, 16, device=session.device)
    function = torch.compile(lambda x: F.group_norm(x, 2).relu())
    seconds = seconds_of(lambda: torch.testing.assert_close(function(x), F.group_norm(x, 2).relu()), session.device)
    session.report("a toy compiled", seconds, "s")


def gradients(session: Session) -> None:
    """Eager, of each kind: against float64 on the CPU."""
    for kind in get_args(PolicyKind):
        config = recipe(replace(session, sizes="tiny" if session.sizes == "tiny" else "nano"), kind)
        policy = network(config, session.device)
        exact = make_policy(config, task_schema(config.task)).double().train()
        exact.load_state_dict({name: x.double() for name, x in policy.state_dict().items()})
        batch = batch_of(policy, 8)
        wide = mapped(batch, lambda x: x.double() if x.is_floating_point() else x)
        expected = gradient(exact, wide, "float32", torch.device("cpu"))
        for precision, bar in {"float32": 2e-3, "bfloat16": 0.2}.items():
            found = gradient(policy, moved(batch, session.device), precision, session.device).cpu()
            session.report(f"{kind}, {precision}: off by (bar {bar:g})", off(found, expected))
            assert off(found, expected) < bar


def resume(session: Session) -> None:
    """A run stopped and resumed against one that was not, deterministic: equal to the bit."""
    config = recipe(replace(session, sizes="tiny" if session.sizes == "tiny" else "nano"))
    settings = replace(config.train, steps=12, batch_size=16, log_every=3, deterministic=True)
    windows = some_windows(replace(session, dataset=None), config)
    for compiles in (False, True):
        chosen = replace(config, train=replace(settings, compile=compiles))
        with tempfile.TemporaryDirectory() as place:
            whole = Trainer(Path(place) / "whole", chosen, windows, device=session.device).train()
            try:
                Trainer(Path(place) / "parts", chosen, windows, device=session.device, max_s=0).train()
            except PrismError as stopped:
                print(stopped)
            resumed = Trainer(Path(place) / "parts", chosen, windows, device=session.device).train()
        equal = all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
        session.report(f"{'compiled' if compiles else 'eager'}: equal to the bit", equal)
        assert equal


def compare_gradients(session: Session, config: RunConfig, update: Update) -> None:
    """In bfloat16 a model that is compiled must not be farther from eager float32 than eager bfloat16 is."""
    eager = Update(session, config)  # of equal weights
    exact = gradient(eager.model, eager.batch, "float32", session.device)
    distances = []
    for model in (eager.model, update.model):
        started = time.perf_counter()
        found = gradient(model, update.batch, "bfloat16", session.device)
        distances.append(off(found, exact))
    session.report("first forward and backward", time.perf_counter() - started, "s")
    session.report("gradient off eager float32's by: eager bfloat16, this", distances)
    assert distances[1] < 1.5 * distances[0] + 1e-3


def step(session: Session, kind: PolicyKind = "flow_matching", encoder: str = "prism", pixels: int = 84) -> None:
    """One configuration's update: eager and compiled, gradients and times from the same compilation."""
    config, device = recipe(session, kind, encoder, pixels), session.device
    exact = replace(config, train=replace(config.train, precision="float32"))
    whole = session.stage == "step"
    if whole:
        with arithmetic(exact.train, device):
            plain_s = Update(session, exact).measure("eager, float32", rounds=5)
    with arithmetic(config.train, device):
        if whole:
            Update(session, config).measure("eager, bfloat16", rounds=10)
        update = Update(session, config, compiled)
        if pixels == 84:  # at 240 an eager batch may not fit
            compare_gradients(session, config, update)
        seconds = update.measure("compiled, bfloat16")
        if whole:
            session.report("speed x eager float32", plain_s / seconds)
        session.report("windows/s", session.batch_size / seconds)
        session.report("50,000 updates", 50_000 * seconds / 60, "min")
        with FlopCounterMode(display=False) as counter, torch.autocast(device.type, torch.bfloat16):
            update.policy(moved(batch_of(update.policy, 2), device)).backward()
        operations = counter.get_total_flops() / 2 * session.batch_size / 1e12
        session.report("operations", operations, "TFLOP")
        if product := session.numbers().get("probe", {}).get("bfloat16 product [TFLOP/s]"):
            session.report("of the matrix rate's floor", operations / product / seconds)
        if whole:
            profile(session, update)


def profile(session: Session, update: Update) -> None:
    """Three updates, within the arithmetic that was timed: the longest kernels, and all of them in the logs."""
    with torch.profiler.profile() as profiler:
        for _ in range(3 if session.on_gpu else 1):
            update()
    key = "self_device_time_total" if session.on_gpu else "self_cpu_time_total"
    averages = profiler.key_averages()
    print(averages.table(sort_by=key, row_limit=25, max_name_column_width=70), flush=True)
    (session.out / "logs").mkdir(exist_ok=True)
    table = averages.table(sort_by=key, row_limit=400, max_name_column_width=200)
    (session.out / "logs" / f"profile_{session.stage}.txt").write_text(table)


@contextmanager
def traced_only() -> Iterator[None]:
    """Within, torch.compile follows the code and generates none: a CPU's would take minutes and say nothing."""
    compile_ = torch.compile
    with mock.patch("torch.compile", lambda function, **_: compile_(function, backend="aot_eager")):
        yield


@contextmanager
def inductor(**options: Any) -> Iterator[None]:
    """Within, torch.compile has these options beside those that it is given."""
    compile_ = torch.compile

    def changed(function: Any, **settings: Any) -> Any:
        return compile_(function, **{**settings, "options": settings["options"] | options})

    with mock.patch("torch.compile", changed):
        yield


def whole_encoder(policy: Policy) -> Policy:
    """With crops and normalisation in the graph of all cameras."""
    model = compiled(policy)
    for camera in model.encoder.encoders.values():
        camera._compiled_call_impl = None
    model.encoder.compile(dynamic=False, options={"force_layout_optimization": True})
    return model


def conv1d_as_2d(self: nn.Conv1d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """1xk convolutions, channels last."""
    x, weight = (y.unsqueeze(2).contiguous(memory_format=torch.channels_last) for y in (x, weight))
    y = F.conv2d(x, weight, bias, (1, self.stride[0]), (0, int(self.padding[0])))
    return y.squeeze(2)


def three_dimensional(q: Tensor, k: Tensor, v: Tensor, attend: Any = F.scaled_dot_product_attention) -> Tensor:
    """Attention without the dimension of its head."""
    return attend(q.squeeze(1), k.squeeze(1), v.squeeze(1)).unsqueeze(1)


def variants(session: Session) -> None:
    """The compiled step with one thing changed at a time, the baseline first and last."""
    config, longest = recipe(session), 0.0
    changes: dict[str, tuple[Any, Callable[[Policy], nn.Module]]] = {
        "baseline": (inductor(), compiled),
        "U-Net's convolutions in two dimensions": (
            mock.patch.object(nn.Conv1d, "_conv_forward", conv1d_as_2d),
            compiled,
        ),
        "layout not forced": (inductor(force_layout_optimization=False), compiled),
        "crops compiled, too": (inductor(), whole_encoder),
        "CUDA graphs": (inductor(**{"triton.cudagraphs": True}), compiled),
        "attention in three dimensions": (
            mock.patch.object(F, "scaled_dot_product_attention", three_dimensional),
            compiled,
        ),
        "baseline, again": (inductor(), compiled),
    }
    for name, (change, model) in changes.items():
        if session.left < 1.2 * longest:
            session.report(name, "no time left")
            continue
        started = time.time()
        torch.compiler.reset()
        try:
            with arithmetic(config.train, session.device), change:
                Update(session, config, model).measure(name)
        except Exception as error:  # a variant that fails says so, and the next is tried
            session.report(name, f"{type(error).__name__}: {str(error)[:300]}")
        longest = max(longest, time.time() - started)


def loop(session: Session) -> None:
    """`Trainer` itself, frames on the device, then on the host: windows/s, waiting, what a checkpoint costs."""
    config, updates = recipe(session), UPDATES[session.sizes]
    every = max(updates // 10, 1)
    settings = replace(config.train, steps=updates, warmup_steps=1, log_every=every, keep_every=updates // 2)
    windows = some_windows(session, config)
    for place, share in {"frames on the device": 0.5, "frames on the host": 0.0}.items():
        lines: list[dict[str, float]] = []
        with tempfile.TemporaryDirectory() as folder, mock.patch("prism_policy.training.runtime.ON_DEVICE", share):
            chosen = replace(config, train=settings)
            Trainer(
                Path(folder), chosen, windows, lambda _, line, lines=lines: lines.append(line), device=session.device
            ).train()
        session.report(f"{place}: by line", [round(line["samples_per_s"]) for line in lines], "windows/s")
        session.report(f"{place}: median", median(line["samples_per_s"] for line in lines[1:]), "windows/s")
        session.report(f"{place}: waiting", median(line["waiting"] for line in lines[1:]))


def ddp(session: Session) -> None:
    """Compiled in one process of a group of one: gradients and time."""
    import torch.distributed as dist

    config = recipe(session)
    with tempfile.TemporaryDirectory() as place:
        backend = "cpu:gloo,cuda:nccl" if session.on_gpu else "gloo"
        dist.init_process_group(backend, init_method=f"file://{place}/rendezvous", rank=0, world_size=1)
        group = ProcessGroup(0, 2, 0)  # as one of two, for else nothing is wrapped
        with arithmetic(config.train, session.device):
            update = Update(session, config, lambda policy: group.wrap(compiled(policy), session.device))
            compare_gradients(session, config, update)
            update.measure("compiled, wrapped")
        dist.destroy_process_group()


def oom(session: Session) -> None:
    """A batch that does not fit ends with the size of one that does."""
    if not session.on_gpu:
        session.report("skipped", "a CPU's memory is the whole machine's")
        return
    config = recipe(session)
    most = 32 * 2 ** int(math.log2(torch.cuda.mem_get_info()[1] / 2**30))
    settings = replace(config.train, compile=False, batch_size=4 * most)  # eager, 19 MiB a window
    chosen = replace(config, train=settings)
    with tempfile.TemporaryDirectory() as folder:
        said = "nothing: it fitted"
        try:
            Trainer(Path(folder), chosen, some_windows(session, config), device=session.device).train()
        except PrismError as error:
            said = str(error)
    session.report("said", said)
    assert "--train.batch-size" in said


def act(session: Session) -> None:
    """Milliseconds of one observation's actions."""
    for kind in get_args(PolicyKind):
        policy = network(recipe(session, kind), session.device).eval()
        batch = batch_of(policy, 1)
        observation = {"images": batch["images"], "state": torch.zeros_like(batch["state"])}
        for name, enabled in {"float32": False, "bfloat16": True}.items():
            with torch.autocast(session.device.type, torch.bfloat16, enabled=enabled):
                seconds = [seconds_of(partial(policy.act, observation), session.device) for _ in range(12)]
            session.report(f"{kind}, {name}", 1e3 * median(seconds[2:]), "ms")


def result(session: Session) -> None:
    """Train on --dataset for the time that is left; what comes back is the run folder in parts, weights rounded."""
    if not session.dataset:
        session.report("skipped", "no --dataset to train on")
        return
    base = recipe(session)
    encoder = replace(base.policy.encoder, width=min(48, base.policy.encoder.width))
    dims = tuple(3 * n // 64 * 8 for n in base.policy.down_dims) if session.sizes == "paper" else base.policy.down_dims
    name = "compiled, bfloat16: update [ms]"
    update_ms = min((n[name] for n in session.numbers().values() if name in n), default=100.0)
    seconds = max(session.left - 90, 5)  # but for compiling and packing
    steps = max(int(700 * seconds / update_ms), 2)
    warmup, every = min(500, steps // 2), max(steps // 20, 1)
    train = replace(base.train, steps=steps, warmup_steps=warmup, lr=2e-4, log_every=every, keep_every=every)
    config = replace(base, policy=replace(base.policy, encoder=encoder, down_dims=dims), train=train)
    folder = session.out / "logs" / "run"
    open_run(folder, config)
    windows = some_windows(session, config)
    tell = partial(print, flush=True)
    try:
        Trainer(folder, config, windows, tell, max_s=seconds, device=session.device).train()
    except PrismError as stopped:  # slower than was thought
        print(stopped)
        kept = sorted((folder / "checkpoints").glob("update_*.safetensors"))
        shutil.copy(kept[-1], folder / "weights.safetensors")
    weights, about = read_tensors(folder / "weights.safetensors")
    write_tensors(folder / "weights.safetensors", {n: x.bfloat16().to(x.dtype) for n, x in weights.items()}, about)
    shutil.rmtree(folder / "checkpoints")
    with tarfile.open(session.out / "logs" / "run.tar.gz", "w:gz") as tar:  # the zeros of rounded weights take no room
        tar.add(folder, "run")
    shutil.rmtree(folder)
    packed = (session.out / "logs" / "run.tar.gz").read_bytes()
    (session.out / "logs" / "run.tar.gz").unlink()
    for i in range(0, len(packed), PART):
        (session.out / f"run.tar.gz.{i // PART}").write_bytes(packed[i : i + PART])
    session.report("updates", steps)


STAGES: dict[str, Callable[[Session], None]] = {
    "probe": probe,
    "gradients": gradients,
    "resume": resume,
    "step": step,
    "variants": variants,
    "loop": loop,
    "meanflow": lambda session: step(session, "meanflow"),
    "sspool": lambda session: step(session, encoder="sspool"),
    "240px": lambda session: step(session, pixels=240),
    "ddp": ddp,
    "oom": oom,
    "act": act,
    "result": result,
}


def main() -> None:
    """Run one stage."""
    arguments = parser(one_stage=True).parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu_session needs a GPU that PyTorch can use, found none; choose --device cpu")
    a = arguments
    with nullcontext() if device.type == "cuda" else traced_only():
        STAGES[a.stage](Session(a.out, device, a.sizes, a.batch_size, a.dataset, a.until, a.stage))


if __name__ == "__main__":
    main()
