"""How long a policy takes to act: the U-Net's forward and whole chunks, against LeRobot and diffusion_policy.

python benchmarks/act.py [--part forward|chunk|all] [--threads 2] [--rounds 9] [--device cpu] [--encoder sspool prism]

Paper's sizes (U-Net 256/512/1024, two cameras of 84 px), one observation at a time, float32 unless said otherwise. The
others join where they can be imported: LeRobot's DiffusionPolicy (`pip install lerobot`), diffusion_policy's U-Net
(a clone on PYTHONPATH). All U-Nets get the same weights and must return the same before anything is timed.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, get_args

import torch
from others import LEROBOT_AS_OURS, lenient_torchvision, lerobot_name
from timing import in_turn, ms, ratio, seconds_of
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from prism_policy.config import presets
from prism_policy.config.settings import DDPMConfig, PolicyConfig, PolicyKind, TaskConfig
from prism_policy.data.schema import task_schema
from prism_policy.models.packed import packed, reads_half
from prism_policy.models.unet1d import ConditionalUNet1D
from prism_policy.policies import build_policy
from prism_policy.probe.encoder_cost import device_name

CAMERAS, STATE, ACTION, COND = ("agentview", "robot0_eye_in_hand"), 9, 7, 274
OURS, LEROBOT = "ours, as `act` calls it", lerobot_name()

Functions = dict[str, Callable[[], object]]


def import_lerobot() -> Any:
    """LeRobot's diffusion policy, or None."""
    try:
        with lenient_torchvision():
            from lerobot.configs import types
            from lerobot.policies.diffusion import configuration_diffusion, modeling_diffusion
    except ImportError as error:
        print(f"LeRobot is left out ({error}).\n")
        return None
    feature, kinds = types.PolicyFeature, types.FeatureType
    images = {f"observation.images.{c}": feature(kinds.VISUAL, (3, 84, 84)) for c in CAMERAS}
    config = configuration_diffusion.DiffusionConfig(
        input_features={"observation.state": feature(kinds.STATE, (STATE,)), **images},
        output_features={"action": feature(kinds.ACTION, (ACTION,))},
        down_dims=(256, 512, 1024),
        num_inference_steps=100,
        device="cpu",
        **LEROBOT_AS_OURS,
    )
    return modeling_diffusion.DiffusionModel(config)


def import_diffusion_policy() -> nn.Module | None:
    """diffusion_policy's U-Net, or None."""
    try:
        from diffusion_policy.model.diffusion.conditional_unet1d import ConditionalUnet1D
    except ImportError as error:
        print(f"diffusion_policy is left out ({error}).\n")
        return None
    return ConditionalUnet1D(
        ACTION, global_cond_dim=COND, diffusion_step_embed_dim=128, kernel_size=5, cond_predict_scale=True
    )


NAMES = (  # ours -> theirs, applied in order; the second set of names is LeRobot's
    (r"^step_encoder\.0", "diffusion_step_encoder.1", "diffusion_step_encoder.1"),
    (r"^step_encoder\.2", "diffusion_step_encoder.3", "diffusion_step_encoder.3"),
    (r"^(down|up)\.(\d)\.block1", r"\1_modules.\2.0", r"\1_modules.\2.0"),
    (r"^(down|up)\.(\d)\.block2", r"\1_modules.\2.1", r"\1_modules.\2.1"),
    (r"^(down|up)\.(\d)\.resize", r"\1_modules.\2.2.conv", r"\1_modules.\2.2"),
    (r"^mid\.", "mid_modules.", "mid_modules."),
    (r"\.block1\.(\d)", r".blocks.0.block.\1", r".conv1.block.\1"),
    (r"\.block2\.(\d)", r".blocks.1.block.\1", r".conv2.block.\1"),
    (r"\.film\.", ".cond_encoder.1.", ".cond_encoder.1."),
    (r"\.shortcut\.", ".residual_conv.", ".residual_conv."),
    (r"^final\.0\.(\d)", r"final_conv.0.block.\1", r"final_conv.0.block.\1"),
    (r"^final\.1", "final_conv.1", "final_conv.1"),
)


