"""`prism reproduce`: plans that go on, scores against independent sums, and tables that tell ours from the paper's."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import math
import os
import re
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from browser import CHROMIUM, Page
from prism_policy import config_json, presets
from prism_policy.cells import SCALES, Cell, find_cells, run_cell, run_config
from prism_policy.errors import PrismError
from prism_policy.experiments import Variant
from prism_policy.paper_tables import experiment
from prism_policy.reproduce import Plan, Where, estimate, make_plan, print_plan, reproduce, write_results
from prism_policy.scores import Score, difference, score
from prism_policy.tables import grids, results

N = 10
"""Episodes of a made-up cell."""


def measure(cell: Cell, rate: float, checkpoint: str = "last", n: int = N) -> None:
    """The files of a cell that was trained and measured: its outcomes follow from its name, seed and rate."""
    stream = cell.stream(checkpoint)
    (stream.folder / "states").mkdir(parents=True, exist_ok=True)
    (cell.folder / "config.json").write_text(config_json.to_json(cell.config))
    (cell.folder / "weights.safetensors").write_bytes(b"")
    task = {"name": cell.variant.task, "max_steps": cell.config.task.max_steps}
    (stream.folder / "stream.json").write_text(json.dumps({"task": task}))
    luck = np.random.default_rng([cell.seed, *cell.variant.name.encode()]).random(n)
    lines = [
        {"episode": i, "success": bool(luck[i] < rate), "steps": 50, "stage": "lifted" if luck[i] < rate else "reached"}
        for i in range(n)
    ]
    (stream.folder / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for i in range(n):
        np.save(stream.folder / "states" / f"episode_{i:03d}.npy", np.array([[cell.seed, i], [0.0, 0.0]]))


def outcomes(cell: Cell, checkpoint: str = "last") -> list[bool]:
    text = (cell.stream(checkpoint).folder / "episodes.jsonl").read_text()
    return [json.loads(line)["success"] for line in text.splitlines()]


def plan_in(folder: Path, name: str = "table1", **more: Any) -> Plan:
    return make_plan(name, cells_dir=folder / "cells", n_episodes=N, **more)


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for training and evaluation; the names of the cells that it ran."""
    ran: list[str] = []

    def run(cell: Cell, checkpoints: tuple[str, ...], n_episodes: int, device: str, workers: int | None) -> bool:
        ran.append(cell.folder.name)
        for checkpoint in checkpoints:
            measure(cell, 0.7, checkpoint)
        return True

    monkeypatch.setattr("prism_policy.reproduce.run_cell", run)
    return ran


def test_a_cell_without_marks_is_the_preset() -> None:
    for scale, preset in (("nano", presets.nano), ("small", presets.small), ("paper", presets.paper)):
        assert run_config(Variant("lift", "ddpm", "avgpool"), 2, scale) == preset("lift", "ddpm", "avgpool", 2)
    shuffled = run_config(Variant("lift", "flow_matching", "sspool", shuffle=True), 1, "nano")
    wanted = config_json.override(
        presets.nano(encoder_name="sspool", seed=1), ["policy.encoder.shuffle_keypoints=true"]
    )
    assert shuffled == wanted


def test_marks_change_what_they_name_and_nothing_else() -> None:
    plain = run_config(Variant("tool_hang", "flow_matching", "ms_sspool"), 0, "small")
    assert plain.task.cameras == ("sideview", "robot0_eye_in_hand")
    marked = run_config(Variant("tool_hang", "flow_matching", "ms_sspool", True, True, True, 1, 240), 0, "small")
    encoder = replace(plain.policy.encoder, truncate=True, shuffle_keypoints=True, refine=True)
    task = replace(plain.task, cameras=("sideview",), render=replace(plain.task.render, resolution=240))
    assert marked == replace(plain, policy=replace(plain.policy, encoder=encoder), task=task)
    # Figure 4's peak is chosen among rollouts, so those of ToolHang have some at every scale.
    for scale in SCALES:
        train = run_config(Variant("tool_hang", "flow_matching", "sspool"), 0, scale).train
        assert 0 < train.rollout_every <= train.steps


