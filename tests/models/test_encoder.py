"""The visual encoder and its parts against closed forms, loops in float64 and the sizes of the literature."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from prism_policy.config import presets
from prism_policy.config.encoder import EncoderConfig, Norm, Pooling, RefineBlock, TokenEmbedding, Tokens
from prism_policy.errors import PrismError
from prism_policy.models.augment import crop, crop_size
from prism_policy.models.encoder import CameraEncoder, VisualEncoder, shuffle_pairs
from prism_policy.models.fusion import Refine, TopDownCrossAttention
from prism_policy.models.pooling import SpatialSoftmax
from prism_policy.models.resnet import ResNet

Sizes = Mapping[str, tuple[int, int]]
ONE: Sizes = {"agentview": (84, 84)}
TWO: Sizes = {"wrist": (64, 96), "front": (84, 84)}  # neither sorted by name nor of one size nor square
CUTS = {"wrist": (slice(3, 61), slice(5, 91)), "front": (slice(4, 80), slice(4, 80))}  # centred, 0.9
MEAN = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64)
STD = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def narrow(name: str = "prism", **changes: Any) -> EncoderConfig:
    return replace(presets.encoder(name), **{"width": 8, "attention_dim": 16, "out_dim": 16, **changes})


def random_images(cameras: Sizes, batch: int = 2) -> dict[str, Tensor]:
    return {c: torch.randint(0, 256, (batch, h, w, 3), dtype=torch.uint8) for c, (h, w) in cameras.items()}


def normalised(images: Tensor) -> Tensor:
    """(B, H, W, 3) of 0 to 255 to (B, 3, H, W) by ImageNet's mean and standard deviation, in float64."""
    return ((images.double() / 255 - MEAN) / STD).permute(0, 3, 1, 2)


def camera_encoder(encoder: VisualEncoder, name: str) -> CameraEncoder:
    module = encoder.encoders[name]
    assert isinstance(module, CameraEncoder)
    return module


# Trunk


BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}  # Table 1 of He et al. (2016)


