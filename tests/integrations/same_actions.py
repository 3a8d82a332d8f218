"""RUN CHECKPOINT SAVED BACK: a run's actions here and in LeRobot; what LeRobot saves, and a run made of that."""

import sys
from pathlib import Path

import numpy as np
import torch
from lerobot.policies.factory import make_pre_post_processors
from lerobot_policy_prism.modeling_prism import PrismPolicy

from prism_policy.deploy.lerobot_checkpoint import read_checkpoint
from prism_policy.run_folder import load_policy, read_run
from prism_policy.utils.images import Resize

run, checkpoint, saved, back = map(Path, sys.argv[1:])
ours = load_policy(run)
theirs = PrismPolicy.from_pretrained(checkpoint)
before, after = make_pre_post_processors(theirs.config, str(checkpoint))
settings = read_run(run).data
resize = Resize.parse(settings.resize, settings.crop) or Resize()
rng = np.random.default_rng(0)
images = rng.integers(0, 256, (24, 40, 40, 3), np.uint8)
centre = (-ours.normalizer["state"].offset / ours.normalizer["state"].scale).numpy()
states = (centre + rng.uniform(-0.05, 0.05, (24, len(centre)))).astype(np.float32)


def lerobots(policy: PrismPolicy) -> np.ndarray:
    torch.manual_seed(7)
    policy.reset()
    made = []
    for image, state in zip(images, states, strict=True):
        frame = {
            "observation.images.agentview": torch.from_numpy(image).movedim(-1, 0).float() / 255,
            "observation.state": torch.from_numpy(state),
        }
        with torch.inference_mode():
            made.append(after(policy.select_action(before(frame))))
    return torch.cat(made).numpy()


torch.manual_seed(7)
expected = []
for i in range(0, 24, 8):
    at = [max(i - 1, 0), i]
    observation = {"images": {"agentview": resize(images[at])[None]}, "state": states[at][None]}
    expected.append(ours.act(observation)[0].numpy())
expected = np.concatenate(expected)
np.testing.assert_array_equal(lerobots(theirs), expected)

theirs.save_pretrained(saved)
before.save_pretrained(saved)
after.save_pretrained(saved)
np.testing.assert_array_equal(lerobots(PrismPolicy.from_pretrained(saved)), expected)
read_checkpoint(saved, back)
assert load_policy(back).fingerprint() == ours.fingerprint()
print(f"{len(expected)} actions equal")  # noqa: T201
