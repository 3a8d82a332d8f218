"""MeanFlow (Eq. 8 to 13, arXiv:2606.15232; Geng et al., 2025): the average velocity, so that one step suffices."""

from __future__ import annotations

import torch
from torch import Tensor

from prism_policy.policies.base import Known, LossInputs, Policy, impose


class MeanFlowPolicy(Policy):
    """The path z_t = (1 - t) tau + t e leads from actions at t = 0 to noise e at t = 1.

    The network regresses the velocity's mean over [r, t], u(z_t, t, h = t - r), so that z_r = z_t - h u.
    """

    @property
    def time_scale(self) -> float:  # noqa: D102 (inherited)
        return self.config.meanflow.time_scale

    def draw_times(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Times t and r <= t, (B, 2): logit-normal, r = t with probability `equal_ratio` (Table 12c)."""
        config = self.config.meanflow
        t = torch.sigmoid(config.t_mean + config.t_std * torch.randn(batch, generator=generator))
        r = torch.sigmoid(config.r_mean + config.r_std * torch.randn(batch, generator=generator))
        t, r = (torch.maximum(t, r) if config.order == "swap" else t), torch.minimum(t, r)
        equal = torch.rand(batch, generator=generator) < config.equal_ratio
        return torch.stack([t, torch.where(equal, t, r)], dim=1)

    def target(self, z: Tensor, v: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> tuple[Tensor, Tensor]:
        """The prediction and its target v - (t - r) du/dt without gradient (Eq. 11 and 12), (B, T, A) each."""

        def along_path(z: Tensor, t: Tensor, r: Tensor) -> Tensor:
            return self.predict(z, torch.stack([t, t - r], dim=1), cond)

        tangents = (v, torch.ones_like(t), torch.zeros_like(r))
        # In float32 whatever the autocast: bfloat16 would drown the derivative in its rounding.
        with torch.autocast(z.device.type, enabled=False):
            predicted, change = torch.func.jvp(along_path, (z, t, r), tangents)  # type: ignore[misc]
        return predicted, (v - (t - r)[:, None, None] * change).detach()

    def chunk_loss(self, inputs: LossInputs) -> Tensor:
        """Squared error over the entries in the mask, summed a sample and weighted against outliers (Eq. 10 to 13).

        A mean over samples, whatever their masks: of equal parts of a batch it is the mean, so `mask_share` has no say.
        """
        config = self.config.meanflow
        t, r = inputs.times.unbind(dim=1)
        z = torch.lerp(inputs.actions, inputs.noise, t[:, None, None])
        predicted, target = self.target(z, inputs.noise - inputs.actions, t, r, inputs.cond)
        error = ((predicted - target).square() * inputs.mask_entries).sum(dim=(1, 2))  # (B,)
        return (error / (error.detach() + config.norm_eps) ** config.norm_power).mean()

    def denoise(self, level: float, actions: Tensor, noise: Tensor, cond: Tensor) -> Tensor:  # noqa: D102 (inherited)
        z = torch.lerp(actions, noise, level)
        return z - level * self.predict(z, noise.new_full((len(noise), 2), level), cond)  # t and h, as r = 0

    def sample_chunk(self, noise: Tensor, cond: Tensor, known: Known | None = None) -> Tensor:
        """From noise at t = 1 to actions at t = 0: z_r = z_t - (t - r) u, in one step or several."""
        n = self.config.meanflow.num_inference_steps
        t = 1 - torch.arange(n, device=cond.device) / n
        average_velocity = self.predict_at(torch.stack([t, torch.full_like(t, 1 / n)], dim=1), cond)
        z = e = noise[:, 0]
        for i, u in enumerate(average_velocity):
            z = impose(z - u(z) / n, known, lambda a, r=1 - (i + 1) / n: torch.lerp(a, e, r))  # type: ignore[misc]
        return z
