"""The encoder's cost: the composition users run today against this library's, and every preset against sspool.

python benchmarks/encoder.py [--part a|b|all] [--threads 2] [--batch-size 64] [--rounds 7] [--device cpu] [--width 64]
    [--resolution 84] [--encoder prism ms_sspool]

All variants run in turn: A, B, C, A, B, C, ... A ratio is taken within its round. Part a gives each variant a process
of its own, for the library's training sets malloc, which is a process's; so does the peak memory, which never shrinks.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from elsewhere import Elsewhere, output_of
from timing import in_turn, ms, ratio, seconds_of
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from prism_policy.config import presets
from prism_policy.config.settings import EncoderConfig, Precision
from prism_policy.models.augment import crop_size
from prism_policy.models.encoder import IMAGENET_MEAN, IMAGENET_STD, VisualEncoder
from prism_policy.models.pooling import SpatialSoftmax
from prism_policy.models.resnet import ResNet
from prism_policy.probe.encoder_cost import device_name, encoder_costs
from prism_policy.utils.memory import keep_freed_memory

BASELINE = "sspool"


class PlainEncoder(nn.Module):
    """The usual composition, layer for layer: float images of one size, NCHW, a crop an image, plain torch operations.

    The trunk and the 1x1 convolution are this library's classes, so that only what is around them differs.
    """

    def __init__(self, config: EncoderConfig, size: int) -> None:
        super().__init__()
        self.size = crop_size(size, config.crop)
        self.trunk = ResNet(config.depth, config.width)
        self.pool = SpatialSoftmax(self.trunk.channels[-1], config.num_keypoints, config.temperature)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Float images (B, 3, H, W) in 0 to 1 to (B, 2 K)."""
        slack = images.shape[-1] - self.size
        cropped = []
        for image in images:
            if self.training:
                top, left = torch.randint(0, slack + 1, (2,)).tolist()
            else:
                top = left = slack // 2
            cropped.append(image[:, top : top + self.size, left : left + self.size])
        x = (torch.stack(cropped) - self.mean) / self.std
        return self.pool(self.trunk(x)[-1]).flatten(1)


def to_float(images: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) to contiguous float (B, 3, H, W) in 0 to 1, on the host, as data loaders do it."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(images.astype(np.float32) / 255, -1, 1)))


class Variant:
    """A network, and how a batch of uint8 images in host memory reaches it."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.network, self.device = network.to(device).train(), device

    def features(self, images: np.ndarray) -> Tensor:
        """uint8 (B, H, W, 3) to (B, D)."""
        if isinstance(self.network, PlainEncoder):
            return self.network(to_float(images).to(self.device))
        return self.network({"camera": torch.from_numpy(images).to(self.device)})

    def step(self, images: np.ndarray) -> None:
        """Forward and backward, as an update does them; the gradients are freed, as `optimizer.zero_grad` does."""
        self.features(images).square().mean().backward()
        self.network.zero_grad(set_to_none=True)


def library(config: EncoderConfig, size: int) -> nn.Module:
    """This library's encoder of one camera, as `train` prepares it."""
    return VisualEncoder(config, {"camera": (size, size)}).to(memory_format=torch.channels_last)


PLAIN, OURS, OURS_BF16 = (
    "plain: float32 NCHW from the host, a crop an image in Python, eager",
    "`VisualEncoder`, as `train` runs it, float32",
    "`VisualEncoder`, as `train` runs it, `precision` bfloat16",
)


def sspool_variant(name: str, arguments: argparse.Namespace, device: torch.device) -> Variant:
    """One of part a's."""
    config = replace(presets.encoder(BASELINE), width=arguments.width)
    if name == PLAIN:
        return Variant(PlainEncoder(config, arguments.resolution), device)
    precision: Precision = "bfloat16" if name == OURS_BF16 else "float32"
    return Variant(library(replace(config, precision=precision), arguments.resolution), device)


def steps(name: str, arguments: argparse.Namespace) -> Generator[None, None, None]:
    """A training step at a time."""
    torch.set_num_threads(arguments.threads)
    device, images = torch.device(arguments.device), random_images(arguments)
    variant = sspool_variant(name, arguments, device)
    with contextlib.nullcontext() if name == PLAIN else keep_freed_memory():
        while True:
            variant.step(images)
            if device.type == "cuda":
                torch.cuda.synchronize()
            yield


def random_images(arguments: argparse.Namespace) -> np.ndarray:
    """uint8 (B, H, W, 3)."""
    size = arguments.resolution
    return np.random.default_rng(0).integers(0, 256, (arguments.batch_size, size, size, 3), np.uint8)


def convolution_rate(device: torch.device) -> float:
    """Operations a second of a large float32 convolution, the best of ten forwards in either layout."""
    best = 0.0
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(64, 128, 28, 28, device=device).to(memory_format=layout)
        weight = torch.randn(128, 128, 3, 3, device=device).to(memory_format=layout)
        calls = [seconds_of(lambda x=x, w=weight: F.conv2d(x, w, padding=1), device) for _ in range(10)]
        best = max(best, 2 * 9 * 128 * weight.shape[0] * 28 * 28 * len(x) / min(calls))
    return best


@torch.no_grad()
def check_equal(plain: Variant, ours: Variant, images: np.ndarray) -> None:
    """With equal weights and the centre crop both compositions must say the same, or they are not comparable."""
    (camera,) = ours.network.encoders.values()
    plain.network.trunk.load_state_dict(camera.trunk.state_dict())
    plain.network.pool.load_state_dict(camera.pool[0].state_dict())
    for variant in (plain, ours):
        variant.network.eval()
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        torch.testing.assert_close(plain.features(images), ours.features(images), atol=1e-4, rtol=0)
    for variant in (plain, ours):
        variant.network.train()


