"""The settings of a visual encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from prism_policy.config.ranges import Fraction, Range, Size

Pooling = Literal["spatial_softmax", "avg", "max", "none"]
Fusion = Literal["last", "concat", "tdca"]
Tokens = Literal["keypoint", "stage"]
TokenEmbedding = Literal["shared", "identity", "own"]
RefineBlock = Literal["bottleneck", "basic"]
Norm = Literal["group", "batch", "frozen_batch"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class EncoderConfig:
    """A visual encoder as independent choices; `presets.encoder(name)` spells out the paper's."""

    pooling: Pooling = "spatial_softmax"
    """What is kept of a feature map: where it responds (spatial_softmax, Eq. 1), its mean, its maximum, or all."""
    fusion: Fusion = "tdca"
    """The deepest stage alone, all stages concatenated, or top-down cross-attention over the stages (Eq. 3)."""
    refine: bool = True
    """Residual refine block before the pooling of each stage (Eq. 2)."""
    refine_block: RefineBlock = "bottleneck"
    """A 3x3 convolution on half the channels between two 1x1, or two full 3x3 (about ten times the operations)."""
    truncate: bool = False
    """Drop the deepest of `stages` (the paper's Truncated ResNet18)."""
    shuffle_keypoints: bool = False
    """Permute the (x, y) pairs, anew for every sample, in training and inference (Table 2)."""
    depth: Literal[18, 34, 50] = 18
    """ResNet depth."""
    width: Size = 64
    """Channels of the first stage; the following stages double it."""
    norm: Norm = "group"
    """GroupNorm with C/16 groups (Table 10), BatchNorm, or BatchNorm that stays as the pretrained weights have it."""
    pretrained: str = ""
    """Weights that the trunk begins with: imagenet, or a safetensors file of a ResNet; empty is random (the paper)."""
    stages: tuple[Annotated[int, Range(1, 4)], ...] = (1, 2, 3, 4)
    """Stages of the trunk to read, shallow to deep; fusion `last` reads the deepest of them."""
    num_keypoints: Size | None = 32
    """Keypoints a stage (spatial softmax only); None takes the stage's channels, without a 1x1 convolution."""
    temperature: Annotated[float, Range(1e-6)] = 1.0
    """Temperature of the spatial softmax (tau in Eq. 1)."""
    learn_temperature: bool = False
    """Learn the temperature of each stage, starting from `temperature`."""
    crop: Annotated[float, Range(0, 1, open_low=True)] = 0.9
    """Share of the image kept by the crop, random in training, centred in evaluation: 84 px becomes 76."""
    color_jitter: Fraction = 0.0
    """Most by which brightness, contrast and saturation of an image change in training, as a share; 0 is off."""
    random_erasing: Fraction = 0.0
    """How often a rectangle of an image, 2 to 20% of it, is blanked in training; 0 is off."""
    attention_dim: Size = 200
    """Dimension of the cross-attention (d in Eq. 3)."""
    tokens: Tokens = "keypoint"
    """What the cross-attention sees as one token: all keypoints of a stage, or each keypoint."""
    token_embedding: TokenEmbedding = "identity"
    """How tokens are embedded: one linear map (shared), and a vector for each (identity), or a map for each (own)."""
    residual_query: bool = False
    """Add the deepest stage's tokens to what they attend to; Eq. 3 has them as the query alone."""
    out_dim: Size = 320
    """Numbers a camera after the fusion's projection (tdca only)."""
    precision: Precision = "float32"
    """Arithmetic of the convolutions of trunk and refine blocks; pooling, fusion and weights stay in float32."""
    share_cameras: bool = False
    """One trunk for all cameras instead of one each (Table 10: one each)."""

    @property
    def stages_read(self) -> tuple[int, ...]:
        """Stages whose feature maps are pooled, shallow to deep."""
        stages = self.stages[:-1] if self.truncate else self.stages
        return stages[-1:] if self.fusion == "last" else stages
