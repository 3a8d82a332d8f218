"""gym-pusht: push a T onto its outline; the adapter, and a scripted pusher."""

from __future__ import annotations

from prism_policy.envs.gym.adapter import Camera, ObservationAdapter, StatePart
from prism_policy.tasks.robot import Part

ADAPTER = ObservationAdapter(
    cameras={"top": Camera(lambda env, observation: observation["pixels"], 96, 96)},
    state={"agent": StatePart(lambda env, observation: observation["agent_pos"], "position", ("x", "y"))},
    action=(Part("target", 2, "position", ("x", "y")),),
    make={"obs_type": "pixels_agent_pos", "render_mode": "rgb_array"},
    imports="gym_pusht",
)
