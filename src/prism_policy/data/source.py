"""Where demonstrations come from: one interface for every format, read lazily."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from prism_policy.config.settings import ActionMode
from prism_policy.data.episode import Episode
from prism_policy.data.facts import DatasetFacts, read_facts
from prism_policy.data.robomimic import iter_demos, split
from prism_policy.data.schema import Schema
from prism_policy.errors import PrismError
from prism_policy.utils.files import file_sample
from prism_policy.utils.text import listed


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
    """Demonstrations of an HDF5 file in robomimic's layout, with any keys and any number of action dimensions."""

    def __init__(self, path: Path, action_mode: ActionMode = "delta") -> None:
        """Read and check all but the images' content.

        Raises:
            PrismError: it cannot be read, or has no usable demonstration.
        """
        self.path, self.action_mode = path, action_mode
        self.facts: DatasetFacts = read_facts(path, action_mode)
        self.schema = self.facts.schema
        self.every = self.facts.names
        """Of all demonstrations, those that cannot be used among them."""
        self.names = tuple(name for name in self.every if name not in self.facts.bad)
        self.masks: Mapping[str, tuple[str, ...]] = self.facts.members
        self.mask_flaws, self.bad = self.facts.mask_flaws, self.facts.bad
        self.findings, self.reading = self.facts.findings, self.facts.reading

    def fingerprint(self) -> dict[str, Any]:
        """Size, time of change and a sample of the file, and which of its actions."""
        return {**file_print(self.path), "actions": self.action_mode}

    def episodes(self, names: Sequence[str], schema: Schema) -> Iterator[Episode]:
        """As `Source`; a demonstration that cannot be read is named, and ends it."""
        return iter_demos(self.path, action_mode=self.action_mode, schema=schema, names=names, checked=self.facts.kind)


class FolderSource:
    """Several datasets of one kind in a folder as one: episodes are named `dataset/episode`."""

    def __init__(self, path: Path, sources: Mapping[str, Source]) -> None:
        """Join what was opened already.

        Raises:
            PrismError: one holds other cameras or parts than the first.
        """
        first, *others = sources.values()
        for other in others:
            if other.schema != first.schema:
                wanted, got = (f"{list(one.cameras)}, {_sizes(one)}" for one in (first.schema, other.schema))
                raise PrismError(f"{other.path}: expected what {first.path.name} holds, {wanted}; got {got}")
        self.path, self.schema, self.sources = path, first.schema, sources
        self.names = tuple(f"{name}/{episode}" for name, source in sources.items() for episode in source.names)
        self.findings = tuple(f"{name}: {finding}" for name, source in sources.items() for finding in source.findings)
        reading = {name: getattr(source, "reading", source.findings) for name, source in sources.items()}
        self.reading = tuple(f"{name}: {finding}" for name, findings in reading.items() for finding in findings)
        masks: dict[str, list[str]] = {}
        for name, source in sources.items():
            for mask, members in source.masks.items():
                masks.setdefault(mask, []).extend(f"{name}/{member}" for member in members)
        self.masks: Mapping[str, tuple[str, ...]] = {mask: tuple(members) for mask, members in masks.items()}

    def fingerprint(self) -> dict[str, Any]:
        """Those of its datasets."""
        return {name: source.fingerprint() for name, source in self.sources.items()}

    def episodes(self, names: Sequence[str], schema: Schema) -> Iterator[Episode]:
        """As `Source`, dataset by dataset."""
        wanted: dict[str, list[str]] = {}
        for one in names:
            dataset, _, episode_name = one.partition("/")
            wanted.setdefault(dataset, []).append(episode_name)
        for name, source in self.sources.items():
            for episode in source.episodes(wanted[name], schema) if name in wanted else ():
                yield replace(episode, name=f"{name}/{episode.name}")


def _sizes(schema: Schema) -> str:
    return f"state of {schema.state_dim} and actions of {schema.action_dim} numbers"


