"""Denoising diffusion (Eq. 4 and 5, arXiv:2606.15232; Ho et al., 2020) with its ancestral sampler and DDIM."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from prism_policy.config.settings import DDPMConfig, PolicyConfig
from prism_policy.errors import PrismError
from prism_policy.policies.base import Known, LossInputs, Policy, impose


def alpha_bars(config: DDPMConfig) -> Tensor:
    """alpha-bar of every step, float64 (K,): the share of the clean chunk's variance that is left."""
    steps = config.train_timesteps
    if config.beta_schedule == "linear":
        betas = torch.linspace(config.beta_start, config.beta_end, steps, dtype=torch.float64)
    else:
        cosine = [math.cos((k / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for k in range(steps + 1)]
        capped = [min(1 - after / before, 0.999) for before, after in itertools.pairwise(cosine)]
        betas = torch.tensor(capped, dtype=torch.float64)
    return (1 - betas).cumprod(0)


class DDPMPolicy(Policy):
    """tau_k = sqrt(alpha-bar_k) tau + sqrt(1 - alpha-bar_k) eps; the network predicts eps."""

    alpha_bar: Tensor

    def __init__(self, config: PolicyConfig, *rest: Any, **named: Any) -> None:
        super().__init__(config, *rest, **named)
        steps, most = config.ddpm.num_inference_steps, config.ddpm.train_timesteps
        if not 1 <= steps <= most:
            raise PrismError(f"ddpm.num_inference_steps: expected 1 to train_timesteps {most}, got {steps}")
        self.register_buffer("alpha_bar", alpha_bars(config.ddpm).float(), persistent=False)

    def draw_times(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """The diffusion steps k: (B,)."""
        return torch.randint(len(self.alpha_bar), (batch,), generator=generator)

    def chunk_loss(self, inputs: LossInputs) -> Tensor:
        """Mean squared error of the noise over the entries in the mask (Eq. 5)."""
        noisy = self.at(inputs.times[:, None, None], inputs.actions, inputs.noise)  # Eq. 4
        return inputs.masked_mean((self.predict(noisy, inputs.times, inputs.cond) - inputs.noise).square())

    def at(self, k: Tensor | int, actions: Tensor, noise: Tensor) -> Tensor:
        """The noisy chunk of step k (Eq. 4)."""
        alpha_bar = self.alpha_bar[k]
        return alpha_bar.sqrt() * actions + (1 - alpha_bar).sqrt() * noise

    def denoise(self, level: float, actions: Tensor, noise: Tensor, cond: Tensor) -> Tensor:  # noqa: D102 (inherited)
        k = round(level * (len(self.alpha_bar) - 1))
        noisy, alpha_bar = self.at(k, actions, noise), self.alpha_bar[k]
        eps = self.predict(noisy, torch.full((len(noise),), k, device=noise.device), cond)
        return (noisy - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()

    @property
    def steps(self) -> list[int]:
        """Diffusion steps that sampling visits, the noisiest first, spaced as diffusers' `leading`."""
        config = self.config.ddpm
        stride = config.train_timesteps // config.num_inference_steps
        return [i * stride for i in reversed(range(config.num_inference_steps))]

    @property
    def num_draws(self) -> int:
        """The start, and for the ancestral sampler one for every step but the last."""
        return self.config.ddpm.num_inference_steps if self.config.ddpm.sampler == "ddpm" else 1

    def sample_chunk(self, noise: Tensor, cond: Tensor, known: Known | None = None) -> Tensor:
        """Denoise step by step (Ho et al., 2020, Algorithm 2; Song et al., 2021, Eq. 12 with eta = 0)."""
        config = self.config.ddpm
        stride = config.train_timesteps // config.num_inference_steps
        x = start = noise[:, 0]
        eps_at = self.predict_at(torch.tensor(self.steps, device=cond.device), cond)
        for i, k in enumerate(self.steps):
            x = impose(x, known, lambda a, k=k: self.at(k, a, start))  # type: ignore[misc]
            eps = eps_at[i](x)
            alpha_bar = self.alpha_bar[k]
            before = self.alpha_bar[k - stride] if k >= stride else torch.ones_like(alpha_bar)
            clean = (x - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()
            if config.clip_sample:
                clean = clean.clamp(-1, 1)
            if config.sampler == "ddim":
                x = before.sqrt() * clean + (1 - before).sqrt() * eps
                continue
            alpha = alpha_bar / before
            x = (before.sqrt() * (1 - alpha) * clean + alpha.sqrt() * (1 - before) * x) / (1 - alpha_bar)
            if k > 0:
                variance = (1 - before) / (1 - alpha_bar) * (1 - alpha)  # "fixed_small"
                x = x + variance.clamp_min(1e-20).sqrt() * noise[:, i + 1]
        return impose(x, known, lambda a: a)
