"""Training resumes to the bit, keeps what it had when things go wrong, and follows the paper's schedule."""

import copy
import json
import math
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import prism_policy as pp
from prism_policy.config import RunConfig, TrainConfig
from prism_policy.data.frames import Frames
from prism_policy.data.robomimic import Episode
from prism_policy.data.windows import Windows, batch_indices
from prism_policy.errors import PrismError
from prism_policy.files import read_lines
from prism_policy.run_folder import open_run
from prism_policy.train import ema_decay, learning_rate, train, validate


@pytest.fixture(scope="module")
def windows(episodes: list[Episode]) -> Windows:
    return Windows(Frames.of(episodes), 16, 2, 8)


class Killed(Exception):
    pass


def killed_after(update: int):
    def on_update(done: int, line: dict[str, float]) -> None:
        if done == update:
            raise Killed

    return on_update


def weights(policy: torch.nn.Module) -> list[Tensor]:
    return list(policy.state_dict().values())


@pytest.mark.parametrize("update", [2, 5, 7])
def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(
    tmp_path: Path, tiny_config: RunConfig, windows: Windows, update: int
) -> None:
    whole = train(tmp_path / "whole", tiny_config, windows)
    with pytest.raises(Killed):
        train(tmp_path / "killed", tiny_config, windows, killed_after(update))
    resumed = train(tmp_path / "killed", tiny_config, windows)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    steps = [line["step"] for line in read_lines(tmp_path / "killed" / "metrics.jsonl")]
    assert steps == list(range(1, 9))


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, tiny_config: RunConfig, windows: Windows, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(tmp_path / "whole", tiny_config, windows)
    with pytest.raises(Killed):
        train(tmp_path / "damaged", tiny_config, windows, killed_after(7))
    last = tmp_path / "damaged" / "checkpoints" / "last.safetensors"
    last.write_bytes(last.read_bytes()[:-100])
    resumed = train(tmp_path / "damaged", tiny_config, windows)
    assert "damaged" in capsys.readouterr().out
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


