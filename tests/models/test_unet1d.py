"""The conditional 1D U-Net against the sizes of the literature and its inputs."""

import pytest
import torch

from prism_policy.errors import PrismError
from prism_policy.models.unet1d import ConditionalUNet1D


@pytest.mark.parametrize(("action_dim", "count"), [(10, 66_923_402), (7, 66_918_023)])
def test_unet_has_the_papers_parameters(action_dim: int, count: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in ConditionalUNet1D(action_dim, 274).parameters()) == count


def test_unet_keeps_the_chunk_and_uses_step_and_condition() -> None:
    net = ConditionalUNet1D(7, 20, (32, 64, 128), step_embed_dim=32)
    actions, step, cond = torch.randn(3, 16, 7), torch.rand(3), torch.randn(3, 20)
    out = net(actions, step, cond)
    assert out.shape == (3, 16, 7)
    assert not torch.allclose(out, net(actions, step + 1, cond))
    assert not torch.allclose(out, net(actions, step, cond + 1))
    with pytest.raises(PrismError, match="multiple of 4"):
        net(actions[:, :10], step, cond)
