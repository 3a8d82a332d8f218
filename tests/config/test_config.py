"""Configurations survive JSON, and what does not fit is named."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from prism_policy.config import presets
from prism_policy.config.config_json import from_dict, load, to_json
from prism_policy.config.settings import RunConfig
from prism_policy.errors import PrismError
from prism_policy.run_folder import read_metrics
from prism_policy.utils.text import parsed_json


@pytest.mark.parametrize("encoder", presets.ENCODERS)
def test_config_survives_json(encoder: str) -> None:
    config = presets.nano(encoder_name=encoder, seed=3)
    assert from_dict(RunConfig, json.loads(to_json(config))) == config


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"trian": {}},
            "unknown field 'trian'; RunConfig has data, dataset, demos, evaluate, policy, seed, task, train",
        ),
        ({"train": {"steps": "many"}}, "train.steps: expected int, got 'many'"),
        ({"train": {"steps": True}}, "train.steps: expected int, got True"),
        ({"policy": {"encoder": {"pooling": "median"}}}, "policy.encoder.pooling: expected one of spatial_softmax"),
        ({"task": {"cameras": "agentview"}}, "task.cameras: expected"),
        ({"train": 3}, "train.: expected an object"),
    ],
)
def test_bad_field_is_named_with_what_was_expected(change: dict[str, object], sentence: str) -> None:
    with pytest.raises(PrismError) as error:
        from_dict(RunConfig, change)
    assert sentence in str(error.value)


def test_integers_serve_as_floats() -> None:
    assert from_dict(RunConfig, {"train": {"lr": 1}}).train.lr == 1.0


def test_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PrismError, match="not found"):
        load(RunConfig, tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(PrismError, match="not valid JSON"):
        load(RunConfig, tmp_path / "config.json")


def test_unknown_encoder_lists_those_there_are() -> None:
    with pytest.raises(PrismError, match="unknown encoder 'resnet'; available: avgpool, maxpool"):
        presets.encoder("resnet")


def test_smoke_changes_sizes_only() -> None:
    config = presets.nano()
    small = presets.smoke(config)
    assert small.policy == config.policy
    assert replace(small.task, max_steps=config.task.max_steps) == config.task


@pytest.mark.parametrize("digits", [301, 5000])
def test_a_whole_number_that_no_float_can_be_is_damage(digits: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too many digits"):
        parsed_json(f'{{"a": [1, {"7" * digits}]}}')
    assert float(parsed_json("7" * 300)) > 7e299
    sound = {"step": 1, "loss": 1.0, "lr": 0.1, "samples_per_s": 1.0, "waiting": 0.0, "wall_s": 1.0, "threads": 1}
    lines = [json.dumps(sound), json.dumps(sound).replace('"samples_per_s": 1.0', f'"samples_per_s": {"7" * digits}')]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    journal = read_metrics(tmp_path)
    assert [line["step"] for line in journal.lines] == [1]
    assert "too many digits" in journal.flaw
