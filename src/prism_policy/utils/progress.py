"""A progress bar with an ETA on a terminal; elsewhere nothing but the closing line."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(highlight=False, soft_wrap=True)
if not console.is_terminal:
    console.width = 140  # a file or a pipe has no width of its own; 80 would break tables


class Bar:
    """One stage's progress.

    Usage::

        with Bar("Training", total=1000) as bar:
            bar.update(10, "loss 0.31")  # done so far, latest figures
    """

    def __init__(self, title: str, total: int) -> None:
        self.title, self.done, self.text, self._valid = title, 0, "", ""
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
        )
        self.task = self.progress.add_task(title, total=total, text="")

    def update(self, done: int, text: str = "") -> None:
        """Show `done` units as finished, and `text` beside the bar (the last one stays when empty)."""
        self.done, self.text = done, text or self.text
        self.progress.update(self.task, completed=done, text=self.text)

    def count(self, done: int, total: int) -> None:
        """As `update`, with "3 of 10" beside the bar."""
        self.update(done, f"{done} of {total}")

    def train(self, done: int, line: dict[str, float]) -> None:
        """Show an update of `train` with its figures."""
        text = f"loss {line['loss']:.4f}, {line['samples_per_s']:.0f} windows/s, {line['waiting']:.0%} waiting"
        if "gpu_gib" in line:
            text += f", {line['gpu_gib']:.1f} GiB"
        if "valid_loss" in line:
            self._valid = f", held out {line['valid_loss']:.4f}"
        self.update(done, text + self._valid)

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        if error is None:
            seconds = time.perf_counter() - self.started
            console.print(f"{self.title:<15} {seconds:6.1f} s  {self.text}")
