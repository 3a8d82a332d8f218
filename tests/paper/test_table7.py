"""Table 7 from trials whose outcomes are made up."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from commandline import prism
from prism_policy.errors import PrismError
from prism_policy.evaluation.statistics import wilson_interval
from prism_policy.paper.table7 import difference_lines, rate_text, read_trials, write_table7
from prism_policy.robots.results import About, Policy, TrialFolder


def trials(path: Path, outcomes: dict[str, str], task: str = "stack", seed: int = 0, simulated: bool = True) -> Path:
    """A folder of trials: by encoder, s of success or f of failure for each start."""
    policies = {name: Policy(name, name, "flow_matching", name, seed) for name in outcomes}
    about = About(task, {"robot": "sim"}, simulated, policies, 0, 400, "simulator", ("done",), "")
    folder = TrialFolder.open(path, about)
    for name, said in outcomes.items():
        for start, one in enumerate(said):
            line: dict[str, Any] = {"trial": start, "start": start, "policy": name, "void": [], "success": one == "s"}
            line |= {"stage": "", "judge": "simulator", "note": "", "steps": 9, "pauses": 0, "ended": "done"}
            folder.keep({**line, "episode": f"episode_{start:03d}", "time": "", "seconds": 1.0})
    return path


def test_the_papers_numbers_are_those_that_it_prints(tmp_path: Path) -> None:
    page = write_table7(read_trials([str(trials(tmp_path / "a", {"sspool": "sf", "prism": "ss"}))]), tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "table.csv").read_text().splitlines()))
    assert {(row["row"], row["paper_percent"]) for row in rows} == {("Base.", "70.0"), ("PRISM", "70.0")}
    text = page.read_text()
    assert "| Base. | 50.0 (1 of 2; 9 to 91) simulated | 70.0 | not run | 80.0 |" in text
    assert "**SimRobot: simulated, not a robot**" in text
    for successes in (14, 16):  # of 20, as the page says
        low, high = (round(100 * share) for share in wilson_interval(successes, 20))
        assert f"{low} to {high}%" in text


def test_seeds_are_paired_start_by_start_and_counted_as_trainings(tmp_path: Path) -> None:
    places = [
        str(trials(tmp_path / str(seed), {"sspool": base, "prism": ours}, seed=seed))
        for seed, base, ours in ((0, "fffff", "sssss"), (1, "sffff", "sssss"), (2, "fffsf", "sssss"))
    ]
    results = read_trials(places)
    assert rate_text([one for one in results if one.row == "PRISM"]).startswith("100.0 (15 of 15; 80 to 100)")
    lines = difference_lines(results, "StackCube")
    assert lines[0].startswith("PRISM less Base.: +86.7 points over 15 paired trials")
    assert "(only one succeeds: 13 to 0)" in lines[0]
    assert lines[2].startswith("Over 3 trainings:")
    assert difference_lines(results, "KeyPick") == []


def test_trials_of_different_schedules_are_not_paired(tmp_path: Path) -> None:
    places = [str(trials(tmp_path / name, {name: "sfsf"})) for name in ("sspool", "prism")]
    results = read_trials(places)
    assert len(results) == 2
    assert difference_lines(results, "StackCube") == []


def test_a_robots_task_is_named_by_its_column(tmp_path: Path) -> None:
    folder = trials(tmp_path / "a", {"prism": "ss"}, task="recorded", simulated=False)
    with pytest.raises(PrismError, match="'recorded' is no task of Table 7; say which as StackCube or KeyPick=FOLDER"):
        read_trials([str(folder)])
    (one,) = read_trials([f"KeyPick={folder}"])
    assert (one.column, one.row, one.simulated) == ("KeyPick", "PRISM", False)
    assert "simulated" not in rate_text([one])


def test_bad_trials_are_one_sentence(tmp_path: Path) -> None:
    folder = trials(tmp_path / "a", {"prism": "ss"})
    with pytest.raises(PrismError, match="of training seed 0 is in"):
        read_trials([str(folder), str(trials(tmp_path / "b", {"prism": "ss"}))])
    with pytest.raises(PrismError, match="has encoder 'avgpool', not sspool or prism"):
        read_trials([str(trials(tmp_path / "c", {"avgpool": "s"}))])
    with pytest.raises(PrismError, match=r"expected a folder of `prism trials`"):
        read_trials([str(tmp_path / "nothing")])
    broken = trials(tmp_path / "d", {"prism": "ss"})
    (broken / "trials.jsonl").write_text(json.dumps({"trial": -1}) + "\n")
    with pytest.raises(PrismError, match="is damaged"):
        read_trials([str(broken)])


def test_the_command_writes_the_table(tmp_path: Path) -> None:
    trials(tmp_path / "a", {"sspool": "sf", "prism": "ss"})
    made = prism("reproduce", "table7", "--trials", "a", "--out", "out", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "StackCube: PRISM less Base.: +50.0 points over 2 paired trials" in made.stdout
    assert (tmp_path / "out" / "table.md").exists()
    for words, sentence in (
        (("table7",), "table7 is made of trials"),
        (("table7", "--trials", "a", "--seeds", "1"), "seeds: table7 is made of trials"),
        (("table1", "--trials", "a"), "--trials: table1 is trained and measured here"),
    ):
        refused = prism("reproduce", *words, cwd=tmp_path)
        assert (refused.returncode, sentence in refused.stderr) == (2, True), refused.stderr
