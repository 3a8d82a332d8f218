"""`prism reproduce`: cells by their configuration, plans that go on and say what they cost, the command."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from commandline import prism
from made_up_cells import N, measure, plan_in, results_of
from prism_policy.config import config_json, presets
from prism_policy.config.options import ClusterOptions
from prism_policy.errors import PrismError
from prism_policy.paper.cells import SCALES, Cell, find_cells, run_cell, run_config
from prism_policy.paper.experiments import Variant
from prism_policy.paper.printed import experiment
from prism_policy.paper.reproduce import estimate, print_plan, reproduce
from small_run import config_of


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for training and evaluation; the names of the cells that it ran."""
    ran: list[str] = []

    def run(cell: Cell, checkpoints: tuple[str, ...], n_episodes: int, device: str, workers: int | None) -> bool:
        ran.append(cell.folder.name)
        for checkpoint in checkpoints:
            measure(cell, 0.7, checkpoint)
        return True

    monkeypatch.setattr("prism_policy.paper.reproduce.run_cell", run)
    return ran


def test_a_cell_without_marks_is_the_preset() -> None:
    for scale, preset in (("nano", presets.nano), ("small", presets.small), ("paper", presets.paper)):
        assert run_config(Variant("lift", "ddpm", "avgpool"), 2, scale) == preset("lift", "ddpm", "avgpool", 2)
    shuffled = run_config(Variant("lift", "flow_matching", "sspool", shuffle=True), 1, "nano")
    wanted = config_of("--encoder sspool --seed 1 --policy.encoder.shuffle-keypoints")
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
    reproduce(plan_in(tmp_path, seeds=[0], **chosen), tmp_path / "out", ClusterOptions())
    first = list(runner)
    assert len(first) == 8
    assert all(name.endswith("-s0") for name in first)
    reproduce(plan_in(tmp_path, seeds=[0, 1], **chosen), tmp_path / "out", ClusterOptions())
    assert len(runner) == 16
    assert all(name.endswith("-s1") for name in runner[8:])
    reproduce(plan_in(tmp_path, seeds=[1, 0], **chosen), tmp_path / "out", ClusterOptions())
    # Table 4's baseline is Table 1's SSPool; PRISM is new.
    reproduce(plan_in(tmp_path, "table4", seeds=[0], **chosen), tmp_path / "out4", ClusterOptions())
    assert runner[16:] == ["lift-flow_matching-prism-nano-s0"]