def test_every_cell_of_every_experiment_makes_a_policy() -> None:
    from prism_policy.models.encoder import check_encoder

    for name in ("table1", "table2", "table3", "table4", "table5", "fig2", "fig4", "fig5"):
        for variant in experiment(name).variants:
            for scale in SCALES:
                check_encoder(run_config(variant, 0, scale).policy.encoder)


def test_folders_are_named_for_what_they_hold(tmp_path: Path) -> None:
    names = [cell.folder.name for cell in plan_in(tmp_path, seeds=[0]).cells]
    assert "lift-flow_matching-sspool-nano-s0" in names
    assert "can-ddpm-nopool-truncated-nano-s0" in names
    shuffled = [cell.folder.name for cell in plan_in(tmp_path, "table2", seeds=[1]).cells]
    assert "lift-flow_matching-sspool-shuffled-nano-s1" in shuffled
    assert "tool_hang-ddpm-prism-1v-240px-nano-s0" in [c.folder.name for c in plan_in(tmp_path, "table5").cells]


def test_a_cell_is_found_by_its_configuration_whatever_its_folder_is_called(tmp_path: Path) -> None:
    config = presets.nano(encoder_name="maxpool", seed=1)
    config = replace(config, evaluate=replace(config.evaluate, n_episodes=7))  # how it is measured does not matter
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text(config_json.to_json(config))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    variant = Variant("lift", "flow_matching", "maxpool")
    first, second = find_cells([variant], [0, 1], "nano", tmp_path, {})
    assert first.folder.name == "lift-flow_matching-maxpool-nano-s0"
    assert (second.folder.name, second.config) == ("mine", config)


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cells" / "lift-flow_matching-sspool-nano-s0"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config_json.to_json(presets.nano(encoder_name="prism")))
    with pytest.raises(PrismError, match="lift-flow_matching-sspool-nano-s0 holds a run of another configuration"):
        plan_in(tmp_path)


def test_another_seed_runs_only_what_is_new(tmp_path: Path, runner: list[str]) -> None:
    chosen: dict[str, Any] = {"tasks": ["lift"], "policies": ["flow_matching"]}
    reproduce(plan_in(tmp_path, seeds=[0], **chosen), tmp_path / "out", Where())
    first = list(runner)
    assert len(first) == 8
    assert all(name.endswith("-s0") for name in first)
    reproduce(plan_in(tmp_path, seeds=[0, 1], **chosen), tmp_path / "out", Where())
    assert len(runner) == 16
    assert all(name.endswith("-s1") for name in runner[8:])
    reproduce(plan_in(tmp_path, seeds=[1, 0], **chosen), tmp_path / "out", Where())
    # Table 4's baseline is Table 1's SSPool; PRISM is new.
    reproduce(plan_in(tmp_path, "table4", seeds=[0], **chosen), tmp_path / "out4", Where())
    assert runner[16:] == ["lift-flow_matching-prism-nano-s0"]


