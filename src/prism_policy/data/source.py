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
