"""What long work says of itself where its output is no terminal."""

from __future__ import annotations

import time

import pytest

from prism_policy.utils import progress, terminal
from prism_policy.utils.progress import LINE_EVERY_S, Bar, Heartbeat
from prism_policy.utils.terminal import console, errors


class Clock:
    """A clock that only waiting moves."""

    def __init__(self) -> None:
        self.now, self.waits, self.ends = 1000.0, [0.0], 0

    def perf_counter(self) -> float:
        return self.now

    monotonic = perf_counter


class Output:
    """What was printed so far."""

    def __init__(self, captured: pytest.CaptureFixture[str]) -> None:
        self.captured, self.printed, self.complained = captured, "", ""

    def getvalue(self) -> str:
        more = self.captured.readouterr()
        self.printed, self.complained = self.printed + more.out, self.complained + more.err
        return self.printed


@pytest.fixture
def output(capsys: pytest.CaptureFixture[str]) -> Output:
    return Output(capsys)


class Steps:
    """Stands for the event that ends the lines: each wait does the work of half a minute, the last one ends it."""

    def __init__(self, bar: Bar, clock: Clock, done: list[int]) -> None:
        self.bar, self.clock, self.left = bar, clock, list(done)

    def wait(self, seconds: float) -> bool:
        self.clock.waits.append(seconds)
        self.clock.now += LINE_EVERY_S
        if self.left:
            self.bar.update(self.left.pop(0), "loss 0.5")
            return False
        return True

    def set(self) -> None:
        self.clock.ends += 1


def test_work_without_a_terminal_says_every_half_minute_how_far_it_is(
    output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(terminal, "time", clock)
    console.last_line = errors.last_line = clock.now
    with Bar("Training", 1000) as bar:
        bar.update(400, "loss 0.9")  # a resumed run begins here
        bar._end.set()
        bar._lines.join()
        bar._end = Steps(bar, clock, [500, 600, 600])  # type: ignore[assignment]
        bar._print_lines()
    lines = output.getvalue().splitlines()
    assert LINE_EVERY_S <= 30
    assert max(clock.waits) <= 1  # a line is due half a minute after the last one, whoever printed that
    assert [line.split() for line in lines[:2]] == [
        ["Training", "500/1000", "ETA", "0:02:30", "loss", "0.5"],
        ["Training", "600/1000", "ETA", "0:02:00", "loss", "0.5"],
    ]
    assert lines[2].split()[:2] == ["Training", "600/1000"]  # nothing was finished, and it says so
    assert lines[3].split() == ["Training", "120.0", "s", "loss", "0.5"]
    assert len(lines) == 4


def test_only_the_innermost_stage_speaks(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.01)
    with Bar("Cells", 3), Bar("Training", 10) as bar:
        bar.update(4)
        while "Training" not in output.getvalue():
            time.sleep(0.01)
        assert "Cells" not in output.getvalue()
    assert [line.split()[0] for line in output.getvalue().splitlines()][-2:] == ["Training", "Cells"]


def test_work_that_fails_ends_without_a_closing_line(output: Output) -> None:
    with pytest.raises(ValueError, match="no"), Bar("Training", 3):
        raise ValueError("no")
    assert not output.getvalue()


def test_work_without_a_bar_says_that_it_goes_on_and_where_programs_do_not_read(
    output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.01)
    with Heartbeat("prism info"):
        while output.complained.count("\n") < 2:
            assert not output.getvalue()
            time.sleep(0.01)
    assert output.complained.splitlines()[0].split() == ["prism", "info", "still", "running,", "0:00:00"]


def test_silence_is_counted_from_the_beginning_of_the_work(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 2.0)
    monkeypatch.setattr(console, "last_line", time.monotonic() - 100)  # imports took as long
    monkeypatch.setattr(errors, "last_line", time.monotonic() - 100)
    with Heartbeat("prism info"):
        time.sleep(1.3)
    assert not output.getvalue()
    assert not output.complained


def test_where_something_was_just_said_nothing_is_added(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.2)
    with Bar("Training", 10):
        for _ in range(10):
            console.print("a figure")
            time.sleep(0.05)
    assert [line for line in output.getvalue().splitlines() if "0/10" in line] == []
