"""Progress of long work: a bar with an ETA on a terminal, elsewhere a line at least every half minute."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from threading import Event, Thread
from typing import ClassVar, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from prism_policy.utils.terminal import console as console
from prism_policy.utils.terminal import errors, plain

LINE_EVERY_S = 30.0
"""Longest time without a line where the output is no terminal [s]."""

Stage = Callable[[str], AbstractContextManager[None]]
"""Makes a context around a stage of the work, by its name."""


def untimed(stage: str) -> AbstractContextManager[None]:
    """A stage that nobody times."""
    return nullcontext()


class Heartbeat:
    """Work that takes long: where the output is no terminal and nothing else speaks, a line every half minute."""

    _open: ClassVar[list[Heartbeat]] = []  # where one stage runs inside another, the inner one speaks for both
    terminal = errors  # that it is alive is no result: what a program reads from standard output stays whole

    def __init__(self, title: str) -> None:
        self.title, self.started = title, time.monotonic()
        self._end = Event()
        self._lines = Thread(target=self._print_lines, daemon=True)

    def line(self) -> str:
        """What to say after half a minute of silence."""
        return f"{self.title:<15} still running, {timedelta(seconds=round(time.monotonic() - self.started))}"

    def _print_lines(self) -> None:
        while not self._end.wait(min(1.0, LINE_EVERY_S)):
            open_ = Heartbeat._open  # before the outermost began, nobody was waiting for a word
            spoken = max(console.last_line, errors.last_line, open_[0].started if open_ else 0)
            if open_[-1:] == [self] and time.monotonic() - spoken >= LINE_EVERY_S:
                self.terminal.print(self.line())

    def __enter__(self) -> Self:
        Heartbeat._open.append(self)
        if not console.is_terminal:
            self._lines.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        Heartbeat._open.remove(self)
        self._end.set()


class Bar(Heartbeat):
    """Progress of one stage, with a closing line that says how long it took.

    `with Bar("Training", total=1000) as bar: bar.update(10, "loss 0.31")`: done so far, latest metrics.
    """

    terminal = console

    def __init__(self, title: str, total: int) -> None:
        super().__init__(title)
        self.total, self.done, self.text, self._valid = total, 0, "", ""
        self.progress = Progress(
            TextColumn("{task.description:<15}", markup=False),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            get_time=time.perf_counter,
            speed_estimate_period=600,
        )
        self.task = self.progress.add_task(plain(title), total=total, text="")

    def update(self, done: int, text: str = "") -> None:
        """Show `done` units as finished, and `text` beside them; an empty text leaves the last one."""
        self.done, self.text = done, text or self.text
        self.progress.update(self.task, completed=done, text=plain(self.text))

    def count(self, done: int, total: int) -> None:
        """Show `done` units as finished, with "3 of 10" beside them."""
        self.update(done, f"{done} of {total}")

    def train(self, done: int, line: dict[str, float]) -> None:
        """Show an update of a training with its metrics."""
        text = f"loss {line['loss']:.4f}, {line['samples_per_s']:.0f} windows/s, {line['waiting']:.0%} waiting"
        if "gpu_gib" in line:
            text += f", {line['gpu_gib']:.1f} GiB"
        if "valid_loss" in line:
            self._valid = f", held out {line['valid_loss']:.4f}"
        self.update(done, text + self._valid)

    def line(self) -> str:
        """How far it is."""
        left = self.progress.tasks[0].time_remaining
        eta = "-:--:--" if left is None else timedelta(seconds=round(left))
        return f"{self.title:<15} {self.done}/{self.total}  ETA {eta}  {self.text}"

    def __enter__(self) -> Self:
        self.progress.start()
        return super().__enter__()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        super().__exit__(kind, error, trace)
        self.progress.stop()
        if error is None:
            seconds = time.monotonic() - self.started
            console.print(f"{self.title:<15} {seconds:6.1f} s  {self.text}")