def torchvision_shapes(depth: int, width: int = 64) -> dict[str, tuple[int, ...]]:
    """Names and shapes of torchvision's resnet18, resnet34 and resnet50."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv_norm(conv: str, norm: str, out: int, into: int, kernel: int) -> None:
        shapes.update({f"{norm}.{n}": (out,) for n in ("weight", "bias", "running_mean", "running_var")})
        shapes.update({f"{conv}.weight": (out, into, kernel, kernel), f"{norm}.num_batches_tracked": ()})

    conv_norm("conv1", "bn1", width, 3, 7)
    before = width
    for stage, blocks in enumerate(BLOCKS[depth]):
        c = width << stage
        for b in range(blocks):
            block = f"layer{stage + 1}.{b}"
            conv_norm(f"{block}.conv1", f"{block}.bn1", c, before, 1 if depth == 50 else 3)
            conv_norm(f"{block}.conv2", f"{block}.bn2", c, c, 3)
            out = 4 * c if depth == 50 else c
            if depth == 50:
                conv_norm(f"{block}.conv3", f"{block}.bn3", out, c, 1)
            if before != out:
                conv_norm(f"{block}.downsample.0", f"{block}.downsample.1", out, before, 1)
            before = out
    return {**shapes, "fc.weight": (1000, before), "fc.bias": (1000,)}


def imagenet_state(depth: int = 18, width: int = 8) -> dict[str, Tensor]:
    shapes = torchvision_shapes(depth, width)
    return {n: torch.randn(s) if s else torch.tensor(7) for n, s in shapes.items()}


PUBLISHED = [(18, 122, 11_689_512), (34, 218, 21_797_672), (50, 320, 25_557_032)]


@pytest.mark.parametrize(("depth", "entries", "published"), PUBLISHED)
def test_trunk_is_torchvisions_less_the_classifier(depth: int, entries: int, published: int) -> None:
    with torch.device("meta"):
        group, batch = ResNet(depth), ResNet(depth, norm="batch")
    expected = torchvision_shapes(depth)
    classifier = math.prod(expected["fc.weight"]) + 1000
    assert parameters(group) == parameters(batch) == published - classifier
    assert len(expected) == entries
    del expected["fc.weight"], expected["fc.bias"]
    assert {name: tuple(t.shape) for name, t in batch.state_dict().items()} == expected


@pytest.mark.parametrize(
    ("size", "maps"), [((76, 76), (19, 10, 5, 3)), ((216, 216), (54, 27, 14, 7)), ((75, 101), None)]
)
def test_trunk_has_the_maps_of_the_literature(size: tuple[int, int], maps: tuple[int, ...] | None) -> None:
    with torch.device("meta"):
        trunk = ResNet()
        shapes = [tuple(m.shape[1:]) for m in trunk(torch.empty(1, 3, *size))]
    sizes = [(n, n) for n in maps] if maps else [(19, 26), (10, 13), (5, 7), (3, 4)]
    assert shapes == [(64 << i, *s) for i, s in enumerate(sizes)]
    assert trunk.output_sizes(*size) == sizes


def group_norm_by_hand(norm: nn.Module, x: Tensor) -> Tensor:
    groups = x.reshape(len(x), max(x.shape[1] // 16, 1), -1)
    centred = groups - groups.mean(-1, keepdim=True)
    normed = (centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()).reshape(x.shape)
    assert isinstance(norm, nn.GroupNorm)
    return normed * norm.weight[:, None, None] + norm.bias[:, None, None]


@pytest.mark.parametrize("depth", [18, 34])
def test_trunk_equals_the_residual_formula(depth: int) -> None:
    trunk = ResNet(depth, 16).double()
    for p in trunk.parameters():
        nn.init.normal_(p)
    x = images = torch.randn(2, 3, 40, 48, dtype=torch.float64)

    def layer(conv: str, norm: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = trunk.get_parameter(f"{conv}.weight")
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        return group_norm_by_hand(trunk.get_submodule(norm), x)

    x = F.max_pool2d(F.pad(layer("conv1", "bn1", x, 2).clamp(min=0), (1, 1, 1, 1)), 3, 2)
    for stage, out in enumerate(trunk(images), start=1):
        for b in range(BLOCKS[depth][stage - 1]):
            name, stride = f"layer{stage}.{b}", 2 if stage > 1 and b == 0 else 1
            inner = layer(f"{name}.conv1", f"{name}.bn1", x, stride).clamp(min=0)
            shortcut = layer(f"{name}.downsample.0", f"{name}.downsample.1", x, stride) if stride == 2 else x
            x = (shortcut + layer(f"{name}.conv2", f"{name}.bn2", inner)).clamp(min=0)
        torch.testing.assert_close(out, x)


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(("depth", "stages"), [(18, 4), (34, 4), (18, 2), (50, 4)])
def test_imagenet_weights_load_and_only_group_norms_start_fresh(depth: int, stages: int, norm: Norm) -> None:
    trunk, state = ResNet(depth, 8, norm, stages), imagenet_state(depth)
    before = {name: t.clone() for name, t in trunk.state_dict().items()}
    fresh = {n for n in before if norm == "group" and ("bn" in n or "downsample.1" in n)}
    assert set(trunk.load_imagenet(state)) == fresh
    for name, tensor in trunk.state_dict().items():
        assert torch.equal(tensor, before[name] if name in fresh else state[name]), name


@pytest.mark.parametrize(
    ("depth", "norm", "actual", "missing", "named"),
    [
        (18, "batch", (34, 8), "", r"'layer\d\.2\."),
        (18, "group", (34, 8), "", r"'layer\d\.2\."),
        (34, "batch", (18, 8), "", r"'layer1\.2\.conv1\.weight' .* no such tensor"),
        (18, "group", (18, 16), "", r"'conv1.weight' expected \(8, 3, 7, 7\), found \(16, 3, 7, 7\)"),
        (18, "batch", (18, 8), "layer3.1.bn2.running_var", r"'layer3.1.bn2.running_var' expected \(32,\)"),
        (18, "group", (18, 8), "layer4.1.conv2.weight", "'layer4.1.conv2.weight' .* no such tensor"),
    ],
)
def test_imagenet_weights_that_do_not_fit_are_refused_whole(
    depth: int, norm: Norm, actual: tuple[int, int], missing: str, named: str
) -> None:
    trunk, state = ResNet(depth, 8, norm), imagenet_state(*actual)
    state.pop(missing, None)
    before = {name: t.clone() for name, t in trunk.state_dict().items()}
    with pytest.raises(PrismError, match=named):
        trunk.load_imagenet(state)
    assert all(torch.equal(t, before[name]) for name, t in trunk.state_dict().items())


@pytest.mark.parametrize("share", [False, True])
def test_imagenet_weights_reach_every_camera(share: bool) -> None:
    encoder, state = VisualEncoder(narrow("sspool", norm="batch", share_cameras=share), TWO), imagenet_state()
    assert encoder.load_imagenet(state) == []
    for camera in TWO:
        trunk = camera_encoder(encoder, camera).trunk.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in trunk.items())


# Spatial softmax


def keypoints_by_loops(features: Tensor, temperature: float) -> Tensor:
    """Eq. 1 cell by cell in float64: (B, C, H, W) to (B, C, 2)."""
    height, width = features.shape[2:]
    responses = (features.double() / temperature).exp()
    x, y, total = (torch.zeros(features.shape[:2], dtype=torch.float64) for _ in range(3))
    for i, j in itertools.product(range(height), range(width)):
        r = responses[:, :, i, j]
        x, y, total = x + r * (2 * j / (width - 1) - 1), y + r * (2 * i / (height - 1) - 1), total + r
    return torch.stack([x / total, y / total], dim=-1)


def conv_1x1(conv: nn.Conv2d | None, x: Tensor) -> Tensor:
    if conv is None:
        return x
    assert conv.bias is not None
    return torch.einsum("kc,bchw->bkhw", conv.weight[:, :, 0, 0], x) + conv.bias[:, None, None]


@pytest.mark.parametrize("num_keypoints", [None, 5])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_spatial_softmax_equals_a_float64_loop(temperature: float, num_keypoints: int | None) -> None:
    features = torch.randn(2, 3, 4, 6)
    pool = SpatialSoftmax(3, num_keypoints, temperature)
    expected = keypoints_by_loops(conv_1x1(pool.project, features), temperature)
    torch.testing.assert_close(pool(features).double(), expected, atol=1e-6, rtol=0)


def test_keypoints_of_a_uniform_map_lie_in_the_middle() -> None:
    assert SpatialSoftmax(2)(torch.full((1, 2, 5, 7), 3.0)).abs().max() < 1e-6


@pytest.mark.parametrize(("row", "column"), [(4, 6), (5, 6), (4, 9), (0, 18)])
def test_keypoints_follow_a_shifted_blob(row: int, column: int) -> None:
    features = torch.zeros(1, 1, 11, 19)
    features[0, 0, row, column] = 50.0
    expected = [column / 9 - 1, row / 5 - 1]
    assert SpatialSoftmax(1)(features)[0, 0].tolist() == pytest.approx(expected, abs=1e-4)


def test_a_cold_spatial_softmax_points_at_the_largest_response() -> None:
    features = torch.rand(8, 35).argsort().float().view(2, 4, 5, 7)  # values at least 1 apart
    row, column = features.flatten(2).argmax(-1) // 7, features.flatten(2).argmax(-1) % 7
    expected = torch.stack([column / 3 - 1, row / 2 - 1], dim=-1)
    torch.testing.assert_close(SpatialSoftmax(4, temperature=0.02)(features), expected)


@pytest.mark.parametrize("num_keypoints", [None, 3])
@pytest.mark.parametrize("learn", [False, True])
def test_spatial_softmax_gradient_is_that_of_finite_differences(learn: bool, num_keypoints: int | None) -> None:
    pool = SpatialSoftmax(2, num_keypoints, temperature=0.7, learn_temperature=learn).double()
    features = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: pool(x), (features, *pool.parameters()))


def test_learned_temperature_starts_as_told_learns_and_stays_positive() -> None:
    pool, features = SpatialSoftmax(3, temperature=0.3, learn_temperature=True), torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(pool(features), SpatialSoftmax(3, temperature=0.3)(features))
    assert pool.log_temperature is not None
    optimizer = torch.optim.SGD(pool.parameters(), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        (-pool(features).square().sum()).backward()  # far from the centre: as cold as can be
        assert pool.log_temperature.grad
        optimizer.step()
    assert 0 < pool.log_temperature.exp().item() < 0.3


def test_native_keypoints_are_the_channels_and_cost_no_parameters() -> None:
    pool = SpatialSoftmax(5)
    assert parameters(pool) == 0
    assert pool(torch.randn(2, 5, 3, 3)).shape == (2, pool.num_keypoints, 2) == (2, 5, 2)


@pytest.mark.parametrize("scale", [1, 2e4])
@pytest.mark.parametrize("num_keypoints", [None, 4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_spatial_softmax_is_safe_in_half_precision(dtype: torch.dtype, num_keypoints: int | None, scale: float) -> None:
    features = (torch.randn(2, 8, 9, 9) * scale).clamp(-6e4, 6e4).to(dtype)
    pool = SpatialSoftmax(8, num_keypoints)
    with torch.autocast("cpu", torch.bfloat16):
        got = pool(features)
    assert got.dtype == torch.float32
    assert torch.isfinite(got).all()
    torch.testing.assert_close(got, pool(features.float()))
    torch.testing.assert_close(pool(features), got)


# Pooling and fusion


def test_the_attention_is_one_that_pytorch_has_fused_kernels_for() -> None:
    """Those take four dimensions; with three all scores are written to memory."""
    fuse = TopDownCrossAttention([4, 4, 4], 8, 8, tokens="keypoint")
    keypoints = [torch.randn(2, 4, 2) for _ in range(3)]
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):  # the math path is refused
        fuse(keypoints).sum().backward()


def refine_by_hand(refine: nn.Module, x: Tensor) -> Tensor:
    if isinstance(refine, nn.Identity):
        return x
    convs = [m for m in refine.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in refine.modules() if isinstance(m, nn.GroupNorm)]
    y = x
    for i, (conv, norm) in enumerate(zip(convs, norms, strict=True)):
        y = F.conv2d(y, conv.weight, padding=conv.weight.shape[-1] // 2)
        y = group_norm_by_hand(norm, y)
        y = y if i == len(convs) - 1 else y.clamp(min=0)
    return x + y


def pooled_by_hand(pool: nn.Module, pooling: Pooling, x: Tensor) -> Tensor:
    """Numbers of one stage, (B, C, H, W) to (B, D)."""
    if pooling != "spatial_softmax":
        return {"avg": x.mean((2, 3)), "max": x.amax((2, 3)), "none": x.flatten(1)}[pooling]
    assert isinstance(pool, SpatialSoftmax)
    keypoints = keypoints_by_loops(conv_1x1(pool.project, x), 0.5)
    return torch.cat([keypoints[:, k] for k in range(keypoints.shape[1])], dim=1)  # x0, y0, x1, y1, ...


READ: list[tuple[dict[str, Any], list[int]]] = [
    ({"fusion": "last", "refine": False}, [4]),
    ({"fusion": "last", "truncate": True}, [3]),
    ({"fusion": "last", "stages": (3,), "depth": 34}, [3]),
    ({"fusion": "concat", "refine": False, "num_keypoints": None}, [1, 2, 3, 4]),
    ({"fusion": "concat", "refine_block": "basic"}, [1, 2, 3, 4]),
    ({"fusion": "concat", "stages": (2, 3, 4)}, [2, 3, 4]),
    ({"fusion": "concat", "stages": (1, 3, 4), "truncate": True}, [1, 3]),
]
ATTENDED: list[tuple[dict[str, Any], list[int]]] = [
    ({"fusion": "tdca", "stages": (2, 3, 4)}, [2, 3, 4]),
    ({"fusion": "tdca", "truncate": True, "tokens": "keypoint", "num_keypoints": None}, [1, 2, 3]),
]


@pytest.mark.parametrize(
    ("pooling", "changes", "read"),
    [(p, *row) for p in ("spatial_softmax", "avg", "max", "none") for row in READ]
    + [("spatial_softmax", *row) for row in ATTENDED],
)
def test_pooling_and_fusion_are_what_they_say(pooling: Pooling, changes: dict[str, Any], read: list[int]) -> None:
    config = narrow(**{"pooling": pooling, "num_keypoints": 3, "temperature": 0.5, **changes})
    encoder, images, expected = VisualEncoder(config, TWO).double().eval(), random_images(TWO), []
    for camera in ("wrist", "front"):
        part = camera_encoder(encoder, camera)
        maps = part.trunk(normalised(images[camera][:, *CUTS[camera]]))
        refined = [refine_by_hand(r, maps[stage - 1]) for stage, r in zip(read, part.refine, strict=True)]
        numbers = [pooled_by_hand(p, pooling, x) for p, x in zip(part.pool, refined, strict=True)]
        if part.fuse is not None:
            numbers = [part.fuse([n.view(2, -1, 2) for n in numbers])]
        expected += numbers
    out = encoder(dict(reversed(images.items())))
    assert encoder.out_dim == out.shape[1]
    # The constants of the normalisation are rounded to float32.
    torch.testing.assert_close(out, torch.cat(expected, dim=1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("block", "squares"), [("bottleneck", 3.25), ("basic", 18)])
def test_refine_equals_its_formula_and_is_a_residual(block: RefineBlock, squares: float) -> None:
    refine = Refine(64, block=block).double()
    assert parameters(refine) == squares * 64**2 + 4 * 64
    for p in refine.parameters():
        nn.init.normal_(p)
    x = torch.randn(2, 64, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(refine(x), refine_by_hand(refine, x))
    for p in refine.block[-1].parameters():
        nn.init.zeros_(p)
    assert torch.equal(refine(x), x)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("embedding", ["shared", "identity", "own"])
@pytest.mark.parametrize(("tokens", "counts"), [("stage", [4, 4, 4]), ("keypoint", [4, 4, 4]), ("keypoint", [2, 3, 5])])
def test_cross_attention_equals_an_explicit_softmax(
    tokens: Tokens, counts: list[int], embedding: TokenEmbedding, residual: bool
) -> None:
    fuse = TopDownCrossAttention(counts, 8, 5, tokens, embedding, residual).double()
    stages = [torch.randn(2, k, 2, dtype=torch.float64) for k in counts]

    def linear(layer: nn.Linear, x: Tensor) -> Tensor:
        return torch.einsum("oi,...i->...o", layer.weight, x) + layer.bias

    embedded = []  # a list over stages of lists over tokens of (B, d)
    for stage, s in enumerate(stages):
        rows = [s.reshape(2, 8)] if tokens == "stage" else s.unbind(1)
        own = embedding == "own"
        x = [row @ fuse.embed[stage if own else 0][n if own else 0] for n, row in enumerate(rows)]
        embedded.append([v if fuse.identity is None else v + fuse.identity[stage][n] for n, v in enumerate(x)])
    assert (fuse.identity is None) == (embedding == "shared")
    earlier, z = [v for row in embedded[:-1] for v in row], []
    for query in embedded[-1]:
        scores = [(linear(fuse.query, query) * linear(fuse.key, k)).sum(-1) / math.sqrt(8) for k in earlier]
        total = sum(score.exp() for score in scores)
        answer = sum(
            (score.exp() / total)[:, None] * linear(fuse.value, v) for score, v in zip(scores, earlier, strict=True)
        )
        z.append(answer + residual * query)
    torch.testing.assert_close(fuse(stages), linear(fuse.project, torch.cat(z, dim=1)))


@pytest.mark.parametrize("embedding", ["shared", "identity", "own"])
@pytest.mark.parametrize("tokens", ["stage", "keypoint"])
def test_the_order_of_earlier_tokens_matters_unless_they_share_an_embedding(
    tokens: Tokens, embedding: TokenEmbedding
) -> None:
    fuse = TopDownCrossAttention([4, 4, 4], 8, 5, tokens, embedding)
    first, second, deepest = (torch.randn(2, 4, 2) for _ in range(3))
    others = [[second, first, deepest]] + [[first[:, [2, 0, 3, 1]], second, deepest]] * (tokens == "keypoint")
    for other in others:
        assert torch.allclose(fuse([first, second, deepest]), fuse(other), atol=1e-6) is (embedding == "shared")


# Sizes


NUMBERS = {  # a camera of 84 px and of 240 px
    "avgpool": (512, 512),
    "maxpool": (512, 512),
    "nopool": (512 * 3**2, 512 * 7**2),
    "sspool": (64, 64),
    "ms_avgpool": (960, 960),
    "ms_maxpool": (960, 960),
    "ms_nopool": (64 * 361 + 128 * 100 + 256 * 25 + 512 * 9, 64 * 54**2 + 128 * 27**2 + 256 * 14**2 + 512 * 49),
    "ms_sspool": (384, 384),
    "prism": (320, 320),
}  # fmt: skip


@pytest.mark.parametrize("name", presets.ENCODERS)
def test_numbers_a_camera_are_the_papers(name: str) -> None:
    with torch.device("meta"):
        encoders = [VisualEncoder(presets.encoder(name), {"front": (size, size)}) for size in (84, 240)]
    assert [e.out_dim for e in encoders] == list(NUMBERS[name])


def test_baseline_encoder_has_the_papers_parameters() -> None:
    with torch.device("meta"):
        assert parameters(VisualEncoder(presets.encoder("sspool"), ONE)) == 11_192_928


@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize("name", presets.ENCODERS)
def test_every_encoder_runs_and_learns(name: str, truncate: bool) -> None:
    encoder = VisualEncoder(narrow(name, truncate=truncate, learn_temperature="sspool" in name), TWO)
    out = encoder(random_images(TWO))
    assert out.shape == (2, encoder.out_dim)
    out.square().sum().backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None] == []


# Crop and normalisation


def chi_square(cells: Tensor, number: int) -> float:
    """Pearson's statistic of the hypothesis that every one of `number` cells is as likely."""
    expected = len(cells) / number
    return float(((torch.bincount(cells, minlength=number) - expected).square() / expected).sum())


