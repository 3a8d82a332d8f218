"""Camera images into one vector: crop, normalise, trunk, pooling, fusion, as `EncoderConfig` chooses each."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from prism_policy.config.encoder import EncoderConfig
from prism_policy.errors import PrismError
from prism_policy.models.augment import crop, crop_size, erase_rectangle, jitter_color
from prism_policy.models.fusion import Refine, TopDownCrossAttention
from prism_policy.models.pooling import GlobalMax, SpatialSoftmax
from prism_policy.models.pretrained import IMAGENET, pretrained_weights
from prism_policy.models.resnet import ResNet

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class CameraEncoder(nn.Module):
    """One camera's cropped, normalised image to `out_dim` numbers."""

    def __init__(self, config: EncoderConfig, height: int, width: int) -> None:
        super().__init__()
        self.stages = stages = config.stages_read
        self.half_precision = config.precision == "bfloat16"
        self.trunk = ResNet(config.depth, config.width, config.norm, num_stages=stages[-1])
        channels = [self.trunk.channels[s - 1] for s in stages]
        sizes = [self.trunk.output_sizes(height, width)[s - 1] for s in stages]
        refine_norm = "group" if config.norm == "frozen_batch" else config.norm  # no weights are loaded into these
        self.refine = nn.ModuleList(
            Refine(c, refine_norm, config.refine_block) if config.refine else nn.Identity() for c in channels
        )
        if config.pooling == "spatial_softmax":
            if min(min(s) for s in sizes) < 2:
                raise PrismError(
                    f"an image of {height}x{width} after the crop leaves a last feature map of {sizes[-1][0]}x"
                    f"{sizes[-1][1]}, where a keypoint has no place to point to; use larger images or truncate"
                )
            options = (config.num_keypoints, config.temperature, config.learn_temperature)
            self.pool = nn.ModuleList(SpatialSoftmax(c, *options) for c in channels)
            counts = [cast(SpatialSoftmax, p).num_keypoints for p in self.pool]
            self.out_dim = 2 * sum(counts)
        elif config.pooling == "none":
            self.pool = nn.ModuleList(nn.Identity() for _ in channels)
            self.out_dim = sum(c * h * w for c, (h, w) in zip(channels, sizes, strict=True))
        else:
            avg = config.pooling == "avg"
            self.pool = nn.ModuleList(nn.AdaptiveAvgPool2d(1) if avg else GlobalMax() for _ in channels)
            self.out_dim = sum(channels)
        self.num_keypoints = self.out_dim // 2  # of all stages; spatial softmax only
        self.fuse: TopDownCrossAttention | None = None
        if config.fusion == "tdca":
            dims = (config.attention_dim, config.out_dim)
            embedding, residual = config.token_embedding, config.residual_query
            self.fuse = TopDownCrossAttention(counts, *dims, config.tokens, embedding, residual)
            self.out_dim = config.out_dim

    def pooled(self, x: Tensor) -> list[Tensor]:
        """(B, 3, h, w) to a list over the stages read: keypoints (B, K, 2), or values (B, C, 1, 1) or (B, C, H, W)."""
        return [pool(m) for pool, m in zip(self.pool, self.feature_maps(x), strict=True)]

    def feature_maps(self, x: Tensor) -> list[Tensor]:
        """(B, 3, h, w) to what is pooled: refined maps (B, C, H, W) of the stages read."""
        # Float32 says nothing: an autocast around the encoder stays as it is.
        with torch.autocast(x.device.type, torch.bfloat16) if self.half_precision else contextlib.nullcontext():
            maps = self.trunk(x)
            refined = [refine(maps[s - 1]) for s, refine in zip(self.stages, self.refine, strict=True)]
        return [m.float() if self.half_precision else m for m in refined]

    def forward(self, x: Tensor, order: Tensor | None = None) -> Tensor:
        """(B, 3, h, w) to (B, out_dim); `order`, random numbers (B, K of all stages), is what shuffles keypoints."""
        pooled = self.pooled(x)
        if order is not None:
            ranks = torch.split(order, [p.shape[1] for p in pooled], dim=1)
            pooled = [shuffle_pairs(p, r) for p, r in zip(pooled, ranks, strict=True)]
        if self.fuse is not None:
            return self.fuse(pooled)
        return torch.cat([p.flatten(1) for p in pooled], dim=1)


