"""Training resumes to the bit, keeps what it had when things go wrong, and follows the paper's schedule."""

import copy
import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import prism_policy as pp
from journals import read_lines
from panda import frames_of
from prism_policy.config.settings import PolicyKind, Precision, RunConfig, TrainConfig
from prism_policy.data.robomimic import Episode
from prism_policy.data.schema import task_schema
from prism_policy.data.windows import Windows, batch_indices
from prism_policy.errors import PrismError
from prism_policy.policies import Policy
from prism_policy.run_folder import make_policy, open_run
from prism_policy.training.prefetch import mapped
from prism_policy.training.runtime import arithmetic
from prism_policy.training.trainer import Rollout, Trainer, ema_decay, learning_rate, update_seed, validate
from small_run import small_config, small_windows


@pytest.fixture(scope="module")
def windows(episodes: list[Episode]) -> Windows:
    return Windows(frames_of(episodes), 16, 2, 8)


class Killed(Exception):
    pass


def killed_after(update: int):
    def on_update(done: int, line: dict[str, float]) -> None:
        if done == update:
            raise Killed

    return on_update


def weights(policy: torch.nn.Module) -> list[Tensor]:
    return list(policy.state_dict().values())


@pytest.mark.parametrize("update", [5, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 7))])
def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(
    tmp_path: Path, tiny_config: RunConfig, windows: Windows, update: int
) -> None:
    whole = Trainer(tmp_path / "whole", tiny_config, windows).train()
    with pytest.raises(Killed):
        Trainer(tmp_path / "killed", tiny_config, windows, killed_after(update)).train()
    resumed = Trainer(tmp_path / "killed", tiny_config, windows).train()
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    steps = [line["step"] for line in read_lines(tmp_path / "killed" / "metrics.jsonl")]
    assert steps == list(range(1, 9))


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, tiny_config: RunConfig, windows: Windows, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Trainer(tmp_path / "whole", tiny_config, windows).train()
    with pytest.raises(Killed):
        Trainer(tmp_path / "damaged", tiny_config, windows, killed_after(7)).train()
    last = tmp_path / "damaged" / "checkpoints" / "last.safetensors"
    last.write_bytes(last.read_bytes()[:-100])
    resumed = Trainer(tmp_path / "damaged", tiny_config, windows).train()
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
        Trainer(tmp_path, tiny_config, windows, on_update).train()
    assert started == [1, 2, 3, 4, 5]  # the update after the signal is finished
    started.clear()
    Trainer(tmp_path, tiny_config, windows, lambda done, line: started.append(done)).train()
    assert started == [6, 7, 8]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(
    tmp_path: Path, tiny_config: RunConfig, windows: Windows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prism_policy.training.trainer.learning_rate", lambda step, config: 1e3 if step == 4 else 1e-3)
    with pytest.raises(PrismError, match="Lower the learning rate"):
        Trainer(tmp_path, tiny_config, windows).train()
    state = load_file(tmp_path / "checkpoints" / "last.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in state.values())
    assert not (tmp_path / "weights.safetensors").exists()
    bad = json.loads((tmp_path / "bad_batch.json").read_text())
    assert bad["update"] == 6  # the fifth update's weights make the sixth's loss
    assert bad["windows"] == batch_indices(5, 8, len(windows), tiny_config.seed).tolist()


def test_the_saved_policy_acts_as_the_trained_one(tmp_path: Path, tiny_config: RunConfig, windows: Windows) -> None:
    open_run(tmp_path, tiny_config)
    trained = Trainer(tmp_path, tiny_config, windows).train()
    batch = windows.batch(torch.tensor([0, 3]))
    actions = [p.act(batch, torch.Generator().manual_seed(0)) for p in (trained, pp.load_policy(tmp_path))]
    torch.testing.assert_close(actions[0], actions[1])


def test_weights_of_another_configuration_are_refused(tmp_path: Path, tiny_config: RunConfig, windows: Windows) -> None:
    open_run(tmp_path / "a", tiny_config)
    Trainer(tmp_path / "a", tiny_config, windows).train()
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
    Trainer(tmp_path, tiny_config, windows).train()
    path = tmp_path / "normalizer.safetensors"
    statistics, about = load_file(path), {"task": json.dumps(asdict(tiny_config.task))}
    save_file({name: value for name, value in statistics.items() if name != "action.offset"}, path, about)
    with pytest.raises(PrismError, match=r"lacks 'action\.offset'; it has .*action\.scale"):
        pp.load_policy(tmp_path)
    save_file({**statistics, "state.scale": statistics["state.scale"] * 0}, path, about)
    with pytest.raises(PrismError, match=r"state\.scale: expected positive numbers, got 0"):
        pp.load_policy(tmp_path)


def test_actions_out_of_range_are_named_before_training(
    tmp_path: Path, tiny_config: RunConfig, windows: Windows
) -> None:
    windows = copy.deepcopy(windows)  # other tests share it
    windows.frames.actions[5, 4] = 3.2  # a rotation in radians where a share of the controller's range is expected
    with pytest.raises(PrismError, match=r"actions, number 4: expected rotations and gripper .*, got 3\.2"):
        Trainer(tmp_path, tiny_config, windows).train()
    windows.frames.actions[5, 4] = torch.nan
    with pytest.raises(PrismError, match="statistics need finite values"):
        Trainer(tmp_path, tiny_config, windows).train()


def test_validation_measures_the_ema_weights_and_changes_nothing(
    tmp_path: Path, tiny_config: RunConfig, windows: Windows
) -> None:
    valid = Windows(windows.frames, 16, 2, 8, episodes=[1])
    config = replace(tiny_config, train=replace(tiny_config.train, valid_every=4))
    plain = Trainer(tmp_path / "plain", config, windows).train()
    watched = Trainer(tmp_path / "watched", config, windows, valid=valid).train()
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(watched), strict=True))
    lines = {line["step"]: line for line in read_lines(tmp_path / "watched" / "metrics.jsonl")}
    assert [step for step, line in lines.items() if "valid_loss" in line] == [4, 8]
    expected = validate(watched, valid, config.train.batch_size)  # the policy returned has the EMA weights
    assert lines[8]["valid_loss"] == expected["valid_loss"]
    assert lines[8]["valid_action_error"] == expected["valid_action_error"] > 0


