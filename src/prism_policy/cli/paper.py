"""The command `prism reproduce`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, cast, get_args

import tyro

from prism_policy.config.settings import AnyTask, Device, PolicyKind
from prism_policy.errors import PrismError


@dataclass(frozen=True)
class Reproduce:
    """Run an experiment of the paper cell by cell (task, policy, encoder, seed) and fill in its table.

    Shows the plan and its cost, then makes or finds the demonstrations, trains, evaluates, and writes table.md, .csv,
    .html and figure.png, ours and the paper's numbers in columns of their own. Stop it whenever you like: the same
    command goes on where it was, and another seed runs only what is new.
    """

    name: Annotated[str, tyro.conf.Positional]
    """table1, table2, table3, table4, table5, table6 (LIBERO), fig2 (saliency), fig4 (components), fig5 (multiscale
    poolings) or precision (Square, not a table of the paper)."""
    scale: Literal["nano", "small", "paper"] = "nano"
    """nano: two CPU cores, ten minutes a cell of Lift. small: the paper's networks, a GPU's quarter of an hour or so a
    cell. paper: the paper's training."""
    tasks: tuple[AnyTask, ...] | None = None
    """Some of the table's tasks; by default all."""
    numbers: tuple[int, ...] | None = None
    """Some tasks of LIBERO's suites, by their place; by default all ten."""
    policies: tuple[PolicyKind, ...] | None = None
    """Some of the table's policies; by default all."""
    seeds: tuple[int, ...] | None = None
    """Training seeds, each measured on episodes of its own, the same for all encoders; by default the paper's three
    (one in table5)."""
    n_episodes: int | None = None
    """Unseen episodes a cell; by default 50, as in the paper."""
    dataset: tuple[str, ...] = ()
    """Files of demonstrations with images, TASK=FILE each, such as robomimic's human ones; by default the scripted
    expert's. Several of a task: each cell takes the first with its cameras and resolution."""
    cells: Path = Path("runs/cells")
    """Folder of the cells, which all tables share."""
    out: Path | None = None
    """Folder of the table; by default runs/reproduce-NAME-SCALE."""
    dry_run: bool = False
    """Only show the plan and its cost."""
    train: bool = True
    """--no-train measures the cells that are trained already, and leaves the others out."""
    smoke: bool = False
    """The same path at the smallest size; its numbers mean nothing."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU where there is one."""
    workers: int | None = None
    """Simulator processes; by default one for each core."""
    ray: str | None = None
    """Run the cells through Ray (prism-policy[cluster]): auto, HOST:PORT, or local, on this machine."""
    gpus_per_cell: float | None = None
    """With --ray: GPUs a cell, such as 0.5; by default one where the cluster has any."""
    cpus_per_cell: float = 1.0
    """With --ray: cores a cell, each with a simulator."""

    def run(self) -> None:
        """Do it."""
        from prism_policy.paper.reproduce import ClusterOptions, make_plan, print_plan, reproduce

        scale = "smoke" if self.smoke else self.scale
        n_episodes = self.n_episodes if self.n_episodes is not None else 2 if self.smoke else 50
        files = _files(self.dataset)
        plan = make_plan(
            self.name,
            scale,
            self.tasks,
            self.policies,
            self.seeds,
            n_episodes,
            self.cells,
            files,
            self.train,
            self.numbers,
        )
        print_plan(plan)
        out = self.out or Path("runs") / f"reproduce-{self.name}-{scale}"
        if self.dry_run:
            print("Nothing was done (--dry-run).")
            return
        options = ClusterOptions(self.device, self.workers, self.ray, self.gpus_per_cell, self.cpus_per_cell)
        path = reproduce(plan, out, options)
        print(f"Table: {path} (also table.md, table.csv, cells.csv, figure.png)")
        more = [*plan.seeds, max(plan.seeds) + 1]
        print(f"Next:  prism reproduce {self.name} ... --seeds {' '.join(map(str, more))}   (runs only what is new)")


def _files(assignments: tuple[str, ...]) -> dict[AnyTask, list[Path]]:
    found: dict[AnyTask, list[Path]] = {}
    for assignment in assignments:
        task, equals, file = assignment.partition("=")
        if not equals or task not in get_args(AnyTask):
            tasks = ", ".join(get_args(AnyTask))
            raise PrismError(f"--dataset: expected TASK=FILE with a task of {tasks}, got {assignment!r}")
        found.setdefault(cast(AnyTask, task), []).append(Path(file))
    return found