def index_images(batch: int, height: int, width: int) -> Tensor:
    """Noise, but for the first two channels, which tell the row and the column."""
    images = torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8)
    images[..., 0], images[..., 1] = torch.arange(height)[:, None], torch.arange(width)
    return images


class Seen(nn.Module):
    """What a camera's trunk would see."""

    def forward(self, x: Tensor, order: None) -> Tensor:
        return x.flatten(1)


def test_crop_is_76_of_84_and_216_of_240() -> None:
    assert (crop_size(84, 0.9), crop_size(240, 0.9)) == (76, 216)


def test_random_crops_are_windows_of_their_image_at_uniform_offsets() -> None:
    images = index_images(4000, 12, 13)
    windows = crop(images, 10, 9, torch.rand(4000, 2))
    top, left = windows[:, 0, 0, 0].long(), windows[:, 0, 0, 1].long()
    for image, window, y, x in zip(images, windows, top, left, strict=True):
        assert torch.equal(window, image[y : y + 10, x : x + 9])
    assert chi_square(top * 5 + left, 15) < 36.1  # 99.9% point of chi-square with 14 degrees of freedom


def test_crop_offsets_are_independent_between_samples_cameras_and_calls() -> None:
    encoder = VisualEncoder(narrow("avgpool", crop=0.85), {"left": (12, 12), "right": (12, 12)}).train()
    encoder.encoders = nn.ModuleDict({"left": Seen(), "right": Seen()})
    images = index_images(8000, 12, 12)

    def offsets() -> tuple[Tensor, Tensor]:
        seen = encoder({"left": images, "right": images}).view(8000, 2, 3, 10, 10)[:, :, :2, 0, 0]
        row, column = (255 * (seen * STD[:2] + MEAN[:2])).round().long().unbind(-1)
        left, right = (row * 3 + column).unbind(1)
        return left, right

    left, right = offsets()
    again, _ = offsets()
    for one, other in ((left[::2], left[1::2]), (left, right), (left, again)):
        assert chi_square(one * 9 + other, 81) < 124.8  # 99.9% point with 80 degrees of freedom


