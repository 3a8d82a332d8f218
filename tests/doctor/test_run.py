"""Checks with a run: each tells a policy that has the fault from one that has not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from commandline import prism
from made_recording import SCHEMA, clean, write
from prism_policy.config.settings import RunConfig
from prism_policy.data.schema import DELTA_ACTION, Part, Schema
from prism_policy.data.source import open_source
from prism_policy.demos.dataset import Dataset, open_dataset
from prism_policy.deploy.session import Adapter
from prism_policy.doctor.run import against_nothing, by_heart, examine_run, hold_still, served, sight
from prism_policy.policies import Policy
from prism_policy.run_folder import load_policy, read_run

SETTINGS = (
    "--encoder sspool --data.cameras front --data.resize 24x32 --policy.encoder.width 8 --policy.encoder.stages 1 "
    "--policy.down-dims 16 32 --policy.step-embed-dim 16 --train.batch-size 8 --train.steps 2 --train.warmup-steps 1 "
    "--train.log-every 1 --train.lr 5e-3"
)
MASKS = {"train": [f"demo_{i}" for i in range(9)], "valid": ["demo_9", "demo_10", "demo_11"]}


def no_progress(done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has hardly begun to learn."""
    place = tmp_path_factory.mktemp("run")
    write(place / "made.hdf5", clean(), MASKS)
    words = ("train", "--dataset", place / "made.hdf5", *SETTINGS.split(), "--out", place / "run")
    done = prism(*words, PRISM_CACHE=str(place / "cache"))
    assert done.returncode == 0, done.stderr
    return place / "run"


@pytest.fixture
def trained(run: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Policy, RunConfig, Dataset]:
    monkeypatch.setenv("PRISM_CACHE", str(run.parent / "cache"))
    config = read_run(run)
    return load_policy(run), config, open_dataset(config)


Trained = tuple[Policy, RunConfig, Dataset]


@pytest.mark.slow
def test_ten_windows_are_learned_unless_nothing_can_be(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, config, dataset = trained
    finding, sentence = by_heart(policy, config, dataset.train, 60, no_progress)
    assert finding is None, sentence
    assert "Ten windows by heart: loss 0." in sentence
    monkeypatch.setattr("prism_policy.doctor.run.UPDATES", 50)
    stuck = replace(config, train=replace(config.train, lr=1e-12))
    finding, sentence = by_heart(policy, stuck, dataset.train, 60, no_progress)
    assert finding is not None
    assert finding.check == "cannot-overfit"


def test_what_takes_too_long_is_not_settled(trained: Trained) -> None:
    policy, config, dataset = trained
    finding, sentence = by_heart(policy, config, dataset.train, 1e-3, no_progress)
    assert finding is None
    assert "not settled after 1 updates" in sentence


def replaced(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, act: Callable[[dict[str, torch.Tensor]], torch.Tensor]
) -> None:
    """Have the policy predict what `act` makes of an observation, (B, T, A)."""
    monkeypatch.setattr(policy, "predict_chunk", lambda observation, generator: act(observation))


def test_a_policy_is_compared_with_doing_nothing(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, _, dataset = trained
    windows, horizon = dataset.valid, policy.config.horizon
    assert windows is not None
    rows = iter(torch.split(torch.linspace(0, len(windows) - 1, min(len(windows), 256)).long(), 64))
    replaced(policy, monkeypatch, lambda o: windows.batch(next(rows))["actions"])  # type: ignore[arg-type, return-value]
    finding, sentence = against_nothing(policy, dataset)
    assert finding is None
    assert "Action error, normalised: 0.000 over " in sentence
    replaced(policy, monkeypatch, lambda o: torch.full((len(o["state"]), horizon, 7), 0.9))
    finding, _ = against_nothing(policy, dataset)
    assert finding is not None
    assert finding.check == "no-better-than-still"


def test_holding_still_is_no_step_or_the_state_as_target() -> None:
    state, before = torch.arange(18.0).view(2, 9), torch.full((2, 7), 0.5)
    still = hold_still(state, before, Schema({}, SCHEMA.state, DELTA_ACTION))
    assert still.tolist() == [[0, 0, 0, 0, 0, 0, 0.5]] * 2
    joints = (Part("state", 9, "joint"),)
    targets = hold_still(state, torch.zeros(2, 9), Schema({}, joints, (Part("action", 9, "joint"),)))
    assert torch.equal(targets, state)


def test_an_encoder_that_is_shown_noise_is_blind(trained: Trained) -> None:
    policy, _, dataset = trained
    finding, sentence = sight(policy, dataset)
    assert finding is None, sentence
    frames, rng = dataset.train.frames, torch.Generator().manual_seed(0)
    noise = {c: torch.randint(0, 256, x.shape, generator=rng, dtype=torch.uint8) for c, x in frames.images.items()}
    dataset.train.frames = replace(frames, images=noise)
    finding, _ = sight(policy, dataset)
    assert finding is not None
    assert finding.check == "encoder-blind"


def test_the_server_shows_what_training_showed(trained: Trained, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, config, dataset = trained
    source = open_source(Path(config.dataset))
    assert dataset.recorded == {"front": SCHEMA.cameras["front"]}  # so that something is resized
    assert list(served(run, policy, config, dataset, source)) == []
    resized = Adapter.seen
    monkeypatch.setattr(
        Adapter, "seen", lambda self, x: {c: np.roll(i, 1, axis=1) for c, i in resized(self, x).items()}
    )
    (finding,) = served(run, policy, config, dataset, source)
    assert (finding.check, str(finding.where[0])) == ("served-otherwise", "demo_9, step 0, front")


def test_other_demonstrations_are_told(trained: Trained, run: Path, tmp_path: Path) -> None:
    _, config, _ = trained
    others = clean()
    others[4] = replace(others[4], actions=-others[4].actions)
    write(tmp_path / "others.hdf5", others, MASKS)
    found = examine_run(run, replace(config, dataset=str(tmp_path / "others.hdf5")), None, 0, "cpu")
    assert "other-demonstrations" in [one.check for one in found.findings]


def test_the_command_keeps_what_it_found_in_the_run_and_its_report(run: Path) -> None:
    done = prism("doctor", run, "--minutes", "0", "--json", PRISM_CACHE=str(run.parent / "cache"))
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert report["run"] == str(run)
    assert {one["check"] for one in report["findings"]} <= {"no-better-than-still", "no-better-than-repeating"}
    assert any("bit by bit" in sentence for sentence in report["measured"])
    assert report["findings"][0]["title"] in (run / "report.html").read_text()
    assert json.loads((run / "results" / "doctor.json").read_text())["findings"] == report["findings"]


def test_a_run_of_another_robot_is_refused(run: Path, tmp_path: Path) -> None:
    narrow = [replace(one, images={"wrist": one.images["wrist"]}) for one in clean(3)]
    write(tmp_path / "narrow.hdf5", narrow)
    done = prism("doctor", tmp_path / "narrow.hdf5", run, "--minutes", "0", PRISM_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "front" in done.stderr
