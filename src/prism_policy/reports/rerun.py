"""Episodes as Rerun recordings (.rrd): cameras, keypoints, the hand's path, actions and predicted chunks over time.

They are made from the states after the rollout: what the policy saw is drawn again, and its noise is known.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from prism_policy.config.settings import TaskConfig
from prism_policy.data.actions import decode_absolute
from prism_policy.data.schema import Part, slices
from prism_policy.errors import PrismError
from prism_policy.evaluation.rollouts import as_batch, episode_noise, rows_of, sample_chunks
from prism_policy.evaluation.videos import observe_all
from prism_policy.policies import Policy
from prism_policy.saliency.heatmaps import keypoint_pixels
from prism_policy.tasks.spec import CONTROL_HZ
from prism_policy.utils.files import atomic
from prism_policy.utils.observations import Observation, stack_history

ACTION_NAMES = ("x", "y", "z", "rx", "ry", "rz", "gripper")


def check_rerun() -> None:
    """Raise a PrismError if Rerun is not installed."""
    try:
        import rerun  # noqa: F401 (the question is whether it is there)
    except ModuleNotFoundError as error:
        raise PrismError("Rerun is not installed; run `pip install prism-policy[rerun]`") from error


def record(path: Path, task: TaskConfig, policy: Policy, states: Path, split: str, seed: int, episode: int) -> None:
    """Write the recording (.rrd) of an episode from the file of its states."""
    check_rerun()
    import rerun as rr

    observations = observe_all(task, states)
    recording = rr.RecordingStream(f"prism {task.name}", recording_id=f"{split}-s{seed}-episode-{episode}")
    with atomic(path) as temporary:
        recording.save(temporary)
        _log(rr, recording, task, policy, observations, episode_noise(split, seed, episode), episode)
        recording.flush()
        recording.disconnect()


def _log(
    rr: Any,
    recording: Any,
    task: TaskConfig,
    policy: Policy,
    observations: list[Observation],
    noise: torch.Generator,
    episode: int,
) -> None:
    n_obs, n_act = policy.config.n_obs_steps, policy.config.n_action_steps
    schema, names = policy.schema, tuple[str, ...](ACTION_NAMES)
    if not task.spec.own_robot:
        names = tuple(f"{part.name}/{name}" for part in schema.action for name in part.number_names)
    hands = (place for part, place in zip(schema.state, slices(schema.state).values(), strict=True) if _is_point(part))
    hand = next((np.stack([o["state"][place] for o in observations]) for place in hands), None)
    actions = np.zeros((0, len(names)))
    for step, observation in enumerate(observations):
        recording.set_time("step", sequence=step)
        recording.set_time("time", duration=step / (schema.fps or CONTROL_HZ))
        for camera, image in observation["images"].items():
            recording.log(f"cameras/{camera}", rr.Image(image))
        _log_keypoints(rr, recording, policy, observation)
        if hand is not None:
            recording.log("hand", rr.Points3D(hand[step], radii=0.01))
            recording.log("hand/path", rr.LineStrips3D([hand[: step + 1]]))
        if step == len(observations) - 1:
            break  # nothing was done after the last one
        if step % n_act == 0:
            history = [observations[max(step - i, 0)] for i in reversed(range(n_obs))]
            rows, instruction = rows_of(policy), policy.task_condition(task)
            chunk = sample_chunks(policy, [stack_history(history)], [noise], [episode], rows, instruction)[0]
            chunk = decode_absolute(chunk) if task.action_mode == "absolute" else chunk
            actions = chunk[n_obs - 1 : n_obs - 1 + n_act]
            recording.log("chunk", rr.Tensor(chunk, dim_names=("step", "action")))
            if task.action_mode == "absolute":
                recording.log("hand/predicted", rr.LineStrips3D([chunk[:, :3]]))
        for name, value in zip(names, actions[step % n_act], strict=True):
            recording.log(f"action/{name}", rr.Scalars(value))


def _is_point(part: Part) -> bool:
    return part.kind == "position" and part.size == 3


def _log_keypoints(rr: Any, recording: Any, policy: Policy, observation: Observation) -> None:
    settings = policy.config.encoder
    if settings.pooling != "spatial_softmax":
        return
    images = {c: x.to(policy.device) for c, x in as_batch([observation])["images"].items()}
    with torch.no_grad():
        keypoints = policy.encoder.keypoints(images)
    for camera, stages in keypoints.items():
        height, width = policy.encoder.cameras[camera]
        for stage, points in zip(settings.stages_read, stages, strict=True):
            pixels = keypoint_pixels(points[0].cpu().numpy(), height, width, settings.crop, stage)
            entity = f"cameras/{camera}/keypoints/stage_{stage}"
            recording.log(entity, rr.Points2D(pixels + 0.5, radii=1.0))  # Rerun counts from the corner
