"""LeRobot's datasets, v3.0 and v2.1: read without LeRobot, written so that LeRobot opens them."""

from prism_policy.data.lerobot.source import LeRobotSource as LeRobotSource
