"""Where demonstrations come from: one interface for every format, read lazily."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from prism_policy.data.episode import Episode
from prism_policy.data.schema import Schema


class Source(Protocol):
    """Recorded demonstrations; opening one reads no images."""

    path: Path
    schema: Schema
    """All that is recorded, at the sizes of the recording."""
    names: tuple[str, ...]
    """Of the usable episodes, in order."""
    masks: Mapping[str, tuple[str, ...]]
    """Named lists of episodes, such as `train`; empty where the format has none."""
    findings: tuple[str, ...]
    """What to know before learning from it, a sentence each; episodes that are left out, and why, among them."""

    def fingerprint(self) -> dict[str, Any]:
        """What tells this content from any other without reading all of it; JSON. The frame cache is keyed by it."""
        ...

    def episodes(self, names: Sequence[str], schema: Schema) -> Iterator[Episode]:
        """Episodes one after the other, each read when it is needed, of the cameras and parts that `schema` selects."""
        ...


class RobomimicSource:
    """Temporary, until the schema's branch brings its own."""

    def __init__(self, path: Path) -> None:
        """Open it."""
        from prism_policy.data.facts import read_facts
        from prism_policy.data.schema import Part

        facts = read_facts(path)
        self.path, self.findings = path, facts.findings
        self.names = tuple(name for name in facts.names if name not in facts.bad)
        self.masks: Mapping[str, tuple[str, ...]] = facts.members
        parts = (
            ("robot0_eef_pos", 3, "position"),
            ("robot0_eef_quat", 4, "rotation"),
            ("robot0_gripper_qpos", 2, "joint"),
        )
        state = tuple(Part(*part) for part in parts)
        action = (Part("position", 3, "position"), Part("rotation", 3, "rotation"), Part("gripper", 1, "gripper"))
        self.schema = Schema(facts.images, state, action, 20.0)

    def fingerprint(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def episodes(self, names: Sequence[str], schema: Schema) -> Iterator[Episode]:
        """All."""
        from prism_policy.data.robomimic import iter_demos

        return (e for e in iter_demos(self.path, list(schema.cameras), skip_bad=True) if e.name in names)


def open_source(path: Path, action_mode: str = "delta", episodes: Sequence[str] = ()) -> Source:
    """Temporary, until the schema's branch brings its own."""
    from prism_policy.data.lerobot.source import LeRobotSource

    return LeRobotSource(path, episodes) if path.is_dir() else RobomimicSource(path)
