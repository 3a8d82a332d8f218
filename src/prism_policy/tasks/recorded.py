"""Recorded: whatever a dataset shows, of any robot, that nothing here simulates."""

from __future__ import annotations

from prism_policy.tasks.spec import NO_SIMULATOR, TaskSpec

RECORDED = TaskSpec(
    name="recorded",
    simulator=NO_SIMULATOR,
    env_name="",
    check=lambda env, heights: (),
    stages=(),
    phases=(),
    expert="",
    cameras=(),
    action_modes=("delta",),
    nano_steps=2000,
)
