"""Saliency methods against what is known: a watched region, finite differences, sums, maps computed by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prism_policy.config.settings import PolicyKind
from prism_policy.data.schema import Part, Schema, task_schema
from prism_policy.errors import PrismError
from prism_policy.models.resnet import ResNet
from prism_policy.policies import Policy
from prism_policy.run_folder import make_policy
from prism_policy.saliency.attribution import (
    METHODS,
    Attribution,
    Objective,
    integrated_gradients,
    layer_cam,
    mean_colour,
    on_pixels,
    saliency,
)
from small_run import config_of, small_config

WATCHED, ALSO = (slice(10, 20), slice(30, 45)), (slice(50, 60), slice(5, 20))  # rows, columns


class WatchesRegions(nn.Module):
    """The arm's numbers are the mean of one region of the newest frame, squared; the gripper's that of another one."""

    action_dim, device = 3, torch.device("cpu")
    schema = Schema({"front": (84, 84)}, (), (Part("arm", 2), Part("gripper", 1, "gripper")))
    executed = slice(1, 3)
    config = SimpleNamespace(
        kind="flow_matching",
        flow_matching=SimpleNamespace(num_inference_steps=1),
        encoder=SimpleNamespace(stages_read=(4,)),
    )
    encoder = SimpleNamespace(cameras={"front": (84, 84)}, config=config.encoder)

    def draw_noise(self, batch: int, generator: torch.Generator) -> Tensor:
        return torch.zeros(batch, 1, 4, 3)

    def sample(self, observation: dict, noise: Tensor) -> Tensor:
        newest = observation["images"]["front"][:, -1].float() / 255
        means = [newest[:, *region].mean(dim=(1, 2, 3)).square() for region in (WATCHED, ALSO)]
        return torch.stack([means[0], means[0], means[1]], dim=-1)[:, None].expand(-1, 4, -1)


def random_observation(cameras: tuple[str, ...] = ("front",), size: int = 84, batch: int = 2, state: int = 9) -> dict:
    generator = torch.Generator().manual_seed(0)
    images = {
        c: torch.randint(0, 256, (batch, 2, size, size, 3), dtype=torch.uint8, generator=generator) for c in cameras
    }
    return {"images": images, "state": torch.rand(batch, 2, state, generator=generator)}


def small_policy(kind: PolicyKind = "flow_matching", *settings: str) -> Policy:
    torch.manual_seed(0)
    config = small_config(*settings, kind=kind)
    return make_policy(config, task_schema(config.task)).eval()


@pytest.mark.parametrize("method", [m for m in METHODS if m != "layercam"])
@pytest.mark.parametrize(("target", "region"), [("0", WATCHED), ("gripper", ALSO), ("2", ALSO)])
def test_all_saliency_lies_where_the_action_looks(method: str, target: str, region: tuple[slice, slice]) -> None:
    how = Attribution(method=method, target=target, samples=2)
    newest = saliency(WatchesRegions(), random_observation(), how)["front"][:, 1]
    margin = how.patch - 1 if method == "occlusion" else 0  # a square that touches the region reaches so far
    around = tuple(slice(s.start - margin, s.stop + margin) for s in region)
    assert newest[:, *region].min() > 0
    assert newest[:, *(slice(max(s.start, 0), s.stop) for s in around)].sum() == pytest.approx(newest.sum())


def test_the_chunk_looks_at_both_regions() -> None:
    maps = saliency(WatchesRegions(), random_observation(), Attribution())["front"][:, 1]
    assert maps[:, *WATCHED].sum() + maps[:, *ALSO].sum() == pytest.approx(maps.sum())
    assert min(maps[:, *WATCHED].min(), maps[:, *ALSO].min()) > 0


@pytest.mark.parametrize("level", [None, 0.4], ids=["sampler", "one call"])
@pytest.mark.parametrize("kind", ["flow_matching", "meanflow", "ddpm"])
def test_gradient_is_the_slope_by_finite_differences(kind: PolicyKind, level: float | None) -> None:
    policy = small_policy(kind, "--policy.ddpm.num-inference-steps 5", "--policy.ddpm.no-clip-sample").double()
    observation = random_observation(("agentview",), size=32)
    observation["state"] = observation["state"].double()
    noise = policy.draw_noise(2, torch.Generator().manual_seed(1)).double()
    f = Objective(policy, observation, noise, "chunk", level)
    images = {"agentview": observation["images"]["agentview"].double()}
    slope = f.gradient(images)["agentview"]
    way = torch.randn(slope.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def along(step: float) -> Tensor:
        return f({"agentview": (images["agentview"] + step * way).requires_grad_()}).detach()

    difference = (along(1e-4) - along(-1e-4)) / 2e-4  # (B,)
    assert (slope * way).sum((1, 2, 3, 4)) == pytest.approx(difference, rel=1e-4)
    assert difference.abs().min() > 0


class IsCurved(nn.Module):
    """A smooth policy: its chunk is the tanh of random projections."""

    def sample(self, observation: dict, noise: Tensor) -> Tensor:
        weights = torch.randn(8, 2 * 6 * 6 * 3, generator=torch.Generator().manual_seed(3))
        return torch.tanh(observation["images"]["front"].float().flatten(1) / 255 @ weights.T).view(-1, 4, 2)


def test_integrated_gradients_sum_to_the_difference() -> None:
    f = Objective(IsCurved(), random_observation(size=6), torch.zeros(2, 1, 4, 2))
    total = integrated_gradients(f, samples=64)["front"].sum((1, 2, 3, 4))
    assert total == pytest.approx(f(f.images) - f(mean_colour(f.images)), rel=1e-3)


@pytest.mark.slow
def test_integrated_gradients_of_a_network_tend_to_the_difference() -> None:
    policy = small_policy()
    observation = random_observation(("agentview",), size=32)
    f = Objective(policy, observation, policy.draw_noise(2, torch.Generator().manual_seed(1)), noise_level=1.0)
    with torch.no_grad():
        whole = f(f.images) - f(mean_colour(f.images))
    gaps = []
    for samples in (8, 800):
        total = integrated_gradients(f, samples)["agentview"].sum((1, 2, 3, 4))
        gaps.append(float(((total - whole) / whole).abs().max()))
    # Its bends (ReLU, GroupNorm of an almost empty image) want many steps: the sum comes near, and slowly.
    assert gaps[1] < 0.05
    assert gaps[1] < gaps[0] / 2


def test_smoothgrad_without_noise_is_the_gradient() -> None:
    policy, observation = small_policy(), random_observation(("agentview",), size=32)
    plain = saliency(policy, observation, Attribution())["agentview"]
    smooth = saliency(policy, observation, Attribution(method="smoothgrad", samples=2, blur=0.0))["agentview"]
    assert smooth == pytest.approx(plain, rel=1e-4, abs=1e-9)


class TwoChannels(nn.Module):
    """A trunk of two channels, each a weight times the brightness of every fourth pixel; action: a weighted sum."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Conv2d(1, 2, 1, bias=False)
        self.layer1.weight.data = torch.tensor([2.0, 3.0]).view(2, 1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer1(x[:, :, ::4, ::4])


def test_layercam_is_the_map_computed_by_hand() -> None:
    trunk, slopes = TwoChannels(), torch.tensor([[1.0, -1.0, 0.5, 0.0], [0.5, 1.0, -2.0, 0.0]]).view(2, 2, 2)
    settings = SimpleNamespace(stages_read=(1,))
    encoder = SimpleNamespace(
        encoders={"front": SimpleNamespace(trunk=trunk)}, cameras={"front": (7, 7)}, crops={"front": (5, 5)},
        config=settings,
    )  # fmt: skip

    def sample(observation: dict, noise: Tensor) -> Tensor:
        inside = observation["images"]["front"][:, 0, 1:6, 1:6, :1].float().permute(0, 3, 1, 2)  # (B, 1, 5, 5)
        return (trunk(inside) * slopes).sum((1, 2, 3)).view(-1, 1, 1)

    policy = SimpleNamespace(encoder=encoder, sample=sample, executed=slice(0, 1))
    image = torch.zeros(1, 1, 7, 7, 3, dtype=torch.uint8)
    image[0, 0, 1:6:4, 1:6:4, 0] = torch.tensor([[10, 20], [30, 40]])
    actual = layer_cam(Objective(policy, {"images": {"front": image}}, torch.zeros(1, 1, 1, 1), target="0"))["front"]
    # relu(slope) * feature: channel 1 has features 2 * (10, 20, 30, 40), channel 2 has 3 * (10, 20, 30, 40)
    by_hand = [1.0 * 20 + 0.5 * 30, 0.0 + 1.0 * 60, 0.5 * 60 + 0.0, 0.0]
    assert actual[0, 0, 1:6:4, 1:6:4].flatten().tolist() == pytest.approx(by_hand)
    assert actual[0, 0, 1, 3] == pytest.approx((by_hand[0] + by_hand[1]) / 2)  # half-way between two cells
    assert actual[0, 0, 0].sum() == actual[0, 0, :, 6].sum() == 0  # outside the crop


@pytest.mark.parametrize(("stage", "cell"), [(1, (9, 5)), (2, (5, 3))])
def test_a_cell_of_the_trunk_is_centred_where_maps_are_drawn(stage: int, cell: tuple[int, int]) -> None:
    """Where the input moves a cell is the reference; it is drawn as a peak at the same pixel."""
    torch.manual_seed(0)
    trunk = ResNet(width=16, norm="batch", num_stages=stage).eval()  # GroupNorm would tie every pixel to every cell
    image = torch.randn(64, 3, 76, 76, requires_grad=True)
    (slope,) = torch.autograd.grad(trunk(image)[-1][:, :, *cell].sum(), image)
    weight = slope.square().sum((0, 1))
    centre = [(weight.sum(1 - axis) * torch.arange(76)).sum() / weight.sum() for axis in (0, 1)]
    size = trunk.output_sizes(76, 76)[stage - 1]
    impulse = torch.zeros(1, *size)
    impulse[0, *cell] = 1
    drawn = np.unravel_index(int(on_pixels(impulse, (76, 76), 2 ** (stage + 1)).argmax()), (76, 76))
    assert drawn == tuple(2 ** (stage + 1) * c for c in cell)
    assert [float(c) for c in centre] == pytest.approx(list(drawn), abs=1.5)


@pytest.mark.parametrize("method", METHODS)
def test_a_map_repeats_and_does_not_depend_on_the_batch(method: str) -> None:
    policy = small_policy("flow_matching", "--policy.encoder.shuffle-keypoints")
    observation, how = random_observation(("agentview",), size=32), Attribution(method=method, samples=2)
    both = saliency(policy, observation, how)["agentview"]
    assert (saliency(policy, observation, how)["agentview"] == both).all()
    plain = small_policy()
    both = saliency(plain, observation, how)["agentview"]
    one = {"images": {"agentview": observation["images"]["agentview"][1:]}, "state": observation["state"][1:]}
    assert saliency(plain, one, how)["agentview"][0] == pytest.approx(both[1], rel=1e-3, abs=1e-3 * both.max())
    assert both.max() > 0


def test_saliency_is_the_input_gradient_by_default() -> None:
    policy, observation = small_policy(), random_observation(("agentview",), size=32)
    noise = policy.draw_noise(1, torch.Generator().manual_seed(0)).expand(2, -1, -1, -1)
    f = Objective(policy, observation, noise)
    reference = f.gradient(f.images)["agentview"].abs().sum(-1).numpy()
    assert saliency(policy, observation, Attribution())["agentview"] == pytest.approx(reference, rel=1e-5)


def test_layercam_reads_any_stage_of_shared_and_own_trunks() -> None:
    for share in ("share-cameras", "no-share-cameras"):
        config = config_of(f"--policy.encoder.{share}")
        policy = make_policy(config, task_schema(config.task)).eval()
        observation = random_observation(tuple(policy.encoder.cameras), batch=1)
        for stage in (1, 4):
            maps = saliency(policy, observation, Attribution(method="layercam", stage=stage, noise_level=1.0))
            assert {c: x.shape for c, x in maps.items()} == dict.fromkeys(policy.encoder.cameras, (1, 2, 84, 84))
            for x in maps.values():
                assert x[:, :, 4:80, 4:80].sum() == pytest.approx(x.sum())
                assert x.max() > 0


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (Attribution(method="magic"), "unknown method 'magic'; there are gradient, smoothgrad"),
        (
            Attribution(target="7"),
            "unknown target '7'; expected chunk, position, rotation, gripper, or an action dimension from 0 to 6",
        ),
        (Attribution(method="layercam", stage=3), "unknown stage 3; this encoder's trunk has stages 1 to 2"),
        (Attribution(stage=1), "stage 1 is for method 'layercam', got 'gradient'"),
        (Attribution(noise_level=0.0), r"noise_level: expected a number in \(0, 1\], got 0.0"),
        (Attribution(samples=0), "samples: expected at least 1, got 0"),
    ],
)
def test_what_the_policy_does_not_have_is_refused(how: Attribution, message: str) -> None:
    with pytest.raises(PrismError, match=message):
        saliency(small_policy(), random_observation(("agentview",), size=32), how)
