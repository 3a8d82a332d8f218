"""A full training step: this library's against LeRobot's and against the plain composition of the same layers.

python benchmarks/training_step.py [--sizes paper nano] [--batch-size 16] [--threads 2] [--rounds 7] [--device cpu]

DDPM with sspool on two cameras of 84 px: encoder, U-Net, backward, optimiser, and what each does besides (this library
gathers its windows from uint8 frames and keeps an average of the weights; LeRobot clips the gradient). The others get
float images that lie ready in memory. Each variant runs in a process of its own, all in turn, a ratio within its round.
Before anything is timed they must hold as many parameters and do as many operations. LeRobot joins where it can be
imported; at nano's sizes its ResNet is narrowed as ours is.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import torch
from elsewhere import Elsewhere
from encoder import PlainEncoder, convolution_rate
from others import LEROBOT_AS_OURS, lenient_torchvision, lerobot_name
from timing import in_turn, ratio
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from prism_policy.config import presets
from prism_policy.config.settings import PolicyConfig, Precision, RunConfig, TaskConfig
from prism_policy.data.frames import Frames
from prism_policy.data.robomimic import Episode
from prism_policy.data.schema import task_schema
from prism_policy.data.windows import Windows
from prism_policy.models.unet1d import ConditionalUNet1D
from prism_policy.policies.base import LossInputs
from prism_policy.policies.ddpm import alpha_bars
from prism_policy.probe.encoder_cost import device_name
from prism_policy.run_folder import make_policy
from prism_policy.training.checkpoint import TrainState
from prism_policy.training.compiled import compiled as in_parts
from prism_policy.training.prefetch import moved
from prism_policy.utils.memory import keep_freed_memory

CAMERAS, STATE, ACTION, SIZE = ("agentview", "robot0_eye_in_hand"), 9, 7, 84
LEROBOT, PLAIN = (
    lerobot_name(),
    "plain: the same layers, float32 NCHW, a crop an image, PyTorch's default AdamW, EMA by name",
)
OURS: dict[str, tuple[Precision, bool]] = {
    "ours, as `train` runs it, float32": ("float32", False),
    "ours, `--precision bfloat16`": ("bfloat16", False),
    "ours, `--precision bfloat16 --compile`": ("bfloat16", True),
}

Step = Callable[[], object]


def run_config(sizes: str) -> RunConfig:
    """The paper's or nano's, with DDPM and sspool."""
    return (presets.paper if sizes == "paper" else presets.nano)(policy="ddpm", encoder_name="sspool")


def some_windows() -> Windows:
    """Random frames in memory."""
    rng = np.random.default_rng(0)
    steps = 400
    images = {c: rng.integers(0, 256, (steps, SIZE, SIZE, 3), np.uint8) for c in CAMERAS}
    state = rng.normal(size=(steps, STATE)).astype(np.float32)
    actions = rng.uniform(-1, 1, (steps, ACTION)).astype(np.float32)
    episode = Episode("demo_0", images, state, actions, np.zeros(steps, bool), np.zeros((steps, 0)))
    return Windows(Frames.of([episode], task_schema(TaskConfig())), 16, 2, 8)


def ours(config: RunConfig, name: str, batch_size: int, device: torch.device) -> tuple[nn.Module, Step]:
    """An update as the loop in `train` does it."""
    precision, compiled = OURS[name]
    policy = make_policy(config, task_schema(config.task)).to(device, memory_format=torch.channels_last).train()
    state, windows = TrainState(policy, config.train), some_windows()
    if device.type == "cuda":
        windows = windows.to(device)
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high" if precision == "bfloat16" else "highest")
    model = in_parts(policy) if compiled else policy
    indices = torch.from_numpy(np.random.default_rng(0).integers(0, len(windows), batch_size))
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        batch = windows.batch(indices) | {"draws": moved(policy.draw(batch_size, generator), device)}
        batch["mask_share"] = batch["mask"].float().mean()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = model(batch)
        state.optimizer.zero_grad()
        loss.backward()
        state.update(1e-4, 0.999)

    return policy, step


class PlainPolicy(nn.Module):
    """DDPM's loss as one writes it down, of this library's layers."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({c: PlainEncoder(config.encoder, SIZE) for c in CAMERAS})
        numbers = 2 * (config.encoder.num_keypoints or 0)
        cond = config.n_obs_steps * (len(CAMERAS) * numbers + STATE)
        self.net = ConditionalUNet1D(
            ACTION, cond, config.down_dims, config.kernel_size, config.n_groups, config.step_embed_dim
        )
        self.register_buffer("alpha_bar", alpha_bars(config.ddpm).float())

    def forward(self, images: dict[str, Tensor], state: Tensor, actions: Tensor) -> Tensor:
        """Float images (B, 2, 3, H, W) and so on to the loss."""
        features = [self.encoders[c](images[c].flatten(0, 1)).view(len(state), 2, -1) for c in CAMERAS]
        cond = torch.cat([*features, state], dim=-1).flatten(1)
        k = torch.randint(len(self.alpha_bar), (len(actions),), device=actions.device)
        noise, alpha_bar = torch.randn_like(actions), self.alpha_bar[k][:, None, None]
        noisy = alpha_bar.sqrt() * actions + (1 - alpha_bar).sqrt() * noise
        return nn.functional.mse_loss(self.net(noisy, k, cond), noise)