def test_a_batch_prepared_while_a_validation_runs_has_its_crops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loader's thread is late, and draws while the policy is in evaluation mode."""
    config, windows = small_config("--train.valid-every 2"), small_windows(tmp_path)
    valid = Windows(windows.frames, 16, 2, 8, episodes=[1])
    expected = Trainer(tmp_path / "prompt", config, windows, valid=valid).train()
    validating, drawn = threading.Event(), threading.Event()

    def late_indices(step: int, *rest: Any) -> Tensor:
        if step == 2:  # of the third update, prepared during the second, after which a validation is due
            assert validating.wait(10)
        return batch_indices(step, *rest)

    def slow_validate(policy: Policy, *rest: Any) -> dict[str, float]:
        policy.eval()
        validating.set()
        time.sleep(0.3)
        drawn.set()
        return validate(policy, *rest)

    monkeypatch.setattr("prism_policy.training.trainer.batch_indices", late_indices)
    monkeypatch.setattr("prism_policy.training.trainer.validate", slow_validate)
    late = Trainer(tmp_path / "late", config, windows, valid=valid).train()
    assert drawn.is_set()
    assert all(torch.equal(a, b) for a, b in zip(weights(expected), weights(late), strict=True))


def test_a_float32_run_on_a_gpu_rounds_nothing_to_tf32() -> None:
    def flags() -> tuple[str, bool]:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    before = flags()
    for precision, expected in (("float32", ("highest", False)), ("bfloat16", ("high", True))):
        with arithmetic(TrainConfig(precision=precision), torch.device("cuda")):  # type: ignore[arg-type]
            assert flags() == expected
        assert flags() == before


