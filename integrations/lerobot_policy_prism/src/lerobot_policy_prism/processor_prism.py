"""LeRobot's processors around the policy: a batch dimension and the device; numbers pass unchanged."""

from __future__ import annotations

from typing import Any

from lerobot.processor import PolicyProcessorPipeline, make_default_pre_post_processors
from torch import Tensor

from lerobot_policy_prism.configuration_prism import PrismConfig


def make_prism_pre_post_processors(
    config: PrismConfig, dataset_stats: dict[str, dict[str, Tensor]] | None = None
) -> tuple[PolicyProcessorPipeline[Any, Any], PolicyProcessorPipeline[Any, Any]]:
    """LeRobot's usual ones. Every feature is IDENTITY to them: the policy owns its normalizer, so they hold none."""
    return make_default_pre_post_processors(config, None)
