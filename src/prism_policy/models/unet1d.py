"""The conditional 1D U-Net over action chunks that all three policies share (Table 11; Chi et al., 2025)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prism_policy.errors import PrismError


def sinusoidal_embedding(step: Tensor, dim: int) -> Tensor:
    """Steps (B,) to (B, dim): sines and cosines at wavelengths from 2 pi to 10000 * 2 pi.

    Several numbers, (B, n), share the dimensions: each has dim / n of its own, so the network's size stays the same.
    """
    step = step if step.is_floating_point() else step.float()
    step = step.unsqueeze(-1) if step.ndim == 1 else step  # (B, n)
    half = dim // (2 * step.shape[1])
    exponents = torch.arange(half, device=step.device, dtype=step.dtype) / (half - 1)
    angles = step.unsqueeze(-1) * torch.exp(-math.log(10_000) * exponents)  # (B, n, dim / 2n)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)


def check_horizon(horizon: int, levels: int) -> None:
    """Refuse a horizon that a U-Net of so many levels cannot halve and double back."""
    halved = levels - 1
    if horizon < 1 or horizon % 2**halved:
        net = f"a U-Net that halves it {halved} times"
        raise PrismError(f"horizon {horizon} does not suit {net}: choose a multiple of {2**halved}")


class GroupNorm1d(nn.GroupNorm):
    """`nn.GroupNorm`, written out for compilers: there PyTorch's operator fails under MeanFlow's forward derivative."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) to (B, C, T)."""
        if not torch.compiler.is_compiling():
            return super().forward(x)
        grouped = x.reshape(len(x), self.num_groups, -1)  # (B, G, C / G * T)
        variance, mean = torch.var_mean(grouped, dim=2, correction=0, keepdim=True)
        normal = ((grouped - mean) * torch.rsqrt(variance + self.eps)).view_as(x)
        return normal * self.weight[:, None] + self.bias[:, None]


class Conv1dBlock(nn.Sequential):
    """Conv1d, GroupNorm, Mish."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, n_groups: int) -> None:
        super().__init__(
            nn.Conv1d(in_channels, out_channels, kernel_size, padding=kernel_size // 2),
            GroupNorm1d(n_groups, out_channels),
            nn.Mish(),
        )


class ResidualBlock1D(nn.Module):
    """Two convolution blocks with FiLM between them: `scale * x + bias`, both from the condition."""

    def __init__(self, in_channels: int, out_channels: int, cond_dim: int, kernel_size: int, n_groups: int) -> None:
        super().__init__()
        self.block1 = Conv1dBlock(in_channels, out_channels, kernel_size, n_groups)
        self.block2 = Conv1dBlock(out_channels, out_channels, kernel_size, n_groups)
        self.film = nn.Linear(cond_dim, 2 * out_channels)
        self.shortcut = nn.Conv1d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        """(B, C_in, T) and this block's FiLM (B, 2 C_out) to (B, C_out, T)."""
        scale, bias = film.unsqueeze(-1).chunk(2, dim=1)  # (B, C_out, 1) each
        h = scale * self.block1(x) + bias
        return self.block2(h) + self.shortcut(x)


class Level(nn.Module):
    """Two residual blocks and what leads from their resolution to the next."""

    def __init__(self, block1: ResidualBlock1D, block2: ResidualBlock1D, resize: nn.Module) -> None:
        super().__init__()
        self.block1, self.block2, self.resize = block1, block2, resize

    def forward(self, x: Tensor, film1: Tensor, film2: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C_in, T) and the blocks' FiLM to (B, C_out, T) before and after the change of resolution."""
        x = self.block2(self.block1(x, film1), film2)
        return x, self.resize(x)