def float_batch(batch_size: int, device: torch.device) -> dict[str, Any]:
    """Images as the others want them, ready in memory."""
    generator = torch.Generator().manual_seed(0)
    return {
        "images": {c: torch.rand(batch_size, 2, 3, SIZE, SIZE, generator=generator).to(device) for c in CAMERAS},
        "state": torch.randn(batch_size, 2, STATE, generator=generator).to(device),
        "actions": torch.rand(batch_size, 16, ACTION, generator=generator).to(device) * 2 - 1,
    }


def plain(config: RunConfig, batch_size: int, device: torch.device) -> tuple[nn.Module, Step]:
    """Without anything that this library does for speed."""
    policy = PlainPolicy(config.policy).to(device).train()
    optimizer = torch.optim.AdamW(policy.parameters(), 1e-4)
    ema = {name: p.detach().clone() for name, p in policy.named_parameters()}
    batch = float_batch(batch_size, device)

    def step() -> None:
        loss = policy(**batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                ema[name].mul_(0.999).add_(parameter, alpha=0.001)

    return policy, step


def lerobot(config: RunConfig, batch_size: int, device: torch.device) -> tuple[nn.Module, Step]:
    """LeRobot's diffusion policy with its own optimiser settings, which its training script takes over.

    Raises:
        ImportError: it is not installed.
    """
    with lenient_torchvision():
        import torchvision
        from lerobot.configs import types
        from lerobot.policies.diffusion import configuration_diffusion, modeling_diffusion

    def narrowed(weights: None = None) -> nn.Module:
        net, width = torchvision.models.resnet18(weights=None), config.policy.encoder.width
        block, net.inplanes = torchvision.models.resnet.BasicBlock, width
        net.conv1, net.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        for i in range(4):
            setattr(net, f"layer{i + 1}", net._make_layer(block, width * 2**i, 2, stride=1 if i == 0 else 2))
        return net

    torchvision.models.resnet18_narrowed = narrowed
    feature, kinds, shape = types.PolicyFeature, types.FeatureType, config.policy
    images = {f"observation.images.{c}": feature(kinds.VISUAL, (3, SIZE, SIZE)) for c in CAMERAS}
    settings = configuration_diffusion.DiffusionConfig(
        input_features={"observation.state": feature(kinds.STATE, (STATE,)), **images},
        output_features={"action": feature(kinds.ACTION, (ACTION,))},
        vision_backbone="resnet18_narrowed",
        down_dims=shape.down_dims,
        diffusion_step_embed_dim=shape.step_embed_dim,
        device=device.type,
        **LEROBOT_AS_OURS,
    )
    model = modeling_diffusion.DiffusionModel(settings).to(device).train()
    preset = settings.get_optimizer_preset()
    optimizer = preset.build(model.parameters())
    batch = float_batch(batch_size, device)
    batch = {
        "observation.state": batch["state"],
        "observation.images": torch.stack(list(batch["images"].values()), dim=2),
        "action": batch["actions"],
        "action_is_pad": torch.zeros(batch_size, 16, dtype=torch.bool, device=device),
    }

    def step() -> None:
        loss = model.compute_loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), preset.grad_clip_norm)
        optimizer.step()
        optimizer.zero_grad()

    return model, step


def made(name: str, sizes: str, batch_size: int, device: torch.device) -> tuple[nn.Module, Step]:
    """The network and step of a variant."""
    config = run_config(sizes)
    if name == LEROBOT:
        return lerobot(config, batch_size, device)
    return plain(config, batch_size, device) if name == PLAIN else ours(config, name, batch_size, device)