@pytest.mark.parametrize(("height", "width"), [(84, 84), (85, 79), (83, 240)])
def test_evaluation_crop_is_centred(height: int, width: int) -> None:
    window = crop(index_images(1, height, width), 76, 76)[0, :, :, :2].long()
    margins = [*window[0, 0].tolist(), height - 1 - int(window[-1, -1, 0]), width - 1 - int(window[-1, -1, 1])]
    assert sum(margins) == height + width - 2 * 76
    assert 0 <= margins[2] - margins[0] <= 1  # an odd margin leaves its pixel below
    assert 0 <= margins[3] - margins[1] <= 1


def test_training_and_evaluation_agree_on_a_constant_image() -> None:
    encoder = VisualEncoder(narrow(), ONE)
    images = {"agentview": torch.full((2, 84, 84, 3), 90, dtype=torch.uint8)}
    torch.testing.assert_close(encoder.train()(images), encoder.eval()(images))


@pytest.mark.parametrize("training", [False, True])
def test_normalisation_is_imagenets_and_a_crop_of_1_keeps_the_image(training: bool) -> None:
    encoder = VisualEncoder(narrow(crop=1.0), TWO).train(training)
    image = random_images(TWO)["wrist"]
    x = encoder.prepare("wrist", image)
    torch.testing.assert_close(x.double(), normalised(image), atol=1e-6, rtol=1e-6)
    assert x.is_contiguous(memory_format=torch.channels_last)


