"""`prism reproduce`: plan the cells of an experiment of the paper, run what is missing, write the tables."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from prism_policy.config.options import ClusterOptions
from prism_policy.config.ranges import check_ranges
from prism_policy.config.settings import Device, EvalConfig, PolicyKind, single_tasks
from prism_policy.config.typed_json import read_json
from prism_policy.errors import PrismError
from prism_policy.paper.cells import SCALES, Cell, Scale, find_cells, run_cell
from prism_policy.paper.experiments import Experiment, Variant, select
from prism_policy.paper.figures import draw_bars, draw_saliency_grid
from prism_policy.paper.printed import experiment
from prism_policy.paper.ray_cluster import run_on_ray
from prism_policy.paper.tables import collect_results
from prism_policy.paper.writers import cells_csv, entries_csv, markdown, page
from prism_policy.reports.report import write_report
from prism_policy.run_folder import differences
from prism_policy.tasks import task_spec
from prism_policy.utils.files import write_text
from prism_policy.utils.progress import Bar, console
from prism_policy.utils.text import shown


@dataclass(frozen=True)
class Plan:
    """An experiment's cells: those there and those to do."""

    experiment: Experiment
    scale: Scale
    seeds: tuple[int, ...]
    n_episodes: int
    cells: list[Cell]
    references: list[Cell]
    """Read where they are there, never run."""
    train: bool
    """Whether to train what is not; otherwise only what is trained already gets measured."""
    datasets: Mapping[str, Sequence[Path]]

    def measured(self, cell: Cell) -> bool:
        """Whether nothing is left to do."""
        names = self.experiment.checkpoints(cell.variant)
        return all(cell.records(name, self.n_episodes) and cell.reported(name) for name in names)

    @property
    def missing(self) -> list[Cell]:
        """Cells left to do, in order: whole seeds first, so that a table fills evenly."""
        return [cell for cell in self.cells if not self.measured(cell) and (self.train or cell.trained)]

    @property
    def data(self) -> str:
        """The demonstrations, for a sentence."""
        tasks = dict.fromkeys(cell.variant.task for cell in self.cells)
        scripted = [task for task in tasks if task not in self.datasets]
        parts = []
        if scripted:
            names = ", ".join(map(self._named, scripted)) + " each" * (len(scripted) > 1)
            number = self.cells[0].config.demos.num_demos
            parts.append(f"{number} scripted demonstrations of {names}, others for each seed")
        for task in self.datasets:
            used = dict.fromkeys(Path(c.config.dataset).name for c in self.cells if c.variant.task == task)
            parts.append(f"{', '.join(used)} ({task})")
        return f"trained on {' and '.join(parts)}"

    def _named(self, task: str) -> str:
        """A task, or the chosen tasks of a suite."""
        if not task_spec(task).members:
            return task
        numbers = next(cell.config.task.numbers for cell in self.cells if cell.variant.task == task)
        return f"each of {task}'s tasks {', '.join(map(str, numbers))}" if numbers else f"each task of {task}"


def make_plan(
    name: str,
    scale: Scale = "nano",
    tasks: Sequence[str] | None = None,
    policies: Sequence[PolicyKind] | None = None,
    seeds: Sequence[int] | None = None,
    n_episodes: int = 50,
    cells_dir: Path = Path("runs/cells"),
    datasets: Mapping[str, Sequence[Path]] | None = None,
    train: bool = True,
    numbers: Sequence[int] | None = None,
) -> Plan:
    """The cells of an experiment, seed by seed, and which of them are there already; writes nothing."""
    chosen = select(experiment(name), tasks, policies, numbers)
    seeds = tuple(dict.fromkeys(chosen.seeds if seeds is None else seeds))
    if not seeds or min(seeds) < 0:
        raise PrismError(f"seeds: expected at least one, each 0 or more, got {', '.join(map(str, seeds)) or 'none'}")
    check_ranges(EvalConfig(n_episodes, seed=max(seeds)))
    known = {variant.task for variant in chosen.variants}
    if other := [task for task in datasets or {} if task not in known]:
        raise PrismError(f"dataset of task '{other[0]}': this plan has {', '.join(sorted(known))}")
    cells = find_cells(chosen.variants, seeds, scale, cells_dir, datasets or {})
    read = {v for e in chosen.entries if e.reference for v in e.variants} - set(chosen.variants)
    references = find_cells(sorted(read, key=lambda v: v.name), seeds, scale, cells_dir, datasets or {})
    return Plan(chosen, scale, seeds, n_episodes, cells, references, train, datasets or {})


