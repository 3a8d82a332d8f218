"""The encoder's and the U-Net's parts against closed forms, float64 loops and the sizes of the literature."""

import math

import pytest
import torch
from torch import Tensor

from prism_policy import presets
from prism_policy.config import EncoderConfig, Tokens
from prism_policy.errors import PrismError
from prism_policy.models.encoder import VisualEncoder, crop, crop_size, shuffle_pairs
from prism_policy.models.fusion import TopDownCrossAttention
from prism_policy.models.pooling import SpatialSoftmax
from prism_policy.models.resnet import ResNet
from prism_policy.models.unet1d import ConditionalUNet1D

CAMERAS = {"agentview": (84, 84), "robot0_eye_in_hand": (84, 84)}


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_trunk_has_the_size_and_maps_of_the_literature() -> None:
    trunk = ResNet(18, 64)
    assert parameters(trunk) == 11_176_512
    maps = trunk(torch.zeros(1, 3, 76, 76))
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 19, 19), (128, 10, 10), (256, 5, 5), (512, 3, 3)]
    for height, width in ((76, 76), (216, 216), (75, 101)):
        maps = ResNet(18, 16)(torch.zeros(1, 3, height, width))
        assert [tuple(m.shape[2:]) for m in maps] == ResNet(18, 16).output_sizes(height, width)


