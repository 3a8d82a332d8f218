"""Progress of long work: a bar with an ETA on a terminal, elsewhere a line at least every half minute."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from threading import Event, Thread
from typing import ClassVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY_S = 30
"""Time between two lines where the output is no terminal [s]."""

console = Console(highlight=False, soft_wrap=True)
if not console.is_terminal:
    console.width = 140  # a file or a pipe has no width of its own; 80 would break tables

Stage = Callable[[str], AbstractContextManager[None]]
"""Makes a context around a stage of the work, by its name."""


def untimed(stage: str) -> AbstractContextManager[None]:
    """A stage that nobody times."""
    return nullcontext()


class Bar:
    """Progress of one stage, with a closing line that says how long it took.

    `with Bar("Training", total=1000) as bar: bar.update(10, "loss 0.31")`: done so far, latest metrics.
    """

    _open: ClassVar[list[Bar]] = []  # where one stage runs inside another, the inner one speaks for both

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total, self.done, self.text, self._valid = title, total, 0, "", ""
        self.started = time.perf_counter()
        self.progress = Progress(
            TextColumn("{task.description:<15}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            get_time=time.perf_counter,
            speed_estimate_period=600,
        )
        self.task = self.progress.add_task(title, total=total, text="")
        self._end = Event()
        self._lines = Thread(target=self._print_lines, daemon=True)

    def update(self, done: int, text: str = "") -> None:
        """Show `done` units as finished, and `text` beside them; an empty text leaves the last one."""
        self.done, self.text = done, text or self.text
        self.progress.update(self.task, completed=done, text=self.text)

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

    def _print_lines(self) -> None:
        """Where there is no bar: a line every half minute, also while a single unit takes longer."""
        while not self._end.wait(LINE_EVERY_S):
            if Bar._open[-1:] == [self]:
                left = self.progress.tasks[0].time_remaining
                eta = "-:--:--" if left is None else timedelta(seconds=round(left))
                console.print(f"{self.title:<15} {self.done}/{self.total}  ETA {eta}  {self.text}")

    def __enter__(self) -> Bar:
        Bar._open.append(self)
        self.progress.start()
        if not console.is_terminal:
            self._lines.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        Bar._open.remove(self)
        self._end.set()
        self.progress.stop()
        if error is None:
            seconds = time.perf_counter() - self.started
            console.print(f"{self.title:<15} {seconds:6.1f} s  {self.text}")