def print_plan(plan: Plan) -> None:
    """Print the cells and their state, what the rest costs, and what the scale can show."""
    console.print(plan.experiment.title, f"Scale {plan.scale}: {SCALES[plan.scale]}", "")
    table = Table("cell", *(f"seed {seed}" for seed in plan.seeds))
    by_variant: dict[Variant, list[str]] = {}
    for cell in plan.cells:
        state = "measured" if plan.measured(cell) else "trained" if cell.trained else "to do"
        by_variant.setdefault(cell.variant, []).append(state)
    for variant, states in by_variant.items():
        table.add_row(variant.name, *states)
    console.print(table)
    missing, measured = plan.missing, sum(map(plan.measured, plan.cells))
    untrained = [cell for cell in missing if not cell.trained]
    left_out = len(plan.cells) - measured - len(missing)
    console.print(
        f"{len(plan.cells)} cells: {measured} measured, {len(missing) - len(untrained)} trained and to be measured, "
        f"{len(untrained)} to be trained{f', {left_out} left out (--no-train)' * (left_out > 0)}; {plan.n_episodes} "
        "episodes each"
    )
    if missing:
        seconds = estimate(plan)
        known = seconds and f"about {duration(seconds)}, one cell after the other, as similar cells took so far"
        console.print(f"Time: {known or 'nothing was measured yet; look again after the first cell'}")
    if untrained:
        console.print(f"Demonstrations: {_demonstrations(untrained)}")


def estimate(plan: Plan) -> float | None:
    """Seconds that the missing cells take, each as long as those most alike took; None where none was timed."""
    seconds = 0.0
    for stage in ("train", "evaluate"):
        timed = [(c, s) for c in (*plan.cells, *plan.references) if (s := c.seconds(stage))]
        missing = [cell for cell in plan.missing if stage == "evaluate" or not cell.trained]
        if missing and not timed:
            return None
        for cell in missing:
            closest = max(_likeness(cell, other) for other, _ in timed)
            seconds += statistics.median(s for other, s in timed if _likeness(cell, other) == closest)
    return seconds


def _likeness(a: Cell, b: Cell) -> tuple[bool, ...]:
    """What of two cells is alike, the most important for their cost first."""
    names = ("task", "resolution", "policy", "views", "encoder")
    return tuple(getattr(a.variant, name) == getattr(b.variant, name) for name in names)


def _demonstrations(untrained: Sequence[Cell]) -> str:
    scripted = [c.config for c in untrained if not c.config.dataset]
    needed = {(config.task.name, single_tasks(config.task), config.demos) for config in scripted}
    if not needed:
        return "those of the given files"
    counts: Counter[str] = Counter()
    for task, single, demos in needed:
        counts[task] += demos.num_demos * len(single)
    what = ", ".join(f"{count} of {task}" for task, count in sorted(counts.items()))
    return f"{what}, made by the scripted expert where they are not in the cache"


def duration(seconds: float) -> str:
    """Minutes, hours or days."""
    if seconds < 5400:
        return f"{max(1, round(seconds / 60))} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * 86400 else f"{seconds / 86400:.1f} days"


