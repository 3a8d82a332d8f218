"""Each script of examples/ runs, at the smallest size, and does what its first line says."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lerobot_files import write
from prism_policy.demos.record import Recorder
from prism_policy.envs import workers
from prism_policy.run_folder import is_trained, read_metrics

FOLDER = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))


@pytest.fixture(scope="module", autouse=True)
def beside_the_scripts() -> Iterator[None]:
    """What a script imports from beside it is found, as when it is started by its path."""
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


def script(name: str) -> ModuleType:
    return importlib.import_module(name)


def test_there_are_ten_short_scripts() -> None:
    assert len(SCRIPTS) == 10
    lengths = {file.name: len(file.read_text().splitlines()) for file in SCRIPTS}
    assert {name: n for name, n in lengths.items() if n > 60} == {}


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.stem)
def test_a_script_says_how_it_is_run_and_is_in_the_docs(file: Path) -> None:
    text = file.read_text()
    assert f"python examples/{file.name}" in text.split('"""')[1]
    assert f"<!-- include: examples/{file.name} -->" in (FOLDER.parent / "docs/examples.md").read_text()


def test_an_encoder_of_ones_own_costs_what_it_costs(tmp_path: Path) -> None:
    costs = script("own_encoder").main(tmp_path / "mine.json", width=16, time_it=False)
    numbers = {row.encoder: row.numbers for row in costs}
    assert numbers["mine"] == 2 * 64 * 2  # stages, keypoints, x and y
    from prism_policy.config import config_json
    from prism_policy.config.settings import EncoderConfig

    assert config_json.load(EncoderConfig, tmp_path / "mine.json") == script("own_encoder").mine()


def test_squares_are_where_the_labels_say() -> None:
    import torch

    images, where = script("encoder_in_your_model").squares(3, torch.Generator().manual_seed(0))
    for image, (x, y) in zip(images.numpy(), where.numpy(), strict=True):
        rows, columns = np.nonzero((image == 255).all(-1))
        assert (columns.min(), rows.min()) == (int(10 + 56 * x), int(10 + 56 * y))


@pytest.mark.slow
def test_an_encoder_learns_where_a_square_is() -> None:
    assert script("encoder_in_your_model").main(steps=60) < 0.2  # always saying the middle has 0.38


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("arrays") / "run"
    script("train_on_arrays").main(run, demos=4, steps=3)
    return run


@pytest.mark.slow
def test_arrays_become_a_trained_run(arrays: Path) -> None:
    assert is_trained(arrays)
    assert [line["step"] for line in read_metrics(arrays).lines][-1] == 3


@pytest.mark.slow
def test_a_served_run_acts(arrays: Path) -> None:
    actions = script("serve_and_act").main(arrays, steps=9, port=8765)
    assert actions.shape == (9, 2)
    assert np.isfinite(actions).all()


@pytest.mark.slow
def test_a_stopped_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    assert script("resume").main(tmp_path / "resume", steps=12)


@pytest.mark.slow
def test_a_lerobot_dataset_is_learned_from(tmp_path: Path) -> None:
    dataset = write(tmp_path / "dataset").folder
    losses = script("lerobot_dataset").main(dataset, steps=2, batch_size=2)
    assert len(losses) == 2
    assert np.isfinite(losses).all()


@pytest.fixture(scope="module")
def reach(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs in the environment of one's own, evaluated."""
    runs = [tmp_path_factory.mktemp("reach") / name for name in ("a", "b")]
    for run, steps in zip(runs, (2, 3), strict=True):
        script("own_environment").main(run, steps=steps, demos=4, episodes=3)
    return runs


@pytest.mark.slow
def test_an_environment_of_ones_own_is_learned_and_measured(reach: list[Path]) -> None:
    for run in reach:
        assert (run / "report.html").exists()
        assert len((run / "results/last/evaluate-s0/episodes.jsonl").read_text().splitlines()) == 3


@pytest.mark.slow
def test_runs_are_compared_on_the_same_starts(reach: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    paired = script("compare_runs").main(*reach)
    assert paired.n == 3
    assert "95% interval" in capsys.readouterr().out


@pytest.mark.slow
def test_a_failure_is_looked_at(reach: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    picture = script("saliency_of_failure").main(reach[0], frames=2)
    if picture is None:
        assert "no episode failed" in capsys.readouterr().out
    else:
        assert picture.stat().st_size > 10_000


@pytest.mark.slow
def test_cameras_are_probed(tmp_path: Path) -> None:
    pytest.importorskip("robosuite")
    with workers.kept_workers():
        errors = script("probe_camera").main(steps=3, scenes=20, out=tmp_path / "probe")
    assert errors.keys() == {"agentview", "sideview"}
    assert all(0 < error < 1 for error in errors.values())


def test_recordings_of_arrays_fit_the_schema(tmp_path: Path) -> None:
    example = script("train_on_arrays")
    images, state, actions = example.recording(np.random.default_rng(1), steps=5)
    with Recorder(tmp_path / "demo.hdf5", example.SCHEMA) as recorder:
        for image, now, action in zip(images, state, actions, strict=True):
            recorder.step({"images": {"front": image}, "state": now}, action)
        recorder.end()
    assert recorder.count == 1
    np.testing.assert_array_equal(actions[:-1], state[1:])
