"""The command `prism reproduce`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from prism_policy.cli.command import Command, Flat
from prism_policy.config.options import ClusterOptions
from prism_policy.config.ranges import Natural, Number, Seed
from prism_policy.config.settings import PolicyKind
from prism_policy.errors import PrismError
from prism_policy.tasks import task_spec
from prism_policy.utils.terminal import console, shell


@dataclass(frozen=True)
class Reproduce(Command):
    """Reproduce a table or figure of the paper, cell by cell (task, policy, encoder, seed).

    Shows the plan and its cost, then collects or reads the demonstrations, trains, evaluates, and writes table.md,
    table.csv, table.html and figure.png, with our numbers beside the paper's. Stop it whenever you like: the same
    command goes on where it was, and another seed runs only what is new.

    NAME is table1 to table6 (table6 is LIBERO), fig2 (saliency), fig4 (components), fig5 (multiscale poolings),
    precision (Square, not a table of the paper), ladder (Lift, step by step harder to see), table7 (on a robot, from
    the folders of `prism trials`), or study (the claims, over training seeds, on one core).
    """

    name: Annotated[str, tyro.conf.Positional]
    """Table, figure or other experiment."""
    scale: Literal["nano", "small", "paper"] = "nano"
    """Sizes: nano for two CPU cores (four minutes a cell of Lift), small and paper for a GPU."""
    tasks: tuple[str, ...] | None = None
    """Tasks of the table; by default all."""
    numbers: tuple[Natural, ...] | None = None
    """Tasks of LIBERO's suites, by their place; by default all ten."""
    policies: tuple[PolicyKind, ...] | None = None
    """Policies of the table; by default all."""
    seeds: tuple[Seed, ...] | None = None
    """Training seeds, each with episodes of its own; by default the paper's three (one in table5)."""
    n_episodes: Number | None = None
    """Unseen episodes a cell; by default 50, as in the paper."""
    dataset: tuple[str, ...] = ()
    """Demonstrations with images, TASK=FILE each (a cell takes the first that fits); by default a scripted expert's."""
    cells: Path = Path("runs/cells")
    """Folder of the cells, which all tables share."""
    out: Path | None = None
    """Folder of the table; by default runs/reproduce-NAME-SCALE."""
    dry_run: bool = False
    """Show the plan and its cost, and do nothing."""
    train: bool = True
    """Train cells that are not trained yet; --no-train leaves them out."""
    smoke: bool = False
    """Run the same path at the smallest size; its numbers mean nothing."""
    encoders: tuple[str, ...] | None = None
    """Encoders of the study; by default all (its --tasks may name some of lift and lift_2cm)."""
    report: bool = False
    """Of the study: only write the report of the cells measured so far."""
    trials: tuple[str, ...] = ()
    """Of table7: folders of `prism trials`; COLUMN=FOLDER (StackCube or KeyPick) where the task's name does not say."""
    cluster: Annotated[ClusterOptions, Flat] = field(default_factory=ClusterOptions)

    def run(self) -> None:
        """Show the plan, run what is missing of it, and print where the table lies."""
        if self.name == "study":
            self._study()
            return
        if self.name == "table7":
            self._table7()
            return
        if self.trials:
            raise PrismError(f"--trials: {self.name} is trained and measured here; leave it out, or ask for table7")
        from prism_policy.paper.reproduce import make_plan, print_plan, reproduce

        datasets: dict[str, list[Path]] = {}
        for assignment in self.dataset:
            task, equals, file = assignment.partition("=")
            if not equals:
                raise PrismError(f"--dataset: expected TASK=FILE, got {assignment!r}")
            datasets.setdefault(task_spec(task).name, []).append(Path(file))
        scale: Literal["nano", "small", "paper", "smoke"] = "smoke" if self.smoke else self.scale
        plan = make_plan(
            name=self.name,
            scale=scale,
            tasks=None if self.tasks is None else [task_spec(task).name for task in self.tasks],
            policies=self.policies,
            seeds=self.seeds,
            n_episodes=self.n_episodes if self.n_episodes is not None else 2 if self.smoke else 50,
            cells_dir=self.cells,
            datasets=datasets,
            train=self.train,
            numbers=self.numbers,
        )
        print_plan(plan)
        out = self.out or Path("runs") / f"reproduce-{self.name}-{scale}"
        if self.dry_run:
            console.print("Nothing was done (--dry-run).")
            return
        path = reproduce(plan, out, self.cluster)
        console.print(f"Table: {path} (also table.md, table.csv, cells.csv, figure.png)")
        more = [*plan.seeds, max(plan.seeds) + 1]
        seeds = shell("--seeds", *more)
        console.print(f"Next:  {shell('prism', 'reproduce', self.name)} ... {seeds}   (runs only what is new)")

    def _table7(self) -> None:
        """Write the table from trials."""
        from prism_policy.paper.table7 import print_table7, read_trials, write_table7

        mine = ("name", "trials", "out")
        default = type(self)("table7")
        if changed := [n for n in vars(self) if n not in mine and getattr(self, n) != getattr(default, n)]:
            raise PrismError(f"{changed[0]}: table7 is made of trials, which say all that there is to it; leave it out")
        results = read_trials(self.trials)
        out = self.out or Path("runs/reproduce-table7")
        print_table7(results)
        console.print(f"Table: {write_table7(results, out)} (also table.csv)")

    def _study(self) -> None:
        """Show the study's cells and their cost, run what is missing, and write the report."""
        from prism_policy.paper.study import missing_cells, plan_cells, print_cells, read_cells, run_cells
        from prism_policy.paper.study_report import report
        from prism_policy.utils.files import write_text

        fixed = ("scale", "numbers", "policies", "n_episodes", "dataset", "train", "smoke", "cluster")
        default = type(self)("study")
        if changed := [name for name in fixed if getattr(self, name) != getattr(default, name)]:
            raise PrismError(f"{changed[0]}: the study's plan fixes it (results/PLAN.md); leave it out")
        out = self.out or Path("results/study")
        journal = out / "cells.jsonl"
        cells = plan_cells(self.seeds, self.tasks, self.encoders)
        missing = missing_cells(cells, read_cells(journal))
        print_cells(cells, missing, read_cells(journal))
        if self.dry_run:
            console.print("Nothing was done (--dry-run).")
            return
        if not self.report:
            run_cells(missing, journal, self.cells)
        if lines := read_cells(journal):
            write_text(out / "table.md", report(lines))
            console.print(f"Report: {out / 'table.md'} ({len(lines)} cells in {journal})")
