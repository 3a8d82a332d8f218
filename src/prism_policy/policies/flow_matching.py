"""Flow matching along straight paths (Eq. 6 and 7, arXiv:2606.15232; Lipman et al., 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from prism_policy.policies.base import Known, LossInputs, Policy, impose


class FlowMatchingPolicy(Policy):
    """x_t = (1 - t) x_0 + t tau with noise x_0 and t uniform on (0, 1); the network regresses tau - x_0."""

    @property
    def time_scale(self) -> float:  # noqa: D102 (inherited)
        return self.config.flow_matching.time_scale

    def draw_times(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """t, uniform on (0, 1): (B,)."""
        return torch.rand(batch, generator=generator)

    def chunk_loss(self, inputs: LossInputs) -> Tensor:
        """Mean squared error of the velocity over the entries in the mask (Eq. 7)."""
        x_t = torch.lerp(inputs.noise, inputs.actions, inputs.times[:, None, None])
        velocity = inputs.actions - inputs.noise
        return inputs.masked_mean((self.predict(x_t, inputs.times, inputs.cond) - velocity).square())

    def denoise(self, level: float, actions: Tensor, noise: Tensor, cond: Tensor) -> Tensor:  # noqa: D102 (inherited)
        x_t = torch.lerp(actions, noise, level)
        return x_t + level * self.predict(x_t, noise.new_full((len(noise),), 1 - level), cond)

    def sample_chunk(self, noise: Tensor, cond: Tensor, known: Known | None = None) -> Tensor:
        """Integrate from noise at t = 0 to actions at t = 1 in uniform steps."""
        config = self.config.flow_matching
        n, midpoint = config.num_inference_steps, config.solver == "midpoint"
        calls = 2 * n if midpoint else n
        velocity = iter(self.predict_at(torch.arange(calls, device=cond.device) / calls, cond))
        x = x_0 = noise[:, 0]
        for i in range(n):
            v = next(velocity)(x)
            if midpoint:
                v = next(velocity)(x + v / (2 * n))
            x = impose(x + v / n, known, lambda a, t=(i + 1) / n: torch.lerp(x_0, a, t))  # type: ignore[misc]
        return x
