"""Checkpoints are whole or not there, hold the state at the time of saving, and lead back to it to the bit."""

import errno
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import prism_policy as pp
from journals import read_lines
from prism_policy.data.schema import task_schema
from prism_policy.data.windows import Windows
from prism_policy.errors import PrismError
from prism_policy.policies import Policy
from prism_policy.run_folder import make_policy, open_run
from prism_policy.training import checkpoint as module
from prism_policy.training.checkpoint import Checkpoints, TrainState
from prism_policy.training.trainer import Trainer
from small_run import small_config, small_windows


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Windows:
    return small_windows(tmp_path_factory.mktemp("demos"))


def a_state(norm: str = "group", seed: int = 0) -> TrainState:
    torch.manual_seed(seed)
    config = small_config(f"--policy.encoder.norm {norm}")
    policy = make_policy(config, task_schema(config.task)).to(memory_format=torch.channels_last)
    return TrainState(policy, config.train)


def step(state: TrainState, seed: int) -> None:
    """One update with random gradients."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in state.parameters.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    for buffer in state.buffers.values():
        buffer.add_(1)
    state.update(1e-2, 0.5)


def copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_a_restored_state_goes_on_as_the_one_that_was_saved(tmp_path: Path, norm: str) -> None:
    state = a_state(norm)
    for seed in range(3):
        step(state, seed)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
    other = a_state(norm, seed=1)
    Checkpoints(tmp_path).restore(other)
    assert other.done == 3
    assert_equal(other.tensors(), state.tensors())
    step(state, 3)
    step(other, 3)
    assert_equal(other.tensors(), state.tensors())
    assert bool(state.buffers) == (norm == "batch")


def test_a_checkpoint_is_of_the_moment_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, write = threading.Event(), module._write_file
    monkeypatch.setattr(module, "_write_file", lambda *a: (go_on.wait(10), write(*a)))
    state = a_state("batch")
    step(state, 0)
    expected, weights = copies(state.tensors()), copies(state.weights())
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        step(state, 1)  # while the thread has not written anything yet
        go_on.set()
        checkpoints.wait()
    assert_equal(load_file(tmp_path / "checkpoints" / "last.safetensors"), expected)
    assert weights.keys() == expected_weights(expected)


def expected_weights(tensors: dict[str, Tensor]) -> set[str]:
    return {name.split("/", 1)[1] for name in tensors if name.startswith(("ema/", "buffers/"))}


def test_the_one_before_is_kept_and_what_acts_is_saved_alone(tmp_path: Path) -> None:
    state = a_state("batch")
    seen = []
    with Checkpoints(tmp_path) as checkpoints:
        for seed in range(3):
            step(state, seed)
            seen.append(copies(state.tensors()))
            checkpoints.save(state)
        checkpoints.save_weights(state, "best")
    folder = tmp_path / "checkpoints"
    assert_equal(load_file(folder / "last.safetensors"), seen[2])
    assert_equal(load_file(folder / "previous.safetensors"), seen[1])
    best = load_file(folder / "best.safetensors")
    assert best.keys() == expected_weights(seen[2])
    assert_equal(best, {name: seen[2].get(f"ema/{name}", seen[2].get(f"buffers/{name}")) for name in best})  # type: ignore[misc]
    assert sorted(p.name for p in folder.iterdir()) == ["best.safetensors", "last.safetensors", "previous.safetensors"]


def test_under_its_name_a_checkpoint_is_never_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the moment before the data are known to be on the disk, the name belongs to nothing."""
    seen: list[list[str]] = []
    fsync = os.fsync

    def watching(number: int) -> None:
        seen.append(sorted(p.name for p in (tmp_path / "checkpoints").iterdir() if not p.name.startswith(".")))
        fsync(number)

    monkeypatch.setattr(os, "fsync", watching)
    state = a_state()
    with Checkpoints(tmp_path) as checkpoints:
        for _ in range(2):
            checkpoints.save(state)
    assert seen == [[], ["previous.safetensors"]]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_is_one_sentence_and_costs_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    state = a_state()
    step(state, 0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        checkpoints.wait()
        expected = copies(state.tensors())
        step(state, 1)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            for _ in range(2):
                checkpoints.save(state)
                with pytest.raises(PrismError, match=r"no space left on the disk of .*last\.safetensors"):
                    checkpoints.wait()
    other = a_state(seed=1)
    Checkpoints(tmp_path).restore(other)
    assert_equal(other.tensors(), expected)
    assert not list(tmp_path.rglob("*.tmp"))
    with Checkpoints(tmp_path) as checkpoints, monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        checkpoints.save(state)
        with pytest.raises(PrismError, match="no space left"):  # the end of the block does not swallow it either
            checkpoints.__exit__(None, None, None)


def test_two_damaged_checkpoints_are_named_and_the_training_starts_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = a_state()
    for name in ("last", "previous"):
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        (tmp_path / "checkpoints" / f"{name}.safetensors").write_bytes(b"\0" * 7)
    before = copies(state.tensors())
    Checkpoints(tmp_path).restore(state)
    printed = capsys.readouterr().out.splitlines()
    assert ["going back" in line for line in printed] == [True, False]
    assert "starting anew" in printed[1]
    assert state.done == 0
    assert_equal(state.tensors(), before)


def test_batchnorms_running_statistics_resume_to_the_bit_and_act(tmp_path: Path, windows: Windows) -> None:
    config = small_config("--policy.encoder.norm batch", "--train.checkpoint-minutes 0")
    open_run(tmp_path / "whole", config)
    whole = Trainer(tmp_path / "whole", config, windows).train()

    def killed(done: int, line: dict[str, float]) -> None:
        if done == 7:
            raise ConnectionError

    open_run(tmp_path / "killed", config)
    with pytest.raises(ConnectionError):
        Trainer(tmp_path / "killed", config, windows, killed).train()
    resumed = Trainer(tmp_path / "killed", config, windows).train()
    statistics = {name: x for name, x in whole.state_dict().items() if "running" in name}
    assert statistics
    assert all(bool((x != (name.endswith("var"))).any()) for name, x in statistics.items())  # they have moved
    assert_equal(resumed.state_dict(), whole.state_dict())
    assert_equal(pp.load_policy(tmp_path / "killed").state_dict(), whole.state_dict())
    assert_equal(chunk(pp.load_policy(tmp_path / "whole"), windows), chunk(whole, windows))


def chunk(policy: Policy, windows: Windows) -> dict[str, Tensor]:
    """What a policy samples: one window's chunk alone, and the same among others, as it is in evaluation mode."""
    noise = policy.draw_noise(3, torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = policy.sample(windows.batch(torch.tensor([3, 9, 20])), noise)
        alone = policy.sample(windows.batch(torch.tensor([3])), noise[:1])
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-5)
    return {"together": together, "alone": alone}


def test_kept_checkpoints_are_the_averaged_weights_of_their_updates(tmp_path: Path, windows: Windows) -> None:
    config = small_config("--train.keep-every 5", "--train.log-every 4")
    open_run(tmp_path, config)
    Trainer(tmp_path, config, windows).train()
    kept = sorted(p.name for p in (tmp_path / "checkpoints").glob("update_*"))
    assert kept == ["update_000005.safetensors", "update_000010.safetensors"]
    for updates in (5, 10):
        short = tmp_path / f"short_{updates}"
        open_run(short, config)

        def stop(done: int, line: dict[str, float], at: int = updates) -> None:
            if done == at:
                raise ConnectionError

        with pytest.raises(ConnectionError):  # another run's own state after as many updates
            Trainer(short, replace(config, train=replace(config.train, checkpoint_minutes=0.0)), windows, stop).train()
        state = load_file(short / "checkpoints" / "last.safetensors")
        policy = pp.load_policy(tmp_path, str(updates))
        assert_equal(dict(policy.named_parameters()), {n[4:]: x for n, x in state.items() if n.startswith("ema/")})
    assert_equal(pp.load_policy(tmp_path).state_dict(), pp.load_policy(tmp_path, "last").state_dict())
    for unknown in ("best", "7", "x"):
        with pytest.raises(PrismError, match=f"has no checkpoint '{unknown}'; it has last, 5, 10$"):
            pp.load_policy(tmp_path, unknown)
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [4, 5, 8, 10, 12]