def test_a_stopped_plan_goes_on_and_its_tables_show_what_is_there(
    tmp_path: Path, runner: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import prism_policy.reproduce as module

    run = module.run_cell

    def stops(*arguments: Any) -> bool:
        if len(runner) == 2:
            raise KeyboardInterrupt
        return run(*arguments)

    monkeypatch.setattr(module, "run_cell", stops)
    plan = plan_in(tmp_path, "table3", seeds=[0])
    with pytest.raises(KeyboardInterrupt):
        reproduce(plan, tmp_path / "out", Where())
    text = (tmp_path / "out" / "table.md").read_text()
    assert "2 of 6 cells measured" in text
    assert len(re.findall(r"\| missing \|", text.split("## Ours, with intervals")[0])) == 4
    monkeypatch.setattr(module, "run_cell", run)
    reproduce(plan_in(tmp_path, "table3", seeds=[0]), tmp_path / "out", Where())
    assert len(runner) == 6


def test_one_cell_that_fails_stops_no_other(tmp_path: Path, runner: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import prism_policy.reproduce as module

    run = module.run_cell

    def fails(cell: Cell, *arguments: Any) -> bool:
        if cell.variant.encoder == "maxpool":
            raise PrismError("the loss is not finite")
        return run(cell, *arguments)

    monkeypatch.setattr(module, "run_cell", fails)
    with pytest.raises(PrismError, match=r"1 of 6 cells failed, first tool_hang-.*maxpool.*: the loss is not finite"):
        reproduce(plan_in(tmp_path, "table3", seeds=[0]), tmp_path / "out", Where())
    assert len(runner) == 5


def test_only_what_is_trained_is_measured_without_training(tmp_path: Path, runner: list[str]) -> None:
    chosen: dict[str, Any] = {"name": "table3", "seeds": [0], "train": False}
    cell = plan_in(tmp_path, **chosen).cells[3]
    cell.folder.mkdir(parents=True)
    (cell.folder / "config.json").write_text(config_json.to_json(cell.config))
    (cell.folder / "weights.safetensors").write_bytes(b"")
    reproduce(plan_in(tmp_path, **chosen), tmp_path / "out", Where())
    assert runner == [cell.folder.name]


def test_references_are_read_and_never_run(tmp_path: Path, runner: list[str]) -> None:
    plan = plan_in(tmp_path, "table2", tasks=["lift"], policies=["flow_matching"], seeds=[0])
    reproduce(plan, tmp_path / "out", Where())
    assert runner == ["lift-flow_matching-sspool-shuffled-nano-s0"]
    (found,) = [d for _, d in told(plan).differences]
    assert found is None
    measure(plan.references[0], 0.9)
    (found,) = [d for _, d in told(plan).differences]
    assert found is not None
    assert found.n == N


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"seeds": []}, "seeds: expected at least one, each 0 or more, got none"),
        ({"seeds": [-1]}, "seeds: expected at least one, each 0 or more, got -1"),
        ({"tasks": []}, "tasks: expected at least one of lift, can, square, got none"),
        ({"policies": []}, "policies: expected at least one of ddpm, flow_matching, meanflow, got none"),
        ({"datasets": {"tool_hang": [Path("x.hdf5")]}}, "dataset of task 'tool_hang': this plan has can, lift, square"),
        ({"datasets": {"lift": [Path("x.hdf5")]}}, "x.hdf5 not found"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path: Path, more: dict[str, Any], complaint: str) -> None:
    with pytest.raises(PrismError, match=re.escape(complaint)):
        plan_in(tmp_path, **more)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_another_plan_is_refused(tmp_path: Path, runner: list[str]) -> None:
    reproduce(plan_in(tmp_path, "table3", seeds=[0]), tmp_path / "out", Where())
    with pytest.raises(PrismError, match="out holds another plan: experiment is 'table3' there and 'fig4' now"):
        reproduce(plan_in(tmp_path, "fig4", seeds=[0]), tmp_path / "out", Where())
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("mine")
    with pytest.raises(PrismError, match="notes exists and holds no plan"):
        reproduce(plan_in(tmp_path, "table3", seeds=[0]), tmp_path / "notes", Where())
    assert [p.name for p in (tmp_path / "notes").iterdir()] == ["diary.txt"]