def open_source(path: Path, action_mode: ActionMode = "delta", episodes: Sequence[str] = ()) -> Source:
    """The demonstrations at a path, in whichever format: an HDF5 file, a LeRobot folder, or a folder of either.

    Args:
        episodes: of LeRobot's, numbers and ranges such as "7" and "0:10"; none named is all.

    Raises:
        PrismError: there is nothing, or nothing that is known; or as the format's own reader.
    """
    if path.is_dir():
        if (path / "meta" / "info.json").exists():
            return _lerobot(path, episodes)
        inside = sorted((one for one in path.iterdir() if not one.name.startswith(".")), key=lambda one: one.name)
        parts = [one for one in inside if one.suffix in (".hdf5", ".h5") or (one / "meta" / "info.json").exists()]
        if not parts:
            found = listed([one.name for one in inside], 6)
            raise PrismError(
                f"{path}: expected an HDF5 file, or a LeRobot folder with meta/info.json, got a folder of {found}"
            )
        return FolderSource(path, {one.stem: open_source(one, action_mode, episodes) for one in parts})
    if not path.exists():
        raise PrismError(
            f"{path} not found; expected demonstrations there: robomimic's HDF5 layout or a LeRobot folder"
        )
    if episodes:
        raise PrismError(f"{path}: --data.episodes chooses episodes of LeRobot's; of an HDF5 file --data.mask does")
    return RobomimicSource(path, action_mode)


def _lerobot(path: Path, episodes: Sequence[str]) -> Source:
    from prism_policy.data.lerobot.source import LeRobotSource

    return LeRobotSource(path, episodes)


def file_print(path: Path) -> dict[str, Any]:
    """What tells a file from its other versions without reading all of it: size, time of change, a sample of bytes."""
    if not path.is_file():
        raise PrismError(f"{path} not found; expected demonstrations in robomimic's HDF5 layout there")
    about = path.stat()
    return {"bytes": about.st_size, "changed_ns": about.st_mtime_ns, "sample": file_sample(path)}


def split_demos(source: Source, mask: str = "", hold_out: bool = False) -> tuple[list[str], list[str], str]:
    """Demonstrations to learn from and held-out ones, and how they were chosen.

    With a `mask`, its members are learned and what `valid` holds beyond them is held out. Without, they are the
    masks `train` and `valid`; where one is missing, `valid` is empty or `train` the rest; where both are, all are
    learned and none held out, or with `hold_out` a tenth, always the same ones, and at least one of four.

    Raises:
        PrismError: a mask is missing, broken, empty, names what is not there, or shares demonstrations with the other.
    """
    again, flaws = "write the masks anew with `write_masks`", getattr(source, "mask_flaws", {})
    everything: tuple[str, ...] = getattr(source, "every", source.names)
    known = set(everything)

    def members(mask: str) -> list[str] | None:
        if mask in flaws:
            raise PrismError(f"{source.path}: {flaws[mask]}; {again}")
        if mask not in source.masks:
            return None
        names = source.masks[mask]
        if absent := [name for name in names if name not in known]:
            here = f"there are {everything[0]} to {everything[-1]}"
            raise PrismError(f"{source.path}: mask {mask!r}: no demonstration {absent[0]!r}; {here}; {again}")
        return list(dict.fromkeys(names))

    wanted = mask or "train"
    train, valid = members(wanted), members("valid")
    held_out = set(valid or ())
    if mask and train is None:
        raise PrismError(f"{source.path} has no mask {mask!r}; it has {listed(list(source.masks), 8)}")
    if train is not None and not train:
        raise PrismError(f"{source.path}: expected demonstrations in the mask {wanted!r}, got none; see `write_masks`")
    whole = train is None or len(train) == len(everything)  # as nearly all of LeRobot's are
    if hold_out and whole and not valid and not mask and len(everything) > 3:
        masks = split(everything, valid_share=0.1, seed=0)
        return masks["train"], masks["valid"], "nine of ten, as no mask holds any out"
    if train is None:
        train = [name for name in everything if name not in held_out]
        how = "all that 'valid' leaves" if valid else "all, as there are no masks"
        if not train:
            raise PrismError(
                f"{source.path}: mask 'valid' names every demonstration and none is left to learn; {again}"
            )
    else:
        how = f"mask {wanted!r}"
        if not mask and (both := [name for name in train if name in held_out]):
            shared = f"masks 'train' and 'valid' share {listed(both, 3)}: held-out ones would be learned"
            raise PrismError(f"{source.path}: {shared}; {again}")
    learned = set(train)
    return train, [name for name in valid or () if name not in learned], how
