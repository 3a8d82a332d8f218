"""Frames of demonstrations of a simulated Panda, from episodes or a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prism_policy.data.episode import Episode
from prism_policy.data.frames import Frames, open_frames
from prism_policy.data.robomimic import usual_state
from prism_policy.data.schema import ABSOLUTE_ACTION, DELTA_ACTION, STATE, Part, Schema
from prism_policy.data.source import RobomimicSource


def schema(size: int, state: int, action: int) -> Schema:
    """One camera, and numbers without a meaning."""
    return Schema({"agentview": (size, size)}, (Part("state", state),), (Part("action", action),))


def schema_of(episode: Episode) -> Schema:
    """Its images, the arm's state and action."""
    cameras = {camera: (x.shape[1], x.shape[2]) for camera, x in episode.images.items()}
    return Schema(cameras, STATE, DELTA_ACTION if episode.actions.shape[1] == 7 else ABSOLUTE_ACTION, 20.0)


def frames_of(episodes: Sequence[Episode]) -> Frames:
    return Frames.of(episodes, schema_of(episodes[0]))


def frames_in(path: Path, cameras: Sequence[str], cache: Path, **options: Any) -> Frames:
    """What is in a file, by way of the cache."""
    return source_frames(RobomimicSource(path), cameras, cache, **options)


def source_frames(source: RobomimicSource, cameras: Sequence[str], cache: Path, **options: Any) -> Frames:
    schema = source.schema.select(state=usual_state(source.schema))
    schema = replace(schema, cameras={camera: schema.cameras[camera] for camera in cameras})
    return open_frames(source, schema, cache, **options)
