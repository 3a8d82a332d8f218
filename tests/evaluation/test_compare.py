"""Streams side by side in a run folder, their summary, and two runs on the same starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prism_policy.config import presets
from prism_policy.config.config_json import to_json
from prism_policy.errors import PrismError
from prism_policy.evaluation.compare import compare
from prism_policy.evaluation.results import EpisodeSet, episode_sets, stages_of_failures, summarise, summarise_run
from prism_policy.evaluation.statistics import Paired, mean_and_std, wilson_interval

LAST = ("last", "last")


def write_episodes(run: Path, outcomes: str, checkpoint: str = "last", seed: int = 0, **task: Any) -> Path:
    """A run with a stream whose episodes succeed where `outcomes` has a 1, and start where (seed, episode) says."""
    stream = EpisodeSet(run, checkpoint, "evaluate", seed)
    (stream.folder / "states").mkdir(parents=True)
    (run / "config.json").write_text(to_json(presets.nano()))
    (stream.folder / "settings.json").write_text(json.dumps({"task": {"name": "lift", "max_steps": 400} | task}))
    lines = []
    for episode, outcome in enumerate(outcomes):
        success = outcome == "1"
        stage = "lifted" if success else "grasped"
        lines.append({"episode": episode, "success": success, "steps": 40 + episode, "stage": stage})
        np.save(stream.folder / "states" / f"episode_{episode:03d}.npy", np.array([[seed, episode], [0.0, 0.0]]))
    lines.reverse()  # a journal is in the order in which episodes ended
    (stream.folder / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_the_difference_is_of_the_episodes_that_both_have(tmp_path: Path) -> None:
    a, b = write_episodes(tmp_path / "a", "111101011111"), write_episodes(tmp_path / "b", "0111001111")
    write_episodes(a, "1101", seed=1)
    write_episodes(b, "1000", seed=1)
    write_episodes(a, "0000", seed=2)  # of which B has none
    result = json.loads(compare(a, b, LAST, "evaluate").read_text())
    # Seed 0, the first ten: only A in 0 and 5, only B in 6. Seed 1: only A in 1 and 3.
    counts = {key: result[key] for key in ("n_episodes", "both", "only_a", "only_b", "neither")}
    assert counts == {"n_episodes": 14, "both": 7, "only_a": 4, "only_b": 1, "neither": 2}
    assert result["difference"] == pytest.approx(3 / 14)
    assert result["mcnemar_p"] == pytest.approx(Paired(14, 7, 4, 1).p_value)
    # In the order of seeds and episodes: A, A, B, A, A alone: 2^5 B(4.5, 1.5) / B(0.5, 0.5).
    assert result["sequential"]["evidence"] == pytest.approx(0.875)
    assert result["sequential"]["p_value"] == pytest.approx(1 / 1.5)  # that of the first two, the highest
    assert result["seeds"]["0"]["only_a"] == 2
    assert result["seeds"]["0"]["only_b"] == 1
    assert set(result["seeds"]) == {"0", "1"}
    assert (a / "results" / "last-against-b-last.json").exists()


def test_two_checkpoints_of_a_run_can_be_compared(tmp_path: Path) -> None:
    run = write_episodes(write_episodes(tmp_path / "a", "1111"), "0111", checkpoint="best")
    result = json.loads(compare(run, run, ("last", "best"), "evaluate", tmp_path / "out.json").read_text())
    assert (result["only_a"], result["a"]["checkpoint"], result["b"]["checkpoint"]) == (1, "last", "best")
    with pytest.raises(PrismError, match="expected two different runs or checkpoints"):
        compare(run, run, LAST, "evaluate")


def test_what_cannot_be_compared_is_named(tmp_path: Path) -> None:
    a = write_episodes(tmp_path / "a", "11")
    with pytest.raises(PrismError, match=r"expected runs of one task, got task.name 'lift' in .* and 'can' in"):
        compare(a, write_episodes(tmp_path / "can", "11", name="can"), LAST, "evaluate")
    with pytest.raises(PrismError, match=r"task.max_steps 400 in .* and 700 in"):
        compare(a, write_episodes(tmp_path / "long", "11", max_steps=700), LAST, "evaluate")
    with pytest.raises(PrismError, match=r"a seed that both were measured on, got seed 0 of .* and seed 3 of"):
        compare(a, write_episodes(tmp_path / "seed", "11", seed=3), LAST, "evaluate")
    with pytest.raises(PrismError, match=r"no episodes of checkpoint 'best' .* it has last/evaluate-s0"):
        compare(a, a, ("last", "best"), "evaluate")
    with pytest.raises(PrismError, match=r"config.json not found"):
        compare(a, tmp_path / "nothing", LAST, "evaluate")
    other = write_episodes(tmp_path / "starts", "11")
    np.save(EpisodeSet(other, "last", "evaluate", 0).folder / "states" / "episode_001.npy", np.ones((2, 2)))
    with pytest.raises(PrismError, match="same starts, but episode 1 of last/evaluate-s0 starts differently"):
        compare(a, other, LAST, "evaluate")
    assert not list((a / "results").glob("*.json"))


def test_checkpoints_and_seeds_lie_side_by_side(tmp_path: Path) -> None:
    kept = [str(100 * i) for i in range(1, 12)]
    run = write_episodes(tmp_path / "run", "1101")
    write_episodes(run, "1000", seed=1)
    write_episodes(run, "1111", checkpoint="best")
    for i, name in enumerate(kept):
        write_episodes(run, "1" * (i % 4) + "0" * (4 - i % 4), checkpoint=name)
    assert [s.name for s in episode_sets(run)][:5] == [
        "last/evaluate-s0", "last/evaluate-s1", "best/evaluate-s0", "100/evaluate-s0", "200/evaluate-s0"
    ]  # fmt: skip
    summary = summarise_run(run, "evaluate", "last", kept)
    assert summary["success_rate"] == 4 / 8
    assert summary["wilson_95"] == list(wilson_interval(4, 8))
    assert (summary["mean_over_seeds"], summary["std_over_seeds"]) == mean_and_std([0.75, 0.25])
    assert summary["seeds"]["1"]["wilson_95"] == list(wilson_interval(1, 4))
    assert summary["checkpoints"]["best"]["success_rate"] == 1
    rates = [(i % 4) / 4 for i in range(1, 11)]
    assert summary["mean_of_last_10"]["mean"] == pytest.approx(np.mean(rates))
    assert summary["mean_of_last_10"]["checkpoints"] == kept[1:]
    assert "mean_of_last_10" not in summarise_run(run, "evaluate", "last", kept[:9])
    with pytest.raises(PrismError, match="no episodes of checkpoint 'last' on split 'validate'"):
        summarise_run(run, "validate", "last", kept)


def test_time_to_success_and_failures_by_stage() -> None:
    records = [
        {"episode": 0, "success": True, "steps": 40, "stage": "placed"},
        {"episode": 1, "success": True, "steps": 60, "stage": "placed"},
        {"episode": 2, "success": False, "steps": 400, "stage": "lifted"},
        {"episode": 3, "success": False, "steps": 400, "stage": ""},
        {"episode": 4, "success": False, "steps": 400, "stage": "lifted"},
    ]
    summary = summarise(records)
    assert (summary["mean_steps_to_success"], summary["median_seconds_to_success"]) == (50, 2.5)
    failures = stages_of_failures("can", summary["failures_by_stage"])
    assert failures == [("lifted", 2), ("nothing", 1)]
    assert summarise([r | {"success": False} for r in records])["median_seconds_to_success"] is None


def test_other_results_in_the_folder_are_no_streams(tmp_path: Path) -> None:
    run = write_episodes(tmp_path / "run", "1")
    (run / "results" / "notes" / "mine").mkdir(parents=True)
    (run / "results" / "notes" / "mine" / "episodes.jsonl").write_text("")
    assert [s.name for s in episode_sets(run)] == ["last/evaluate-s0"]