def reproduce(plan: Plan, out: Path, options: ClusterOptions) -> Path:
    """Run what is missing and write the tables, anew after every cell; returns the page."""
    open_plan_folder(plan, out)
    failed: dict[str, str] = {}
    busy: list[str] = []
    missing = plan.missing

    with Bar("Cells", len(missing)) as bar:

        def on_done(number: int, outcome: bool | PrismError) -> None:
            cell = missing[number]
            if isinstance(outcome, PrismError):
                failed[cell.folder.name] = str(outcome)
                console.print(f"{cell.folder.name} failed: {outcome}")
            elif not outcome:
                busy.append(cell.folder.name)
            write_results(plan, out)
            bar.update(bar.done + 1, f"{bar.done + 1} of {len(missing)}")

        def on_ray_done(number: int, outcome: bool | PrismError) -> None:
            if outcome is True:
                write_report(missing[number].folder)  # which names the folder, as another machine has it
            on_done(number, outcome)

        checkpoints = [plan.experiment.checkpoints(cell.variant) for cell in missing]
        pairs = zip(missing, checkpoints, strict=True)
        work = [partial(_run_in, cell, names, plan.n_episodes, options.device) for cell, names in pairs]
        if options.ray is not None and missing:
            on_cores = [partial(do, max(1, int(options.cpus_per_cell))) for do in work]
            folders = [cell.folder.absolute() for cell in missing]
            run_on_ray(options.ray, folders, on_cores, on_ray_done, options.gpus_per_cell, options.cpus_per_cell)
        else:
            for number, (cell, do) in enumerate(zip(missing, work, strict=True)):
                console.print(f"{cell.folder.name} ({number + 1} of {len(missing)})", style="bold")
                try:
                    outcome: bool | PrismError = do(options.workers, cell.folder)
                except PrismError as error:
                    outcome = error
                on_done(number, outcome)
    path = write_results(plan, out)
    if busy:
        console.print(f"Left to another process that is at it: {', '.join(busy)}")
    if failed:
        name, reason = next(iter(failed.items()))
        count = f"{len(failed)} of {len(plan.cells)} cells failed"
        raise PrismError(f"{count}, first {name}: {reason} (what the others did: {path})")
    return path


def _run_in(
    cell: Cell, checkpoints: Sequence[str], n_episodes: int, device: Device, workers: int | None, folder: Path
) -> bool:
    """Run a cell in a folder, which on another machine is not the one of the plan."""
    return run_cell(replace(cell, folder=folder), checkpoints, n_episodes, device, workers)


def open_plan_folder(plan: Plan, out: Path) -> None:
    """Make `out` this plan's, or accept the one that already is: seeds, tasks and policies may differ."""
    settings = {
        "experiment": plan.experiment.name,
        "scale": plan.scale,
        "n_episodes": plan.n_episodes,
        "datasets": {task: [str(f.absolute()) for f in files] for task, files in plan.datasets.items()},
    }
    path = out / "plan.json"
    if path.exists():
        there = read_json(path, dict[str, Any], "choose another --out")
        for name, old, new in differences(there, settings):
            values = f"{name[:80]} is {shown(old)} there and {shown(new)} now"
            raise PrismError(f"{out} holds another plan: {values}; choose another --out")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PrismError(f"{out} exists and holds no plan (no plan.json in it); choose another --out")
    write_text(path, json.dumps(settings, indent=2) + "\n")


def write_results(plan: Plan, out: Path) -> Path:
    """Tables and figure from what is measured so far; returns the page."""
    cells = {(c.variant, c.seed): c for c in (*plan.cells, *plan.references)}
    results = collect_results(plan.experiment, plan.scale, plan.seeds, plan.n_episodes, cells=cells, data=plan.data)
    picture = out / "figure.png"
    if plan.experiment.name != "fig2" or not draw_saliency_grid(results, picture):
        draw_bars(results, picture)
    write_text(out / "table.md", markdown(results, picture.name))
    write_text(out / "table.csv", entries_csv(results))
    write_text(out / "cells.csv", cells_csv(results))
    write_text(out / "table.html", page(results, picture.read_bytes()))
    return out / "table.html"
