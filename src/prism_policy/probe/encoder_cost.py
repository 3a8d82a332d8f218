"""What an encoder costs: its numbers, parameters, operations and time, and what a policy around it weighs."""

from __future__ import annotations

import json
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich import box
from rich.table import Table
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from prism_policy.config import presets
from prism_policy.config.settings import Device, EncoderConfig, PolicyConfig
from prism_policy.data.schema import ABSOLUTE_ACTION, STATE, Schema
from prism_policy.errors import PrismError
from prism_policy.models.encoder import VisualEncoder
from prism_policy.policies import build_policy
from prism_policy.utils.device import pick_device
from prism_policy.utils.progress import Bar, console

PAPER = Schema({}, STATE, ABSOLUTE_ACTION)
"""Position, quaternion and two fingers; absolute position, rotation-6D and gripper."""
BASELINE = "sspool"
ROUNDS = 10
TIMED_S = 5.0  # [s]: an encoder is timed no further after this
TIMED_OPERATIONS, TIMED_PARAMETERS = 10**12, 10**9
"""An encoder with more of either is counted and not timed: half a minute a forward on two cores, or 4 GB of weights."""


@dataclass(frozen=True)
class EncoderCost:
    """One camera's encoder at one resolution."""

    encoder: str
    """Its name."""
    resolution: int
    """Width and height of the image [px]; the encoder crops it itself."""
    numbers: int
    """Numbers a camera that condition the policy."""
    encoder_parameters: int
    """Parameters of the encoder."""
    policy_parameters: int
    """Parameters of a policy with this one camera and the paper's U-Net (Tables 9 and 11)."""
    policy_growth: float
    """How much larger that policy is than sspool's at the same width, as a share of it."""
    operations: int
    """Floating-point operations of one image's forward in convolutions and matrix products; a multiply-add is two."""
    forward_ms: float | None
    """Median time of a batch's forward in evaluation mode [ms]; none where it was not timed."""


def encoder_costs(
    encoders: Mapping[str, EncoderConfig] = presets.ENCODERS,
    resolutions: Sequence[int] = (84, 240),
    width: int = 64,
    batch_size: int = 1,
    rounds: int = ROUNDS,
    on_row: Callable[[EncoderCost], None] | None = None,
    device: torch.device | None = None,
) -> list[EncoderCost]:
    """A row for each resolution and encoder, also given to `on_row` as it is ready. No policy's weights are allocated.

    The forward of `batch_size` images is timed `rounds` times, after two that are not; 0 times nothing.
    """
    if not resolutions:
        raise PrismError("resolutions: expected at least one, got none")
    if batch_size < 1:
        raise PrismError(f"batch_size: expected at least 1, got {batch_size}")
    # Everything that can be wrong is found here, before the first second is spent on timing. The baseline comes first
    # at each resolution: its spatial softmax is the pooling that says when an image is too small.
    counted = []
    for resolution in resolutions:
        _, _, baseline = _parameters(replace(presets.encoder(BASELINE), width=width), resolution)
        for name, config in encoders.items():
            config = replace(config, width=width)
            counted.append((name, resolution, config, baseline, _parameters(config, resolution)))
    rows, device = [], device or pick_device()
    for name, resolution, config, baseline, (numbers, encoder, policy) in counted:
        operations = _operations(config, resolution)
        fits = encoder <= TIMED_PARAMETERS and batch_size * operations <= TIMED_OPERATIONS
        forward_ms = _forward_ms(config, resolution, batch_size, rounds, device) if rounds and fits else None
        growth = policy / baseline - 1
        rows.append(EncoderCost(name, resolution, numbers, encoder, policy, growth, operations, forward_ms))
        if on_row is not None:
            on_row(rows[-1])
    return rows


def _parameters(config: EncoderConfig, resolution: int) -> tuple[int, int, int]:
    """Numbers a camera, parameters of the encoder and of the one-camera policy."""

    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    with torch.device("meta"):  # `nopool`'s policy would take gigabytes at 240 px
        policy = build_policy(PolicyConfig(encoder=config), replace(PAPER, cameras={"camera": (resolution,) * 2}))
    return policy.encoder.out_dim, count(policy.encoder), count(policy)