# Shuffled keypoints


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["sspool", "ms_sspool"])
def test_shuffled_keypoints_are_the_same_pairs_in_another_order_a_sample(name: str, training: bool) -> None:
    encoder = VisualEncoder(narrow(name, shuffle_keypoints=True, num_keypoints=8, crop=1.0), ONE).train(training)
    images = {"agentview": random_images(ONE, 1)["agentview"].expand(6, -1, -1, -1)}
    plain = torch.stack(encoder.keypoints(images)["agentview"], dim=1)  # (B, L, K, 2)
    shuffled = encoder(images).view_as(plain)
    order = torch.cdist(shuffled, plain).argmin(-1)  # (B, L, K)
    assert torch.equal(order.sort(-1).values, torch.arange(8).expand_as(order))
    torch.testing.assert_close(shuffled, plain.gather(2, order[..., None].expand_as(plain)))
    assert len({tuple(o.tolist()) for o in order.flatten(0, 1)}) == order[..., 0].numel()


def test_shuffled_keypoints_reach_the_cross_attention() -> None:
    encoder = VisualEncoder(narrow(shuffle_keypoints=True), ONE).eval()
    one, other = encoder({"agentview": random_images(ONE, 1)["agentview"].expand(2, -1, -1, -1)})
    assert not torch.allclose(one, other, atol=1e-4)


