"""PRISM's encoders and policies for LeRobot: `lerobot-train --policy.type=prism`."""

from lerobot_policy_prism.configuration_prism import PrismConfig as PrismConfig
