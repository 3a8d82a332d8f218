"""lerobot-eval's environment starts where `prism evaluate` starts, and goes where the same actions go."""

import numpy as np
from lerobot.envs import make_env as lerobots
from lerobot.envs.utils import NEW_ROLLOUT_OPTION
from lerobot_env_prism import PrismEnvConfig

from prism_policy.envs.make import make_env

config = PrismEnvConfig(task="lift", resolution=64, max_steps=5)
theirs, ours = lerobots(config, n_envs=2)["prism"][0], make_env(config.task_config())
observed, _ = theirs.reset(seed=[3, 4], options={NEW_ROLLOUT_OPTION: True})
for row, episode in enumerate((3, 4)):
    expected, _ = ours.reset(seed=0, options={"split": "evaluate", "episode": episode})
    np.testing.assert_array_equal(observed["agent_pos"][row], expected["state"])
    for camera, image in expected["images"].items():
        np.testing.assert_array_equal(observed["pixels"][camera][row], image)
action = np.array([0.3, -0.2, -0.5, 0.0, 0.1, 0.0, -1.0], np.float32)
for step in range(5):
    observed, _, ended, truncated, info = theirs.step(np.stack([action, action]))
    expected, *_ = ours.step(action)
    np.testing.assert_array_equal(observed["agent_pos"][1], expected["state"])
    assert not ended.any()
    assert truncated.all() == (step == 4)
assert not info["is_success"].any()
assert theirs.call("task_description")[0]
print("equal starts")  # noqa: T201
