"""The range of a number stands in its field's type, `steps: Count = 1000`, and one function checks them all."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_type_hints

from prism_policy.errors import PrismError
from prism_policy.utils.text import shown

LARGEST = 2**63 - 1
"""What a seed or a counter can be in torch and numpy."""


@dataclass(frozen=True)
class Range:
    """Finite numbers from `low` to `high`, both included unless `open_low` or `open_high` says otherwise.

    `most` is a limit that is far from anything sensible, and is named only where it is exceeded.
    """

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    unit: str = ""
    most: int = LARGEST

    def __contains__(self, value: Any) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below and -LARGEST <= value <= self.most  # false of NaN; an int may be too large for a float

    def __str__(self) -> str:
        if self.high < math.inf:
            low, high = "more than " * self.open_low, "less than " * self.open_high
            return f"{low}{self.low:g} to {high}{self.high:g} {self.unit}".rstrip()
        if self.low == -math.inf:
            return "a finite number"
        if self.open_low:
            return f"more than {self.low:g}"
        return "0 or more" if self.low == 0 else f"at least {self.low:g}"

    def check(self, value: Any, path: str) -> None:
        """Refuse what is no number in the range, naming its field."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise PrismError(f"{path}: expected {self}, got {shown(value)}")
        if value not in self:
            beyond = self.high == math.inf and value != math.inf and bool(value > self.most)
            expected = f"at most {self.most}" if beyond else str(self)
            raise PrismError(f"{path}: expected {expected}, got {shown(value)}")


Count = Annotated[int, Range(1)]
"""1, 2, 3, ..."""
Natural = Annotated[int, Range(0)]
"""0, 1, 2, ..."""
Seed = Natural
"""Of random generators."""
Size = Annotated[int, Range(1, most=2**16)]
"""Of something that lies in memory: channels, steps of a chunk, frames of a history."""
Number = Annotated[int, Range(1, most=10**6)]
"""Of things that are listed one by one: episodes, demonstrations, scenes."""
Workers = Annotated[int, Range(1, most=1024)]
"""Processes or threads."""
Resolution = Annotated[int, Range(8, 2048, unit="px")]
"""Width and height of a frame."""
Finite = Annotated[float, Range()]
"""Any number but NaN and infinity."""
Positive = Annotated[float, Range(0, open_low=True)]
NonNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]


def check_ranges(config: Any, path: str = "", flat: bool = False) -> None:
    """Check every number of a config, nested ones and those in tuples too; `flat` names fields without their config."""
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        value, wanted = getattr(config, name), range_of(hint)
        if dataclasses.is_dataclass(value):
            check_ranges(value, path if flat else f"{path}{name}.", flat)
        elif wanted is not None and value is not None:
            for number in value if isinstance(value, tuple) else (value,):
                wanted.check(number, f"{path}{name}")


def range_of(hint: Any) -> Range | None:
    """The range that a type holds, also inside a tuple or a union with None."""
    if isinstance(hint, Range):
        return hint
    return next((found for part in get_args(hint) if (found := range_of(part)) is not None), None)
