"""What long work says of itself where its output is no terminal."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from prism_policy.utils import progress
from prism_policy.utils.progress import LINE_EVERY_S, Bar


class Clock:
    """A clock that only waiting moves."""

    def __init__(self) -> None:
        self.now, self.waits, self.ends = 1000.0, [0.0], 0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    written = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=written, width=140, highlight=False))
    return written


class Steps:
    """Stands for the event that ends the lines: each wait does the work of half a minute, the last one ends it."""

    def __init__(self, bar: Bar, clock: Clock, done: list[int]) -> None:
        self.bar, self.clock, self.left = bar, clock, list(done)

    def wait(self, seconds: float) -> bool:
        self.clock.waits.append(seconds)
        self.clock.now += seconds
        if self.left:
            self.bar.update(self.left.pop(0), "loss 0.5")
            return False
        return True

    def set(self) -> None:
        self.clock.ends += 1


def test_work_without_a_terminal_says_every_half_minute_how_far_it_is(
    output: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(progress.time, "perf_counter", clock.perf_counter)
    with Bar("Training", 1000) as bar:
        bar.update(400, "loss 0.9")  # a resumed run begins here
        bar._end.set()
        bar._lines.join()
        bar._end = Steps(bar, clock, [500, 600, 600])  # type: ignore[assignment]
        bar._print_lines()
    lines = output.getvalue().splitlines()
    assert LINE_EVERY_S <= 30
    assert set(clock.waits) == {0.0, LINE_EVERY_S}
    assert [line.split() for line in lines[:2]] == [
        ["Training", "500/1000", "ETA", "0:02:30", "loss", "0.5"],
        ["Training", "600/1000", "ETA", "0:02:00", "loss", "0.5"],
    ]
    assert lines[2].split()[:2] == ["Training", "600/1000"]  # nothing was finished, and it says so
    assert lines[3].split() == ["Training", "120.0", "s", "loss", "0.5"]
    assert len(lines) == 4


def test_only_the_innermost_stage_speaks(output: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.01)
    with Bar("Cells", 3), Bar("Training", 10) as bar:
        bar.update(4)
        while "Training" not in output.getvalue():
            time.sleep(0.01)
        assert "Cells" not in output.getvalue()
    assert [line.split()[0] for line in output.getvalue().splitlines()][-2:] == ["Training", "Cells"]


def test_work_that_fails_ends_without_a_closing_line(output: io.StringIO) -> None:
    with pytest.raises(ValueError, match="no"), Bar("Training", 3):
        raise ValueError("no")
    assert not output.getvalue()
