"""Deletion and insertion curves of a policy that is known to watch one region, and randomised weights."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prism_policy.data.schema import task_schema
from prism_policy.run_folder import make_policy
from prism_policy.saliency.attribution import Attribution, Objective, saliency
from prism_policy.saliency.faithfulness import SHARES, curves, randomised
from prism_policy.saliency.metrics import rank_correlation
from small_run import small_config

REGION = (slice(4, 14), slice(20, 40))  # 200 of the crop's 1600 pixels: a share of 0.125


class WatchesOneRegion(nn.Module):
    """One number: the mean contrast of a region of every frame, so that an empty image gives 0."""

    encoder = SimpleNamespace(crops={"front": (40, 40)}, cameras={"front": (44, 44)})

    def sample(self, observation: dict, noise: Tensor) -> Tensor:
        frames = observation["images"]["front"].float()
        contrast = (frames - frames.mean((2, 3), keepdim=True)).abs().mean((1, 4))
        return contrast[:, *REGION].mean((1, 2))[:, None, None]


def objective(batch: int = 3) -> Objective:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 2, 44, 44, 3), dtype=torch.uint8, generator=generator)
    return Objective(WatchesOneRegion(), {"images": {"front": images}}, torch.zeros(batch, 1, 1, 1), target="chunk")


def map_of(inside: float, outside: float) -> dict[str, np.ndarray]:
    maps = np.full((3, 2, 44, 44), outside, np.float32)
    maps[:, :, *REGION] = inside
    return {"front": maps}


def test_deleting_what_is_watched_moves_the_action_first() -> None:
    actual = curves(objective(), map_of(1.0, 0.0))
    after = [s >= 0.2 for s in SHARES]  # the region and the blur around it are gone
    assert actual.deletion[:, after] == pytest.approx(np.ones((3, sum(after))), abs=0.15)
    assert actual.insertion[:, after] == pytest.approx(np.zeros((3, sum(after))), abs=0.15)
    assert actual.deletion_gain.min() > 0.2
    assert actual.insertion_gain.min() > 0.2


def test_a_map_of_elsewhere_is_worse_than_chance() -> None:
    actual = curves(objective(), map_of(0.0, 1.0))
    assert actual.deletion_gain.max() < 0
    assert actual.insertion_gain.max() < 0


def test_curves_begin_and_end_where_they_must() -> None:
    actual = curves(objective(), map_of(1.0, 0.0))
    for deletion in (actual.deletion, actual.deletion_chance):
        assert deletion[:, 0].tolist() == [0] * 3
        assert deletion[:, -1].tolist() == [1] * 3
    for insertion in (actual.insertion, actual.insertion_chance):
        assert insertion[:, 0].tolist() == [1] * 3
        assert insertion[:, -1].tolist() == [0] * 3


def test_randomised_weights_are_fresh_and_the_rest_is_kept() -> None:
    torch.manual_seed(0)
    policy = make_policy(small_config(), task_schema(small_config().task)).eval()
    policy.normalizer["action"].scale.fill_(0.25)
    before = torch.random.get_rng_state()
    fresh = randomised(policy, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert fresh.normalizer["action"].scale.tolist() == [0.25] * 7
    assert not any(
        torch.equal(a, b) for a, b in zip(policy.parameters(), fresh.parameters(), strict=True) if a.ndim > 1
    )
    images = torch.randint(0, 256, (1, 2, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    observation = {"images": {"agentview": images}, "state": torch.zeros(1, 2, 9)}
    maps = [saliency(p, observation, Attribution())["agentview"][:, 1, 2:30, 2:30] for p in (policy, fresh)]
    assert abs(rank_correlation(*maps)[0]) < 0.5
