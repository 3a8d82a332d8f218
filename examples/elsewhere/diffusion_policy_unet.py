"""PRISM as the rgb_model of diffusion_policy's MultiImageObsEncoder: diffusion_policy_unet.py [UPDATES]."""

import sys

import torch
from diffusers import DDPMScheduler
from diffusion_policy.common.normalize_util import get_image_range_normalizer
from diffusion_policy.model.common.normalizer import LinearNormalizer
from diffusion_policy.model.vision.multi_image_obs_encoder import MultiImageObsEncoder
from diffusion_policy.policy.diffusion_unet_image_policy import DiffusionUnetImagePolicy

import prism_policy as pp

shapes = {"obs": {"agentview_image": {"shape": [3, 84, 84], "type": "rgb"}, "robot0_eef_pos": {"shape": [3]}},
          "action": {"shape": [7]}}  # fmt: skip
prism = pp.ImageEncoder(pp.presets.encoder("prism"), 84, 84, low=-1)  # as the policy's normaliser leaves images
eye = MultiImageObsEncoder(shapes, prism, crop_shape=None, imagenet_norm=False)  # PRISM crops and normalises inside
noise = DDPMScheduler(100, beta_schedule="squaredcos_cap_v2", prediction_type="epsilon")
policy = DiffusionUnetImagePolicy(shapes, noise, eye, horizon=16, n_action_steps=8, n_obs_steps=2, down_dims=(64, 128))

# Your dataset's batches: here one of random numbers, which the policy learns by heart.
images, positions = torch.randint(0, 256, (8, 2, 3, 84, 84)) / 255, torch.rand(8, 2, 3)
batch = {"obs": {"agentview_image": images, "robot0_eef_pos": positions}, "action": torch.rand(8, 16, 7)}
normalizer = LinearNormalizer()
normalizer.fit({"robot0_eef_pos": positions, "action": batch["action"]})
normalizer["agentview_image"] = get_image_range_normalizer()
policy.set_normalizer(normalizer)
optimizer = torch.optim.AdamW(policy.parameters(), 1e-4)
for _ in range(int((*sys.argv[1:], 20)[0])):
    loss = policy.compute_loss(batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"loss {loss.item():.3f}")