def shuffle_pairs(keypoints: Tensor, order: Tensor) -> Tensor:
    """Permute the (x, y) pairs of (B, K, 2) by random numbers (B, K), another way in every sample (Table 2)."""
    return keypoints.gather(1, order.argsort(dim=1)[..., None].expand_as(keypoints))


def check_encoder(config: EncoderConfig) -> None:
    """Refuse parts of a configuration that exclude one another."""
    keypoints = config.pooling == "spatial_softmax"
    stages = config.stages
    if not stages or list(stages) != sorted(set(stages)) or stages[0] < 1 or stages[-1] > 4:
        raise PrismError(f"stages: expected some of 1, 2, 3, 4 in rising order, got {stages}")
    if config.truncate and len(stages) < 2:
        raise PrismError(f"truncate drops the deepest of `stages`: expected at least two of them, got {stages}")
    if config.fusion == "tdca":
        if not keypoints:
            expected = f"expected pooling 'spatial_softmax', got '{config.pooling}'"
            raise PrismError(f"fusion 'tdca' attends over keypoints: {expected}")
        if len(config.stages_read) < 2:
            got = f"{config.stages_read} (stages {stages}, truncate {config.truncate})"
            raise PrismError(f"fusion 'tdca' needs a query and a key stage: expected two stages or more, got {got}")
        if config.num_keypoints is None and config.tokens == "stage":
            raise PrismError(
                "num_keypoints: expected a number, got none: native channels differ from stage to stage, and tokens "
                "'stage' need equal numbers; set num_keypoints, or tokens 'keypoint'"
            )
    for name in ("shuffle_keypoints", "learn_temperature"):
        if getattr(config, name) and not keypoints:
            raise PrismError(f"{name} needs pooling 'spatial_softmax', got '{config.pooling}'")
    if not 0 < config.crop <= 1:
        raise PrismError(f"crop is the share of the image kept: expected 0 < crop <= 1, got {config.crop}")
    if config.norm == "frozen_batch" and not config.pretrained:
        raise PrismError("norm 'frozen_batch' keeps what was learned elsewhere: set pretrained, or norm 'group'")
    if config.pretrained == IMAGENET and config.width != 64:
        raise PrismError(f"pretrained 'imagenet' is of width 64, got {config.width}; set width 64")
    for name in ("width", "attention_dim", "out_dim"):
        if getattr(config, name) < 1:
            raise PrismError(f"{name}: expected at least 1, got {getattr(config, name)}")


