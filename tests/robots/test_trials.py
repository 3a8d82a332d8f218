"""Trials from placing the objects to a comparison, on a robot that is a point and with a person who is a file."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from commandline import prism
from prism_client.control.log import read_episode
from prism_policy.config import config_json
from prism_policy.config.options import TrialOptions
from prism_policy.errors import PrismError
from prism_policy.evaluation.compare import compare
from prism_policy.paper.table7 import read_trials
from prism_policy.robots import trials
from prism_policy.robots.results import TrialFolder
from prism_policy.robots.schedule import schedule
from prism_policy.robots.trials import run_trials
from prism_policy.robots.verdict import finished, write_summary
from small_run import config_of
from trial_bench import BENCH, Bench, person, server


@pytest.fixture(autouse=True)
def bench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "make_robot", Bench)


@pytest.fixture(scope="module")
def two() -> Iterator[tuple[str, str]]:
    with server("weights-a") as a, server("weights-b", 0.002) as b:
        yield f"a={a}", f"b={b}"


def options(policies: tuple[str, ...], **more: Any) -> TrialOptions:
    return TrialOptions(policies, max_steps=12, stages=("touched", "pushed"), **{"starts": 3, **more})


def run(folder: Path, keys: str, said: TrialOptions) -> TrialFolder:
    with person(keys, folder) as operator:
        return run_trials(BENCH, said, folder / "out", operator)


ALL_FAIL = "\nf1\n"
SUCCESS = "\ns\n"


def test_trials_become_results_that_compare_reads(two: tuple[str, str], tmp_path: Path) -> None:
    plan = schedule(["a", "b"], 3, 0)
    keys = "".join("\ns\n" if trial.policy == "a" else "\nf 1\n" for trial in plan)
    folder = run(tmp_path, keys, options(two))
    assert folder.outcomes("a", "b") == ([True] * 3, [False] * 3)
    assert [(line["start"], line["policy"]) for line in folder.lines()] == [(t.start, t.policy) for t in plan]
    result = json.loads(compare(tmp_path / "out" / "a", tmp_path / "out" / "b", ("last", "last"), "trials").read_text())
    assert (result["only_a"], result["only_b"], result["n_episodes"]) == (3, 0, 3)
    records = folder.episodes("b").records()
    assert [record["stage"] for record in records] == ["touched"] * 3
    assert (folder.episodes("b").videos / "episode_002.mp4").stat().st_size > 1000
    assert "| b | none | 0 of 3 | 0% | 0% to 56% | 0 |" in (tmp_path / "out" / "trials.md").read_text()
    assert all(read_episode(tmp_path / "out" / "episodes" / line["episode"]).outcome for line in folder.lines())


def test_a_run_that_nothing_simulates_gets_a_report_of_its_trials(tmp_path: Path) -> None:
    config = json.loads(config_json.to_json(config_of("--task recorded --encoder sspool")))
    with server("w", task="recorded", config={**config, "seed": 4}, encoder="sspool") as url:
        folder = run(tmp_path, SUCCESS + ALL_FAIL, options((f"base={url}",), starts=2))
    page = (tmp_path / "out" / "base" / "report.html").read_text()
    assert "50%" in page
    assert "on bench, judged by the operator" in page
    assert folder.about.policies["base"].seed == 4
    (one,) = read_trials([f"StackCube={tmp_path / 'out'}"])
    assert (one.row, one.seed, one.outcomes, one.simulated) == ("Base.", 4, (True, False), False)


def test_each_policy_meets_a_start_with_the_same_noise(two: tuple[str, str], tmp_path: Path) -> None:
    folder = run(tmp_path, SUCCESS * 4, options(two, starts=2))
    seeds: dict[int, set[Any]] = {}
    for line in folder.lines():
        header = read_episode(tmp_path / "out" / "episodes" / line["episode"]).header
        assert header["instruction"] is None
        seeds.setdefault(line["start"], set()).add(header["seed"])
    assert all(len(seen) == 1 for seen in seeds.values())
    assert len(set.union(*seeds.values())) == 2


def test_the_screen_never_says_which_policy_acts(
    two: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, SUCCESS * 6, options((two[0].replace("a=", "spatial="), two[1].replace("b=", "plain="))))
    said = capsys.readouterr().out
    assert "Trial 6" in said
    assert "spatial" not in said
    assert "plain" not in said


def test_void_trials_are_done_again_and_count_for_nothing(two: tuple[str, str], tmp_path: Path) -> None:
    keys = "\nv somebody walked in\n" + SUCCESS + "\nn slipped\nf0\n"
    folder = run(tmp_path, keys, options(two, starts=1))
    lines = folder.lines()
    assert [line["void"] for line in lines] == [["somebody walked in"], [], []]
    assert [line["note"] for line in lines] == ["", "", "slipped"]
    assert lines[0]["policy"] == lines[1]["policy"] != lines[2]["policy"]
    assert write_summary(folder, 1)["void"] == 1
    assert len(folder.episodes("a").records()) == 1


def test_three_void_trials_in_a_row_are_one_sentence(two: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(PrismError, match="3 trials in a row were void, the last one because: light"):
        run(tmp_path, "\nv light\n" * 3, options(two))
    assert len(TrialFolder.read(tmp_path / "out").lines()) == 3


def test_trials_that_were_killed_at_any_point_go_on_where_they_were(
    two: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = trials.run_episode, Counter[str]()

    def killed(*arguments: Any) -> Any:
        calls["episodes"] += 1
        outcome = real(*arguments)
        if calls["episodes"] % 2 == 0:
            raise RuntimeError("power cut")
        return outcome

    monkeypatch.setattr(trials, "run_episode", killed)
    for _ in range(6):
        with contextlib.suppress(RuntimeError):
            run(tmp_path, SUCCESS * 6, options(two))
    folder = TrialFolder.read(tmp_path / "out")
    assert finished(folder, 3, "all")
    assert [(line["start"], line["policy"]) for line in folder.lines()] == [
        (trial.start, trial.policy) for trial in schedule(["a", "b"], 3, 0)
    ]
    assert len(list((tmp_path / "out" / "episodes").iterdir())) == calls["episodes"]  # nothing is written over


def test_more_starts_can_be_added_and_other_trials_are_refused(two: tuple[str, str], tmp_path: Path) -> None:
    run(tmp_path, SUCCESS * 2, options(two, starts=1))
    before = [line["time"] for line in TrialFolder.read(tmp_path / "out").lines()]
    folder = run(tmp_path, SUCCESS * 2, options(two, starts=2))
    assert [line["time"] for line in folder.lines()][:2] == before
    assert len(folder.lines()) == 4
    with pytest.raises(PrismError, match="holds other trials: seed was 0 and is now 1"):
        run(tmp_path, SUCCESS, options(two, seed=1))
    with (
        server("weights-c") as c,
        pytest.raises(PrismError, match=r"policies\.b\.weights was 'weights-b' and is now 'weights-c'"),
    ):
        run(tmp_path, SUCCESS, options((two[0], f"b={c}")))


def test_it_ends_when_it_is_decided(two: tuple[str, str], tmp_path: Path) -> None:
    plan = schedule(["a", "b"], 20, 0)
    keys = "".join(SUCCESS if trial.policy == "a" else ALL_FAIL for trial in plan)
    folder = run(tmp_path, keys, options(two, starts=20, until="decided"))
    assert len(folder.lines()) == 14  # after 7 starts: 2^7 B(7.5, 0.5) / B(0.5, 0.5) = 26.8, and 14.4 after six
    assert finished(folder, 20, "decided")
    assert not finished(folder, 20, "all")


def test_an_operator_who_leaves_is_told_no_names(two: tuple[str, str], tmp_path: Path) -> None:
    folder = run(tmp_path, SUCCESS + "q\n", options(two))
    assert len(folder.lines()) == 1
    assert not finished(folder, 3, "all")


def test_leaving_instead_of_saying_how_it_went_is_a_void_trial(two: tuple[str, str], tmp_path: Path) -> None:
    for keys in ("\nq\n", "\nf\nq\n", "\n"):
        folder = run(tmp_path, keys, options(two))
    assert [line["void"][0] for line in folder.lines()] == ["the operator left before saying how it went"] * 3


def test_the_second_policy_gets_the_picture_of_the_first_ones_start(two: tuple[str, str], tmp_path: Path) -> None:
    run(tmp_path, SUCCESS * 2, options(two, starts=1))
    wanted = Image.open(tmp_path / "out" / "starts" / "start_000.png")
    assert wanted.size == (252, 252)
    assert (tmp_path / "out" / "match.html").exists()


def test_a_match_is_zero_where_the_picture_is_the_same(tmp_path: Path) -> None:
    from prism_policy.robots.match import Matcher, snapshot

    rng = np.random.default_rng(0)
    frame: Any = {"images": {"a": rng.integers(0, 256, (30, 40, 3), np.uint8)}, "state": np.zeros(1), "time": {}}
    snapshot(frame, tmp_path / "wanted.png")
    matcher = Matcher(tmp_path, tmp_path / "wanted.png")
    assert matcher.update(frame) == 0
    assert Image.open(tmp_path / "match.png").size == (3 * 336, 252)
    other: Any = {**frame, "images": {"a": 255 - frame["images"]["a"]}}
    assert (matcher.update(other) or 0) > 50


@pytest.mark.parametrize(
    ("policies", "sentence"),
    [
        ((), "expected NAME=RUN or NAME=ws://SERVER:PORT, such as"),
        (("runs/a",), "expected NAME=RUN or NAME=ws://SERVER:PORT, got 'runs/a'"),
        (("a=ws://x:1", "a=ws://y:1"), "'a' is there twice"),
        (("../a=ws://x:1",), "expected NAME=RUN"),
        (("a=nowhere",), "nowhere/config.json not found"),
    ],
)
def test_bad_policies_are_one_sentence(policies: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(PrismError, match=sentence.replace(".", r"\.")):
        run(tmp_path, "", options(policies))
    assert not (tmp_path / "out").exists()


def test_bad_input_of_the_command_is_exit_code_2(tmp_path: Path) -> None:
    for flags, sentence in (
        (("--region", "0.5", "0.5", "0.1", "0.9"), "--region: expected left < right"),
        (("--starts", "0"), "starts: expected at least 1, got 0"),
        (("--judge", "operator"), "cannot read the robot file none.json"),
    ):
        refused = prism("trials", "none.json", "--policies", "a=ws://127.0.0.1:9", *flags, cwd=tmp_path)
        assert (refused.returncode, sentence in refused.stderr) == (2, True), refused.stderr


def test_only_a_simulated_robot_judges_itself(two: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(PrismError, match="only a simulated robot"):
        run(tmp_path, "", options(two, judge="simulator"))