def test_the_cost_is_scaled_by_what_was_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_in(tmp_path, seeds=[0], tasks=["lift"], policies=["flow_matching"])
    guess, source = estimate(plan)
    assert "rough guess: no cell" in source
    first = plan.cells[0]
    measure(first, 0.5)
    (first.folder / "metrics.jsonl").write_text(json.dumps({"step": 1200, "wall_s": 5000.0}) + "\n")
    (first.folder / "results" / "ledger.json").write_text(json.dumps({"wall_s": {"evaluate": 300.0, "report": 100.0}}))
    # All of Lift's cells with a last stage alone are guessed alike, so seven more like the first one.
    seconds, source = estimate(plan)
    assert seconds == pytest.approx(7 * 5400)
    assert "after 1 trainings and 1 evaluations" in source
    assert seconds > guess
    print_plan(plan)
    told = capsys.readouterr().out
    assert "8 cells: 1 measured, 0 trained and to be measured, 7 to be trained; 10 episodes each" in told
    assert "Time: about 10.5 h" in told
    assert "Demonstrations: 200 of lift" in told
    assert "it cannot show" in told


def told(plan: Plan) -> Any:
    cells = {(c.variant, c.seed): c for c in (*plan.cells, *plan.references)}
    return results(plan.experiment, plan.scale, plan.seeds, plan.n_episodes, cells, plan.data)


def test_a_score_is_the_mean_over_seeds_with_wilsons_interval_over_all_episodes(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, policies=["flow_matching"])
    for i, cell in enumerate(plan.cells):
        measure(cell, 0.3 + 0.02 * i)
    cells = {(c.variant, c.seed): c for c in plan.cells}
    (entry,) = [e for e in plan.experiment.entries if e.key == ("Standard ResNet18", "AvgPool", "FM")]
    found = score(entry, cells, plan.seeds, N)
    assert found is not None
    mine = [[outcomes(c) for c in plan.cells if c.variant in entry.variants and c.seed == s] for s in range(3)]
    rates = [np.mean([np.mean(task) for task in seed]) for seed in mine]
    mean, deviation = found.mean_and_std
    assert mean == pytest.approx(np.mean(rates))
    assert deviation == pytest.approx(np.std(rates, ddof=1))
    every = np.array(mine).reshape(-1)
    assert (found.successes, found.n) == (every.sum(), 90)
    exact = stats.binomtest(int(every.sum()), 90).proportion_ci(method="wilson")
    assert found.interval == pytest.approx((exact.low, exact.high), abs=1e-6)


def test_a_difference_pairs_the_episodes_of_all_seeds_and_tasks(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, policies=["flow_matching"], seeds=[0, 1])
    for cell in plan.cells:
        measure(cell, 0.8 if cell.variant.encoder == "sspool" else 0.4)
    cells = {(c.variant, c.seed): c for c in plan.cells}
    entries = {e.key: e for e in plan.experiment.entries}
    comparison = next(c for c in plan.experiment.comparisons if c.a == ("Standard ResNet18", "MaxPool", "FM"))
    assert comparison.b == ("Standard ResNet18", "SSPool", "FM")
    found = difference(comparison, entries, cells, plan.seeds, N)
    assert found is not None
    a, b = (
        np.array([outcomes(cells[v, s]) for s in (0, 1) for v in entries[key].variants]).reshape(-1)
        for key in (comparison.a, comparison.b)
    )
    assert found.n == 60
    assert found.difference == pytest.approx(a.mean() - b.mean())
    discordant = int((a & ~b).sum()), int((~a & b).sum())
    assert (found.only_a, found.only_b) == discordant
    assert found.p_value == pytest.approx(stats.binomtest(discordant[0], sum(discordant)).pvalue)