def _operations(config: EncoderConfig, resolution: int) -> int:
    # Fake tensors hold no data either, but stand for a CPU's, where autocast (in the spatial softmax) has a meaning.
    with FakeTensorMode(), torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder = VisualEncoder(config, {"camera": (resolution, resolution)}).eval()
        encoder({"camera": torch.zeros(1, resolution, resolution, 3, dtype=torch.uint8)})
    return int(counter.get_total_flops())


def _forward_ms(config: EncoderConfig, resolution: int, batch_size: int, rounds: int, device: torch.device) -> float:
    encoder = VisualEncoder(config, {"camera": (resolution, resolution)}).eval()
    encoder.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randint(0, 256, (batch_size, resolution, resolution, 3), dtype=torch.uint8, device=device)
    seconds: list[float] = []
    with torch.no_grad():
        while len(seconds) < rounds + 2 and sum(seconds) < TIMED_S:
            started = time.perf_counter()
            encoder({"camera": images})
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds[2:] or seconds[-1:])


def device_name(device: torch.device) -> str:
    """The device's name with, for a CPU, the number of threads torch uses: "AMD EPYC, 2 threads"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"^model name\s*: (.+)", cpuinfo.read_text() if cpuinfo.exists() else "", re.MULTILINE)
    threads = torch.get_num_threads()
    return f"{models[0].strip() if models else platform.machine()}, {threads} thread{'s' * (threads > 1)}"


def encoder_table(rows: Sequence[EncoderCost]) -> Table:
    """The rows as a table, a section a resolution."""
    table = Table(box=box.SIMPLE, padding=0, pad_edge=False)
    table.add_column("encoder", no_wrap=True)
    for title in ("px", "numbers", "encoder [M]", "policy [M]", f"vs {BASELINE}", "GFLOPs", "forward"):
        table.add_column(title, justify="right")
    for i, row in enumerate(rows):
        table.add_row(
            row.encoder,
            str(row.resolution),
            str(row.numbers),
            f"{row.encoder_parameters / 1e6:.2f}",
            f"{row.policy_parameters / 1e6:.2f}",
            f"{row.policy_growth:+.1%}" if row.policy_growth < 10 else f"{row.policy_growth:+.0%}",
            f"{row.operations / 1e9:.3f}",
            "too large" if row.forward_ms is None else f"{row.forward_ms:.1f} ms",
            end_section=i + 1 < len(rows) and rows[i + 1].resolution != row.resolution,
        )
    return table


def print_encoders(
    resolutions: Sequence[int],
    width: int,
    batch_size: int = 1,
    threads: int | None = None,
    as_json: bool = False,
    wanted: Device = "auto",
) -> None:
    """Count and time every preset, and print the table or JSON."""
    if threads is not None:
        if threads < 1:
            raise PrismError(f"threads: expected at least 1, got {threads}")
        torch.set_num_threads(threads)
    device = pick_device(wanted)
    name = device_name(device)
    if as_json:
        rows = encoder_costs(presets.ENCODERS, resolutions, width, batch_size, device=device)
        facts = {"device": name, "width": width, "batch_size": batch_size, "encoders": [asdict(r) for r in rows]}
        console.data(json.dumps(facts, indent=2))
        return
    ready: list[EncoderCost] = []
    with Bar("Encoders", len(presets.ENCODERS) * len(resolutions)) as bar:

        def on_row(row: EncoderCost) -> None:
            ready.append(row)
            bar.update(len(ready), f"{row.encoder} at {row.resolution} px")

        rows = encoder_costs(presets.ENCODERS, resolutions, width, batch_size, on_row=on_row, device=device)
        bar.update(len(rows), f"{len(rows)} counted and timed")
    console.print(encoder_table(rows))
    console.print(
        f"Numbers a camera. Policy: one camera, 2 frames, state of {PAPER.state_dim}, actions of {PAPER.action_dim}, "
        f"U-Net 256/512/1024.",
        "GFLOPs: one image's forward, convolutions and matrix products; a multiply-add counts as 2.",
        f"Forward: a batch of {batch_size} in evaluation mode, float32, on {name}; median of {ROUNDS}.",
        f"Next: prism quickstart --encoder {BASELINE}",
    )
