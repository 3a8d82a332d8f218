"""The device that a command computes on."""

import pytest
import torch

from prism_policy.errors import PrismError
from prism_policy.utils.cores import available_cores
from prism_policy.utils.device import pick_device


def machine_with(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)


def test_a_gpu_is_chosen_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    machine_with(monkeypatch, 2)
    assert pick_device() == torch.device("cuda", 0)
    assert pick_device("cuda", 1) == torch.device("cuda", 1)
    assert pick_device("cpu", 5) == torch.device("cpu")
    with pytest.raises(PrismError, match="at most one for each of 2 GPUs"):
        pick_device("auto", 2)


def test_a_gpu_that_is_wanted_and_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    machine_with(monkeypatch, 0)
    assert pick_device("auto", 3) == torch.device("cpu")
    with pytest.raises(PrismError, match="found none; choose --device cpu"):
        pick_device("cuda")


def test_cores_are_counted() -> None:
    assert available_cores() >= 1
