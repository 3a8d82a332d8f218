"""lerobot-rollout on a robot that is none: two cameras, joints that go where they are sent."""

from dataclasses import dataclass

import lerobot_policy_prism  # noqa: F401 (registers the policy)
import numpy as np
from lerobot.robots import Robot, RobotConfig
from lerobot.scripts.lerobot_rollout import main

JOINTS = [f"joint_{i}.pos" for i in range(9)]
OBSERVED = {**dict.fromkeys(JOINTS, float), "agentview": (32, 32, 3), "robot0_eye_in_hand": (32, 32, 3)}
SENT = dict.fromkeys(JOINTS[:7], float)
sent = []


@RobotConfig.register_subclass("made_up_arm")
@dataclass(kw_only=True)
class MadeUpArmConfig(RobotConfig):
    pass


class MadeUpArm(Robot):
    config_class = MadeUpArmConfig
    name = "made_up_arm"
    is_connected = is_calibrated = True
    observation_features = OBSERVED
    action_features = SENT

    def __init__(self, config: MadeUpArmConfig) -> None:
        super().__init__(config)
        self.cameras, self.joints = {}, dict.fromkeys(JOINTS, 0.5)

    def connect(self, calibrate: bool = True) -> None:
        pass

    calibrate = configure = disconnect = lambda self: None

    def get_observation(self) -> dict:
        images = {
            name: np.zeros(shape, np.uint8) for name, shape in self.observation_features.items() if shape is not float
        }
        return {**self.joints, **images}

    def send_action(self, action: dict) -> dict:
        assert set(action) == set(self.action_features)
        assert np.isfinite(list(action.values())).all()
        sent.append(action)
        return action


if __name__ == "__main__":
    main()
    print("actions sent:", len(sent))  # noqa: T201