class VisualEncoder(nn.Module):
    """All cameras' images to one vector, a trunk a camera (Table 10).

    Usage::

        encoder = VisualEncoder(presets.encoder("prism"), cameras={"agentview": (84, 84)})
        features = encoder({"agentview": images})  # uint8 (B, 84, 84, 3) -> (B, encoder.out_dim)

    Raises:
        PrismError: parts of the configuration that exclude one another, images too small; at a call, a missing camera
            or an image of another size, type or layout.
    """

    def __init__(self, config: EncoderConfig, cameras: Mapping[str, tuple[int, int]]) -> None:
        super().__init__()
        check_encoder(config)
        if not cameras:
            raise PrismError("expected at least one camera, got none")
        if dotted := [c for c in cameras if "." in c or not c]:
            raise PrismError(f"expected names of cameras without a dot, got '{dotted[0]}'")
        if config.share_cameras and config.pooling == "none" and len(set(cameras.values())) > 1:
            raise PrismError(f"share_cameras with pooling 'none' needs cameras of one size, got {dict(cameras)}")
        self.config, self.cameras = config, dict(cameras)
        self.crops = {c: (crop_size(h, config.crop), crop_size(w, config.crop)) for c, (h, w) in cameras.items()}
        if min(min(size) for size in self.crops.values()) < 1:
            share = f"a crop of {config.crop}"
            raise PrismError(f"expected images of which {share} leaves a pixel at least, got sizes {self.cameras}")
        # A shared encoder is made for the smallest height and width, which leave the least room for keypoints.
        least = [min(sizes) for sizes in zip(*self.crops.values(), strict=True)]
        shared = CameraEncoder(config, *least) if config.share_cameras else None
        self.encoders = nn.ModuleDict({c: shared or CameraEncoder(config, *size) for c, size in self.crops.items()})
        self.out_dim: int = sum(e.out_dim for e in self.encoders.values())  # type: ignore[misc]
        mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)

    def draw(
        self, batch: int, generator: torch.Generator | None = None, training: bool | None = None
    ) -> dict[str, Tensor]:
        """What is random about encoding `batch` images of each camera, as uniform numbers from the CPU.

        Images are augmented in `training`, by default the module's mode.

        Returns:
            In training `crop.CAMERA` (B, 2), `jitter.CAMERA` (B, 3) and `erase.CAMERA` (B, 5) as far as the settings
            say so, and always `order.CAMERA` (B, K of all stages), where keypoints are shuffled.
        """
        training = self.training if training is None else training
        kinds = {"crop": 2, "jitter": 3 * bool(self.config.color_jitter), "erase": 5 * bool(self.config.random_erasing)}
        sizes = {f"{kind}.{c}": n for kind, n in kinds.items() for c in self.cameras if n} if training else {}
        if self.config.shuffle_keypoints:
            sizes |= {f"order.{camera}": e.num_keypoints for camera, e in self.encoders.items()}  # type: ignore[misc]
        return {name: torch.rand(batch, n, generator=generator) for name, n in sizes.items()}

    def prepare(self, camera: str, images: Tensor, draws: Mapping[str, Tensor] | None = None) -> Tensor:
        """Images (B, H, W, 3) to the trunk's cropped and normalised input (B, 3, h, w), channels last in memory.

        The crop is the centre, and nothing else is changed, unless `draws` say otherwise.

        Floating-point images in 0 to 255 are taken only where they require a gradient, as saliency does: elsewhere they
        are a sign of a normalisation that was done before and would be done twice.
        """
        height, width = self.cameras[camera]
        if images.shape[1:] != (height, width, 3):
            first = images.shape[1:] == (3, height, width)
            hint = "channels come last: images.permute(0, 2, 3, 1)" if first else "the encoder was built for that size"
            expected = f"expected images (B, {height}, {width}, 3), got {tuple(images.shape)}"
            raise PrismError(f"camera '{camera}': {expected}; {hint}")
        if images.dtype != torch.uint8 and not (images.is_floating_point() and images.requires_grad):
            expected = f"expected images of type uint8 from 0 to 255, got {str(images.dtype)[6:]}"
            raise PrismError(f"camera '{camera}': {expected}; the encoder crops and normalises them itself")
        position, jitter, erase = ((draws or {}).get(f"{kind}.{camera}") for kind in ("crop", "jitter", "erase"))
        x = crop(images, *self.crops[camera], position).to(self.shift.dtype)  # type: ignore[arg-type]
        if jitter is not None:
            x = jitter_color(x, jitter, self.config.color_jitter)
        # Images lie with their channels last in memory; so does the result, which the convolutions prefer.
        x = torch.addcmul(self.shift, x, self.scale)  # type: ignore[arg-type]
        if erase is not None:
            x = erase_rectangle(x, erase, self.config.random_erasing)
        return x.permute(0, 3, 1, 2)

    def load_pretrained(self) -> None:
        """Begin with the weights that `config.pretrained` names; without any nothing changes.

        Raises:
            PrismError: what `pretrained_weights` raises; they do not fit the trunk.
        """
        if self.config.pretrained:
            self.load_imagenet(pretrained_weights(self.config))

    def load_imagenet(self, state: Mapping[str, Tensor]) -> list[str]:
        """Load an ImageNet classifier's weights into every camera's trunk; returns the tensors that start fresh."""
        trunks = [cast(CameraEncoder, encoder).trunk for encoder in self.encoders.values()]
        return [trunk.load_imagenet(state) for trunk in trunks][-1]

    def _inputs(
        self, images: Mapping[str, Tensor], draws: Mapping[str, Tensor] | None
    ) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Of every camera the trunk's input, and what shuffles its keypoints if something does."""
        if missing := [c for c in self.cameras if c not in images]:
            raise PrismError(f"camera '{missing[0]}' is missing; the encoder was built for {', '.join(self.cameras)}")
        if draws is None:
            some = images[next(iter(self.cameras))]
            draws = {name: numbers.to(some.device) for name, numbers in self.draw(some.shape[0]).items()}
        return {c: (self.prepare(c, images[c], draws), draws.get(f"order.{c}")) for c in self.cameras}

    def forward(self, images: Mapping[str, Tensor], draws: Mapping[str, Tensor] | None = None) -> Tensor:
        """Images of every camera, uint8 (B, H, W, 3), to (B, out_dim), cameras in the order given at construction.

        `draws` are what `draw` returned, on the images' device; drawn here where they are not given.
        """
        return torch.cat([self.encoders[c](*x) for c, x in self._inputs(images, draws).items()], dim=-1)

    def _keypoint_inputs(self, images: Mapping[str, Tensor]) -> dict[str, tuple[CameraEncoder, Tensor]]:
        """Every camera's encoder and its trunk's input."""
        if self.config.pooling != "spatial_softmax":
            raise PrismError(f"pooling '{self.config.pooling}' has no keypoints; expected 'spatial_softmax'")
        return {c: (cast(CameraEncoder, self.encoders[c]), x) for c, (x, _) in self._inputs(images, None).items()}

    def keypoints(self, images: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
        """Keypoints of every camera and stage, (B, K, 2) in [-1, 1] of the cropped image; spatial softmax only."""
        return {camera: encoder.pooled(x) for camera, (encoder, x) in self._keypoint_inputs(images).items()}

    def heatmaps(self, images: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
        """Where every camera's and stage's keypoints respond, (B, K, h, w), each summing to 1; spatial softmax only."""
        heatmaps: dict[str, list[Tensor]] = {}
        for camera, (encoder, x) in self._keypoint_inputs(images).items():
            pools, maps = [cast(SpatialSoftmax, pool) for pool in encoder.pool], encoder.feature_maps(x)
            heatmaps[camera] = [p.weights(m).view(len(m), -1, *m.shape[2:]) for p, m in zip(pools, maps, strict=True)]
        return heatmaps

    def attention(self, images: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
        """What the deepest stage's keypoints take from each earlier stage's tokens: (B, N_L, N_l) a stage; tdca only.

        Over all earlier stages together each row sums to 1.
        """
        if self.config.fusion != "tdca":
            raise PrismError(f"fusion '{self.config.fusion}' has no attention; expected 'tdca'")
        weights: dict[str, list[Tensor]] = {}
        for camera, keypoints in self.keypoints(images).items():
            fuse = cast(CameraEncoder, self.encoders[camera]).fuse
            assert fuse is not None
            counts = [1 if self.config.tokens == "stage" else k.shape[1] for k in keypoints[:-1]]
            weights[camera] = list(torch.split(fuse.attention(keypoints), counts, dim=2))
        return weights


class ImageEncoder(nn.Module):
    """One camera's float images, channels first, to features: in place of another library's image encoder.

    Usage::

        encoder = ImageEncoder(presets.encoder("prism"), 84, 84)
        features = encoder(images)  # (B, 3, 84, 84) in [0, 1] -> (B, encoder.out_dim)

    The crop, ImageNet's normalisation and, where the settings ask for them, augmentation and pretrained weights are
    inside: switch the other library's off.

    Args:
        low: value of black in the images; white is 1. A normaliser to [-1, 1] makes it -1.

    Raises:
        PrismError: as `VisualEncoder`.
    """

    def __init__(self, config: EncoderConfig, height: int, width: int, low: float = 0.0) -> None:
        super().__init__()
        self.visual, self.low = VisualEncoder(config, {"rgb": (height, width)}), low
        self.visual.load_pretrained()
        self.out_dim = self.visual.out_dim

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, out_dim); it distinguishes 256 levels, as a camera does."""
        levels = 255 * (images - self.low) / (1 - self.low)
        return self.visual({"rgb": levels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)})