def test_trunk_names_are_torchvisions() -> None:
    names = set(ResNet(18, 64, norm="batch").state_dict())
    assert len(names) == 120  # torchvision's resnet18 has 122 entries, two of them the classifier's
    assert {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer4.1.bn2.bias"} <= names
    assert {"layer2.0.downsample.0.weight", "layer2.0.downsample.1.running_var"} <= names


def spatial_softmax_by_loops(features: Tensor, temperature: float) -> Tensor:
    batch, channels, height, width = features.shape
    out = torch.zeros(batch, channels, 2, dtype=torch.float64)
    for b in range(batch):
        for c in range(channels):
            total = sum(math.exp(float(v) / temperature) for v in features[b, c].flatten())
            for i in range(height):
                for j in range(width):
                    p = math.exp(float(features[b, c, i, j]) / temperature) / total
                    out[b, c, 0] += p * (2 * j / (width - 1) - 1)
                    out[b, c, 1] += p * (2 * i / (height - 1) - 1)
    return out


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_spatial_softmax_equals_a_float64_loop(temperature: float) -> None:
    features = torch.randn(2, 3, 4, 6)
    expected = spatial_softmax_by_loops(features, temperature)
    torch.testing.assert_close(
        SpatialSoftmax(3, temperature=temperature)(features).double(), expected, atol=1e-6, rtol=0
    )


def test_keypoints_of_a_uniform_map_lie_in_the_middle() -> None:
    assert SpatialSoftmax(2)(torch.full((1, 2, 5, 7), 3.0)).abs().max() < 1e-6


def test_keypoints_follow_a_shifted_blob() -> None:
    features = torch.zeros(1, 1, 19, 19)
    features[0, 0, 4, 6] = 50.0
    x, y = SpatialSoftmax(1)(features)[0, 0]
    assert (x.item(), y.item()) == (pytest.approx(6 / 9 - 1, abs=1e-4), pytest.approx(4 / 9 - 1, abs=1e-4))


def test_spatial_softmax_is_safe_in_half_precision() -> None:
    features = torch.randn(2, 8, 9, 9) * 200
    pool = SpatialSoftmax(8)
    for dtype in (torch.float16, torch.bfloat16):
        low = features.to(dtype)
        got = pool(low)
        assert got.dtype == torch.float32
        assert torch.isfinite(got).all()
        torch.testing.assert_close(got, pool(low.float()))


def test_spatial_softmax_gradient_is_that_of_finite_differences() -> None:
    class Double(SpatialSoftmax):  # the layer computes in float32 on purpose; its formula is checked in float64
        def forward(self, features: Tensor) -> Tensor:
            weights = (features.flatten(2) / self.temperature).softmax(-1)
            height, width = features.shape[-2:]
            xs, ys = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in (width, height))
            return weights @ torch.stack([xs.repeat(height), ys.repeat_interleave(width)], 1)

    features = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(Double(2, temperature=0.7), (features,))
    low = features.detach().float().requires_grad_()
    SpatialSoftmax(2, temperature=0.7)(low)[..., 0].sum().backward()
    (expected,) = torch.autograd.grad(Double(2, temperature=0.7)(features)[..., 0].sum(), features)
    assert low.grad is not None
    torch.testing.assert_close(low.grad.double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("tokens", ["stage", "keypoint"])
def test_cross_attention_equals_an_explicit_softmax(tokens: Tokens, residual: bool) -> None:
    fuse = TopDownCrossAttention([4, 4, 4], dim=8, out_dim=5, tokens=tokens, residual_query=residual).double()
    stages = [torch.randn(2, 4, 2, dtype=torch.float64) for _ in range(3)]
    shaped = [s.reshape(2, 1, 8) if tokens == "stage" else s for s in stages]
    embedded = [fuse.embed(s) + fuse.identity[i] for i, s in enumerate(shaped)]
    earlier = torch.cat(embedded[:2], dim=1)
    weights = (fuse.query(embedded[2]) @ fuse.key(earlier).transpose(1, 2) / math.sqrt(8)).softmax(-1)
    z = weights @ fuse.value(earlier) + residual * embedded[2]
    torch.testing.assert_close(fuse(stages), fuse.project(z.flatten(1)))


@pytest.mark.parametrize(
    ("name", "numbers"),
    [("sspool", 64), ("avgpool", 512), ("maxpool", 512), ("nopool", 4608), ("ms_sspool", 384), ("prism", 192)],
)
def test_numbers_a_camera_are_the_papers(name: str, numbers: int) -> None:
    assert VisualEncoder(presets.encoder(name), {"agentview": (84, 84)}).out_dim == numbers


def test_baseline_encoder_has_the_papers_parameters() -> None:
    assert parameters(VisualEncoder(presets.encoder("sspool"), {"agentview": (84, 84)})) == 11_192_928


def narrow(name: str, **changes: object) -> EncoderConfig:
    from dataclasses import replace

    return replace(presets.encoder(name), width=16, attention_dim=32, out_dim=32, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize("name", presets.ENCODERS)
def test_every_encoder_runs_and_learns(name: str, truncate: bool) -> None:
    encoder = VisualEncoder(narrow(name, truncate=truncate), CAMERAS)
    images = {c: torch.randint(0, 256, (3, 84, 84, 3), dtype=torch.uint8) for c in CAMERAS}
    out = encoder(images)
    assert out.shape == (3, encoder.out_dim)
    out.square().sum().backward()
    unused = [n for n, p in encoder.named_parameters() if p.grad is None]
    assert unused == []


def test_cameras_do_not_share_weights_unless_told() -> None:
    apart, shared = (VisualEncoder(narrow("sspool", share_cameras=s), CAMERAS) for s in (False, True))
    assert parameters(apart) == 2 * parameters(shared)


def test_spatial_softmax_over_a_single_cell_is_refused() -> None:
    with pytest.raises(PrismError, match="last feature map of 1x1"):
        VisualEncoder(narrow("sspool"), {"agentview": (32, 32)})


def test_crop_is_76_of_84_and_216_of_240() -> None:
    assert (crop_size(84, 0.9), crop_size(240, 0.9)) == (76, 216)


def test_random_crops_are_uniform_and_independent() -> None:
    rows, columns = torch.meshgrid(torch.arange(12), torch.arange(12), indexing="ij")
    image = torch.stack([rows, columns, rows], dim=-1).to(torch.uint8)
    torch.manual_seed(0)
    out = crop(image.expand(4000, 12, 12, 3), 10, 10, random=True)
    top, left = out[:, 0, 0, 0].long(), out[:, 0, 0, 1].long()
    torch.testing.assert_close(out[:, -1, -1, 1].long(), left + 9)
    counts = torch.bincount(top * 3 + left, minlength=9).float()
    chi_square = ((counts - 4000 / 9) ** 2 / (4000 / 9)).sum()
    assert chi_square < 26.1  # 99.9% point of chi-square with 8 degrees of freedom


def test_evaluation_crop_is_centred() -> None:
    image = torch.zeros(1, 84, 84, 3, dtype=torch.uint8)
    image[0, 4, 4] = 1
    assert crop(image, 76, 76, random=False)[0, 0, 0].tolist() == [1, 1, 1]


def test_training_and_evaluation_agree_on_a_constant_image() -> None:
    encoder = VisualEncoder(narrow("prism"), {"agentview": (84, 84)})
    images = {"agentview": torch.full((2, 84, 84, 3), 90, dtype=torch.uint8)}
    torch.testing.assert_close(encoder.train()(images), encoder.eval()(images))


def test_normalisation_is_imagenets() -> None:
    encoder = VisualEncoder(narrow("prism"), {"agentview": (84, 84)}).eval()
    x = encoder.prepare("agentview", torch.full((1, 84, 84, 3), 255, dtype=torch.uint8))
    expected = [(1 - m) / s for m, s in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))]
    torch.testing.assert_close(x[0, :, 0, 0], torch.tensor(expected))
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_shuffle_permutes_pairs_afresh_for_every_sample() -> None:
    keypoints = torch.arange(64.0).view(1, 32, 2).expand(50, 32, 2)
    out = shuffle_pairs(keypoints)
    assert len({tuple(o[:, 0].tolist()) for o in out}) == 50
    torch.testing.assert_close(out[..., 1] - out[..., 0], torch.ones(50, 32))
    torch.testing.assert_close(out.sort(dim=1).values, keypoints)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"pooling": "avg"}, "fusion 'tdca' attends over keypoints: expected pooling 'spatial_softmax', got 'avg'"),
        ({"crop": 1.5}, "expected 0 < crop <= 1, got 1.5"),
        ({"pooling": "max", "fusion": "last", "shuffle_keypoints": True}, "shuffle_keypoints needs pooling"),
    ],
)
def test_parts_that_exclude_one_another_are_named(change: dict[str, object], sentence: str) -> None:
    with pytest.raises(PrismError, match=sentence):
        VisualEncoder(narrow("prism", **change), CAMERAS)