def test_a_seed_counts_when_all_its_cells_are_there(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, policies=["flow_matching"], seeds=[0, 1])
    (entry,) = [e for e in plan.experiment.entries if e.key == ("Standard ResNet18", "SSPool", "FM")]
    cells = {(c.variant, c.seed): c for c in plan.cells}
    assert score(entry, cells, plan.seeds, N) is None
    wanted = [c for c in plan.cells if c.variant in entry.variants]
    for cell in wanted[:-1]:
        measure(cell, 0.5)
    measure(wanted[-1], 0.5, n=N - 1)  # an evaluation that is not through
    found = score(entry, cells, plan.seeds, N)
    assert found is not None
    assert (found.seeds, found.n) == ((0,), 3 * N)
    assert found.mean_and_std[1] is None
    grid = grids(told(plan))[0]
    assert f"{100 * found.mean_and_std[0]:.1f} (1 of 2 seeds)" == grid.rows[0][grid.header.index("FM, ours [%]")]


def test_what_is_missing_is_never_a_number(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, seeds=[0])
    write_results(plan, tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "table.csv").open()))
    assert len(rows) == 32
    assert all(row["ours_mean"] == row["ours_wilson_low"] == row["ours_episodes"] == "" for row in rows)
    assert all(float(row["paper_mean"]) > 60 for row in rows)
    for grid in grids(told(plan))[:2]:
        for row in grid.rows:
            assert set(row[1::2]) == {"missing"}
    measured = plan.cells[0]
    measure(measured, 0.0)  # none of ten: a zero that was measured
    write_results(plan_in(tmp_path, seeds=[0], tasks=["lift"], policies=["ddpm"]), tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "table.csv").open()))
    zero = [row for row in rows if row["ours_mean"]]
    assert [(row["ours_mean"], row["ours_successes"], row["ours_episodes"]) for row in zero] == [("0.0", "0", "10")]


def test_ours_and_the_papers_numbers_are_told_apart_everywhere(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "table4", seeds=[0])
    for cell in plan.cells:
        measure(cell, 0.6)
    write_results(plan, tmp_path / "out")
    text, html = ((tmp_path / "out" / f"table.{kind}").read_text() for kind in ("md", "html"))
    for page in (text, html):
        assert "Lift, ours [%]" in page
        assert "Lift, paper [%]" in page
        assert "200 scripted demonstrations" in page
        assert page.count("as printed in arXiv:2606.15232") == 3  # under both blocks and the differences
        assert "not ours with the paper&#x27;s" in page or "not ours with the paper's" in page
        assert "Diffusion&#x27;s Base. average 67.1" in page or "Diffusion's Base. average 67.1" in page
    assert "99.0 ± 1.0" in text
    assert re.search(r"\| Flow Matching, ToolHang: PRISM \| Base. \|.*\| \+9.3 \|", text)
    cells = list(csv.DictReader(io.StringIO((tmp_path / "out" / "cells.csv").read_text())))
    assert len(cells) == 16
    assert sum(int(row["successes"]) for row in cells) == sum(sum(outcomes(c)) for c in plan.cells)


def test_a_failure_is_counted_where_it_happened(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, seeds=[0, 1], tasks=["lift"], policies=["meanflow"])
    for cell in plan.cells:
        measure(cell, 0.5)
    (grid,) = [g for g in grids(told(plan)) if g.title == "How far the episodes came: lift"]
    assert grid.header == ["lift", "episodes", "nothing", "reached", "grasped", "lifted (success)"]
    wins = sum(sum(outcomes(c)) for c in plan.cells if c.variant == plan.cells[0].variant)
    assert grid.rows[0] == ["lift-meanflow-sspool", "20", "0", str(20 - wins), "0", str(wins)]


def test_figure_5_counts_the_parameters_at_the_papers_size(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "fig5", seeds=[0])
    (grid,) = [g for g in grids(told(plan)) if g.title == "Parameters"]
    added = {row[0]: float(row[3].split()[0]) for row in grid.rows}
    # 28,672 of FiLM for each number of two frames, two cameras; three more stages of 64, 128 and 256.
    assert added["AvgPool"] == added["MaxPool"] == pytest.approx(2 * 28672 * (64 + 128 + 256) / 1e6, abs=0.01)
    maps = 64 * 19**2 + 128 * 10**2 + 256 * 5**2
    assert added["NoPool"] == pytest.approx(2 * 28672 * maps / 1e6, abs=0.01)
    # As the paper says: multiscale SSPool adds the fewest.
    assert added["SSPool"] < added["AvgPool"]


