"""The spatial probe: errors in closed form, a scene that can be read, and the whole command on a simulator."""

import dataclasses
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from commandline import prism
from journals import read_lines
from prism_policy.config import presets
from prism_policy.config.settings import ProbeConfig
from prism_policy.errors import PrismError
from prism_policy.probe.results import mean_interval, rows, table
from prism_policy.probe.train import Scenes, Targets, fit, predict, probe

TINY = ProbeConfig(width=8, steps=3, batch_size=4, train_frames=60, test_frames=10)


def poses(n: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    angle = (torch.rand(n, 1, generator=generator) * 2 - 1) * math.pi
    return {thing: torch.cat([torch.rand(n, 3, generator=generator), angle], 1) for thing in ("cube", "can", "nut")}


def test_a_perfect_prediction_has_no_error_and_a_known_one_its_own() -> None:
    truth = poses(200)
    targets = Targets(truth, {"cube": 4, "can": 0, "nut": 1})
    assert targets.dim == 5 + 3 + 5
    exact = targets.errors(targets.encode(truth), truth)
    assert set(exact) == {"cube", "cube angle", "can", "nut", "nut angle"}
    assert max(exact.values()) < 1e-5
    off = {thing: p + torch.tensor([0.03, 0.0, 0.04, 0.1]) for thing, p in truth.items()}
    errors = targets.errors(targets.encode(off), truth)
    for thing in truth:
        assert errors[thing] == pytest.approx(0.05, rel=1e-4)
    assert errors["cube angle"] == pytest.approx(0.1, rel=1e-4)
    assert errors["nut angle"] == pytest.approx(0.1, rel=1e-4)


def test_a_quarter_turn_of_a_cube_is_no_error_and_of_a_nut_it_is() -> None:
    truth = poses(50)
    targets = Targets(truth, {"cube": 4, "nut": 1})
    turned = {thing: p + torch.tensor([0, 0, 0, math.pi / 2]) for thing, p in truth.items()}
    errors = targets.errors(targets.encode(turned), truth)
    assert errors["cube angle"] < 1e-4
    assert errors["nut angle"] == pytest.approx(math.pi / 2, rel=1e-4)


def test_guessing_the_mean_of_uniform_positions_errs_as_it_must() -> None:
    line = torch.zeros(100_001, 4)
    line[:, 0] = torch.linspace(-1, 1, 100_001)
    targets = Targets({"cube": line}, {"cube": 0})
    assert targets.errors(targets.constant.expand(100_001, -1), {"cube": line})["cube"] == pytest.approx(0.5, abs=1e-3)


def test_interval_over_seeds_is_students() -> None:
    mean, half = mean_interval([1.0, 2.0, 3.0])
    assert (mean, half) == (pytest.approx(2.0), pytest.approx(4.302653 / math.sqrt(3), rel=1e-5))  # t table, 2 degrees
    assert math.isnan(mean_interval([1.0])[1])


def dots(n: int, seed: int) -> Scenes:
    """Frames with a bright square whose pixel position is the object's position."""
    rng = np.random.default_rng(seed)
    at = rng.integers(8, 34, (n, 2))
    frames = np.full((n, 48, 48, 3), 40, np.uint8)
    for frame, (row, column) in zip(frames, at, strict=True):
        frame[row : row + 6, column : column + 6] = (220, 30, 30)
    pose = np.zeros((n, 4), np.float32)
    pose[:, :2] = at / 48
    return Scenes(torch.from_numpy(frames), {"dot": torch.from_numpy(pose)})


def test_a_probe_learns_where_a_square_is() -> None:
    config = ProbeConfig(width=8, steps=150, batch_size=16, lr=3e-3)
    encoder = replace(presets.encoder("sspool"), width=8, stages=(1, 2))
    model, targets = fit(encoder, config, dots(400, 0), {"dot": 0}, seed=0)
    unseen = dots(100, 1)
    errors = targets.errors(predict(model, unseen), unseen.poses)
    guess = targets.errors(targets.constant.expand(100, -1), unseen.poses)
    assert errors["dot"] < 0.25 * guess["dot"]


def test_the_same_seed_gives_the_same_weights() -> None:
    encoder = replace(presets.encoder("sspool"), width=8, stages=(1, 2))
    first, second, other = (
        fit(encoder, replace(TINY, steps=4), dots(40, 0), {"dot": 0}, seed)[0][1].weight for seed in (0, 0, 1)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.slow
def test_a_folder_grows_by_encoders_and_seeds_without_repeating_any(tmp_path: Path, cache: Path) -> None:
    small = {"sspool": presets.encoder("sspool")}
    first = probe(tmp_path / "p", TINY, small, (84,), (0,), cache, workers=1)
    assert set(first[0]["errors"]) == {"cube", "cube angle", "hand", "hand angle"}
    assert all(math.isfinite(v) and v > 0 for v in first[0]["errors"].values())
    more = {**small, "avgpool": presets.encoder("avgpool")}
    both = probe(tmp_path / "p", TINY, more, (84,), (0, 1), cache, workers=1)
    assert len(both) == 4
    assert both[0] == json.loads(json.dumps(first[0])), "what was there is kept, its time included"
    assert len(read_lines(tmp_path / "p" / "results.jsonl")) == 4
    assert {row.encoder: row.seeds for row in rows(both)} == {"sspool": 2, "avgpool": 2}
    header, cells = table(both)
    assert (tmp_path / "p" / "table.md").read_text().count("\n") == len(cells) + 2
    assert header[:2] == ["encoder", "px"]
    assert (tmp_path / "p" / "probe.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_an_encoder_of_the_same_name_but_other_settings_is_trained_anew(tmp_path: Path, cache: Path) -> None:
    for temperature in (1.0, 0.5):
        mine = {"mine": replace(presets.encoder("sspool"), temperature=temperature)}
        (line,) = probe(tmp_path / "p", TINY, mine, (84,), (0,), cache, workers=1)
        assert line["config"]["temperature"] == temperature


def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    sspool = {"sspool": presets.encoder("sspool")}
    with pytest.raises(PrismError, match="seeds: expected at least one and each only once, got 0, 0"):
        probe(tmp_path / "p", TINY, sspool, (84,), (0, 0), cache)
    with pytest.raises(PrismError, match="last feature map of 1x1"):
        probe(tmp_path / "p", TINY, sspool, (32,), (0,), cache)
    with pytest.raises(PrismError, match=r"batch_size: expected at most 60 \(train_frames\), got 100"):
        probe(tmp_path / "p", replace(TINY, batch_size=100), sspool, (84,), (0,), cache)
    with pytest.raises(PrismError, match="unknown encoder 'prism@2'"):
        presets.encoder("prism@2")
    assert not (tmp_path / "p").exists()
    probe(tmp_path / "p", TINY, sspool, (84,), (0,), cache, workers=1)
    with pytest.raises(PrismError, match="steps is 3 there and 4 now"):
        probe(tmp_path / "p", replace(TINY, steps=4), sspool, (84,), (0,), cache)


def test_the_command_prints_a_table_and_takes_an_encoder_from_a_file(tmp_path: Path, cache: Path) -> None:
    encoder = replace(presets.encoder("sspool"), num_keypoints=8)
    (tmp_path / "mine.json").write_text(json.dumps(dataclasses.asdict(encoder)))
    settings = "--seeds 0 --width 8 --steps 2 --batch-size 4 --train-frames 60 --test-frames 15 --workers 1"
    command = ["probe", "--encoders", str(tmp_path / "mine.json"), "sspool@2", *settings.split()]
    command += ["--out", str(tmp_path / "p")]
    run = prism(*command, PRISM_CACHE=str(cache))
    assert run.returncode == 0, run.stderr
    for word in ("mine", "sspool@2", "cube [mm]", "(always the mean)", "probe.png"):
        assert word in run.stdout
    again = prism(*command, "--steps", "5", PRISM_CACHE=str(cache))
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1