class ConditionalUNet1D(nn.Module):
    """U-Net over the horizon, FiLM-conditioned on the observation and the diffusion step or flow time.

    Usage::

        net = ConditionalUNet1D(action_dim=10, cond_dim=274)
        out = net(actions, step, cond)  # (B, T, 10), (B,), (B, 274) -> (B, T, 10)
    """

    def __init__(
        self,
        action_dim: int,
        cond_dim: int,
        down_dims: Sequence[int] = (256, 512, 1024),
        kernel_size: int = 5,
        n_groups: int = 8,
        step_embed_dim: int = 128,
    ) -> None:
        super().__init__()
        self.step_embed_dim = step_embed_dim
        self.step_encoder = nn.Sequential(
            nn.Linear(step_embed_dim, 4 * step_embed_dim), nn.Mish(), nn.Linear(4 * step_embed_dim, step_embed_dim)
        )
        cond_dim += step_embed_dim

        def residual(in_channels: int, out_channels: int) -> ResidualBlock1D:
            return ResidualBlock1D(in_channels, out_channels, cond_dim, kernel_size, n_groups)

        dims = [action_dim, *down_dims]
        self.down = nn.ModuleList()
        for i, (d_in, d_out) in enumerate(itertools.pairwise(dims)):
            last = i == len(down_dims) - 1
            shrink = nn.Identity() if last else nn.Conv1d(d_out, d_out, 3, 2, 1)
            self.down.append(Level(residual(d_in, d_out), residual(d_out, d_out), shrink))
        self.mid = nn.ModuleList([residual(dims[-1], dims[-1]) for _ in range(2)])
        self.up = nn.ModuleList()
        for d_out, d_in in zip(dims[-2:0:-1], dims[:1:-1], strict=True):
            grow = nn.ConvTranspose1d(d_out, d_out, 4, 2, 1)
            self.up.append(Level(residual(2 * d_in, d_out), residual(d_out, d_out), grow))
        self.final = nn.Sequential(
            Conv1dBlock(dims[1], dims[1], kernel_size, n_groups), nn.Conv1d(dims[1], action_dim, 1)
        )

    def forward(self, actions: Tensor, step: Tensor, cond: Tensor) -> Tensor:
        """(B, T, A), steps (B,) or (B, n), and (B, D) to (B, T, A)."""
        embedding = self.step_encoder(sinusoidal_embedding(step, self.step_embed_dim).to(cond.dtype))
        features = F.mish(torch.cat([embedding, cond], dim=-1))
        return self.denoise(actions, [block.film(features) for block in self.blocks])

    def at(self, steps: Tensor, cond: Tensor) -> list[Callable[[Tensor], Tensor]]:
        """The network as functions of the actions (B, T, A) alone, one for each of `steps`, (n,) or (n, m).

        The FiLM of the condition (B, D) and of the steps is computed once.
        """
        embedding = F.mish(self.step_encoder(sinusoidal_embedding(steps.to(cond.dtype), self.step_embed_dim)))
        features = F.mish(cond)
        films = []
        for block in self.blocks:
            of_step, of_cond = block.film.weight.tensor_split([self.step_embed_dim], dim=1)
            constant = F.linear(features, of_cond, block.film.bias)  # (B, 2 C)
            films.append(F.linear(embedding, of_step).unsqueeze(1) + constant)  # (n, B, 2 C)
        return [partial(self.denoise, films=list(at_step)) for at_step in zip(*films, strict=True)]

    @property
    def blocks(self) -> list[ResidualBlock1D]:
        """The residual blocks in the order of their use."""
        return [module for module in self.modules() if isinstance(module, ResidualBlock1D)]

    def denoise(self, actions: Tensor, films: Sequence[Tensor]) -> Tensor:
        """(B, T, A) and the FiLM of each of `blocks`, (B, 2 C), to (B, T, A)."""
        check_horizon(actions.shape[1], len(self.down))
        film = iter(films)
        x = actions.transpose(1, 2)  # (B, A, T)
        skips = []
        for level in self.down:
            skip, x = level(x, next(film), next(film))  # (B, C, T), then (B, C, T / 2); the last level keeps T
            skips.append(skip)
        for block in self.mid:
            x = block(x, next(film))
        for level in self.up:
            _, x = level(torch.cat([x, skips.pop()], dim=1), next(film), next(film))  # (B, C, 2 T)
        return self.final(x).transpose(1, 2)