def test_one_seed_has_no_deviation() -> None:
    assert Score((0,), (0.5,), 5, 10).mean_and_std == (0.5, None)
    assert math.isclose(statistics.stdev([0.4, 0.6]), Score((0, 1), (0.4, 0.6), 10, 20).mean_and_std[1] or 0)


def test_a_cell_that_another_process_is_at_is_left_to_it(tmp_path: Path) -> None:
    (cell,) = find_cells([Variant("lift", "flow_matching", "sspool")], [0], "smoke", tmp_path, {})
    with (tmp_path / ".lift-flow_matching-sspool-smoke-s0.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run_cell(cell, ("last",), 1) is False
    assert not cell.folder.exists()


def command(folder: Path, *arguments: str, code: int = 0) -> str:
    """What `prism reproduce` printed, or complained about."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = [sys.executable, "-m", "prism_policy.cli", "reproduce", *arguments]
    done = subprocess.run(run, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


def test_the_command_complains_before_it_writes(tmp_path: Path) -> None:
    assert "prism: unknown experiment 'table9'; available: table1" in command(tmp_path, "table9", code=2)
    assert "expected TASK=FILE" in command(tmp_path, "table1", "--dataset", "lift.hdf5", code=2)
    told = command(tmp_path, "table5", "--scale", "small", "--policies", "ddpm", "--dry-run")
    assert "6 cells: 0 measured, 0 trained and to be measured, 6 to be trained; 50 episodes each" in told
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_cells_are_trained_measured_and_told_about(tmp_path: Path) -> None:
    pytest.importorskip("robosuite", reason="needs prism-policy[sim]")
    chosen = ("table4", "--smoke", "--tasks", "lift", "--policies", "flow_matching", "--workers", "1", "--seeds", "0")
    told = command(tmp_path, *chosen)
    assert "Table: runs/reproduce-table4-smoke/table.html" in told
    out = tmp_path / "runs" / "reproduce-table4-smoke"
    rows = list(csv.DictReader((out / "table.csv").open()))
    assert [(row["row"], row["column"], row["ours_episodes"]) for row in rows] == [
        ("Base.", "Lift", "2"), ("PRISM", "Lift", "2")
    ]  # fmt: skip
    assert "Its numbers mean nothing" in (out / "table.md").read_text()
    cells = sorted(path.parent for path in (tmp_path / "runs" / "cells").glob("*/report.html"))
    assert [cell.name for cell in cells] == [f"lift-flow_matching-{e}-smoke-s0" for e in ("prism", "sspool")]
    before = {cell: (cell / "weights.safetensors").stat().st_mtime_ns for cell in cells}
    # One episode more goes on in the same cells.
    told = command(tmp_path, *chosen, "--n-episodes", "3", "--out", "three")
    assert "2 trained and to be measured, 0 to be trained" in told
    assert {cell: (cell / "weights.safetensors").stat().st_mtime_ns for cell in cells} == before
    assert "2 measured, 0 trained" in command(tmp_path, *chosen, "--dry-run")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_opens_from_disk_and_loads_nothing(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "fig4")
    for cell in plan.cells[:6]:
        measure(cell, 0.3)
        measure(cell, 0.5, "best")
    path = write_results(plan, tmp_path / "out")
    width, height = Image.open(tmp_path / "out" / "figure.png").size
    assert width > 800
    assert height > 400
    with Page(path.as_uri()) as page:
        assert not page.complaints()
        assert all(address.startswith(("file:", "data:")) for address in page.requests())
        assert page.evaluate("document.querySelector('img').naturalWidth") == width
        assert page.evaluate("document.querySelectorAll('td.paper').length") > 5
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