def composition(arguments: argparse.Namespace, device: torch.device, images: np.ndarray) -> None:
    """Part a: sspool's training step, the plain composition against this library's."""
    batch = arguments.batch_size
    plain, ours = (sspool_variant(name, arguments, device) for name in (PLAIN, OURS))
    check_equal(plain, ours, images[:4])
    with FlopCounterMode(display=False) as counter:
        plain.step(images)
    operations = counter.get_total_flops()
    rate = convolution_rate(device)
    variants = {name: Elsewhere(steps, name, arguments) for name in (PLAIN, OURS, OURS_BF16)}
    seconds = in_turn(variants, arguments.rounds, device)
    convert = in_turn({"": lambda: to_float(images)}, arguments.rounds, device)[""]
    rate = max(rate, convolution_rate(device))  # a shared machine is not always at its best
    baseline = seconds[next(iter(seconds))]
    print(
        f"A float32 convolution (64x128x28x28 to 128 channels, 3x3) reaches {rate / 1e9:.0f} GFLOP/s here; a step is "
        f"{operations / batch / 1e9:.2f} GFLOPs an image.\n"
        f"The plain step holds {ms(convert)} ms of conversion on the host, which data loader processes may hide.\n"
    )
    print("| sspool's training step | ms: median (min to max) | images/s | speed x plain | GFLOP/s | of that rate |")
    print("|---|---|---|---|---|---|")
    for name, times in seconds.items():
        middle = statistics.median(times)
        print(
            f"| {name} | {1000 * middle:.1f} ({1000 * min(times):.1f} to {1000 * max(times):.1f}) "
            f"| {batch / middle:.0f} | {ratio(baseline, times)} | {operations / middle / 1e9:.0f} "
            f"| {operations / middle / rate:.0%} |"
        )
    print()


def peak_memory(name: str, arguments: argparse.Namespace) -> float:
    """MiB that building one encoder and one training step need at their peak: weights, gradients, activations."""
    command = [sys.executable, __file__, "--memory-of", name, "--device", arguments.device]
    for option in ("threads", "batch_size", "width", "resolution"):
        command += [f"--{option.replace('_', '-')}", str(getattr(arguments, option))]
    # With a fixed threshold glibc returns a large tensor's pages at once: runs agree within 0.2 MiB instead of 20.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    return float(output_of(command, env=environment))


def status_mib(field: str) -> float:
    """A size from Linux' /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def print_own_memory(arguments: argparse.Namespace, device: torch.device, images: np.ndarray) -> None:
    """What `peak_memory` runs in a fresh process."""
    config = replace(presets.encoder(arguments.memory_of), width=arguments.width)
    x = torch.zeros(1, 16, 8, 8, requires_grad=True)
    F.conv2d(x, torch.zeros(16, 16, 3, 3)).sum().backward()  # loads what is not the encoder's
    before = status_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of starting up
    Variant(library(config, arguments.resolution), device).step(images)
    print(torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else status_mib("VmHWM") - before)


def encoders(arguments: argparse.Namespace, device: torch.device, images: np.ndarray) -> None:
    """Part b: every encoder against sspool."""
    names = [
        BASELINE,
        *(n for n in arguments.encoder or (*presets.ENCODERS, *presets.prism_designs()) if n != BASELINE),
    ]
    configs = {n: replace(presets.encoder(n), width=arguments.width) for n in names}
    size, batch, rounds = arguments.resolution, arguments.batch_size, arguments.rounds
    rows = {r.encoder: r for r in encoder_costs(configs, (size,), arguments.width, rounds=0)}
    variants = {n: Variant(library(c, size), device) for n, c in configs.items()}
    train = in_turn({n: lambda v=v: v.step(images) for n, v in variants.items()}, rounds, device)
    for variant in variants.values():
        variant.network.eval()
    with torch.no_grad():
        infer = in_turn({n: lambda v=v: v.features(images) for n, v in variants.items()}, rounds, device)
        one = in_turn({n: lambda v=v: v.features(images[:1]) for n, v in variants.items()}, rounds, device, calls=5)
    del variants, variant
    memory = {n: peak_memory(n, arguments) for n in names}
    print(
        "| encoder | numbers | policy | GFLOPs | training step [ms] | x sspool | forward of 1 [ms] | x sspool "
        f"| forward of {batch} [ms] | x sspool | peak memory of a step [MiB] | x sspool |"
    )
    print("|" + "---|" * 12)
    for name in names:
        row = rows[name]
        columns = [name, str(row.numbers), f"{row.policy_growth:+.1%}", f"{row.operations / 1e9:.2f}"]
        for times in (train, one, infer):
            columns += [ms(times[name]), ratio(times[name], times[BASELINE])]
        columns += [f"{memory[name]:.0f}", f"{memory[name] / memory[BASELINE]:.2f}"]
        print(f"| {' | '.join(columns)} |")
    print()


def main() -> None:
    """Print a table a part, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default="all", choices=["a", "b", "all"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--resolution", type=int, default=84)
    parser.add_argument("--encoder", nargs="+", help="part b: only these beside sspool")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    size, batch = arguments.resolution, arguments.batch_size
    images = random_images(arguments)
    if arguments.memory_of:
        print_own_memory(arguments, device, images)
        return
    print(
        f"Batch of {batch} images of {size} px, one camera, width {arguments.width}; {device_name(device)}, torch "
        f"{torch.__version__}; ratios: median (min to max) of {arguments.rounds} interleaved rounds.\n"
    )
    if arguments.part in ("a", "all"):
        composition(arguments, device, images)
    if arguments.part in ("b", "all"):
        encoders(arguments, device, images)


if __name__ == "__main__":
    main()
