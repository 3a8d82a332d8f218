"""Trackers are told the figures of metrics.jsonl, and one that is missing is named before any work."""

import importlib.util
from pathlib import Path

import pytest

from journals import read_lines
from prism_policy.errors import PrismError
from prism_policy.training.loggers import check_trackers, trackers
from prism_policy.training.run import train_run
from prism_policy.training.trainer import Trainer
from small_run import small_config, small_windows


def test_tensorboards_files_hold_the_figures_of_metrics_jsonl(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs prism-policy[track]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = small_config("--train.log-every 5", "--train.rollout-every 10", "--train.valid-every 6")
    windows = small_windows(tmp_path)
    folder = tmp_path / "run"
    with trackers(["tensorboard"], folder, config) as calls:

        def on_update(done: int, line: dict[str, float]) -> None:
            for call in calls:
                call(done, line)

        Trainer(folder, config, windows, on_update, windows, rollout=lambda *_: {"success_rate": 0.25}).train()
    read = EventAccumulator(str(folder / "tensorboard"))
    read.Reload()
    lines = read_lines(folder / "metrics.jsonl")
    assert [line["step"] for line in lines] == [5, 6, 10, 12]
    names = {name for line in lines for name in line} - {"step"}
    assert set(read.Tags()["scalars"]) == names >= {"loss", "lr", "valid_loss", "success_rate"}
    for name in names:
        actual = [(event.step, event.value) for event in read.Scalars(name)]
        expected = [(line["step"], line[name]) for line in lines if name in line]
        assert [step for step, _ in actual] == [step for step, _ in expected]
        assert [value for _, value in actual] == pytest.approx([value for _, value in expected], rel=1e-6)  # float32


def test_no_tracker_writes_nothing(tmp_path: Path) -> None:
    with trackers([], tmp_path, small_config()) as calls:
        assert calls == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_is_one_sentence_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == name else find("json"))
    sentence = rf"--track {name} needs the package {name}: pip install prism-policy\[track\]"
    with pytest.raises(PrismError, match=sentence):
        train_run(tmp_path / "run", small_config(), track=[name])  # type: ignore[list-item]
    assert not (tmp_path / "run").exists()
    other = "wandb" if name == "tensorboard" else "tensorboard"
    check_trackers([other])  # type: ignore[list-item]