def give_weights(net: ConditionalUNet1D, other: nn.Module, lerobot: bool) -> None:
    """Copy the U-Net's weights into another library's; every one must fit."""
    state = {}
    for name, value in net.state_dict().items():
        for pattern, *theirs in NAMES:
            name = re.sub(pattern, theirs[lerobot], name)
        state[name] = value
    other.load_state_dict(state)


def bandwidth(device: torch.device) -> float:
    """Bytes a second at which a large matrix is read, the best of several ways."""
    x = torch.randn(2**26, device=device)
    matrix, vector = x.view(8192, 8192), torch.randn(1, 8192, device=device)
    layer = packed(nn.Sequential(nn.Linear(8192, 8192, bias=False).to(device)))
    with torch.no_grad():
        ways: tuple[Callable[[], object], ...] = (x.sum, lambda: vector @ matrix.T, lambda: layer(vector))
        return x.nbytes / min(seconds_of(way, device) for way in ways for _ in range(15))


def matrix_rate(device: torch.device) -> float:
    """Operations a second of a large float32 product, the best of several ways."""
    a = torch.randn(2048, 2048, device=device)
    layer = packed(nn.Sequential(nn.Linear(2048, 2048, bias=False).to(device)))
    with torch.no_grad():
        ways: tuple[Callable[[], object], ...] = (lambda: a @ a, lambda: layer(a))
        return 2 * 2048**3 / min(seconds_of(way, device) for way in ways for _ in range(10))


def close_enough(acted: Tensor, expected: Tensor) -> None:
    """Refuse what is off by more than its product explains: weights in float16 where they are read so."""
    share = 0.01 if reads_half() else 1e-4
    torch.testing.assert_close(acted, expected, atol=share * float(expected.max() - expected.min()), rtol=1e-4)


class Floor:
    """The least time that reading the weights once and doing the operations once can take on this machine."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.bandwidth, self.rate = device, bandwidth(device), matrix_rate(device)

    def of(self, module: nn.Module, call: Callable[[], object]) -> float:
        """Seconds: the larger of the two."""
        with FlopCounterMode(display=False) as counter:
            call()
        weights = sum(p.numel() * p.element_size() for p in module.parameters())
        return max(weights / self.bandwidth, counter.get_total_flops() / self.rate)


@torch.no_grad()
def forward(arguments: argparse.Namespace, device: torch.device, floor: Floor) -> None:
    """The U-Net's forward at batch 1."""
    net = ConditionalUNet1D(ACTION, COND).to(device).eval()
    x, cond = torch.randn(1, 16, ACTION, device=device), torch.randn(1, COND, device=device)
    step = torch.tensor([50], device=device)
    functions: Functions = {}
    expected = net(x, step, cond)
    for name, other in ((LEROBOT, import_lerobot()), ("diffusion_policy", import_diffusion_policy())):
        if other is None:
            continue
        unet = (other.unet if name == LEROBOT else other).to(device).eval()
        give_weights(net, unet, name == LEROBOT)
        torch.testing.assert_close(unet(x, step, global_cond=cond), expected, atol=1e-4, rtol=1e-4)
        functions[name] = lambda unet=unet: unet(x, step, global_cond=cond)  # type: ignore[misc]
    functions["ours, plain `forward`"] = lambda: net(x, step, cond)
    (acting,) = packed(net).at(step, cond)
    close_enough(acting(x), expected)
    functions[OURS] = lambda: acting(x)

    def in_bfloat16() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return acting(x)

    off = (in_bfloat16().float() - expected).abs().max() / expected.abs().max()
    functions[f"the same under autocast to bfloat16 (off by {off:.1%} of the largest output)"] = in_bfloat16
    least = floor.of(net, lambda: net(x, step, cond))
    seconds = in_turn(functions, arguments.rounds, device, calls=10)
    first = next(iter(functions))
    print(f"| U-Net forward, batch 1 | ms | speed x {first} | of the float32 floor ({1e3 * least:.1f} ms) |")
    print("|---|---|---|---|")
    for name, times in seconds.items():
        baseline = next(iter(seconds.values()))
        print(f"| {name} | {ms(times)} | {ratio(baseline, times)} | {least / statistics.median(times):.0%} |")
    print()


