"""FOLDER ENCODER...: every encoder with every policy takes an update, is saved, loaded, and acts as before."""

import sys
from pathlib import Path

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot_policy_prism.configuration_prism import EncoderOptions, PrismConfig
from lerobot_policy_prism.modeling_prism import PrismPolicy

folder, *encoders = sys.argv[1:]
count = 0
for name in encoders:
    for kind in ("ddpm", "flow_matching", "meanflow"):
        config = PrismConfig(
            kind=kind,
            size="nano",
            encoder=EncoderOptions(name=name),
            down_dims=(16, 32),
            step_embed_dim=16,
            resize_shape=(72, 64),
            device="cpu",
            input_features={
                "observation.images.top": PolicyFeature(FeatureType.VISUAL, (3, 90, 120)),
                "observation.images.wrist": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
                "observation.state": PolicyFeature(FeatureType.STATE, (6,)),
            },
            output_features={"action": PolicyFeature(FeatureType.ACTION, (5,))},
        )
        stats = {
            "observation.state": {"min": [-2.0] * 6, "max": [2.0] * 6},
            "action": {"min": [-3.0] * 5, "max": [3.0] * 5},
        }
        torch.manual_seed(0)
        policy = PrismPolicy(config, dataset_stats=stats).train()
        batch = {
            "observation.images.top": torch.rand(2, 2, 3, 90, 120),
            "observation.images.wrist": torch.rand(2, 2, 3, 64, 64),
            "observation.state": torch.rand(2, 2, 6),
            "action": torch.rand(2, 16, 5),
        }
        optimizer = config.get_optimizer_preset().build(policy.get_optim_params())
        for _ in range(2):
            loss, _about = policy(batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            policy.update()
        assert torch.isfinite(loss)
        assert not torch.equal(next(policy.ema.parameters()), next(policy.model.parameters())), name
        place = Path(folder) / f"{name}-{kind}"
        policy.eval().save_pretrained(place)
        again = PrismPolicy.from_pretrained(place)
        frame = {key: x[:, -1] for key, x in batch.items() if key != "action"}
        chunks = []
        for one in (policy, again):
            torch.manual_seed(1)
            chunks.append(one.predict_action_chunk(frame))
        assert chunks[0].shape == (2, 15, 5)
        assert torch.equal(*chunks), (name, kind)
        left = torch.zeros(10, 5)
        left[:4] = chunks[0][0, 3:7]
        known = again.predict_action_chunk(frame, inference_delay=9, prev_chunk_left_over=left)
        torch.testing.assert_close(known[0, :4], left[:4])
        assert not torch.equal(known[:, 4:9], torch.zeros_like(known[:, 4:9]))  # LeRobot's padding is no action
        assert policy.supports_rtc() == (kind != "meanflow")
        count += 1
print(f"{count} policies")  # noqa: T201
