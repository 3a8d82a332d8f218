"""Packed layers compute what the plain ones do, and never from stale weights."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from panda import schema
from prism_policy.config import presets
from prism_policy.config.settings import EncoderConfig, PolicyConfig, PolicyKind
from prism_policy.models import packed as packing
from prism_policy.models.encoder import VisualEncoder
from prism_policy.models.normalizer import LinearNormalizer
from prism_policy.models.packed import HalfConv1d, can_pack, packed
from prism_policy.models.unet1d import ConditionalUNet1D
from prism_policy.policies import Policy, build_policy


@pytest.fixture(autouse=True)
def float32_weights(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The products of a processor with AVX-512, unless the test asks for the other's, which both have."""
    monkeypatch.setattr(packing, "reads_half", lambda: "half_weights" in request.fixturenames)


@pytest.fixture
def half_weights() -> None:
    """The products of a processor without AVX-512."""


def small_net() -> ConditionalUNet1D:
    torch.manual_seed(0)
    return ConditionalUNet1D(7, 20, (32, 64, 128), step_embed_dim=32).eval()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(8, 6, 5, padding=2),
        nn.Conv1d(8, 6, 3, 2, 1, bias=False),
        nn.ConvTranspose1d(8, 6, 4, 2, 1),
        nn.Conv2d(8, 6, (3, 1), (2, 1), (1, 0), groups=2),
        nn.Linear(8, 6),
    ],
)
def test_every_kind_of_layer_is_equal_to_the_plain_one_in_float64(layer: Any, batch: int) -> None:
    shape = {nn.Linear: (5, 8), nn.Conv2d: (8, 6, 5)}.get(type(layer), (8, 16))
    x = torch.randn(batch, *shape)
    with torch.no_grad():
        exact = copy.deepcopy(layer).double()(x.double())
        actual = packed(nn.Sequential(layer))(x)
    torch.testing.assert_close(actual.double(), exact, atol=1e-5, rtol=1e-5)
    assert not isinstance(packed(nn.Sequential(layer))[0], type(layer))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "layer",
    [nn.Conv1d(8, 6, 5, padding=2), nn.Conv1d(8, 6, 3, 2, 1, bias=False), nn.Conv1d(8, 6, 1), nn.Conv1d(7, 3, 4)],
)
def test_half_weights_are_rounded_and_the_rest_is_equal_to_float64(
    layer: nn.Conv1d, batch: int, half_weights: None
) -> None:
    x, net = torch.randn(batch, layer.in_channels, 16), nn.Sequential(layer)
    rounded = copy.deepcopy(layer).half().double()
    if layer.bias is not None:
        rounded.bias = nn.Parameter(layer.bias.double())
    with torch.no_grad():
        assert isinstance(packed(net)[0], HalfConv1d)
        torch.testing.assert_close(packed(net)(x).double(), rounded(x.double()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("change", ["large", "grouped", "dilated"])
def test_what_half_weights_cannot_hold_or_compute_stays_in_float32(change: str, half_weights: None) -> None:
    layer = nn.Conv1d(8, 6, 3, padding=1)
    if change == "grouped":
        layer = nn.Conv1d(8, 6, 3, padding=1, groups=2)
    elif change == "dilated":
        layer = nn.Conv1d(8, 6, 3, padding=2, dilation=2)
    else:
        with torch.no_grad():
            layer.weight[0, 0, 0] = 1e5
    x, net = torch.randn(1, 8, 16), nn.Sequential(layer)
    with torch.no_grad():
        torch.testing.assert_close(packed(net)(x), layer(x), equal_nan=True)


@pytest.mark.parametrize("kind", get_args(PolicyKind))
def test_with_half_weights_actions_are_off_by_less_than_a_hundredth(kind: PolicyKind, half_weights: None) -> None:
    torch.manual_seed(0)
    config = PolicyConfig(kind, encoder=EncoderConfig(width=16, num_keypoints=8), down_dims=(32, 64))
    policy = build_policy(config, schema(84, 9, 7)).eval()
    observation = {
        "images": {"agentview": torch.randint(0, 256, (4, 2, 84, 84, 3), dtype=torch.uint8)},
        "state": torch.randn(4, 2, 9),
    }
    acted = policy.act(observation, torch.Generator().manual_seed(3))
    noise = policy.draw_noise(4, torch.Generator().manual_seed(3))
    with torch.no_grad():
        first = config.n_obs_steps - 1
        exact = policy.sample(observation, noise)[:, first : first + config.n_action_steps]
    assert not torch.equal(acted, exact)
    assert (acted - exact).abs().max() < 0.01 * (exact.max() - exact.min())


def test_with_half_weights_a_row_does_not_depend_on_its_batch(half_weights: None) -> None:
    net, x = small_net(), torch.randn(4, 16, 7)
    films = [torch.randn(4, block.film.out_features) for block in net.blocks]
    with torch.no_grad():
        whole, one = packed(net).denoise(x, films), packed(net).denoise(x[:1], [film[:1] for film in films])
    assert torch.equal(whole[:1], one)


def test_under_autocast_half_weights_are_not_read(half_weights: None) -> None:
    net = small_net()
    x, step, cond = torch.randn(1, 16, 7), torch.rand(1), torch.randn(1, 20)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(packed(net)(x, step, cond), net(x, step, cond), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("name", ["prism", "sspool", "nopool"])
def test_a_packed_encoder_is_equal_to_the_plain_one(name: str) -> None:
    torch.manual_seed(0)
    encoder = VisualEncoder(presets.encoder(name), {"left": (84, 84), "right": (84, 84)}).eval()
    images = {c: torch.randint(0, 256, (2, 84, 84, 3), dtype=torch.uint8) for c in ("left", "right")}
    with torch.no_grad():
        torch.testing.assert_close(packed(encoder)(images), encoder(images), atol=1e-5, rtol=1e-4)


def test_under_autocast_packed_layers_compute_in_bfloat16_and_return_to_float32() -> None:
    net = small_net()
    x, step, cond = torch.randn(1, 16, 7), torch.rand(1), torch.randn(1, 20)
    with torch.no_grad():
        exact = packed(net)(x, step, cond)
        with torch.autocast("cpu", torch.bfloat16):
            coarse, plain = packed(net)(x, step, cond), net(x, step, cond)
        again = packed(net)(x, step, cond)
    assert coarse.dtype == plain.dtype == torch.bfloat16
    torch.testing.assert_close(coarse.float(), exact, atol=0.05, rtol=0.05)
    assert not torch.equal(coarse.float(), exact)
    assert torch.equal(again, exact)


@pytest.fixture
def no_packing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A processor on which oneDNN's operators refuse bfloat16, as one without AVX-512 does."""
    reorders = ("_reorder_linear_weight", "_reorder_convolution_weight", "_reorder_convolution_transpose_weight")

    def refusing(name: str) -> Any:
        operator = getattr(torch.ops.mkldnn, name)

        def call(weight: Tensor, *rest: Any) -> Tensor:
            if weight.dtype == torch.bfloat16:
                raise RuntimeError("could not create a primitive descriptor for a reorder primitive")
            return operator(weight, *rest)

        return call

    for name in reorders:
        monkeypatch.setattr(torch.ops.mkldnn, name, refusing(name))
    can_pack.cache_clear()
    yield
    can_pack.cache_clear()


def test_where_the_processor_lacks_bfloat16_operators_the_plain_layers_compute(no_packing: None) -> None:
    net = small_net()
    x, step, cond = torch.randn(1, 16, 7), torch.rand(1), torch.randn(1, 20)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(packed(net)(x, step, cond), net(x, step, cond))
    assert can_pack(torch.float32)
    assert not can_pack(torch.bfloat16)


def test_acting_under_autocast_works_where_the_processor_lacks_bfloat16_operators(no_packing: None) -> None:
    torch.manual_seed(0)
    config = PolicyConfig(encoder=EncoderConfig(width=16, num_keypoints=8), down_dims=(32, 64))
    policy = build_policy(config, schema(84, 9, 7)).eval()
    observation = {
        "images": {"agentview": torch.randint(0, 256, (1, 2, 84, 84, 3), dtype=torch.uint8)},
        "state": torch.randn(1, 2, 9),
    }
    with torch.autocast("cpu", torch.bfloat16):
        assert policy.act(observation, torch.Generator().manual_seed(3)).isfinite().all()


@pytest.mark.parametrize("change", ["in place", "load", "optimizer", "mode"])
def test_changed_weights_are_packed_anew(change: str) -> None:
    net = small_net()
    x, step, cond = torch.randn(1, 16, 7), torch.rand(1), torch.randn(1, 20)
    with torch.no_grad():
        before = packed(net)(x, step, cond)
        assert packed(net) is packed(net)
    if change == "in place":
        with torch.no_grad():
            torch._foreach_mul_(list(net.parameters()), 0.5)
    elif change == "load":
        net.load_state_dict({name: value * 0.5 for name, value in net.state_dict().items()})
    elif change == "optimizer":
        optimizer = torch.optim.AdamW(net.parameters(), 0.1, fused=True)
        net(x, step, cond).sum().backward()
        optimizer.step()
    else:
        net.train()
        assert packed(net).training
        return
    with torch.no_grad():
        torch.testing.assert_close(packed(net)(x, step, cond), net(x, step, cond), atol=1e-5, rtol=1e-4)
        assert not torch.allclose(before, net(x, step, cond), atol=1e-3)


def test_packing_leaves_the_module_as_it_is() -> None:
    net = small_net()
    names, kinds = list(net.state_dict()), [type(m) for m in net.modules()]
    with torch.no_grad():
        packed(net)(torch.randn(1, 16, 7), torch.rand(1), torch.randn(1, 20))
    assert list(net.state_dict()) == names
    assert [type(m) for m in net.modules()] == kinds
    copy.deepcopy(net)  # what is packed cannot be copied, and must not be met


def test_the_network_at_given_steps_is_its_forward() -> None:
    net = small_net().double()
    x, cond = torch.randn(3, 16, 7).double(), torch.randn(3, 20).double()
    for steps in (torch.tensor([0, 7, 99]), torch.rand(4), torch.rand(2, 2)):
        for step, function in zip(steps, net.at(steps, cond), strict=True):
            expected = net(x, step.expand(3, *step.shape).double(), cond)
            torch.testing.assert_close(function(x), expected, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("kind", ["ddpm", "flow_matching", "meanflow"])
def test_acting_packed_gives_the_actions_of_the_plain_policy(kind: PolicyKind) -> None:
    torch.manual_seed(0)
    config = PolicyConfig(kind=kind, encoder=EncoderConfig(width=16, num_keypoints=8), down_dims=(32, 64))
    policy: Policy = build_policy(config, schema(84, 9, 7)).eval()
    observation: Mapping[str, Any] = {
        "images": {"agentview": torch.randint(0, 256, (1, 2, 84, 84, 3), dtype=torch.uint8)},
        "state": torch.randn(1, 2, 9),
    }
    noise: Tensor = policy.draw_noise(1, torch.Generator().manual_seed(3))
    plain = policy.sample(observation, noise)  # with gradients, through the plain layers
    assert plain.requires_grad
    acted = policy.act(observation, torch.Generator().manual_seed(3))
    torch.testing.assert_close(acted, plain[:, 1:9].detach(), atol=1e-4, rtol=1e-4)


def test_a_normaliser_put_in_after_the_first_call_is_used() -> None:
    torch.manual_seed(0)
    config = PolicyConfig(encoder=EncoderConfig(width=16, num_keypoints=8), down_dims=(32, 64))
    policy = build_policy(config, schema(84, 9, 7)).eval()
    observation: Mapping[str, Any] = {
        "images": {"agentview": torch.randint(0, 256, (1, 2, 84, 84, 3), dtype=torch.uint8)},
        "state": torch.randn(1, 2, 9),
    }
    before = policy.act(observation, torch.Generator().manual_seed(3))
    policy.normalizer["state"] = LinearNormalizer.min_max(np.array([[-3.0] * 9, [5.0] * 9]))
    after = policy.act(observation, torch.Generator().manual_seed(3))
    plain = policy.sample(observation, policy.draw_noise(1, torch.Generator().manual_seed(3))).detach()
    torch.testing.assert_close(after, plain[:, 1:9], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(after, before, atol=1e-3)


def test_trying_what_can_be_packed_costs_the_caller_no_random_numbers() -> None:
    can_pack.cache_clear()
    before = torch.get_rng_state()
    can_pack(torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