def chunk(arguments: argparse.Namespace, device: torch.device, floor: Floor) -> None:
    """Whole chunks: two cameras' images in, actions out."""
    generator = torch.Generator().manual_seed(0)
    images = {c: torch.randint(0, 256, (1, 2, 84, 84, 3), dtype=torch.uint8, generator=generator) for c in CAMERAS}
    observation = {"images": images, "state": torch.randn(1, 2, STATE, generator=generator)}
    functions: Functions = {}
    least: dict[str, float] = {}
    lerobot = import_lerobot()
    if lerobot is not None:
        lerobot = lerobot.to(device).eval()
        floats = torch.stack([x.permute(0, 1, 4, 2, 3) / 255 for x in images.values()], dim=2).to(device)
        batch = {"observation.state": observation["state"].to(device), "observation.images": floats}
        functions[f"{LEROBOT}, DDPM, 100 steps"] = torch.no_grad()(lambda: lerobot.generate_actions(batch))
    for encoder in arguments.encoder:
        for name, (config, calls) in policies(encoder).items():
            policy = build_policy(config, task_schema(TaskConfig()))
            policy = policy.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
            functions[name] = lambda policy=policy: policy.act(observation, torch.Generator().manual_seed(0))
            seen = policy._checked(observation)
            cond = policy.condition(seen)
            step = torch.zeros(1, 2, device=device) if config.kind == "meanflow" else torch.zeros(1, device=device)
            noise = policy.draw_noise(1)
            once = floor.of(policy.net, lambda p=policy, n=noise, s=step, c=cond: p.net(n[:, 0], s, c))
            least[name] = floor.of(policy.encoder, lambda p=policy, o=seen: p.condition(o)) + calls * once
            plain = policy.sample(seen, policy.draw_noise(1, torch.Generator().manual_seed(0))).detach()
            acted = policy.act(observation, torch.Generator().manual_seed(0))
            close_enough(acted, plain[:, 1:9])
    seconds = in_turn(functions, arguments.rounds, device, warm_up=1)
    baseline = next(iter(seconds.values()))
    print(f"| chunk, batch 1, two cameras | ms | speed x {next(iter(functions))} | of the floor |")
    print("|---|---|---|---|")
    for name, times in seconds.items():
        share = f"{least[name] / statistics.median(times):.0%}" if name in least else ""
        print(f"| {name} | {ms(times)} | {ratio(baseline, times)} | {share} |")
    print()


def policies(encoder: str) -> Mapping[str, tuple[PolicyConfig, int]]:
    """The paper's three and DDIM, each with its number of network calls."""
    kinds: tuple[PolicyKind, ...] = get_args(PolicyKind)
    base = {kind: presets.paper(policy=kind, encoder_name=encoder).policy for kind in kinds}
    ddim = replace(base["ddpm"], ddpm=DDPMConfig(sampler="ddim", num_inference_steps=10))
    return {
        f"DDPM, 100 steps, {encoder}": (base["ddpm"], 100),
        f"DDIM, 10 steps, {encoder}": (ddim, 10),
        f"flow matching, 10 steps, {encoder}": (base["flow_matching"], 10),
        f"MeanFlow, 1 step, {encoder}": (base["meanflow"], 1),
    }


def main() -> None:
    """Print a table a part, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default="all", choices=["forward", "chunk", "all"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--encoder", nargs="+", default=["sspool", "prism"], choices=presets.ENCODERS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    floor = Floor(device)
    print(
        f"{device_name(device)}, torch {torch.__version__}; ratios: median (min to max) of {arguments.rounds} in turn. "
        f"Reading: {floor.bandwidth / 1e9:.0f} GB/s; float32 matrix product: {floor.rate / 1e9:.0f} GFLOP/s.\n"
    )
    if arguments.part in ("forward", "all"):
        forward(arguments, device, floor)
    if arguments.part in ("chunk", "all"):
        chunk(arguments, device, floor)


if __name__ == "__main__":
    main()
