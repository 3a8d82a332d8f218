"""Generative policies over action chunks, on one encoder and one U-Net."""

from __future__ import annotations

from collections.abc import Mapping

from prism_policy.config import PolicyConfig
from prism_policy.policies.base import Policy
from prism_policy.policies.flow_matching import FlowMatchingPolicy

__all__ = ["Policy", "build_policy"]


def build_policy(
    config: PolicyConfig, cameras: Mapping[str, tuple[int, int]], proprio_dim: int, action_dim: int
) -> Policy:
    """The policy that `config.kind` names, for cameras of the given (height, width)."""
    match config.kind:
        case "flow_matching":
            return FlowMatchingPolicy(config, cameras, proprio_dim, action_dim)
