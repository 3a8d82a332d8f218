"""The policy's loss in compiled parts: each camera's encoder, and what is computed of the conditions it gives."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch

from prism_policy.policies import Policy
from prism_policy.training.health import check_compiler


def compiled(policy: Policy, deterministic: bool = False) -> Policy:
    """A stand-in that computes the policy's loss with its parameters and buffers, compiled.

    In parts: cameras of one size share one graph, so that there is half as much to compile, and where several processes
    train, the gradients of a part are averaged while the next part's are computed. The policy itself stays as it is:
    validation and rollouts, in other shapes and modes, do not have it compiled anew.

    Args:
        deterministic: no kernel is chosen by its speed in a trial, which may come out another way the next time.

    Raises:
        PrismError: there is no C++ compiler.
    """
    check_compiler()
    shared = {id(x): x for x in itertools.chain(policy.parameters(), policy.buffers())}
    stand_in = copy.deepcopy(policy, shared)
    # Channels last is forced: Inductor decides by the forward convolutions of a graph, of which a backward graph has
    # none. Static, as two cameras' sizes say nothing of the sizes to come.
    settings: dict[str, Any] = {
        "dynamic": False,
        "options": {"force_layout_optimization": True, "deterministic": deterministic},
    }
    for encoder in set(stand_in.encoder.encoders.values()):
        encoder.compile(**settings)
    stand_in.chunk_loss = torch.compile(stand_in.chunk_loss, **settings)  # type: ignore[method-assign]
    return stand_in
