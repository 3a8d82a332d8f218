"""PRISM as the eye of LeRobot's own DiffusionPolicy: lerobot_diffusion.py FOLDER."""

import sys

import torch
from lerobot.configs.types import NormalizationMode as Mode
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.diffusion import modeling_diffusion
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.factory import make_pre_post_processors
from lerobot.utils.feature_utils import dataset_to_policy_features

import prism_policy as pp


def prism(config):
    """In place of DiffusionRgbEncoder; crop and normalisation are inside."""
    encoder = pp.ImageEncoder(pp.presets.encoder("prism"), *next(iter(config.image_features.values())).shape[1:])
    encoder.feature_dim = encoder.out_dim  # as LeRobot calls it
    return encoder


modeling_diffusion.DiffusionRgbEncoder = prism
data = LeRobotDataset("local", root=sys.argv[1])
features = dataset_to_policy_features(data.meta.features)
inputs = {k: f for k, f in features.items() if "images" in k or k == "observation.state"}
modes = {"VISUAL": Mode.IDENTITY, "STATE": Mode.MIN_MAX, "ACTION": Mode.MIN_MAX}
kinds = {"input_features": inputs, "output_features": {"action": features["action"]}, "normalization_mapping": modes}
config = DiffusionConfig(**kinds, use_separate_rgb_encoder_per_camera=True, down_dims=(64, 128, 256), device="cpu")
policy = modeling_diffusion.DiffusionPolicy(config)
prepare, _ = make_pre_post_processors(config, dataset_stats=data.meta.stats)
data = LeRobotDataset("local", root=sys.argv[1], delta_timestamps=resolve_delta_timestamps(config, data.meta))
optimizer = torch.optim.AdamW(policy.parameters(), 1e-4)
for _, batch in zip(range(20), torch.utils.data.DataLoader(data, 8, shuffle=True), strict=False):
    loss, _ = policy.forward(prepare(batch))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"loss {loss.item():.3f}")
