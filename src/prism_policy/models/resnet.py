"""ResNet-18/34/50 trunk (He et al., 2016) with named stages, for small images and small batches.

Parameter names follow torchvision's, so that an ImageNet state dict loads (`ResNet.load_imagenet`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prism_policy.config.encoder import Norm
from prism_policy.errors import PrismError

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


class FrozenBatchNorm(nn.Module):
    """BatchNorm whose statistics and weights stay what they were loaded as, in training too."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}.items():
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        statistics = (self.running_mean, self.running_var, self.weight, self.bias)
        return F.batch_norm(x, *statistics, training=False)  # type: ignore[arg-type]


class GroupNorm2d(nn.GroupNorm):
    """`nn.GroupNorm` whose output lies in memory as its input does.

    On a GPU PyTorch's operator returns NCHW. Each convolution after it, its weights channels last, would lay its input
    out anew, once in the forward and once in the backward pass. A compiler writes its own.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        y = super().forward(x)
        if torch.compiler.is_compiling() or not x.is_contiguous(memory_format=torch.channels_last):
            return y
        return y.contiguous(memory_format=torch.channels_last)  # on a CPU it lies so already


def make_norm(norm: Norm, channels: int) -> nn.Module:
    """GroupNorm with C/16 groups (at least one), as in diffusion policies, or BatchNorm, or one that stays."""
    if norm != "group":
        return nn.BatchNorm2d(channels) if norm == "batch" else FrozenBatchNorm(channels)
    groups = max(channels // 16, 1)
    if channels < 1 or channels % groups:
        got = f"got {channels} channels for {groups} groups; choose 16, 32 or 64"
        raise PrismError(f"width: expected channels that divide into GroupNorm's groups of 16, {got}")
    return GroupNorm2d(groups, channels)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: the block of ResNet-18 and 34."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = make_norm(norm, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = make_norm(norm, channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            shortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, make_norm(norm, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.bn2(self.conv2(x))
        return F.relu(x.add_(shortcut), inplace=True)


class Bottleneck(nn.Module):
    """A 3x3 convolution between two of 1x1, the last four times as wide, and a shortcut: the block of ResNet-50.

    The stride is the 3x3 convolution's, as in torchvision ("v1.5").
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        wide = self.expansion * channels
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = make_norm(norm, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = make_norm(norm, channels)
        self.conv3 = nn.Conv2d(channels, wide, 1, bias=False)
        self.bn3 = make_norm(norm, wide)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != wide:
            shortcut = nn.Conv2d(in_channels, wide, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, make_norm(norm, wide))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, 4 C, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        x = self.bn3(self.conv3(x))
        return F.relu(x.add_(shortcut), inplace=True)


class ResNet(nn.Module):
    """Feature maps of every residual stage.

    Usage::

        trunk = ResNet(depth=18, width=64)
        c1, c2, c3, c4 = trunk(images)  # (B, 64, H/4, W/4) ... (B, 512, H/32, W/32); of 50 four times as wide
    """

    def __init__(self, depth: int = 18, width: int = 64, norm: Norm = "group", num_stages: int = 4) -> None:
        super().__init__()
        block = Bottleneck if depth == 50 else BasicBlock
        self.channels = [block.expansion * width * 2**i for i in range(num_stages)]
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = make_norm(norm, width)
        before = width
        for i, channels in enumerate(self.channels):
            first = block(before, width * 2**i, 2 if i else 1, norm)
            rest = [block(channels, width * 2**i, 1, norm) for _ in range(BLOCKS[depth][i] - 1)]
            before = channels
            self.add_module(f"layer{i + 1}", nn.Sequential(first, *rest))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to a list over stages of (B, C_l, H_l, W_l)."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)  # (B, width, H/2, W/2)
        x = F.max_pool2d(x, 3, 2, 1)  # (B, width, H/4, W/4)
        stages = []
        for i in range(len(self.channels)):
            x = self.get_submodule(f"layer{i + 1}")(x)
            stages.append(x)
        return stages

    def load_imagenet(self, state: Mapping[str, Tensor]) -> list[str]:
        """Load the weights of an ImageNet classifier of torchvision's names, such as timm's `resnet18.tv_in1k`.

        With BatchNorm, frozen or not, every weight and statistic loads. GroupNorm has no counterpart there: the
        convolutions load, and the norms, whose names are returned, start fresh. The classifier and stages beyond this
        trunk's are left out.
        """
        own = self.state_dict()
        norms = {name for name, module in self.named_modules() if isinstance(module, nn.GroupNorm)}
        fresh = [name for name in own if name.rpartition(".")[0] in norms]
        # Old files lack BatchNorm's counter of batches, which nothing here reads.
        loaded = [n for n in own if n not in fresh and (n in state or not n.endswith("num_batches_tracked"))]
        for name in loaded:
            given = tuple(state[name].shape) if name in state else "no such tensor"
            if given != tuple(own[name].shape):
                flaw = f"'{name}' expected {tuple(own[name].shape)}, found {given}"
                hint = "use those of a ResNet of this depth with width 64"
                raise PrismError(f"these weights do not fit the trunk: {flaw}; {hint}")
        layers = {f"layer{i + 1}" for i in range(len(self.channels))}
        for name in state:
            counter = name.endswith("num_batches_tracked")
            if (
                name.partition(".")[0] in layers
                and name not in own
                and name.rpartition(".")[0] not in norms
                and not counter
            ):
                raise PrismError(f"these weights hold '{name}', which the trunk has not; they are of another depth")
        self.load_state_dict({**own, **{name: state[name] for name in loaded}})
        return fresh

    def output_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Height and width of each stage's feature map for an input of this size."""
        sizes = []
        h, w = (-(-n // 2) for n in (height, width))  # conv1 halves, rounding up
        for _ in self.channels:  # the max-pool before layer1 and the stride of the later stages halve alike
            h, w = -(-h // 2), -(-w // 2)
            sizes.append((h, w))
        return sizes
