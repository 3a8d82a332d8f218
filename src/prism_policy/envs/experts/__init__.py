"""Scripted experts: generators that yield clean actions from live poses, and their demonstrations under disturbance.

An expert sees the simulator's ground truth and closes its loop on it: what it does next follows (nearly) from the
state, not from elapsed time, so that a policy can learn it and every disturbance shows how to recover. `base.py` has
what they share, a file of the task's name its script, `demonstration.py` the episode.
"""

from prism_policy.envs.experts.base import CLOSE, OPEN, Expert, down, nearest_quarter
from prism_policy.envs.experts.demonstration import Demonstration, Disturbance, demonstrate, expert_type

__all__ = [
    "CLOSE", "OPEN", "Demonstration", "Disturbance", "Expert", "demonstrate", "down", "expert_type",
    "nearest_quarter",
]  # fmt: skip