@pytest.mark.slow
def test_time_that_is_over_leaves_a_checkpoint_to_go_on_from(
    tmp_path: Path, tiny_config: RunConfig, windows: Windows
) -> None:
    whole = Trainer(tmp_path / "whole", tiny_config, windows).train()
    with pytest.raises(PrismError, match="stopped at update 1 of 8, as its time is over"):
        Trainer(tmp_path / "short", tiny_config, windows, max_s=0).train()
    resumed = Trainer(tmp_path / "short", tiny_config, windows).train()
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


def test_a_folder_of_another_run_is_refused_and_untouched(tmp_path: Path, tiny_config: RunConfig) -> None:
    open_run(tmp_path / "run", tiny_config)
    before = (tmp_path / "run" / "config.json").read_bytes()
    other = replace(tiny_config, train=replace(tiny_config.train, lr=0.5))
    with pytest.raises(PrismError, match=r"holds another run: train\.lr is 0\.0015 there and 0\.5 now"):
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


def float64(x: Any) -> Any:
    return mapped(x, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


@pytest.mark.parametrize("kind", get_args(PolicyKind))
def test_a_training_is_adamw_under_a_warmed_up_cosine_with_an_average_of_the_weights(
    tmp_path: Path, kind: PolicyKind
) -> None:
    """The same in float64, from the formulas of Loshchilov and Hutter (2019), Algorithm 2, and of diffusion policy."""
    settings = ("--train.steps 9", "--train.warmup-steps 3", "--train.lr 0.01", "--train.weight-decay 0.1")
    # A large epsilon, for with a small one Adam makes rounding where the gradient vanishes as large as a true step.
    config = small_config(*settings, "--train.eps 0.1", "--train.betas 0.8 0.95", "--train.keep-every 5", kind=kind)
    windows = small_windows(tmp_path)
    open_run(tmp_path / "run", config)
    trained = Trainer(tmp_path / "run", config, windows).train()
    torch.manual_seed(config.seed)
    policy = make_policy(config, task_schema(config.task)).train()
    policy.normalizer.load_state_dict(trained.normalizer.state_dict())
    policy = policy.double()
    policy.net.register_forward_pre_hook(lambda net, inputs: tuple(x.double() for x in inputs))  # DDPM's steps too
    policy.net.register_forward_pre_hook(lambda net, inputs: tuple(x.double() for x in inputs))  # DDPM's steps too
    names, weights = zip(*policy.named_parameters(), strict=True)
    means = [w.detach().clone() for w in weights]
    first, second = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    losses, kept = [], {}
    for n in range(9):
        indices = batch_indices(n, 8, len(windows), config.seed)
        draws = policy.draw(8, torch.Generator().manual_seed(update_seed(config.seed, n)))
        loss = policy(float64(windows.batch(indices)) | {"draws": float64(draws)})
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, weights)
        lr = 0.01 * ((n + 1) / 3 if n < 3 else (1 + math.cos(math.pi * (n - 3) / 6)) / 2)
        with torch.no_grad():
            for w, g, m, v, mean in zip(weights, gradients, first, second, means, strict=True):
                w -= lr * 0.1 * w
                m += 0.2 * (g - m)
                v += 0.05 * (g**2 - v)
                w -= lr * (m / (1 - 0.8 ** (n + 1))) / ((v / (1 - 0.95 ** (n + 1))).sqrt() + 0.1)
                decay = 1 - (1 + n) ** -0.75
                mean.copy_(decay * mean + (1 - decay) * w)
        if n == 4:
            kept = dict(zip(names, (mean.float() for mean in means), strict=True))
    state = load_file(tmp_path / "run" / "checkpoints" / "last.safetensors")
    tolerance = {"atol": 2e-5, "rtol": 1e-3}  # of nine steps of up to 0.01
    for name, w, mean in zip(names, weights, means, strict=True):
        torch.testing.assert_close(state[f"model/{name}"], w.detach().float(), **tolerance)
        torch.testing.assert_close(trained.get_parameter(name).detach(), mean.float(), **tolerance)
    for name, parameter in pp.load_policy(tmp_path / "run", "5").named_parameters():
        torch.testing.assert_close(parameter.detach(), kept[name], **tolerance)
    actual = [line["loss"] for line in read_lines(tmp_path / "run" / "metrics.jsonl")]
    assert actual == pytest.approx(losses, rel=1e-5)


