"""Write configs as JSON and read them back; a value that does not fit, or is out of its range, is named by its path."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar

from prism_policy.config.typed_json import conform, read_json

T = TypeVar("T")


def to_json(config: Any) -> str:
    """Return any config as indented JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_dict(cls: type[T], data: Any, path: str = "") -> T:
    """Build a config from plain JSON values."""
    return conform(cls, data, path.rstrip("."))


def load(cls: type[T], path: Path) -> T:
    """Read a config from a JSON file; a PrismError says what is wrong with it."""
    remedy = "restore it or start a new run folder"
    return read_json(path, cls, remedy, "expected the configuration of a run there")
