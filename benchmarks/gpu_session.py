"""All that a GPU is wanted for, in the order of its worth, for a machine one has for minutes.

python benchmarks/gpu_session.py --out $OUT [--device cuda] [--minutes 25] [--dataset FILE] [--batch-size 512]

Correctness comes first: gradients in float32, in bfloat16 and compiled against float64 on the CPU, and a run that was
stopped against one that was not. Only then times are taken: the paper's step against its floor (operations over the
matrix rate) and against the plain composition, what it is made of, and how it grows. What time is left goes into
training. Every stage's output lies in a file of its own in `out`, and a stage that fails does not keep the next from
running. The first three stages run anywhere (`--device cpu --batch-size 8 --stages gradients resume step`).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from act import bandwidth
from timing import seconds_of
from torch.utils.flop_counter import FlopCounterMode
from training_step import ACTION, CAMERAS, SIZE, STATE, some_windows

from prism_policy.config import presets
from prism_policy.config.settings import PolicyKind, RunConfig
from prism_policy.data.schema import task_schema
from prism_policy.errors import PrismError
from prism_policy.probe.encoder_cost import device_name
from prism_policy.run_folder import make_policy
from prism_policy.training.checkpoint import TrainState
from prism_policy.training.prefetch import mapped, moved
from prism_policy.training.runtime import arithmetic
from prism_policy.training.trainer import Trainer

HERE = Path(__file__).parent


def batch_of(policy: Any, size: int, seed: int) -> dict[str, Any]:
    """A random batch, all that is random about its loss included, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    shape = (size, 2, SIZE, SIZE, 3)
    return {
        "images": {c: torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for c in CAMERAS},
        "state": torch.randn(size, 2, STATE, generator=generator),
        "actions": torch.rand(size, 16, ACTION, generator=generator) * 2 - 1,
        "mask": torch.rand(size, 16, generator=generator) < 0.9,
        "draws": policy.draw(size, generator),
    }


