"""Cells whose outcomes are made up, where no training is what is tested."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from prism_policy.config import config_json
from prism_policy.paper.cells import Cell
from prism_policy.paper.reproduce import Plan, make_plan
from prism_policy.paper.tables import Results, collect_results

N = 10
"""Episodes of a made-up cell."""


def measure(cell: Cell, rate: float, checkpoint: str = "last", n: int = N) -> None:
    """The files of a cell that was trained and measured: its outcomes follow from its name, seed and rate."""
    (episodes,) = cell.episode_sets(checkpoint)
    (episodes.folder / "states").mkdir(parents=True, exist_ok=True)
    (cell.folder / "config.json").write_text(config_json.to_json(cell.config))
    (cell.folder / "weights.safetensors").write_bytes(b"")
    task = {"name": cell.variant.task, "max_steps": cell.config.task.max_steps}
    (episodes.folder / "settings.json").write_text(json.dumps({"task": task}))
    luck = np.random.default_rng([cell.seed, *cell.variant.name.encode()]).random(n)
    lines = [
        {"episode": i, "success": bool(luck[i] < rate), "steps": 50, "stage": "lifted" if luck[i] < rate else "reached"}
        for i in range(n)
    ]
    (episodes.folder / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for i in range(n):
        np.save(episodes.folder / "states" / f"episode_{i:03d}.npy", np.array([[cell.seed, i], [0.0, 0.0]]))
    (cell.folder / "report.html").write_text("")


def outcomes(cell: Cell, checkpoint: str = "last") -> list[bool]:
    text = (cell.episode_sets(checkpoint)[0].folder / "episodes.jsonl").read_text()
    return [json.loads(line)["success"] for line in text.splitlines()]


def plan_in(folder: Path, name: str = "table1", **more: Any) -> Plan:
    return make_plan(name, cells_dir=folder / "cells", n_episodes=N, **more)


def results_of(plan: Plan) -> Results:
    """What the cells of a plan reached so far."""
    cells = {(c.variant, c.seed): c for c in (*plan.cells, *plan.references)}
    return collect_results(plan.experiment, plan.scale, plan.seeds, plan.n_episodes, cells, plan.data)