def test_every_permutation_of_keypoints_is_as_likely() -> None:
    order = shuffle_pairs(torch.arange(4.0)[:, None].expand(4800, 4, 2), torch.rand(4800, 4))[..., 0].long()
    number = {p: i for i, p in enumerate(itertools.permutations(range(4)))}
    cells = torch.tensor([number[tuple(o)] for o in order.tolist()])
    assert chi_square(cells, 24) < 49.7  # 99.9% point with 23 degrees of freedom


# Half precision, compilation, export


@pytest.mark.parametrize("name", presets.ENCODERS)
def test_bfloat16_is_close_to_float32(name: str) -> None:
    encoder, images = VisualEncoder(narrow(name), ONE).eval(), random_images(ONE, 4)
    exact = encoder(images)
    with torch.autocast("cpu", torch.bfloat16):
        out = encoder(images).float()
    # Every one of some twenty layers rounds to 8 bits, 2^-9 of a number each: 1% if the errors are independent.
    assert torch.linalg.norm(out - exact) < 0.05 * torch.linalg.norm(exact)


@pytest.mark.parametrize("name", ["nopool", "prism"])
def test_a_bfloat16_trunk_is_autocast_up_to_the_pooling_and_gives_float32(name: str) -> None:
    low, exact = VisualEncoder(narrow(name, precision="bfloat16"), ONE).eval(), VisualEncoder(narrow(name), ONE).eval()
    exact.load_state_dict(low.state_dict())
    images, expected = random_images(ONE), []
    for x in images.values():
        inner, prepared = camera_encoder(exact, "agentview"), normalised(x)[:, :, 4:80, 4:80].float()
        with torch.autocast("cpu", torch.bfloat16):
            maps = [
                refine(m) for refine, m in zip(reversed(inner.refine), reversed(inner.trunk(prepared)), strict=False)
            ][::-1]
        pooled = [pool(m.float()) for pool, m in zip(inner.pool, maps, strict=True)]
        expected.append(pooled[0].flatten(1) if inner.fuse is None else inner.fuse(pooled))
    out = low(images)
    assert out.dtype == torch.float32
    assert not torch.equal(out, exact(images))
    torch.testing.assert_close(out, expected[0], atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(torch.compile(low, fullgraph=True, backend="eager")(images), out)


@pytest.mark.parametrize("name", presets.ENCODERS)
def test_compiled_without_a_graph_break_it_gives_the_same(name: str) -> None:
    encoder = VisualEncoder(narrow(name), ONE).train()
    images, state = random_images(ONE), torch.get_rng_state()
    expected = encoder(images)
    torch.compiler.reset()
    torch.set_rng_state(state)
    torch.testing.assert_close(torch.compile(encoder, fullgraph=True, backend="eager")(images), expected)


@pytest.mark.slow
def test_inductor_gives_the_same() -> None:
    encoder, images = VisualEncoder(narrow(), ONE).eval(), random_images(ONE)
    torch.compiler.reset()
    out = torch.compile(encoder, fullgraph=True)(images)
    torch.testing.assert_close(out, encoder(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "name", [n if n in ("prism", "avgpool") else pytest.param(n, marks=pytest.mark.slow) for n in presets.ENCODERS]
)
def test_exported_at_one_batch_size_it_runs_at_another(name: str) -> None:
    encoder = VisualEncoder(narrow(name), ONE).eval()
    dynamic = ({"agentview": {0: torch.export.Dim("batch")}},)
    exported = torch.export.export(encoder, (random_images(ONE, 2),), dynamic_shapes=dynamic)
    images = random_images(ONE, 3)
    torch.testing.assert_close(exported.module()(images), encoder(images))


# Cameras


def test_a_shared_trunk_counts_once_and_sees_cameras_of_any_size() -> None:
    apart, shared = (VisualEncoder(narrow(share_cameras=s), TWO).eval() for s in (False, True))
    assert parameters(apart) == 2 * parameters(shared)
    images = random_images(TWO)
    same = VisualEncoder(narrow(), {"front": TWO["front"]}).eval()
    camera_encoder(same, "front").load_state_dict(camera_encoder(shared, "wrist").state_dict())
    torch.testing.assert_close(shared(images)[:, 16:], same({"front": images["front"]}))


def test_a_shared_trunk_without_pooling_needs_cameras_of_one_size() -> None:
    config = narrow("nopool", share_cameras=True)
    assert VisualEncoder(config, {"left": (84, 84), "right": (84, 84)}).out_dim == 2 * 64 * 3**2
    with pytest.raises(PrismError, match="share_cameras with pooling 'none' needs cameras of one size"):
        VisualEncoder(config, TWO)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("size", [(32, 32), (65, 32), (32, 65)])
def test_spatial_softmax_over_a_single_row_or_column_is_refused(size: tuple[int, int], share: bool) -> None:
    with pytest.raises(PrismError, match="a keypoint has no place to point to"):
        VisualEncoder(narrow("sspool", crop=1.0, share_cameras=share), {"large": (64, 200), "small": size})


# Bad input


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        *(({"stages": s}, "stages: expected some of 1, 2, 3, 4") for s in ((), (2, 1), (1, 1), (0, 1), (1, 5))),
        ({"fusion": "last", "stages": (2,), "truncate": True}, "truncate drops the deepest .* at least two"),
        ({"pooling": "avg"}, "fusion 'tdca' attends over keypoints: expected pooling 'spatial_softmax', got 'avg'"),
        ({"stages": (4,)}, r"fusion 'tdca' needs .* expected two stages or more, got \(4,\)"),
        ({"stages": (3, 4), "truncate": True}, r"got \(3,\) \(stages \(3, 4\), truncate True\)"),
        ({"num_keypoints": None, "tokens": "stage"}, "num_keypoints: expected a number, got none: .* tokens"),
        ({"fusion": "last", "pooling": "max", "shuffle_keypoints": True}, "shuffle_keypoints needs .* got 'max'"),
        ({"fusion": "last", "pooling": "none", "learn_temperature": True}, "learn_temperature needs .* got 'none'"),
        ({"crop": 1.5}, "expected 0 < crop <= 1, got 1.5"),
        ({"crop": 0.0}, "expected 0 < crop <= 1, got 0.0"),
        ({"width": 0}, "width: expected at least 1, got 0"),
        ({"attention_dim": 0}, "attention_dim: expected at least 1, got 0"),
        ({"out_dim": -1}, "out_dim: expected at least 1, got -1"),
        *(({"width": w}, "width: expected channels that divide into") for w in (30, 33, 112)),
        *(({"temperature": t}, "temperature: expected a positive number") for t in (0.0, -1.0, math.inf, math.nan)),
        ({"num_keypoints": 0}, "num_keypoints: expected at least 1"),
    ],
)  # fmt: skip
def test_a_configuration_that_cannot_work_is_named(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PrismError, match=sentence):
        VisualEncoder(narrow(**changes), ONE)


