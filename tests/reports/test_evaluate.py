"""`prism evaluate` and `prism compare` on a run with several checkpoints: what they add, print, write and refuse."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import commandline
from journals import read_lines
from prism_policy.config.options import EvalOptions
from prism_policy.config.settings import RunConfig
from prism_policy.data.schema import task_schema
from prism_policy.errors import PrismError
from prism_policy.evaluation.results import episode_sets
from prism_policy.policies import Policy
from prism_policy.reports.evaluate import evaluate_runs
from prism_policy.run_folder import load_policy, make_policy, open_run, save_normalizer, save_weights
from prism_policy.utils.video import read_video

KEPT = range(100, 1200, 100)


def write_run(folder: Path, config: RunConfig, seed: int) -> Path:
    """A run folder as training leaves it, with random weights."""
    open_run(folder, config)
    torch.manual_seed(seed)
    policy = make_policy(config, task_schema(config.task))
    save_normalizer(folder, policy, config.task)
    weights = {name: t.clone() for name, t in policy.state_dict().items() if not name.startswith("normalizer.")}
    save_weights(folder, weights)
    (folder / "checkpoints").mkdir()
    for name in ("best", *(f"update_{n:06d}" for n in KEPT)):
        save_file(weights, folder / "checkpoints" / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="module")
def config(tiny_config: RunConfig) -> RunConfig:
    return replace(tiny_config, task=replace(tiny_config.task, max_steps=8))


@pytest.fixture
def run(tmp_path: Path, config: RunConfig) -> Path:
    return write_run(tmp_path / "run", config, 0)


def prism(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return commandline.prism(*arguments)


@pytest.mark.slow
def test_checkpoints_and_seeds_are_added_and_nothing_is_run_twice(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = EvalOptions(n_episodes=2, video_every=0)
    (summary,) = evaluate_runs([run], options, 1)
    assert (summary["checkpoint"], summary["n_episodes"], list(summary["seeds"])) == ("last", 2, ["0"])
    assert summary["worker_peak_rss_mib"] > 100
    first = run / "results" / "last" / "evaluate-s0" / "episodes.jsonl"
    before = first.read_text()

    options = EvalOptions(n_episodes=1, checkpoints=("last", "best", "last10"), seeds=(0, 3), video_every=0)
    (summary,) = evaluate_runs([run], options, 1)
    assert list(summary["checkpoints"]) == ["last", "best", *map(str, KEPT[1:])]
    assert summary["mean_of_last_10"]["checkpoints"] == list(map(str, KEPT[1:]))
    # What was measured before counts, also where less is asked for now.
    assert {seed: actual["n_episodes"] for seed, actual in summary["seeds"].items()} == {"0": 2, "3": 1}
    assert first.read_text() == before
    assert len(episode_sets(run)) == 2 * 12
    assert json.loads((run / "results" / "summary.json").read_text()) == summary
    page = (run / "report.html").read_text()
    assert "Mean of the last 10 checkpoints" in page
    assert "Where it fails" in page

    def started(*_: object) -> None:
        raise AssertionError("a simulator was started")

    monkeypatch.setattr("prism_policy.envs.workers.Worker", started)
    assert evaluate_runs([run], options, 1)[0]["checkpoints"] == summary["checkpoints"]


@pytest.mark.slow
def test_videos_are_of_every_kth_episode_and_side_by_side_in_a_grid(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    def load(folder: Path, checkpoint: str) -> Policy:
        loaded.append(checkpoint)
        return load_policy(folder, checkpoint)

    monkeypatch.setattr("prism_policy.reports.evaluate.load_policy", load)
    evaluate_runs([run], EvalOptions(n_episodes=5, video_every=2), 2)
    assert loaded == ["last"]  # once, for rollouts, figures and film
    folder = run / "videos" / "last" / "evaluate-s0"
    assert sorted(p.name for p in folder.iterdir()) == [
        "episode_000.mp4", "episode_002.mp4", "episode_004.mp4", "grid.mp4"
    ]  # fmt: skip
    frames = list(read_video(folder / "grid.mp4"))
    assert len(frames) == 9
    assert frames[0].shape[1] == 1280
    written = (folder / "grid.mp4").stat().st_mtime_ns
    evaluate_runs([run], EvalOptions(n_episodes=5, video_every=2), 2)
    assert (folder / "grid.mp4").stat().st_mtime_ns == written


@pytest.mark.slow
def test_several_runs_and_their_comparison_from_the_shell(run: Path, tmp_path: Path, config: RunConfig) -> None:
    other = write_run(tmp_path / "other", replace(config, seed=1), 1)
    done = prism("evaluate", run, other, "--n-episodes", "2", "--workers", "2", "--video-every", "0")
    assert done.returncode == 0, done.stderr
    assert "Over 2 runs: mean 0.0%, standard deviation 0.0%; all 4 episodes" in done.stdout
    assert "Failures by the furthest stage reached: nothing 2" in done.stdout
    done = prism("compare", run, other)
    assert done.returncode == 0, done.stderr
    assert "exact McNemar test p = 1" in done.stdout
    result = json.loads((run / "results" / "last-against-other-last.json").read_text())
    assert (result["n_episodes"], result["neither"]) == (2, 2)


@pytest.mark.slow
def test_killed_with_its_workers_it_goes_on_where_it_stopped(run: Path, tmp_path: Path) -> None:
    whole = Path(shutil.copytree(run, tmp_path / "whole"))
    arguments = ["--n-episodes", "6", "--workers", "1", "--video-every", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "prism_policy", "evaluate", str(run), *arguments], start_new_session=True
    )
    journal = run / "results" / "last" / "evaluate-s0" / "episodes.jsonl"
    while len(read_lines(journal)) < 2 and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = read_lines(journal)
    assert 2 <= len(before) < 6
    assert prism("evaluate", run, *arguments).returncode == 0
    assert read_lines(journal)[: len(before)] == before
    assert prism("evaluate", whole, *arguments).returncode == 0
    assert episode_sets(run)[0].records() == episode_sets(whole)[0].records()


@pytest.mark.slow
def test_two_evaluations_do_not_write_into_one_run(run: Path) -> None:
    arguments = ["--workers", "1", "--video-every", "0"]
    command = [sys.executable, "-m", "prism_policy", "evaluate", str(run), "--n-episodes", "40", *arguments]
    with subprocess.Popen(command, start_new_session=True) as process:
        journal = run / "results" / "last" / "evaluate-s0" / "episodes.jsonl"
        while not read_lines(journal) and process.poll() is None:
            time.sleep(0.01)
        done = prism("evaluate", run, "--seeds", "1", *arguments)
        assert (done.returncode, process.poll()) == (2, None)
        assert f"another process is writing {run / 'results'}; wait for it" in done.stderr
        os.killpg(process.pid, signal.SIGKILL)
    assert not (run / "results" / "last" / "evaluate-s1").exists()
    (summary,) = evaluate_runs(
        [run, run / ".." / run.name], EvalOptions(n_episodes=2, video_every=0), 1
    )  # one run, not two
    assert summary["n_episodes"] >= 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--n-episodes", "0"], "n_episodes: expected at least 1, got 0"),
        (["--checkpoints", "bset"], "has no checkpoint 'bset'; it has last, best, 100, 200"),
        (["--checkpoints", "last", "150"], "has no checkpoint '150'"),
        (["--seeds", "-1"], "seeds: expected 0 or more, got -1"),
        (["--workers", "0"], "workers: expected at least 1, got 0"),
        (["--video-every", "-1"], "video_every: expected 0 or more, got -1"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(run: Path, arguments: list[str], sentence: str) -> None:
    done = prism("evaluate", run, *arguments)
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not (run / "results").exists()


def test_no_run_folder_and_no_weights_are_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(PrismError, match="expected at least one run folder"):
        evaluate_runs([], EvalOptions())
    with pytest.raises(PrismError, match=r"config.json not found"):
        evaluate_runs([run, tmp_path / "none"], EvalOptions())
    (run / "weights.safetensors").unlink()
    with pytest.raises(PrismError, match=r"weights.safetensors not found; train the run first"):
        evaluate_runs([run], EvalOptions())


def test_ten_checkpoints_are_more_than_nine(run: Path) -> None:
    for number in KEPT[:2]:
        (run / "checkpoints" / f"update_{number:06d}.safetensors").unlink()
    with pytest.raises(PrismError, match=r"last10: expected 10 kept checkpoints in .*, found 9 \(300, 400"):
        evaluate_runs([run], EvalOptions(checkpoints=("last10",)))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"cameras": ["sideview", "robot0_eye_in_hand"]}, "task.cameras ('agentview', 'robot0_eye_in_hand') and"),
        ({"action_mode": "absolute"}, "task.action_mode 'delta' and config.json says 'absolute'"),
        ({"reference_frame": "world"}, "task.reference_frame 'base' and config.json says 'world'"),
        ({"render": {"resolution": 96}}, "task.render.resolution 84 and config.json says 96"),
        ({"render": {"shadows": True}}, "task.render.shadows False and config.json says True"),
        ({"name": "can"}, "task.name 'lift' and config.json says 'can'"),
    ],
)
def test_an_environment_that_is_not_the_one_trained_on_is_refused(
    run: Path, change: dict[str, object], sentence: str
) -> None:
    settings = json.loads((run / "config.json").read_text())
    settings["task"] |= change
    (run / "config.json").write_text(json.dumps(settings))
    with pytest.raises(PrismError) as caught:
        load_policy(run)
    assert "was trained with " + sentence in str(caught.value)


def test_statistics_that_do_not_name_their_environment_are_refused(run: Path) -> None:
    policy = load_policy(run)
    save_file(policy.normalizer.state_dict(), run / "normalizer.safetensors")
    with pytest.raises(PrismError, match="does not say which task it belongs to"):
        load_policy(run)
