"""Camera images into one vector: crop, normalise, trunk, pooling, fusion, as `EncoderConfig` chooses each."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prism_policy.config import EncoderConfig
from prism_policy.errors import PrismError
from prism_policy.models.fusion import Refine, TopDownCrossAttention
from prism_policy.models.pooling import SpatialSoftmax
from prism_policy.models.resnet import ResNet

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def crop_size(size: int, share: float) -> int:
    """Pixels kept of `size`: 76 of 84 and 216 of 240 at a share of 0.9."""
    return round(size * share)


def crop(images: Tensor, height: int, width: int, random: bool) -> Tensor:
    """(B, H, W, 3) to (B, height, width, 3): an offset of its own for every image, or the centre."""
    batch, full_height, full_width, _ = images.shape
    if not random:
        y, x = (full_height - height) // 2, (full_width - width) // 2
        return images[:, y : y + height, x : x + width]
    device = images.device
    top = torch.randint(full_height - height + 1, (batch,), device=device)
    left = torch.randint(full_width - width + 1, (batch,), device=device)
    # A view of every possible crop, of which one each is copied: six times faster on a CPU than an index a pixel.
    crops = images.unfold(1, height, 1).unfold(2, width, 1).permute(0, 1, 2, 4, 5, 3)  # (B, y, x, height, width, 3)
    return crops[torch.arange(batch, device=device), top, left]


class CameraEncoder(nn.Module):
    """One camera's cropped, normalised image to `out_dim` numbers."""

    def __init__(self, config: EncoderConfig, height: int, width: int) -> None:
        super().__init__()
        num_stages = 3 if config.truncate else 4
        self.trunk = ResNet(config.depth, config.width, num_stages=num_stages)
        # Fusion "last" reads one stage, the others all of them.
        self.first_stage = num_stages - 1 if config.fusion == "last" else 0
        channels = self.trunk.channels[self.first_stage :]
        sizes = self.trunk.output_sizes(height, width)[self.first_stage :]
        self.refine = nn.ModuleList(Refine(c) if config.refine else nn.Identity() for c in channels)
        if config.pooling == "spatial_softmax" and min(min(s) for s in sizes) < 2:
            raise PrismError(
                f"an image of {height}x{width} after the crop leaves a last feature map of {sizes[-1][0]}x"
                f"{sizes[-1][1]}, where a keypoint has no place to point to; use larger images or truncate"
            )
        self.pool: nn.ModuleList
        match config.pooling:
            case "spatial_softmax":
                self.pool = nn.ModuleList(SpatialSoftmax(c, config.num_keypoints, config.temperature) for c in channels)
                numbers = 2 * config.num_keypoints * len(channels)
            case "avg":
                self.pool = nn.ModuleList(nn.AdaptiveAvgPool2d(1) for _ in channels)
                numbers = sum(channels)
            case "max":
                self.pool = nn.ModuleList(nn.AdaptiveMaxPool2d(1) for _ in channels)
                numbers = sum(channels)
            case "none":
                self.pool = nn.ModuleList(nn.Identity() for _ in channels)
                numbers = sum(c * h * w for c, (h, w) in zip(channels, sizes, strict=True))
        self.shuffle_keypoints = config.shuffle_keypoints
        self.fuse: TopDownCrossAttention | None = None
        self.out_dim = numbers
        if config.fusion == "tdca":
            self.fuse = TopDownCrossAttention(
                num_stages,
                config.num_keypoints,
                config.attention_dim,
                config.out_dim,
                config.tokens,
                config.residual_query,
            )
            self.out_dim = config.out_dim

    def pooled(self, x: Tensor) -> list[Tensor]:
        """(B, 3, h, w) to a list over the stages read: keypoints (B, K, 2), or values (B, C, 1, 1) or (B, C, H, W)."""
        stages = self.trunk(x)[self.first_stage :]
        return [pool(refine(s)) for s, refine, pool in zip(stages, self.refine, self.pool, strict=True)]

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, h, w) to (B, out_dim)."""
        pooled = self.pooled(x)
        if self.shuffle_keypoints:
            pooled = [shuffle_pairs(p) for p in pooled]
        if self.fuse is not None:
            return self.fuse(pooled)
        return torch.cat([p.flatten(1) for p in pooled], dim=1)


def shuffle_pairs(keypoints: Tensor) -> Tensor:
    """Permute the (x, y) pairs of (B, K, 2), afresh for every sample (Table 2)."""
    order = torch.rand(keypoints.shape[:2], device=keypoints.device).argsort(dim=1)
    return keypoints.gather(1, order[..., None].expand_as(keypoints))


class VisualEncoder(nn.Module):
    """All cameras' images to one vector, a trunk a camera (Table 10).

    Usage::

        encoder = VisualEncoder(presets.encoder("prism"), cameras={"agentview": (84, 84)})
        features = encoder({"agentview": images})  # uint8 (B, 84, 84, 3) -> (B, encoder.out_dim)

    Raises:
        PrismError: parts of the configuration that exclude one another, a missing camera, an image of another size.
    """

    def __init__(self, config: EncoderConfig, cameras: Mapping[str, tuple[int, int]]) -> None:
        super().__init__()
        if config.fusion == "tdca" and config.pooling != "spatial_softmax":
            raise PrismError(
                f"fusion 'tdca' attends over keypoints: expected pooling 'spatial_softmax', got '{config.pooling}'"
            )
        if config.shuffle_keypoints and config.pooling != "spatial_softmax":
            raise PrismError(f"shuffle_keypoints needs pooling 'spatial_softmax', got '{config.pooling}'")
        if not 0 < config.crop <= 1:
            raise PrismError(f"crop is the share of the image kept: expected 0 < crop <= 1, got {config.crop}")
        if not cameras:
            raise PrismError("expected at least one camera, got none")
        self.config = config
        self.cameras = dict(cameras)
        self.encoders = nn.ModuleDict()
        shared: CameraEncoder | None = None
        for name, (height, width) in self.cameras.items():
            if shared is None or not config.share_cameras:
                shared = CameraEncoder(config, crop_size(height, config.crop), crop_size(width, config.crop))
            self.encoders[name] = shared
        self.out_dim: int = sum(e.out_dim for e in self.encoders.values())  # type: ignore[misc]
        mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)

    def prepare(self, camera: str, images: Tensor) -> Tensor:
        """Images (B, H, W, 3) in 0 to 255, uint8 or float, to the trunk's cropped input (B, 3, h, w), channels last."""
        height, width = self.cameras[camera]
        if images.shape[1:] != (height, width, 3):
            raise PrismError(
                f"camera '{camera}': expected images (B, {height}, {width}, 3), got {tuple(images.shape)}; "
                "the encoder was built for that size"
            )
        share = self.config.crop
        x = crop(images, crop_size(height, share), crop_size(width, share), random=self.training)
        # Images lie with their channels last in memory; so does the result, which the convolutions prefer.
        return torch.addcmul(self.shift, x.to(self.shift.dtype), self.scale).permute(0, 3, 1, 2)  # type: ignore[arg-type]

    def _inputs(self, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if missing := [c for c in self.cameras if c not in images]:
            raise PrismError(f"camera '{missing[0]}' is missing; the encoder was built for {', '.join(self.cameras)}")
        return {c: self.prepare(c, images[c]) for c in self.cameras}

    def forward(self, images: Mapping[str, Tensor]) -> Tensor:
        """Images of every camera, (B, H, W, 3), to (B, out_dim), cameras in the order given at construction."""
        return torch.cat([self.encoders[c](x) for c, x in self._inputs(images).items()], dim=-1)

    def keypoints(self, images: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
        """Keypoints of every camera and stage, (B, K, 2) in [-1, 1] of the cropped image; spatial softmax only."""
        if self.config.pooling != "spatial_softmax":
            raise PrismError(f"pooling '{self.config.pooling}' has no keypoints; expected 'spatial_softmax'")
        return {c: self.encoders[c].pooled(x) for c, x in self._inputs(images).items()}  # type: ignore[operator]