def test_no_camera_and_a_pooling_without_keypoints_are_refused() -> None:
    with pytest.raises(PrismError, match="at least one camera, got none"):
        VisualEncoder(narrow(), {})
    with pytest.raises(PrismError, match="pooling 'avg' has no keypoints"):
        VisualEncoder(narrow("avgpool"), ONE).keypoints(random_images(ONE))


IMAGE = torch.zeros(1, 64, 96, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        ({"front": IMAGE}, "camera 'wrist' is missing; the encoder was built for wrist, front"),
        ({"wrist": IMAGE[:, :, 1:]}, r"\(B, 64, 96, 3\), got \(1, 64, 95, 3\); the encoder was built for that size"),
        ({"wrist": IMAGE[0]}, r"expected images \(B, 64, 96, 3\), got \(64, 96, 3\)"),
        ({"wrist": IMAGE.permute(0, 3, 1, 2)}, r"got \(1, 3, 64, 96\); .*images\.permute\(0, 2, 3, 1\)"),
        ({"wrist": IMAGE.float()}, "expected images of type uint8 from 0 to 255, got float32"),
        ({"wrist": IMAGE.long()}, "expected images of type uint8 from 0 to 255, got int64"),
    ],
)
def test_images_that_do_not_fit_are_named(images: dict[str, Tensor], sentence: str) -> None:
    with pytest.raises(PrismError, match=sentence):
        VisualEncoder(narrow("sspool"), TWO)({"front": torch.zeros(1, 84, 84, 3, dtype=torch.uint8), **images})


