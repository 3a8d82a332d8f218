"""Every number of the settings has a range, and one out of it is named."""

import dataclasses
import math
import re
from dataclasses import replace
from typing import get_type_hints

import pytest

from prism_policy.config import presets
from prism_policy.config.ranges import check_ranges, range_of
from prism_policy.config.settings import ProbeConfig, RunConfig, check
from prism_policy.errors import PrismError


def numeric_fields(config: type, path: str = "") -> dict[str, object]:
    """Dotted names and types of the fields that hold numbers, in nested configs too."""
    fields: dict[str, object] = {}
    for name, hint in get_type_hints(config, include_extras=True).items():
        if dataclasses.is_dataclass(hint):
            fields |= numeric_fields(hint, f"{path}{name}.")  # type: ignore[arg-type]
        elif re.search(r"\b(int|float)\b", str(hint)):
            fields[path + name] = hint
    return fields


@pytest.mark.parametrize("config", [RunConfig, ProbeConfig])
def test_every_number_of_the_settings_has_a_range(config: type) -> None:
    fields = numeric_fields(config)
    assert len(fields) > 5
    assert not [name for name, hint in fields.items() if range_of(hint) is None]


@pytest.mark.parametrize("preset", [presets.nano, presets.small, presets.paper])
def test_every_preset_is_within_its_ranges(preset: object) -> None:
    for policy in ("ddpm", "flow_matching", "meanflow"):
        for encoder in presets.ENCODERS:
            check(preset("can", policy, encoder))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("section", "change", "sentence"),
    [
        ("train", {"steps": 0}, "train.steps: expected at least 1, got 0"),
        ("train", {"lr": 0.0}, "train.lr: expected more than 0, got 0.0"),
        ("train", {"lr": math.nan}, "train.lr: expected more than 0, got nan"),
        ("train", {"betas": (0.9, 1.0)}, "train.betas: expected 0 to less than 1, got 1.0"),
        ("train", {"ema_power": -1.0}, "train.ema_power: expected more than 0, got -1.0"),
        ("demos", {"noise": math.inf}, "demos.noise: expected 0 or more, got inf"),
        ("policy", {"down_dims": (64, 0)}, "policy.down_dims: expected at least 1, got 0"),
        ("evaluate", {"seed": -1}, "evaluate.seed: expected 0 or more, got -1"),
    ],
)
def test_a_number_out_of_its_range_is_named(section: str, change: dict[str, object], sentence: str) -> None:
    config = presets.nano()
    bad = replace(config, **{section: replace(getattr(config, section), **change)})  # type: ignore[arg-type]
    with pytest.raises(PrismError) as error:
        check(bad)
    assert str(error.value) == sentence


def test_numbers_of_nested_configs_and_missing_ones_are_checked() -> None:
    config = presets.nano()
    none = replace(config, train=replace(config.train, ema_power=None))
    check_ranges(none)
    stages = replace(config, policy=replace(config.policy, encoder=replace(config.policy.encoder, stages=(1, 5))))
    with pytest.raises(PrismError, match=r"policy.encoder.stages: expected 1 to 4, got 5"):
        check_ranges(stages)
    mean = replace(config, policy=replace(config.policy, meanflow=replace(config.policy.meanflow, t_mean=math.nan)))
    with pytest.raises(PrismError, match=r"policy.meanflow.t_mean: expected a finite number, got nan"):
        check_ranges(mean)