def test_a_stopped_plan_goes_on_and_its_tables_show_what_is_there(
    tmp_path: Path, runner: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import prism_policy.paper.reproduce as module

    run = module.run_cell

    def stops(*arguments: Any) -> bool:
        if len(runner) == 2:
            raise KeyboardInterrupt
        return run(*arguments)

    monkeypatch.setattr(module, "run_cell", stops)
    plan = plan_in(tmp_path, "table3", seeds=[0])
    with pytest.raises(KeyboardInterrupt):
        reproduce(plan, tmp_path / "out", ClusterOptions())
    text = (tmp_path / "out" / "table.md").read_text()
    assert "2 of 6 cells measured" in text
    assert len(re.findall(r"\| missing \|", text.split("## Ours, with intervals")[0])) == 4
    monkeypatch.setattr(module, "run_cell", run)
    reproduce(plan_in(tmp_path, "table3", seeds=[0]), tmp_path / "out", ClusterOptions())
    assert len(runner) == 6


def test_a_cell_that_was_killed_before_its_report_is_left_to_do(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, tasks=["lift"], policies=["ddpm"], seeds=[0])
    for cell in plan.cells:
        measure(cell, 0.7)
    assert not plan.missing
    (plan.cells[1].folder / "report.html").unlink()
    os.utime(plan.cells[3].folder / "report.html", (1e9, 1e9))  # of the episodes before
    assert plan.missing == [plan.cells[1], plan.cells[3]]


def test_one_cell_that_fails_stops_no_other(tmp_path: Path, runner: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import prism_policy.paper.reproduce as module

    run = module.run_cell

    def fails(cell: Cell, *arguments: Any) -> bool:
        if cell.variant.encoder == "maxpool":
            raise PrismError("the loss is not finite")
        return run(cell, *arguments)

    monkeypatch.setattr(module, "run_cell", fails)
    with pytest.raises(PrismError, match=r"1 of 6 cells failed, first tool_hang-.*maxpool.*: the loss is not finite"):
        reproduce(plan_in(tmp_path, "table3", seeds=[0]), tmp_path / "out", ClusterOptions())
    assert len(runner) == 5


def test_only_what_is_trained_is_measured_without_training(tmp_path: Path, runner: list[str]) -> None:
    chosen: dict[str, Any] = {"name": "table3", "seeds": [0], "train": False}
    cell = plan_in(tmp_path, **chosen).cells[3]
    cell.folder.mkdir(parents=True)
    (cell.folder / "config.json").write_text(config_json.to_json(cell.config))
    (cell.folder / "weights.safetensors").write_bytes(b"")
    reproduce(plan_in(tmp_path, **chosen), tmp_path / "out", ClusterOptions())
    assert runner == [cell.folder.name]


def test_references_are_read_and_never_run(tmp_path: Path, runner: list[str]) -> None:
    plan = plan_in(tmp_path, "table2", tasks=["lift"], policies=["flow_matching"], seeds=[0])
    reproduce(plan, tmp_path / "out", ClusterOptions())
    assert runner == ["lift-flow_matching-sspool-shuffled-nano-s0"]
    (actual,) = [d for _, d in results_of(plan).differences]
    assert actual is None
    measure(plan.references[0], 0.9)
    (actual,) = [d for _, d in results_of(plan).differences]
    assert actual is not None
    assert actual.n == N


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
    reproduce(plan_in(tmp_path, "table3", seeds=[0]), tmp_path / "out", ClusterOptions())
    with pytest.raises(PrismError, match="out holds another plan: experiment is 'table3' there and 'fig4' now"):
        reproduce(plan_in(tmp_path, "fig4", seeds=[0]), tmp_path / "out", ClusterOptions())
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("mine")
    with pytest.raises(PrismError, match="notes exists and holds no plan"):
        reproduce(plan_in(tmp_path, "table3", seeds=[0]), tmp_path / "notes", ClusterOptions())
    assert [p.name for p in (tmp_path / "notes").iterdir()] == ["diary.txt"]


def test_the_cost_is_scaled_by_what_was_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_in(tmp_path, seeds=[0], tasks=["lift"], policies=["flow_matching"])
    assert estimate(plan) is None
    print_plan(plan)
    assert "Time: nothing was measured yet" in capsys.readouterr().out
    first = plan.cells[0]
    measure(first, 0.5)
    (first.folder / "metrics.jsonl").write_text(json.dumps({"step": 1200, "wall_s": 5000.0}) + "\n")
    (first.folder / "results" / "timings.json").write_text(json.dumps({"wall_s": {"evaluate": 300.0, "report": 100.0}}))
    # Seven more, the other poolings on either trunk: each as long as the one that is most alike.
    assert estimate(plan) == pytest.approx(7 * 5400)
    second = plan.cells[1]
    measure(second, 0.5)
    (second.folder / "metrics.jsonl").write_text(json.dumps({"step": 1200, "wall_s": 3000.0}) + "\n")
    (second.folder / "results" / "timings.json").write_text(json.dumps({"wall_s": {"evaluate": 350.0, "report": 50.0}}))
    same = sum(c.variant.encoder == first.variant.encoder for c in plan.missing)
    other = sum(c.variant.encoder == second.variant.encoder for c in plan.missing)
    rest = len(plan.missing) - same - other  # as the median of both
    assert estimate(plan) == pytest.approx(5400 * same + 3400 * other + 4400 * rest)
    shutil.rmtree(second.folder)
    print_plan(plan)
    output = capsys.readouterr().out
    assert "8 cells: 1 measured, 0 trained and to be measured, 7 to be trained; 10 episodes each" in output
    assert "Time: about 10.5 h" in output
    assert "Demonstrations: 200 of lift" in output
    assert "it cannot show" in output


def test_a_cell_that_another_process_is_at_is_left_to_it(tmp_path: Path) -> None:
    (cell,) = find_cells([Variant("lift", "flow_matching", "sspool")], [0], "smoke", tmp_path, {})
    with (tmp_path / ".lift-flow_matching-sspool-smoke-s0.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run_cell(cell, ("last",), 1) is False
    assert not cell.folder.exists()


def command(folder: Path, *arguments: str, code: int = 0) -> str:
    """What `prism reproduce` printed, or complained about."""
    done = prism("reproduce", *arguments, cwd=folder)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


def test_the_command_complains_before_it_writes(tmp_path: Path) -> None:
    assert "prism: unknown experiment 'table9'; available: table1" in command(tmp_path, "table9", code=2)
    assert "expected TASK=FILE" in command(tmp_path, "table1", "--dataset", "lift.hdf5", code=2)
    output = command(tmp_path, "table5", "--scale", "small", "--policies", "ddpm", "--dry-run")
    assert "6 cells: 0 measured, 0 trained and to be measured, 6 to be trained; 50 episodes each" in output
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_cells_are_trained_measured_and_told_about(tmp_path: Path) -> None:
    pytest.importorskip("robosuite", reason="needs prism-policy[sim]")
    chosen = ("table4", "--smoke", "--tasks", "lift", "--policies", "flow_matching", "--workers", "1", "--seeds", "0")
    output = command(tmp_path, *chosen)
    assert "Table: runs/reproduce-table4-smoke/table.html" in output
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
    output = command(tmp_path, *chosen, "--n-episodes", "3", "--out", "three")
    assert "2 trained and to be measured, 0 to be trained" in output
    assert {cell: (cell / "weights.safetensors").stat().st_mtime_ns for cell in cells} == before
    assert "2 measured, 0 trained" in command(tmp_path, *chosen, "--dry-run")