def test_float_images_are_taken_where_they_require_a_gradient() -> None:
    encoder, images = VisualEncoder(narrow(), TWO).eval(), random_images(TWO)
    floats = {c: x.float().requires_grad_() for c, x in images.items()}
    out = encoder(floats)
    torch.testing.assert_close(out, encoder(images))
    out.sum().backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in floats.values())


# What saliency asks


def test_keypoints_are_the_means_of_their_heat_maps() -> None:
    encoder = VisualEncoder(narrow(), TWO).eval()
    images = random_images(TWO)
    for camera, stages in encoder.heatmaps(images).items():
        for heat, keypoints in zip(stages, encoder.keypoints(images)[camera], strict=True):
            height, width = heat.shape[2:]
            torch.testing.assert_close(heat.sum((2, 3)), torch.ones(heat.shape[:2]))
            x = (heat.sum(2) * torch.linspace(-1, 1, width)).sum(-1)
            y = (heat.sum(3) * torch.linspace(-1, 1, height)).sum(-1)
            torch.testing.assert_close(torch.stack([x, y], dim=-1), keypoints)


@pytest.mark.parametrize("tokens", ["stage", "keypoint"])
def test_attention_is_what_the_fusion_takes(tokens: Tokens) -> None:
    encoder = VisualEncoder(narrow(tokens=tokens), ONE).eval()
    images = random_images(ONE)
    weights, keypoints = encoder.attention(images)["agentview"], encoder.keypoints(images)["agentview"]
    fuse = camera_encoder(encoder, "agentview").fuse
    assert fuse is not None
    assert [w.shape[2] for w in weights] == ([1] * 3 if tokens == "stage" else [48] * 3)
    joined = torch.cat(weights, dim=2)
    torch.testing.assert_close(joined.sum(-1), torch.ones(joined.shape[:2]))
    values = fuse.value(torch.cat(fuse.embedded(keypoints)[:-1], dim=1))
    torch.testing.assert_close(fuse.project((joined @ values).flatten(1)), encoder(images))


def test_an_encoder_without_attention_or_heat_maps_says_so() -> None:
    with pytest.raises(PrismError, match="fusion 'last' has no attention; expected 'tdca'"):
        VisualEncoder(narrow("sspool"), ONE).attention(random_images(ONE))
    with pytest.raises(PrismError, match="pooling 'avg' has no keypoints"):
        VisualEncoder(narrow("avgpool"), ONE).heatmaps(random_images(ONE))
