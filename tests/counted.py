"""What counts work, for tests of how it grows: seconds depend on the machine, and these do not."""

from __future__ import annotations


class Name(str):
    """A name that counts how often names are compared or searched."""

    calls = 0

    def __eq__(self, other: object) -> bool:
        Name.calls += 1
        return str.__eq__(self, other)

    def __hash__(self) -> int:
        return str.__hash__(self)

    def startswith(self, *arguments: object) -> bool:  # type: ignore[override]
        Name.calls += 1
        return str.startswith(self, *arguments)  # type: ignore[arg-type]

    def partition(self, *arguments: object) -> tuple[str, str, str]:  # type: ignore[override]
        Name.calls += 1
        return str.partition(self, *arguments)  # type: ignore[arg-type]
