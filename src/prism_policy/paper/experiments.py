"""What an experiment is: variants to train, the entries of its table over them, and what is compared with what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from prism_policy.config.settings import PolicyKind
from prism_policy.errors import PrismError
from prism_policy.tasks import task_spec

Key = tuple[str, str, str]
"""Block, row and column of an entry."""


@dataclass(frozen=True)
class Variant:
    """A policy to train, but for its seed and scale."""

    task: str
    policy: PolicyKind
    encoder: str
    truncate: bool = False
    shuffle: bool = False
    refine: bool = False
    """Refine blocks (Eq. 2) in an encoder whose preset has none."""
    views: Literal[1, 2] = 2
    """The scene's camera alone, or the wrist's too."""
    resolution: int = 84
    numbers: tuple[int, ...] = ()
    """Some tasks of a suite; empty is all."""

    @property
    def name(self) -> str:
        """Such as lift-flow_matching-sspool-shuffled."""
        marks = {"-truncated": self.truncate, "-shuffled": self.shuffle, "-refined": self.refine, "-1v": self.views < 2}
        size = f"-{self.resolution}px" if self.resolution != 84 else ""
        size += f"-tasks{'.'.join(map(str, self.numbers))}" * bool(self.numbers)
        return f"{self.task}-{self.policy}-{self.encoder}{''.join(m for m, on in marks.items() if on)}{size}"


Variants = tuple[Variant, ...]


@dataclass(frozen=True)
class Entry:
    """A number of a table: the mean success of some variants."""

    block: str
    row: str
    column: str
    variants: Variants
    paper: float | None = None
    """What the paper prints [%]; None where it gives no number."""
    paper_std: float | None = None
    checkpoint: Literal["last", "best"] = "last"
    reference: bool = False
    """Shown where its cells were trained for another table, never trained for this one."""
    partial: bool = False
    """Over fewer tasks or policies than the paper's number."""

    @property
    def key(self) -> Key:
        """Its place in the table."""
        return self.block, self.row, self.column


@dataclass(frozen=True)
class Comparison:
    """Entry `a` against entry `b`, episode by episode."""

    a: Key
    b: Key
    paper: float | None = None
    """The difference that the paper prints [points]; None is the difference of its two numbers."""


@dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper."""

    name: str
    title: str
    entries: tuple[Entry, ...]
    comparisons: tuple[Comparison, ...] = ()
    readings: tuple[str, ...] = ()
    """What the paper leaves open and is taken to mean, and where what it prints does not add up."""
    seeds: tuple[int, ...] = (0, 1, 2)

    @property
    def variants(self) -> list[Variant]:
        """What has to be trained, each once, in the order of the table."""
        return list(dict.fromkeys(v for e in self.entries if not e.reference for v in e.variants))

    def checkpoints(self, variant: Variant) -> tuple[str, ...]:
        """Whose success the table shows, `last` first."""
        wanted = {e.checkpoint for e in self.entries if variant in e.variants}
        return tuple(name for name in ("last", "best") if name in wanted)


def select(
    whole: Experiment,
    tasks: Sequence[str] | None = None,
    policies: Sequence[PolicyKind] | None = None,
    numbers: Sequence[int] | None = None,
) -> Experiment:
    """The experiment on some of its tasks (of a suite: `numbers`) and policies; means over fewer are marked partial."""
    variants = [v for e in whole.entries for v in e.variants]
    had_tasks = tuple(dict.fromkeys(v.task for v in variants))
    had_policies = tuple(dict.fromkeys(v.policy for v in variants))
    for what, chosen, had in (("tasks", tasks, had_tasks), ("policies", policies, had_policies)):
        if chosen is not None and not chosen:
            raise PrismError(f"{what}: expected at least one of {', '.join(had)}, got none")
        if other := [name for name in chosen or () if name not in had]:
            raise PrismError(f"{whole.name} has no {what} '{other[0]}'; it has {', '.join(had)}")
    if numbers and not any(task_spec(v.task).members for v in variants):
        raise PrismError(f"numbers: expected none, as {whole.name} has no LIBERO suite, got {tuple(numbers)}")
    kept, shown = {}, set()
    for entry in sorted(whole.entries, key=lambda e: "Avg." in e.key):
        chosen_variants = tuple(
            replace(v, numbers=tuple(numbers or ())) if task_spec(v.task).members else v
            for v in entry.variants
            if v.task in (tasks or had_tasks) and v.policy in (policies or had_policies)
        )
        # A mean over what another entry already shows is none.
        if chosen_variants and not ("Avg." in entry.key and (entry.block, chosen_variants) in shown):
            kept[entry.key] = replace(entry, variants=chosen_variants, partial=chosen_variants != entry.variants)
            shown.add((entry.block, chosen_variants))
    entries = tuple(kept[e.key] for e in whole.entries if e.key in kept)
    keys = {e.key for e in entries}
    comparisons = tuple(c for c in whole.comparisons if {c.a, c.b} <= keys)
    return replace(whole, entries=entries, comparisons=comparisons)
