"""What is kept of a feature map: where each channel responds (spatial softmax), or how strongly."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SpatialSoftmax(nn.Module):
    """Expected coordinate of each channel's response (Eq. 1, arXiv:2606.15232).

    p_c = softmax(F_c / tau) over the map, (x_c, y_c) = sum of p_c times the grid, which spans [-1, 1] inclusively:
    -1 is the centre of the first column or row, x runs along the width. A 1x1 convolution maps the channels to
    keypoints; without `num_keypoints` the channels are the keypoints.

    Usage::

        keypoints = SpatialSoftmax(512, num_keypoints=32)(features)  # (B, 512, H, W) -> (B, 32, 2)
    """

    def __init__(self, channels: int, num_keypoints: int | None = None, temperature: float = 1.0) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, num_keypoints, 1) if num_keypoints else nn.Identity()
        self.num_keypoints = num_keypoints or channels
        self.temperature = temperature

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) to keypoints (B, K, 2) as (x, y)."""
        height, width = features.shape[-2:]
        # Softmax and expectation in float32: in half precision a sharp map loses the coordinate's last bits.
        logits = self.project(features).flatten(2).float() / self.temperature  # (B, K, H*W)
        xs = torch.linspace(-1, 1, width, device=features.device)
        ys = torch.linspace(-1, 1, height, device=features.device)
        grid = torch.stack([xs.repeat(height), ys.repeat_interleave(width)], dim=1)  # (H*W, 2)
        with torch.autocast(features.device.type, enabled=False):
            keypoints: Tensor = logits.softmax(dim=-1) @ grid  # (B, K, 2)
        return keypoints
