"""Generative policies over action chunks, on one encoder and one U-Net."""

from __future__ import annotations

from prism_policy.config.settings import PolicyConfig
from prism_policy.data.schema import Schema
from prism_policy.policies.base import Policy
from prism_policy.policies.ddpm import DDPMPolicy
from prism_policy.policies.flow_matching import FlowMatchingPolicy
from prism_policy.policies.instructions import Instructions
from prism_policy.policies.meanflow import MeanFlowPolicy

__all__ = ["Policy", "build_policy"]


def build_policy(
    config: PolicyConfig,
    schema: Schema,
    task_dim: int = 0,
    instructions: Instructions | None = None,
) -> Policy:
    """The policy that `config.kind` names.

    Args:
        schema: cameras, state and actions of the robot.
        task_dim: numbers of the embedding `observation["task"]` that says what to do; 0 for a single task.
        instructions: turn an instruction into such an embedding, whose `task_dim` is theirs.
    """
    kinds = {"ddpm": DDPMPolicy, "flow_matching": FlowMatchingPolicy, "meanflow": MeanFlowPolicy}
    return kinds[config.kind](config, schema, task_dim, instructions)
