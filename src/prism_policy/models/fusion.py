"""Several stages of the trunk into one vector: refine blocks (Eq. 2) and top-down cross-attention (Eq. 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prism_policy.config import Tokens
from prism_policy.models.resnet import Norm, make_norm


class Refine(nn.Module):
    """Residual refine block, x + F_ref(x) (Eq. 2, arXiv:2606.15232): a bottleneck, two 1x1 around a 3x3 convolution."""

    def __init__(self, channels: int, norm: Norm = "group", reduction: int = 2) -> None:
        super().__init__()
        inner = channels // reduction
        self.block = nn.Sequential(
            nn.Conv2d(channels, inner, 1, bias=False),
            make_norm(norm, inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 3, padding=1, bias=False),
            make_norm(norm, inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, channels, 1, bias=False),
            make_norm(norm, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        return x + self.block(x)


class TopDownCrossAttention(nn.Module):
    """The deepest stage's keypoints ask, the earlier stages' answer (Eq. 3, arXiv:2606.15232).

    z = softmax(Q(s^L) K(s^{1:L-1})^T / sqrt(d)) V(s^{1:L-1}), then one projection of all of z to `out_dim` numbers.
    What a token is the paper leaves open:

    - "stage": all keypoints of a stage, 2 K numbers, so that s^L is one query over L - 1 keys.
    - "keypoint": one keypoint. It is a mere 2-D point and attention ignores the order of its keys, so each token
      carries a learned embedding of its identity. The attention starts out sharp: a uniform one would average all
      keypoints away, and with them every gradient that could make it sharp.

    Usage::

        fuse = TopDownCrossAttention(num_stages=4, num_keypoints=48, dim=192, out_dim=192)
        condition = fuse([s1, s2, s3, s4])  # each (B, 48, 2) -> (B, 192)
    """

    def __init__(
        self,
        num_stages: int,
        num_keypoints: int,
        dim: int,
        out_dim: int,
        tokens: Tokens = "stage",
        residual_query: bool = False,
    ) -> None:
        super().__init__()
        self.tokens = tokens
        self.residual_query = residual_query
        by_stage = tokens == "stage"
        self.embed = nn.Linear(2 * num_keypoints if by_stage else 2, dim)
        self.identity = nn.Parameter(torch.randn(num_stages, 1 if by_stage else num_keypoints, dim))
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.project = nn.Linear(dim if by_stage else num_keypoints * dim, out_dim)
        if not by_stage:
            for projection in (self.query, self.key):
                nn.init.orthogonal_(projection.weight, gain=3**0.5)  # scores of standard deviation 3

    def forward(self, keypoints: list[Tensor]) -> Tensor:
        """A list over stages, shallow to deep, of (B, K, 2) to (B, out_dim)."""
        s = torch.stack(keypoints, dim=1)  # (B, L, K, 2)
        if self.tokens == "stage":
            s = s.flatten(2).unsqueeze(2)  # (B, L, 1, 2 K)
        tokens = self.embed(s) + self.identity  # (B, L, N, d)
        deepest, earlier = tokens[:, -1], tokens[:, :-1].flatten(1, 2)  # (B, N, d), (B, (L - 1) N, d)
        z = F.scaled_dot_product_attention(self.query(deepest), self.key(earlier), self.value(earlier))
        if self.residual_query:
            z = z + deepest
        return self.project(z.flatten(1))
