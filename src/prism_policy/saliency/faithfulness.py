"""Whether a saliency map is about this policy: deletion and insertion curves, and maps of randomised weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from prism_policy.models.augment import crop
from prism_policy.policies import Policy, build_policy
from prism_policy.saliency.attribution import Objective, in_whole, mean_colour
from prism_policy.saliency.metrics import Floats, area_under

SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
"""Shares of the pixels of each camera that are painted over or shown."""
_CONTROLS = 2
"""Masks moved at random for each mask of a map."""
_BLUR = 5  # [px]: a mask of single pixels would test how the network takes speckles, not what it looks at


@dataclass(frozen=True)
class Curves:
    """How far the action chunk is from the one for the whole image, as shares of how far it is for an empty one.

    Each float64 (B, S) over `SHARES`. Chance is the same masks moved anywhere else: as large, and as ragged.
    """

    deletion: Floats
    insertion: Floats
    deletion_chance: Floats
    insertion_chance: Floats

    @property
    def deletion_gain(self) -> Floats:
        """(B,): area by which deleting salient pixels moves the action more than deleting others."""
        return area_under(SHARES, self.deletion) - area_under(SHARES, self.deletion_chance)

    @property
    def insertion_gain(self) -> Floats:
        """(B,): area by which showing salient pixels restores the action better than showing others."""
        return area_under(SHARES, self.insertion_chance) - area_under(SHARES, self.insertion)


@torch.no_grad()
def curves(f: Objective, maps: dict[str, NDArray[np.float32]], seed: int = 0) -> Curves:
    """Paint over the most salient pixels first, or show them first on an empty image (RISE, arXiv:1806.07421).

    Args:
        maps: (B, To, H, W) a camera; the history's frames are masked alike, by the sum of their maps.
        seed: of the moves of the masks that are chance.
    """
    crops = f.policy.encoder.crops
    ranks = {c: _ranks(torch.from_numpy(maps[c]).sum(1), crops[c]) for c in crops}
    blank, before = mean_colour(f.images), f.chunk(f.images)
    whole = _distance(f.chunk(blank), before).clamp_min(1e-12)
    rng = np.random.default_rng(seed)
    masks_each, size = 1 + _CONTROLS, len(before)
    # (kinds, B, S): deletion by the map's mask and by the moved ones, then insertion by the same
    changes = np.zeros((2 * masks_each, size, len(SHARES)))
    changes[:masks_each, :, -1] = changes[masks_each:, :, 0] = 1.0
    rows = torch.arange(size, device=before.device).repeat(len(changes))
    for s, share in list(enumerate(SHARES))[1:-1]:
        masked = {}
        for camera, rank in ranks.items():
            chosen = [rank < share] * masks_each  # (B, h, w) of the crop each
            for control in range(1, masks_each):
                chosen[control] = chosen[0].roll([int(rng.integers(n)) for n in rank.shape[1:]], dims=(1, 2))
            masks = in_whole(torch.cat(chosen), f.images[camera].shape[2:4])[:, None, ..., None].to(before.device)
            images, empty = (x[camera].repeat(masks_each, 1, 1, 1, 1) for x in (f.images, blank))
            masked[camera] = torch.cat([torch.where(masks, empty, images), torch.where(masks, images, empty)])
        distances = _distance(f.chunk(masked, rows), before[rows]) / whole[rows]
        changes[:, :, s] = distances.view(len(changes), size).cpu().numpy()
    deletion, insertion = changes[:masks_each], changes[masks_each:]
    return Curves(deletion[0], insertion[0], deletion[1:].mean(0), insertion[1:].mean(0))


def _ranks(saliency: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, H, W) to the share of the crop's pixels that are more salient than each, (B, *size)."""
    seen = crop(saliency[..., None], *size)[..., 0]
    smooth = F.avg_pool2d(seen[:, None], _BLUR, stride=1, padding=_BLUR // 2, count_include_pad=False)
    order = smooth.flatten(1).argsort(dim=1, descending=True, stable=True)
    ranks = torch.empty_like(smooth.flatten(1))
    ranks.scatter_(1, order, (torch.arange(order.shape[1]) / order.shape[1]).expand_as(ranks).contiguous())
    return ranks.view_as(seen)


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Root mean square difference of chunks (B, T, A), (B,)."""
    return (a - b).square().mean((1, 2)).sqrt()


def randomised(policy: Policy, seed: int = 0) -> Policy:
    """The same policy with fresh weights, and its own normaliser: what it never learned, its saliency cannot show.

    A map that stays the same is one of edges, not of the policy (Adebayo et al., 2018, arXiv:1810.03292).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = build_policy(policy.config, policy.schema, policy.task_dim)
    fresh.normalizer.load_state_dict(policy.normalizer.state_dict())
    return fresh.to(policy.device).eval()
