"""The settings of a run are the flags of `prism train`: a preset's values, changed by dotted flags."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from prism_policy.cli.main import main
from prism_policy.cli.train import Quickstart, Train
from prism_policy.config import presets
from prism_policy.config.settings import PolicyKind, RunConfig
from small_run import config_of, split


def names(config: Any, path: str = "") -> Iterator[str]:
    """Dotted names of all fields that are no configs themselves."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        yield from names(value, f"{path}{field.name}.") if dataclasses.is_dataclass(value) else [path + field.name]


def complaint(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """What the command says of bad input, as one line."""
    monkeypatch.setattr("sys.argv", ["prism", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert not said.out
    return " ".join(said.err.replace("│", " ").split())


@pytest.mark.parametrize("preset", ["nano", "small", "paper"])
@pytest.mark.parametrize("policy", get_args(PolicyKind))
def test_without_dotted_flags_the_settings_are_the_presets(preset: str, policy: str) -> None:
    made = getattr(presets, preset)("can", policy, "sspool", 3)
    assert config_of(f"--task can --policy {policy} --encoder sspool --seed 3 --preset {preset}") == made


def test_dotted_flags_change_what_they_name_and_nothing_else() -> None:
    config = config_of(
        "--train.lr 2e-3 --policy.down-dims 32 64 128 --task.action-mode absolute",
        "--train.ema-power None --train.compile",
    )
    plain = presets.nano()
    assert config == dataclasses.replace(
        plain,
        task=dataclasses.replace(plain.task, action_mode="absolute"),
        policy=dataclasses.replace(plain.policy, down_dims=(32, 64, 128)),
        train=dataclasses.replace(plain.train, lr=2e-3, ema_power=None, compile=True),
    )
    assert config_of("--preset paper --train.no-compile").train.compile is False
    assert config_of("--task.numbers").task.numbers == ()


def test_the_order_of_flags_does_not_matter_and_both_dashes_are_understood() -> None:
    wanted = config_of("--preset paper --task tool_hang --policy meanflow --train.batch-size 3")
    assert (wanted.task.max_steps, wanted.train.ema_power, wanted.train.batch_size) == (700, None, 3)
    assert config_of("--train.batch_size 3 --policy meanflow --task tool_hang --preset paper") == wanted
    assert config_of("--train.batch_size=3 --policy=meanflow --task=tool_hang --preset=paper") == wanted


def test_task_and_policy_may_be_named_in_full() -> None:
    assert config_of("--task.name tool_hang --policy.kind ddpm") == config_of("--task tool_hang --policy ddpm")


def test_a_dataset_is_known_by_its_absolute_path() -> None:
    assert config_of("--dataset demos.hdf5").dataset == str(Path("demos.hdf5").absolute())


def test_quickstart_takes_the_same_flags() -> None:
    _, config = Quickstart.parse_run(split(["--smoke --policy ddpm --train.lr 0.5", "--task.cameras agentview"]))
    smoke = presets.smoke(presets.nano("lift", "ddpm"))
    assert config.train == dataclasses.replace(smoke.train, lr=0.5)
    assert config.task == dataclasses.replace(smoke.task, cameras=("agentview",))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--train.stepz 1", "Unrecognized options: --train.stepz, 1"),
        ("--train.stepz 1", "Perhaps you meant: --train.steps INT"),
        ("--training.lr 1", "Unrecognized options: --training.lr, 1"),
        ("--train.steps many", "Error parsing --train.steps: invalid literal for int() with base 10: 'many'"),
        ("--train.steps", "Missing value for argument '--train.steps'"),
        ("--train.betas 0.5", "--train.betas"),
        ("--policy.encoder.pooling median", "invalid choice 'median' for argument '--policy.encoder.pooling'"),
        ("--preset huge", "invalid choice 'huge' for argument '--preset'"),
        ("--policy vae", "invalid choice 'vae' for argument '--policy"),
        ("--encoder resnet", "prism: unknown encoder 'resnet'; available: avgpool, maxpool"),
        ("--task juggle", "juggle"),
        ("lift", "Unrecognized options: lift"),
        ("--train.steps 0", "prism: train.steps: expected at least 1, got 0"),
        ("--train.lr nan", "prism: train.lr: expected more than 0, got nan"),
    ],
)
def test_bad_input_is_explained_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: str,
    sentence: str,
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert sentence in complaint(capsys, monkeypatch, "train", "--out", str(tmp_path / "run"), *arguments.split())
    assert not list(tmp_path.iterdir())


def test_help_is_short_and_the_long_one_has_every_setting(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    for option in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as stopped:
            Train.parse_run(["--preset", "paper", option], "prism train")
        assert stopped.value.code == 0
    short, long = capsys.readouterr().out.split("usage: ")[1:]
    assert len(short.splitlines()) < 60
    assert "--help-all" in short
    for encoder in presets.ENCODERS:
        assert encoder in short
    for name in names(RunConfig()):
        assert f"--{name.replace('_', '-')}" in long, name
    assert "(default: 50000)" in long  # the preset's


def test_an_unknown_command_is_answered_with_the_list(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Available subcommands: quickstart, train" in complaint(capsys, monkeypatch, "trian")