def test_a_gradients_norm_is_clipped_where_it_is_asked_for(tmp_path: Path) -> None:
    windows = small_windows(tmp_path)
    moved = {}
    for clip in (0.0, 1e-9):
        config = small_config(f"--train.grad-clip {clip}", "--train.weight-decay 0", "--train.eps 1")
        folder = tmp_path / str(clip)
        Trainer(folder, config, windows).train()
        state = load_file(folder / "checkpoints" / "last.safetensors")
        moved[clip] = max(float(x.abs().max()) for name, x in state.items() if name.startswith("optimizer/exp_avg/"))
    assert moved[1e-9] <= 1e-9 < 1e-4 < moved[0.0]


@pytest.mark.parametrize("kind", get_args(PolicyKind))
def test_in_bfloat16_the_loss_goes_the_way_of_float32(tmp_path: Path, kind: PolicyKind) -> None:
    windows = small_windows(tmp_path)
    exact, rough = (curve(tmp_path / p, small_config(f"--train.precision {p}", kind=kind), windows) for p in PRECISIONS)
    # bfloat16 has eight bits: a prediction is off by some 2^-8 of its size, and so is the mean of its squares.
    assert rough == pytest.approx(exact, rel=0.02)
    assert rough != exact


PRECISIONS = get_args(Precision)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler")
def test_compiled_the_loss_goes_the_way_of_eager(tmp_path: Path) -> None:
    windows = small_windows(tmp_path)
    eager, compiled = (
        curve(tmp_path / c, small_config(f"--train.{c}", "--train.eps 0.001"), windows)
        for c in ("no-compile", "compile")
    )
    assert compiled == pytest.approx(eager, rel=1e-4)  # fused operations round differently


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler")
def test_compiled_and_deterministic_a_stopped_run_ends_with_the_weights_of_one_that_was_not(tmp_path: Path) -> None:
    windows = small_windows(tmp_path)
    config = small_config("--train.compile --train.deterministic")
    whole = Trainer(tmp_path / "whole", config, windows).train()
    with pytest.raises(PrismError, match="stopped at update 1 of 12"):
        Trainer(tmp_path / "parts", config, windows, max_s=0).train()
    torch.compiler.reset()  # as a new process
    resumed = Trainer(tmp_path / "parts", config, windows).train()
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


def curve(folder: Path, config: RunConfig, windows: Windows) -> list[float]:
    Trainer(folder, config, windows).train()
    return [line["loss"] for line in read_lines(folder / "metrics.jsonl")]


def fake_rollout(calls: list[int], rates: dict[int, float], killed: set[int]) -> Rollout:
    """Success rates by update; the first time at one in `killed`, the process dies in the middle."""

    def rollout(policy: Policy, done: int, raise_if_stopped: Callable[[], None]) -> dict[str, float]:
        assert not policy.training
        calls.append(done)
        if done in killed:
            killed.remove(done)
            raise Killed
        return {"success_rate": rates[done], "rollout_episodes": 10}

    return rollout


RATES = {3: 0.5, 6: 0.8, 9: 0.8, 12: 0.1}