def test_missing_camera_and_wrong_size_are_named() -> None:
    encoder = VisualEncoder(narrow("sspool"), CAMERAS)
    image = torch.zeros(1, 84, 84, 3, dtype=torch.uint8)
    with pytest.raises(PrismError, match="camera 'robot0_eye_in_hand' is missing"):
        encoder({"agentview": image})
    with pytest.raises(PrismError, match=r"expected images \(B, 84, 84, 3\), got \(1, 64, 64, 3\)"):
        encoder({"agentview": image, "robot0_eye_in_hand": image[:, :64, :64]})


@pytest.mark.parametrize(("action_dim", "count"), [(10, 66_923_402), (7, 66_918_023)])
def test_unet_has_the_papers_parameters(action_dim: int, count: int) -> None:
    with torch.device("meta"):
        assert parameters(ConditionalUNet1D(action_dim, 274)) == count


def test_unet_keeps_the_chunk_and_uses_step_and_condition() -> None:
    net = ConditionalUNet1D(7, 20, (32, 64, 128), step_embed_dim=32)
    actions, step, cond = torch.randn(3, 16, 7), torch.rand(3), torch.randn(3, 20)
    out = net(actions, step, cond)
    assert out.shape == (3, 16, 7)
    assert not torch.allclose(out, net(actions, step + 1, cond))
    assert not torch.allclose(out, net(actions, step, cond + 1))
    with pytest.raises(PrismError, match="multiple of 4"):
        net(actions[:, :10], step, cond)
