"""Numbers in the environment's units to the policy's [-1, 1] and back, with statistics that travel with the weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from prism_policy.errors import PrismError

FAR = 10.0  # spans of the training data, at least a metre each, beyond which an observation is a mistake
MIN_RANGE = 1e-4  # a dimension that moves less than this is constant: scaling it up would only blow up noise


class LinearNormalizer(nn.Module):
    """x -> x * scale + offset, per dimension; `min_max` fits it, dimensions named in `keep` pass unchanged.

    Usage::

        normalizer = LinearNormalizer.min_max(actions, keep=range(3, 7))  # actions (N, 7): positions scaled only
        x = normalizer(actions)
        actions = normalizer.invert(x)
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(dim))
        self.register_buffer("offset", torch.zeros(dim))

    @classmethod
    def min_max(cls, data: np.ndarray, keep: Sequence[int] = ()) -> LinearNormalizer:
        """Fit [min, max] of (N, D) to [-1, 1]. A constant dimension is only centred."""
        if data.ndim != 2 or len(data) == 0 or not np.isfinite(data).all():
            raise PrismError(f"statistics need finite values of shape (N, D) with N > 0; got shape {data.shape}")
        low, high = data.min(axis=0).astype(np.float64), data.max(axis=0).astype(np.float64)
        span = high - low
        scale = np.where(span > MIN_RANGE, 2 / np.maximum(span, MIN_RANGE), 1.0)
        offset = -scale * (high + low) / 2
        scale[list(keep)], offset[list(keep)] = 1.0, 0.0
        normalizer = cls(data.shape[1])
        normalizer.scale.copy_(torch.from_numpy(scale))
        normalizer.offset.copy_(torch.from_numpy(offset))
        return normalizer

    def load_statistics(self, scale: Tensor, offset: Tensor, name: str) -> None:
        """Load saved statistics, (D,) each."""
        for kind, values in (("scale", scale), ("offset", offset)):
            if values.shape != self.scale.shape:
                expected = f"expected statistics of {len(self.scale)} numbers, got {tuple(values.shape)}"
                raise PrismError(f"{name}.{kind}: {expected}")
            if not torch.isfinite(values).all():
                raise PrismError(f"{name}.{kind}: statistics hold NaN or infinity; restore the file or train again")
        if not (scale > 0).all():
            raise PrismError(f"{name}.scale: expected positive numbers, got {float(scale.min())}; restore the file")
        self.scale.copy_(scale)
        self.offset.copy_(offset)

    def check(self, x: Tensor, name: str) -> None:
        """Refuse values (..., D) that are not finite, or far beyond the training data."""
        if not torch.isfinite(x).all():
            raise PrismError(f"{name} holds NaN or infinity; check the robot's state before calling the policy")
        centre, span = -self.offset / self.scale, (2 / self.scale).clamp_min(1)
        far = ((x - centre).abs() > FAR * span).flatten(0, -2).any(0)
        if far.any():
            d = int(far.nonzero()[0])
            worst = x[..., d].flatten()[(x[..., d] - centre[d]).abs().argmax()]
            seen = f"where training saw values around {float(centre[d]):.6g}"
            units = "expected metres and radians as in the demonstrations"
            raise PrismError(f"{name}, number {d}: got {float(worst):.6g}, {seen}; {units}")

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) in the data's units to (..., D) in [-1, 1]."""
        return x * self.scale + self.offset

    def invert(self, x: Tensor) -> Tensor:
        """(..., D) in [-1, 1] to (..., D) in the data's units."""
        return (x - self.offset) / self.scale