@pytest.mark.parametrize("minutes", [0, 10])
@pytest.mark.parametrize("killed", [set(), {6}, *(pytest.param(k, marks=pytest.mark.slow) for k in ({3}, {9, 12}))])
def test_rollouts_stand_in_the_figures_of_their_update_whenever_it_was_killed(
    tmp_path: Path, killed: set[int], minutes: int
) -> None:
    settings = ("--train.rollout-every 3", "--train.log-every 2", "--train.keep-every 6", "--train.valid-every 4")
    config = small_config(*settings, f"--train.checkpoint-minutes {minutes}")
    windows = small_windows(tmp_path)
    reference = Trainer(tmp_path / "plain", config, windows).train()
    folder, calls, shown = tmp_path / "run", [], []
    open_run(folder, config)
    rollout = fake_rollout(calls, RATES, set(killed))
    for again in killed:
        with pytest.raises(Killed):
            Trainer(
                folder, config, windows, lambda done, line: shown.append((done, dict(line))), rollout=rollout
            ).train()
        assert (folder / "checkpoints" / "last.safetensors").exists(), again
    policy = Trainer(
        folder, config, windows, lambda done, line: shown.append((done, dict(line))), rollout=rollout
    ).train()
    assert all(torch.equal(a, b) for a, b in zip(weights(reference), weights(policy), strict=True))
    lines = read_lines(folder / "metrics.jsonl")
    steps = [line["step"] for line in lines]
    assert steps == sorted(set(steps))
    due = {2, 3, 4, 6, 8, 9, 10, 12}
    assert set(steps) == (set(range(1, 13)) if minutes == 0 else due)
    assert {line["step"]: line["success_rate"] for line in lines if "success_rate" in line} == RATES
    assert calls == sorted([*RATES, *killed])  # again only where it had been cut off
    assert {done: line["success_rate"] for done, line in shown if "success_rate" in line} == RATES
    best = pp.load_policy(folder, "best").state_dict()  # of equally good ones the later
    open_run(tmp_path / "nine", config)
    with pytest.raises(Killed):
        Trainer(tmp_path / "nine", config, windows, rollout=fake_rollout([], RATES, {9})).train()
    state = load_file(tmp_path / "nine" / "checkpoints" / "last.safetensors")
    assert all(torch.equal(best[name[4:]], x) for name, x in state.items() if name.startswith("ema/"))
    for updates in ("6", "12"):  # due to be kept at an update whose rollouts were cut off
        pp.load_policy(folder, updates)


def test_told_to_stop_during_rollouts_it_stops_and_measures_them_later(tmp_path: Path) -> None:
    config = small_config("--train.rollout-every 6")
    windows = small_windows(tmp_path)
    printed = []

    def rollout(policy: Policy, done: int, raise_if_stopped: Callable[[], None]) -> dict[str, float]:
        raise_if_stopped()
        if not printed:
            printed.append(done)
            os.kill(os.getpid(), signal.SIGINT)
            raise_if_stopped()
        return {"success_rate": 1.0}

    with pytest.raises(KeyboardInterrupt):
        Trainer(tmp_path / "run", config, windows, rollout=rollout).train()
    assert read_lines(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == 6
    resumed = Trainer(tmp_path / "run", config, windows, rollout=rollout).train()
    whole = Trainer(tmp_path / "whole", config, windows).train()
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines if "success_rate" in line] == [6, 12]


def test_each_line_of_the_figures_says_what_was_trained_since_the_one_before(tmp_path: Path) -> None:
    windows = small_windows(tmp_path)
    each = curve(tmp_path / "each", small_config(), windows)
    config = small_config("--train.log-every 5")
    assert curve(tmp_path / "fifth", config, windows) == pytest.approx(
        [sum(each[:5]) / 5, sum(each[5:10]) / 5, sum(each[10:]) / 2]
    )
    lines = read_lines(tmp_path / "fifth" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [5, 10, 12]
    assert [line["lr"] for line in lines] == [learning_rate(s - 1, config.train) for s in (5, 10, 12)]
    assert set(lines[0]) == {"step", "loss", "lr", "samples_per_s", "waiting", "wall_s", "threads"}
    times = [line["wall_s"] for line in lines]
    assert times == sorted(times)
    for line, before, updates in zip(lines[1:], lines, (5, 2), strict=False):
        assert line["samples_per_s"] == pytest.approx(8 * updates / (line["wall_s"] - before["wall_s"]), rel=0.3)
        assert 0 <= line["waiting"] < 1
