"""The range of a number stands in its field's type, `steps: Count = 1000`, and one function checks them all."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_type_hints

from prism_policy.errors import PrismError


@dataclass(frozen=True)
class Range:
    """Finite numbers from `low` to `high`, both included unless `open_low` or `open_high` says otherwise."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    unit: str = ""

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return math.isfinite(value) and above and below

    def __str__(self) -> str:
        if self.high < math.inf:
            low, high = "more than " * self.open_low, "less than " * self.open_high
            return f"{low}{self.low:g} to {high}{self.high:g} {self.unit}".rstrip()
        if self.low == -math.inf:
            return "a finite number"
        if self.open_low:
            return f"more than {self.low:g}"
        return "0 or more" if self.low == 0 else f"at least {self.low:g}"


Count = Annotated[int, Range(1)]
"""1, 2, 3, ..."""
Natural = Annotated[int, Range(0)]
"""0, 1, 2, ..."""
Finite = Annotated[float, Range()]
"""Any number but NaN and infinity."""
Positive = Annotated[float, Range(0, open_low=True)]
NonNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]


def check_ranges(config: Any, path: str = "") -> None:
    """Check every number of a config, nested ones and those in tuples too."""
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        value, wanted = getattr(config, name), range_of(hint)
        if dataclasses.is_dataclass(value):
            check_ranges(value, f"{path}{name}.")
        elif wanted is not None and value is not None:
            for number in value if isinstance(value, tuple) else (value,):
                if number not in wanted:
                    raise PrismError(f"{path}{name}: expected {wanted}, got {number}")


def range_of(hint: Any) -> Range | None:
    """The range that a type holds, also inside a tuple or a union with None."""
    if isinstance(hint, Range):
        return hint
    return next((found for part in get_args(hint) if (found := range_of(part)) is not None), None)