def variant(name: str, sizes: str, arguments: argparse.Namespace) -> Generator[tuple[int, int] | None, None, None]:
    """Parameters and operations, then a step at a time; no parameters where it is not installed."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    try:
        network, step = made(name, sizes, arguments.batch_size, device)
    except ImportError:
        yield 0, 0
        return
    operations = 0
    if "compile" not in name:
        with FlopCounterMode(display=False) as counter:
            step()
        operations = counter.get_total_flops()
    with keep_freed_memory() if name in OURS else contextlib.nullcontext():
        yield sum(p.numel() for p in network.parameters()), operations
        while True:
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            yield None


def compare(sizes: str, arguments: argparse.Namespace) -> None:
    """One table."""
    device = torch.device(arguments.device)
    names = [LEROBOT, PLAIN, *(n for n, (_, compiled) in OURS.items() if not compiled or arguments.compile)]
    variants = {name: Elsewhere(variant, name, sizes, arguments) for name in names}
    if not variants[LEROBOT].about[0]:
        print("LeRobot is left out: it is not installed.\n")
        del variants[LEROBOT]
    parameters, operations = variants[PLAIN].about
    for name, other in variants.items():
        theirs, done = other.about
        assert abs(theirs / parameters - 1) < 0.002, (name, theirs)
        assert not done or abs(done / operations - 1) < 0.02, name
    rate = convolution_rate(device)
    seconds = in_turn(variants, arguments.rounds, device)
    rate = max(rate, convolution_rate(device))  # a shared machine is not always at its best
    baselines = [seconds[name] for name in (LEROBOT, PLAIN) if name in seconds]
    print(
        f"{sizes}: {parameters / 1e6:.1f} M parameters, batch {arguments.batch_size}, "
        f"{operations / 1e9:.0f} GFLOPs a step; a float32 convolution reaches {rate / 1e9:.0f} GFLOP/s "
        "here.\n"
    )
    print("| step | ms: median (min to max) | speed x LeRobot | speed x plain | of the float32 rate |")
    print("|---|---|---|---|---|")
    for name, times in seconds.items():
        middle = statistics.median(times)
        ratios = [ratio(baseline, times) for baseline in baselines]
        print(
            f"| {name} | {1000 * middle:.0f} ({1000 * min(times):.0f} to {1000 * max(times):.0f}) "
            f"| {' | '.join(['', *ratios][-2:])} | {operations / middle / rate:.0%} |"
        )
    print()
    for other in variants.values():
        other.end()


def parts(sizes: str, arguments: argparse.Namespace) -> None:
    """Where the time of this library's float32 step goes."""
    device = torch.device(arguments.device)
    config = run_config(sizes)
    batch_size = arguments.batch_size
    policy = make_policy(config, task_schema(config.task)).to(device, memory_format=torch.channels_last).train()
    state, windows = TrainState(policy, config.train), some_windows()
    indices = torch.arange(batch_size)
    batch = moved(windows.batch(indices) | {"draws": policy.draw(batch_size)}, device)
    with torch.no_grad():
        cond = policy.condition(batch, batch["draws"])
    noise, times = (batch["draws"][name].flatten(0, 1) for name in ("noise", "times"))

    def encoder() -> None:
        policy.condition(batch, batch["draws"]).sum().backward()

    def unet() -> None:
        policy.chunk_loss(LossInputs(batch["actions"], cond, noise, times)).backward()

    functions: dict[str, Step] = {
        "batch and draws": lambda: (windows.batch(indices), policy.draw(batch_size)),
        "encoder, there and back": encoder,
        "U-Net, there and back": unet,
        "AdamW and EMA": lambda: state.update(1e-4, 0.999),
    }
    with keep_freed_memory():
        seconds = in_turn(functions, arguments.rounds, device)
    print("| part of our float32 step | ms |\n|---|---|")
    for name, measured in seconds.items():
        print(f"| {name} | {1000 * statistics.median(measured):.1f} |")
    print()


def main() -> None:
    """Print the tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["paper", "nano"], choices=["paper", "nano"])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(
        f"{device_name(torch.device(arguments.device))}, torch {torch.__version__}; ratios: median (min to max) of "
        f"{arguments.rounds} rounds in turn.\n"
    )
    for sizes in arguments.sizes:
        compare(sizes, arguments)
        parts(sizes, arguments)


if __name__ == "__main__":
    main()
