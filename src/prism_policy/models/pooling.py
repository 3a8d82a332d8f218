"""What is kept of a feature map: where each channel responds (spatial softmax), or how strongly."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prism_policy.errors import PrismError


class GlobalMax(nn.Module):
    """Each channel's strongest response; equal ones share the gradient.

    `nn.AdaptiveMaxPool2d` has no deterministic gradient on a GPU and raises there where `train.deterministic` asks.
    """

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, 1, 1)."""
        return features.amax((2, 3), keepdim=True)


class SpatialSoftmax(nn.Module):
    """Expected coordinate of each channel's response (Eq. 1, arXiv:2606.15232).

    p_c = softmax(F_c / tau) over the map, (x_c, y_c) = sum of p_c times the grid, which spans [-1, 1] inclusively:
    -1 is the centre of the first column or row, x runs along the width. A 1x1 convolution maps the channels to
    keypoints; without `num_keypoints` the channels are the keypoints. With `learn_temperature`, tau = exp(theta) is
    one learned number that starts at `temperature`.

    Usage::

        keypoints = SpatialSoftmax(512, num_keypoints=32)(features)  # (B, 512, H, W) -> (B, 32, 2)
    """

    def __init__(
        self, channels: int, num_keypoints: int | None = None, temperature: float = 1.0, learn_temperature: bool = False
    ) -> None:
        super().__init__()
        if not 1e-6 <= temperature < math.inf:  # less would overflow float32
            raise PrismError(f"temperature: expected a positive number, at least 1e-6, got {temperature}")
        if num_keypoints is not None and num_keypoints < 1:
            expected = "expected at least 1, or none for the channels themselves"
            raise PrismError(f"num_keypoints: {expected}; got {num_keypoints}")
        # The softmax over the map cancels the bias; it is kept as robomimic and diffusion policies have it.
        self.project = None if num_keypoints is None else nn.Conv2d(channels, num_keypoints, 1)
        self.num_keypoints = num_keypoints or channels
        self.fixed_temperature = temperature
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature))) if learn_temperature else None

    @property
    def temperature(self) -> Tensor | float:
        """The tau of Eq. 1."""
        return self.fixed_temperature if self.log_temperature is None else self.log_temperature.exp()

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) to keypoints (B, K, 2) as (x, y), float32 or, for float64 features, float64."""
        height, width = features.shape[-2:]
        with torch.autocast(features.device.type, enabled=False):
            weights = self.weights(features)  # (B, K, H*W)
            xs = torch.linspace(-1, 1, width, device=weights.device, dtype=weights.dtype)
            ys = torch.linspace(-1, 1, height, device=weights.device, dtype=weights.dtype)
            grid = torch.stack([xs.repeat(height), ys.repeat_interleave(width)], dim=1)  # (H*W, 2)
            keypoints: Tensor = weights @ grid  # (B, K, 2)
        return keypoints

    def weights(self, features: Tensor) -> Tensor:
        """The softmax p_c itself, (B, C, H, W) to (B, K, H*W): its spread says how sure a keypoint is of its place."""
        # All of it in float32 at least: in half precision the convolution overflows on large activations, and a sharp
        # map loses the last bits of its coordinate.
        dtype = torch.promote_types(features.dtype, torch.float32)
        with torch.autocast(features.device.type, enabled=False):
            x = features.to(dtype)
            if self.project is not None:
                bias = self.project.bias
                assert bias is not None
                x = F.conv2d(x, self.project.weight.to(dtype), bias.to(dtype))  # (B, K, H, W)
            return (x.flatten(2) / self.temperature).softmax(dim=-1)
