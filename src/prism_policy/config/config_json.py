"""Write configs as JSON and read them back; a value that does not fit is named by its path."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

from prism_policy.errors import PrismError

T = TypeVar("T")


def to_json(config: Any) -> str:
    """Return any config as indented JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_dict(cls: type[T], data: Any, path: str = "") -> T:
    """Build a config from plain JSON values."""
    if not isinstance(data, dict):
        raise PrismError(f"{path or cls.__name__}: expected an object with fields, got {data!r}")
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(data) - known):
        raise PrismError(f"unknown field '{path}{unknown[0]}'; {cls.__name__} has {', '.join(sorted(known))}")
    return cls(**{name: _coerce(hints[name], value, f"{path}{name}") for name, value in data.items()})


def _coerce(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, f"{path}.")
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value in args:
            return value
        raise PrismError(f"{path}: expected one of {', '.join(map(str, args))}; got {value!r}")
    if origin is tuple and isinstance(value, (list, tuple)):
        inner = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(inner) == len(value):
            return tuple(_coerce(h, v, f"{path}[{i}]") for i, (h, v) in enumerate(zip(inner, value, strict=True)))
    if origin in (typing.Union, types.UnionType):
        for option in args:
            try:
                return _coerce(option, value, path)
            except PrismError:
                continue
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise PrismError(f"{path}: expected {getattr(hint, '__name__', hint)}, got {value!r}")


def load(cls: type[T], path: Path) -> T:
    """Read a config from a JSON file; a PrismError says what is wrong with it."""
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise PrismError(f"{path} not found; expected the configuration of a run there") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PrismError(f"{path} is not valid JSON ({error}); restore it or start a new run folder") from error
    return from_dict(cls, data)
