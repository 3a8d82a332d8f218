"""Several stages of the trunk into one vector: refine blocks (Eq. 2) and top-down cross-attention (Eq. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prism_policy.config.encoder import Norm, RefineBlock, TokenEmbedding, Tokens
from prism_policy.models.resnet import make_norm


class Refine(nn.Module):
    """Residual refine block, x + F_ref(x) (Eq. 2, arXiv:2606.15232), whose form the paper leaves open.

    - "bottleneck": a 3x3 convolution on half the channels between two 1x1.
    - "basic": two full 3x3 convolutions, as in the trunk.
    """

    def __init__(self, channels: int, norm: Norm = "group", block: RefineBlock = "bottleneck") -> None:
        super().__init__()
        inner, kernels = (channels // 2, (1, 3, 1)) if block == "bottleneck" else (channels, (3, 3))
        widths = [channels, *[inner] * (len(kernels) - 1), channels]
        layers: list[nn.Module] = []
        for (before, after), kernel in zip(pairwise(widths), kernels, strict=True):
            layers.append(nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False))
            layers += [make_norm(norm, after), nn.ReLU(inplace=True)]
        self.block = nn.Sequential(*layers[:-1])  # what is added may be negative

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        return x + self.block(x)


class TopDownCrossAttention(nn.Module):
    """Queries from the deepest stage's keypoints, keys and values from the earlier stages' (Eq. 3, arXiv:2606.15232).

    z = softmax(Q(s^L) K(s^{1:L-1})^T / sqrt(d)) V(s^{1:L-1}), then one projection of all of z to `out_dim` numbers.
    What a token is the paper leaves open:

    - "stage": all keypoints of a stage, 2 K numbers, so that s^L is one query over L - 1 keys.
    - "keypoint": one keypoint, a mere 2-D point. The attention starts out sharp: a uniform one would average all
      keypoints away, and with them every gradient that could make it sharp.

    What tells the tokens apart is open, too, and matters, for attention ignores the order of its keys:

    - "shared": nothing; one linear map embeds all tokens.
    - "identity": a learned vector is added to each token.
    - "own": each token has a linear map of its own besides, so that what the values of several tokens say does not
      fall on the same coordinates when it is summed.

    Usage::

        fuse = TopDownCrossAttention([48, 48, 48, 48], dim=192, out_dim=192)
        condition = fuse([s1, s2, s3, s4])  # each (B, 48, 2) -> (B, 192)
    """

    def __init__(
        self,
        num_keypoints: Sequence[int],
        dim: int,
        out_dim: int,
        tokens: Tokens = "stage",
        embedding: TokenEmbedding = "identity",
        residual_query: bool = False,
    ) -> None:
        super().__init__()
        self.tokens, self.residual_query = tokens, residual_query
        by_stage = tokens == "stage"
        counts = [1 if by_stage else k for k in num_keypoints]  # tokens of each stage
        numbers = 2 * num_keypoints[0] if by_stage else 2  # in a token
        self.identity = None if embedding == "shared" else nn.ParameterList([torch.randn(n, dim) for n in counts])
        maps = [(n, numbers, dim) for n in counts] if embedding == "own" else [(1, numbers, dim)]
        self.embed = nn.ParameterList([nn.init.uniform_(torch.empty(m), -1, 1) / numbers**0.5 for m in maps])
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.project = nn.Linear(counts[-1] * dim, out_dim)
        if not by_stage:
            for projection in (self.query, self.key):
                nn.init.orthogonal_(projection.weight, gain=3**0.5)  # scores of standard deviation 3

    def embedded(self, keypoints: Sequence[Tensor]) -> list[Tensor]:
        """A list over stages of (B, K_l, 2) to tokens (B, N_l, d)."""
        tokens = []
        for stage, s in enumerate(keypoints):
            x = s.flatten(1).unsqueeze(1) if self.tokens == "stage" else s  # (B, N_l, numbers)
            maps = self.embed[stage if len(self.embed) > 1 else 0]  # (N_l or 1, numbers, d)
            token = x @ maps[0] if len(maps) == 1 else torch.einsum("bni,nid->bnd", x, maps)  # (B, N_l, d)
            tokens.append(token if self.identity is None else token + self.identity[stage])
        return tokens

    def forward(self, keypoints: Sequence[Tensor]) -> Tensor:
        """A sequence over stages, shallow to deep, of (B, K_l, 2) to (B, out_dim)."""
        *shallow, deepest = self.embedded(keypoints)
        earlier = torch.cat(shallow, dim=1)  # (B, sum of the shallow N_l, d)
        # As of one head: without that dimension PyTorch has no fused kernel, and writes all scores to memory.
        of_head = (x.unsqueeze(1) for x in (self.query(deepest), self.key(earlier), self.value(earlier)))
        z = F.scaled_dot_product_attention(*of_head).squeeze(1)  # (B, N_L, d)
        if self.residual_query:
            z = z + deepest
        return self.project(z.flatten(1))

    def attention(self, keypoints: Sequence[Tensor]) -> Tensor:
        """How much each of the deepest stage's tokens takes from each earlier one, (B, N_L, sum of the others' N_l)."""
        *shallow, deepest = self.embedded(keypoints)
        scores = self.query(deepest) @ self.key(torch.cat(shallow, dim=1)).transpose(1, 2)
        return (scores / scores.new_tensor(self.query.out_features).sqrt()).softmax(dim=-1)
