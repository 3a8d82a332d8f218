"""The commands that measure trained policies: evaluate, compare, report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from prism_policy.cli.command import Command, Flat
from prism_policy.config.options import EvalOptions
from prism_policy.config.ranges import Workers
from prism_policy.config.settings import Device
from prism_policy.utils.terminal import console


@dataclass(frozen=True)
class Evaluate(Command):
    """Roll trained policies out in unseen episodes: success rate with its interval, videos and a report.

    Writes results/, videos/ and report.html into each run folder. An episode's outcome depends on its seed and number
    alone, whatever runs beside it. Stop it whenever you like: finished episodes are kept, and more episodes, seeds and
    checkpoints can be added later. Next: prism compare RUN_A RUN_B.
    """

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders. With several, the mean over them is printed, too."""
    options: Annotated[EvalOptions, Flat] = field(default_factory=EvalOptions)
    device: Device = "auto"
    """Where to compute; auto is a GPU where there is one."""
    workers: Workers | None = None
    """Simulator processes; by default one for each core of the job."""

    def run(self) -> None:
        """Evaluate, and print success and where the reports lie."""
        from prism_policy.reports.evaluate import evaluate_runs, print_runs, print_summary

        summaries = evaluate_runs(self.folders, self.options, self.workers, self.device)
        for folder, summary in zip(self.folders, summaries, strict=True):
            print_summary(folder, summary)
        if len(summaries) > 1:
            print_runs(self.folders, summaries)


@dataclass(frozen=True)
class Compare(Command):
    """Compare two evaluated runs episode by episode, on the starts that both have met.

    Prints the difference of their success rates with its 95% interval and McNemar's exact test, and writes them as
    JSON.
    """

    run_a: Annotated[Path, tyro.conf.Positional]
    """A run folder."""
    run_b: Annotated[Path, tyro.conf.Positional]
    """Another one, or the same one with another checkpoint."""
    checkpoints: tuple[str, str] = ("last", "last")
    """Whose episodes, of A and of B."""
    split: Literal["evaluate", "validate", "trials"] = "evaluate"
    """Split of the episodes; trials are those of `prism trials`."""
    out: Path | None = None
    """The JSON file; by default in A's results."""

    def run(self) -> None:
        """Compare, and print the file's place."""
        from prism_policy.evaluation.compare import compare

        console.print(f"Result: {compare(self.run_a, self.run_b, self.checkpoints, self.split, self.out)}")


@dataclass(frozen=True)
class Report(Command):
    """Write report.html of a run folder again, from the files in it."""

    folder: Annotated[Path, tyro.conf.Positional]
    """The run folder."""

    def run(self) -> None:
        """Write it, and print its place."""
        from prism_policy.reports.report import write_report

        console.print(f"Report: {write_report(self.folder)}")
