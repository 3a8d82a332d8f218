"""JSON from files that anything may have happened to, as values of the types and ranges that are expected.

The command that owns a damaged file makes it anew from what is sound, and says so (`Journal.repaired`); one that only
reads it refuses, with a sentence that names the file and what to do (`Journal.sound`, `read_json`).
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prism_policy.config.ranges import range_of
from prism_policy.errors import PrismError
from prism_policy.utils.progress import console
from prism_policy.utils.text import parsed_json, shown

MOST_BYTES = 2**26
"""Of a JSON file. Of journals too, for each line."""


def conform(hint: Any, value: Any, path: str = "") -> Any:
    """A JSON value as a type has it: dataclasses, TypedDicts, tuples, lists, mappings, unions, numbers in a `Range`.

    Raises:
        PrismError: it does not fit; the message names the field by its path.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        value = conform(args[0], value, path)
        if (wanted := range_of(hint)) is not None:
            wanted.check(value, path)
        return value
    if origin in (typing.Required, typing.NotRequired):
        return conform(args[0], value, path)
    if dataclasses.is_dataclass(hint) or typing.is_typeddict(hint):
        return _with_fields(hint, value, path)
    if origin is Literal:
        if value in args:
            return value
        raise PrismError(f"{path}: expected one of {', '.join(map(str, args))}; got {shown(value)}")
    if origin is tuple and isinstance(value, (list, tuple)):
        inner = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(inner) == len(value):
            return tuple(conform(h, v, f"{path}[{i}]") for i, (h, v) in enumerate(zip(inner, value, strict=True)))
    if origin is dict and isinstance(value, dict):
        return {key: conform(args[1], one, f"{path}.{shown(key)}") for key, one in value.items()}
    if origin in (typing.Union, types.UnionType):
        return _one_of(args, value, path)
    if hint is Any or (hint is None and value is None):
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**1000:
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise PrismError(f"{path}: expected {getattr(hint, '__name__', hint)}, got {shown(value)}")


def _with_fields(hint: Any, value: Any, path: str) -> Any:
    """A dataclass, of which nothing else may be there; or a TypedDict, of which the rest is left as it is."""
    prefix = path and f"{path}."
    if not isinstance(value, dict):
        raise PrismError(f"{prefix or hint.__name__}: expected an object with fields, got {shown(value)}")
    hints = typing.get_type_hints(hint, include_extras=True)
    unknown, missing = sorted(value.keys() - hints.keys()), []
    if typing.is_typeddict(hint):
        optional = {name for name, one in hints.items() if typing.get_origin(one) is typing.NotRequired}
        missing = sorted(hint.__required_keys__ - optional - value.keys())
    elif unknown:
        name = unknown[0] if len(unknown[0]) < 80 and unknown[0].isprintable() else shown(unknown[0])
        raise PrismError(f"unknown field '{prefix}{name}'; {hint.__name__} has {', '.join(sorted(hints))}")
    if missing:
        raise PrismError(f"{prefix}{missing[0]} is missing")
    fields = {name: conform(hints[name], one, f"{prefix}{name}") for name, one in value.items() if name in hints}
    return {**value, **fields} if typing.is_typeddict(hint) else hint(**fields)


def _one_of(options: tuple[Any, ...], value: Any, path: str) -> Any:
    """The first of the types that fits; what the last but None says of it where none does."""
    reason: PrismError | None = None
    for option in options:
        try:
            return conform(type(None) if option is None else option, value, path)
        except PrismError as error:
            reason = reason if option is type(None) else error
    raise reason or PrismError(f"{path}: expected null, got {shown(value)}")


def read_json(path: Path, hint: Any, remedy: str, missing: str = "") -> Any:
    """The value in a JSON file, of this type.

    Raises:
        PrismError: there is none (`missing` says what to do, by default `remedy`), or it is damaged or does not fit.
    """
    try:
        with open_file(path, MOST_BYTES) as file:
            data = file.read()
    except FileNotFoundError as error:
        raise PrismError(f"{path} not found; {missing or remedy}") from error
    try:
        value = _parsed(data)
    except ValueError as error:
        raise PrismError(f"{path} is not valid JSON ({error}); {remedy}") from error
    try:
        return conform(hint, value)
    except PrismError as error:
        raise PrismError(f"{path}: {error}; {remedy}") from error


def open_file(path: Path, most_bytes: float = math.inf) -> typing.BinaryIO:
    """Open a file to read.

    Raises:
        FileNotFoundError: there is nothing at this place.
        PrismError: it cannot be read, is a folder, or longer than `most_bytes`.
    """
    try:
        if path.exists() and not path.is_file():
            raise PrismError(f"{path} is {'a folder' if path.is_dir() else 'no file'}, expected a file; move it away")
        if path.stat().st_size > most_bytes:
            size, limit = path.stat().st_size, f"at most {most_bytes / 2**20:.0f} MiB"
            raise PrismError(f"{path}: expected {limit}, found {size / 2**20:.0f} MiB; restore it or move it away")
        return open(path, "rb")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise PrismError(f"cannot read {path} ({error.strerror}); make it readable or move it away") from error


def _parsed(data: bytes) -> Any:
    """What JSON says; ValueError, in a few words, where it is none."""
    try:
        return parsed_json(data.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is no UTF-8") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


@dataclass(frozen=True)
class Journal:
    """The sound lines of a JSON-lines file, and what is wrong with the others."""

    path: Path
    lines: list[dict[str, Any]]
    flaw: str = ""
    """The first damaged line and why, and how many there are; empty where all are sound."""

    def sound(self, remedy: str) -> list[dict[str, Any]]:
        """All lines, for a command that only reads the file: refused where some are damaged."""
        if self.flaw:
            raise PrismError(f"{self.path} is damaged ({self.flaw}); {remedy}")
        return self.lines

    def repaired(self, consequence: str) -> list[dict[str, Any]]:
        """The sound lines, for the command that writes the file, which says what becomes of the others."""
        if self.flaw:
            console.print(f"{self.path} is damaged ({self.flaw}): {consequence}")
        return self.lines


def read_journal(
    path: Path, hint: Any, most_bytes: int = 2**30, key: Callable[[dict[str, Any]], object] | None = None
) -> Journal:
    """Read a JSON-lines file whose lines are of this type; none where there is no file.

    A last line that was cut off, as a kill leaves it, is no damage: it has never been there. With `key`, neither is it
    that two lines are equal in full; two that have the same key and differ are.
    """
    lines: list[dict[str, Any]] = []
    flaws: list[str] = []
    keys: dict[object, dict[str, Any]] = {}
    try:
        file = open_file(path, most_bytes)
    except FileNotFoundError:
        return Journal(path, [])
    with file:
        for number, raw in enumerate(file, start=1):
            try:
                line = _parsed(raw)
                conform(hint, line)  # the line itself is kept, to be written again as it is
                if key is not None and (before := keys.setdefault(key(line), line)) is not line:
                    if before == line:
                        continue
                    raise PrismError(f"another line says otherwise of {shown(key(line))}")
                lines.append(line)
            except (ValueError, PrismError) as error:
                if raw.endswith(b"\n"):
                    flaws.append(f"line {number}: {error}")
    more = f", and {len(flaws) - 1} more" if len(flaws) > 1 else ""
    return Journal(path, lines, flaws[0] + more if flaws else "")