def test_a_stop_signal_leaves_a_checkpoint_of_the_update_it_met(
    tmp_path: Path, tiny_config: RunConfig, windows: Windows
) -> None:
    started = []

    def on_update(done: int, line: dict[str, float]) -> None:
        started.append(done)
        if done == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, tiny_config, windows, on_update)
    assert started == [1, 2, 3, 4, 5]  # the update after the signal is finished
    started.clear()
    train(tmp_path, tiny_config, windows, lambda done, line: started.append(done))
    assert started == [6, 7, 8]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(
    tmp_path: Path, tiny_config: RunConfig, windows: Windows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prism_policy.train.learning_rate", lambda step, config: 1e3 if step == 4 else 1e-3)
    with pytest.raises(PrismError, match="Lower the learning rate"):
        train(tmp_path, tiny_config, windows)
    state = load_file(tmp_path / "checkpoints" / "last.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in state.values())
    assert not (tmp_path / "weights.safetensors").exists()
    bad = json.loads((tmp_path / "bad_batch.json").read_text())
    assert bad["update"] == 6  # the fifth update's weights make the sixth's loss
    assert bad["windows"] == batch_indices(5, 8, len(windows), tiny_config.seed).tolist()


def test_the_saved_policy_acts_as_the_trained_one(tmp_path: Path, tiny_config: RunConfig, windows: Windows) -> None:
    open_run(tmp_path, tiny_config)
    trained = train(tmp_path, tiny_config, windows)
    batch = windows.batch(torch.tensor([0, 3]))
    actions = [p.act(batch, torch.Generator().manual_seed(0)) for p in (trained, pp.load_policy(tmp_path))]
    torch.testing.assert_close(actions[0], actions[1])


def test_weights_of_another_configuration_are_refused(tmp_path: Path, tiny_config: RunConfig, windows: Windows) -> None:
    open_run(tmp_path / "a", tiny_config)
    train(tmp_path / "a", tiny_config, windows)
    wider = replace(tiny_config, policy=replace(tiny_config.policy, down_dims=(32, 32)))
    open_run(tmp_path / "b", wider)
    for name in ("weights.safetensors", "normalizer.safetensors"):
        shutil.copy(tmp_path / "a" / name, tmp_path / "b" / name)
    with pytest.raises(PrismError, match=r"'net\.\S+' expected \(.*\), found \("):
        pp.load_policy(tmp_path / "b")
    with pytest.raises(PrismError, match="not found"):
        pp.load_policy(tmp_path / "c")


def test_statistics_that_are_missing_are_named(tmp_path: Path, tiny_config: RunConfig, windows: Windows) -> None:
    open_run(tmp_path, tiny_config)
    train(tmp_path, tiny_config, windows)
    path = tmp_path / "normalizer.safetensors"
    statistics = load_file(path)
    save_file({name: value for name, value in statistics.items() if name != "action.offset"}, path)
    with pytest.raises(PrismError, match=r"lacks 'action\.offset'; it has .*action\.scale"):
        pp.load_policy(tmp_path)
    save_file({**statistics, "proprio.scale": statistics["proprio.scale"] * 0}, path)
    with pytest.raises(PrismError, match=r"proprio\.scale: expected positive numbers, got 0"):
        pp.load_policy(tmp_path)


def test_actions_out_of_range_are_named_before_training(
    tmp_path: Path, tiny_config: RunConfig, windows: Windows
) -> None:
    windows = copy.deepcopy(windows)  # other tests share it
    windows.frames.actions[5, 4] = 3.2  # a rotation in radians where a share of the controller's range is expected
    with pytest.raises(PrismError, match=r"actions, number 4: expected rotations and gripper .*, got 3\.2"):
        train(tmp_path, tiny_config, windows)
    windows.frames.actions[5, 4] = torch.nan
    with pytest.raises(PrismError, match="statistics need finite values"):
        train(tmp_path, tiny_config, windows)


def test_validation_measures_the_ema_weights_and_changes_nothing(
    tmp_path: Path, tiny_config: RunConfig, windows: Windows
) -> None:
    valid = Windows(windows.frames, 16, 2, 8, episodes=[1])
    config = replace(tiny_config, train=replace(tiny_config.train, valid_every=4))
    plain = train(tmp_path / "plain", config, windows)
    watched = train(tmp_path / "watched", config, windows, valid=valid)
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(watched), strict=True))
    lines = {line["step"]: line for line in read_lines(tmp_path / "watched" / "metrics.jsonl")}
    assert [step for step, line in lines.items() if "valid_loss" in line] == [4, 8]
    expected = validate(watched, valid, config.train.batch_size)  # the policy returned has the EMA weights
    assert lines[8]["valid_loss"] == expected["valid_loss"]
    assert lines[8]["valid_action_error"] == expected["valid_action_error"] > 0


def test_time_that_is_over_leaves_a_checkpoint_to_go_on_from(
    tmp_path: Path, tiny_config: RunConfig, windows: Windows
) -> None:
    whole = train(tmp_path / "whole", tiny_config, windows)
    with pytest.raises(PrismError, match="stopped at update 1 of 8, as its time is over"):
        train(tmp_path / "short", tiny_config, windows, max_s=0)
    resumed = train(tmp_path / "short", tiny_config, windows)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


def test_a_folder_of_another_run_is_refused_and_untouched(tmp_path: Path, tiny_config: RunConfig) -> None:
    open_run(tmp_path / "run", tiny_config)
    before = (tmp_path / "run" / "config.json").read_bytes()
    other = replace(tiny_config, train=replace(tiny_config.train, lr=0.5))
    with pytest.raises(PrismError, match=r"holds another run: train\.lr is 0\.001 there and 0\.5 now"):
        open_run(tmp_path / "run", other)
    assert (tmp_path / "run" / "config.json").read_bytes() == before
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").touch()
    with pytest.raises(PrismError, match="no run folder"):
        open_run(tmp_path / "foreign", tiny_config)


def test_learning_rate_is_torchs_cosine_after_a_linear_warmup() -> None:
    config = TrainConfig(steps=100, warmup_steps=10, lr=0.1)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=90)
    assert [learning_rate(s, config) for s in range(10)] == pytest.approx([0.01 * (s + 1) for s in range(10)])
    for step in range(10, 100):
        assert learning_rate(step, config) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        reference.step()


def test_ema_forgets_the_start_and_is_capped() -> None:
    config = TrainConfig()
    assert ema_decay(0, config) == 0
    assert ema_decay(999, config) == pytest.approx(1 - math.exp(-0.75 * math.log(1000)))
    assert ema_decay(10**9, config) == 0.9999