def gradient(policy: Any, batch: dict[str, Any], autocast: bool = False) -> torch.Tensor:
    """Of one batch's loss, all of it as one vector of float64 on the CPU."""
    device = next(policy.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        loss = policy(moved(batch, device))
    policy.zero_grad()
    loss.backward()
    return torch.cat([p.grad.double().flatten().cpu() for p in policy.parameters()])


def check_gradients(arguments: argparse.Namespace) -> None:
    """Against float64 on the CPU, the norm of the difference over the norm."""
    device = torch.device(arguments.device)
    bars = {"float32": 2e-3, "bfloat16": 0.2, "bfloat16, compiled": 0.2}
    for kind in get_args(PolicyKind):
        config = presets.nano(policy=kind)
        torch.manual_seed(0)
        exact = make_policy(config, task_schema(config.task)).double().train()
        policy = make_policy(config, task_schema(config.task))
        policy.load_state_dict({k: v.float() for k, v in exact.state_dict().items()})
        policy = policy.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        batch = batch_of(policy, 8, seed=1)
        wide = mapped(batch, lambda x: x.double() if x.is_floating_point() else x)
        expected = gradient(exact, wide)
        compiled = torch.compile(policy) if device.type == "cuda" else policy
        with torch.backends.cudnn.flags(allow_tf32=False):
            float32 = gradient(policy, batch)
        found = {
            "float32": float32,
            "bfloat16": gradient(policy, batch, autocast=True),
            "bfloat16, compiled": gradient(compiled, batch, autocast=True),
        }
        for name, vector in found.items():
            off = float((vector - expected).norm() / expected.norm())
            print(f"{kind}, {name}: gradient off by {off:.2e} of its norm (bar {bars[name]:g})")
            assert off < bars[name], name


def check_resume(arguments: argparse.Namespace) -> None:
    """A run stopped half-way and resumed, against one that was not: equal to the bit in deterministic mode."""
    device, windows = torch.device(arguments.device), some_windows()
    config = presets.nano()
    settings = replace(config.train, steps=12, batch_size=16, log_every=3, deterministic=True, precision="bfloat16")
    config = replace(config, train=settings)
    with tempfile.TemporaryDirectory() as place:
        whole = Trainer(Path(place) / "whole", config, windows, device=device).train()
        try:
            Trainer(Path(place) / "parts", config, windows, device=device, max_s=0).train()
        except PrismError as stopped:
            print(stopped)
        resumed = Trainer(Path(place) / "parts", config, windows, device=device).train()
    equal = all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    print(f"stopped and resumed, the weights are equal to the bit: {equal}")
    assert equal


def paper_step(arguments: argparse.Namespace, resolution: int = SIZE) -> tuple[RunConfig, Callable[[], None]]:
    """The paper's recipe: PRISM, flow matching, bfloat16, compiled on a GPU."""
    device = torch.device(arguments.device)
    config = presets.paper()
    config = replace(config, task=replace(config.task, render=replace(config.task.render, resolution=resolution)))
    policy = make_policy(config, task_schema(config.task)).to(device, memory_format=torch.channels_last).train()
    state = TrainState(policy, config.train)
    model = torch.compile(policy) if device.type == "cuda" else policy
    batch = batch_of(policy, arguments.batch_size, seed=2)
    if resolution != SIZE:
        shape = (arguments.batch_size, 2, resolution, resolution, 3)
        batch["images"] = {c: torch.randint(0, 256, shape, dtype=torch.uint8) for c in CAMERAS}
    batch = moved(batch, device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(batch)
        state.optimizer.zero_grad()
        loss.backward()
        state.update(1e-4, 0.999)

    return config, step


def measure_step(arguments: argparse.Namespace) -> None:
    """The paper's step at 84 and 240 px against its floor, and where its time goes."""
    device = torch.device(arguments.device)
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    rate = 2 * size**3 / min(seconds_of(lambda: a @ a, device) for _ in range(20))
    bytes_per_s = bandwidth(device)
    print(f"{device_name(device)}: bfloat16 product {rate / 1e12:.1f} TFLOP/s, reading {bytes_per_s / 1e9:.0f} GB/s\n")
    print("| step | ms | of the matrix rate's floor | windows/s | 50,000 updates [min] | peak memory [GiB] |")
    print("|---|---|---|---|---|---|")
    for resolution in (84, 240) if device.type == "cuda" else (84,):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        config, step = paper_step(arguments, resolution)
        policy = make_policy(config, task_schema(config.task)).to(device)
        with arithmetic(config.train, device):
            with FlopCounterMode(display=False) as counter:
                small = moved(batch_of(policy, 2, 0), device)
                if resolution != SIZE:
                    shape = (2, 2, resolution, resolution, 3)
                    small["images"] = {c: torch.zeros(shape, dtype=torch.uint8, device=device) for c in CAMERAS}
                policy.train()(small).backward()
            operations = counter.get_total_flops() / 2 * arguments.batch_size
            del policy
            for _ in range(5):
                step()
            seconds = float(np.median([seconds_of(step, device) for _ in range(30 if device.type == "cuda" else 3)]))
        peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else float("nan")
        print(
            f"| {resolution} px, batch {arguments.batch_size} | {1000 * seconds:.1f} "
            f"| {operations / rate / seconds:.0%} | {arguments.batch_size / seconds:.0f} "
            f"| {50_000 * seconds / 60:.1f} | {peak:.1f} |",
            flush=True,
        )
    _, step = paper_step(arguments)
    step()
    with torch.profiler.profile() as profiler:
        step()
    key = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print("\n" + profiler.key_averages().table(sort_by=key, row_limit=25, max_name_column_width=70))


def run_script(*command: str) -> Callable[[argparse.Namespace], None]:
    """Another benchmark, on this device."""

    def run(arguments: argparse.Namespace) -> None:
        subprocess.run([sys.executable, str(HERE / command[0]), *command[1:], "--device", arguments.device], check=True)

    return run


def compare_steps(arguments: argparse.Namespace) -> None:
    """The step against the plain composition's."""
    sizes = ("--sizes", "paper", "--batch-size", str(arguments.batch_size))
    run_script("training_step.py", *sizes, *["--compile"] * (arguments.device == "cuda"))(arguments)


def train_on(arguments: argparse.Namespace) -> None:
    """The paper's recipe on a dataset for the time that is left; the run folder, with checkpoints, is what remains."""
    if not arguments.dataset:
        print("no --dataset: nothing to train on")
        return
    minutes = max(arguments.until - time.time(), 0) / 60 - 0.5
    command = ["-m", "prism_policy", "train", "--preset", "paper", "--dataset", str(arguments.dataset)]
    command += ["--max-minutes", f"{minutes:.1f}", "--out", str(arguments.out / "run"), "--device", arguments.device]
    subprocess.run([sys.executable, *command, "--train.batch-size", str(arguments.batch_size)], check=False)


STAGES: dict[str, Callable[[argparse.Namespace], None]] = {
    "gradients": check_gradients,
    "resume": check_resume,
    "step": measure_step,
    "compare": compare_steps,
    "growth": run_script("growth.py", "--precision", "bfloat16"),
    "act": run_script("act.py"),
    "train": train_on,
}


def main() -> None:
    """Run the stages, each in a process of its own, until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--alone", choices=STAGES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        STAGES[arguments.alone](arguments)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    until = time.time() + 60 * arguments.minutes
    for stage in arguments.stages:
        left = until - time.time()
        if left < 20:
            print(f"{stage}: no time left")
            continue
        command = [sys.executable, __file__, "--alone", stage, "--until", str(until), "--out", str(arguments.out)]
        command += ["--device", arguments.device, "--batch-size", str(arguments.batch_size)]
        command += ["--dataset", str(arguments.dataset)] if arguments.dataset else []
        path, started = arguments.out / f"{stage}.txt", time.time()
        with path.open("w") as file:
            try:
                code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, timeout=left).returncode
            except subprocess.TimeoutExpired:
                code = 124
        print(f"===== {stage}: exit code {code} after {time.time() - started:.0f} s, {path}", flush=True)
        print("\n".join(path.read_text().splitlines()[-40:]), flush=True)


if __name__ == "__main__":
    main()
