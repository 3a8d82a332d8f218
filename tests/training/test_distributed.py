"""Several processes do what one does: the same curve and weights, one voice, one writer."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import psutil
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from journals import read_lines
from prism_policy.config.settings import PolicyKind, RunConfig
from prism_policy.errors import PrismError
from prism_policy.run_folder import read_tensors
from prism_policy.training.distributed import ProcessGroup, failure_priority, join
from prism_policy.training.trainer import Trainer
from small_run import command, environment, prism_train, small_config, small_windows, write_demos

KINDS = [k if k == "flow_matching" else pytest.param(k, marks=pytest.mark.slow) for k in get_args(PolicyKind)]
PROCESSES = 2
STABLE = ("--train.eps 0.01", "--train.lr 0.01", "--train.steps 16")
"""A large epsilon, for with a small one Adam makes rounding, where the gradient vanishes, as large as a true step."""
ROUNDING = {"atol": 5e-5, "rtol": 1e-3}
"""Of weights after 16 steps of some 0.01: half a percent of one step."""


def of_kind(kind: PolicyKind, *settings: str) -> RunConfig:
    return small_config(*STABLE, *settings, kind=kind)


def losses(folder: Path) -> list[float]:
    lines = read_lines(folder / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 17))
    return [line["loss"] for line in lines]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> PolicyKind:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def together(kind: PolicyKind, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes trained, see `_train_together`."""
    folder = tmp_path_factory.mktemp("together")
    windows = small_windows(folder)
    with pytest.raises(PrismError, match="stopped at update 1 of 16"):  # one process begins
        Trainer(folder / "joined", of_kind(kind), windows, max_s=0).train()
    torch.multiprocessing.spawn(_train_together, (str(folder), kind), nprocs=PROCESSES)  # type: ignore[attr-defined, no-untyped-call]
    Trainer(folder / "left", of_kind(kind), windows).train()  # and one ends what two began
    return folder


def _train_together(rank: int, at: str, kind: PolicyKind) -> None:
    torch.set_num_threads(1)
    folder = Path(at)
    if rank:
        sys.addaudithook(_Watch(folder, folder / "written_by_others"))
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=PROCESSES)
    group, windows = ProcessGroup(rank, PROCESSES, rank), small_windows(folder / f"of_{rank}")
    Trainer(folder / "whole", of_kind(kind, "--train.keep-every 8"), windows, group=group).train()
    Trainer(folder / "joined", of_kind(kind), windows, group=group).train()
    with pytest.raises(PrismError, match="stopped at update 1 of 16"):
        Trainer(folder / "left", of_kind(kind), windows, max_s=0, group=group).train()
    apart = folder / f"of_{rank}" / "apart"  # as on machines that share no folder
    with pytest.raises(PrismError, match="stopped at update 1 of 16"):
        Trainer(apart, of_kind(kind), windows, max_s=0, group=group).train()
    Trainer(apart, of_kind(kind), windows, group=group).train()
    _fail_together(group)
    settings = ("--train.steps 80", "--train.log-every 0", "--train.checkpoint-minutes 0.005")
    Trainer(folder / "paced", small_config(*settings), windows, group=group).train()
    gc.collect()  # the models of trainings that were stopped, which hold the group: torch may abort at its end else
    dist.barrier()
    dist.destroy_process_group()


def _fail_together(group: ProcessGroup) -> None:
    """What one process refuses ends all of them, with its sentence."""
    sentence = "lr is 0 in the first process .* and 1 in another .*; start the same command"
    with pytest.raises(PrismError, match=sentence):
        group.check_alike({"lr": group.rank, "steps": 3}, "start the same command")
    group.check_alike({"steps": 3}, "")
    for failing in range(PROCESSES):
        begun: list[bool] = []
        with pytest.raises(PrismError, match="no space left"):
            _fail_in_turn(group, failing, begun)
        assert bool(begun) == (group.is_main_process or failing > 0)


def _fail_in_turn(group: ProcessGroup, failing: int, begun: list[bool]) -> None:
    with group.main_process_first():
        begun.append(True)
        if group.rank == failing:
            raise PrismError("no space left")


class _Watch:
    """Notes files that Python opens to write, renames or makes below a folder."""

    def __init__(self, folder: Path, note: Path) -> None:
        self.folder, self.note, self.busy = str(folder), note, False

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.busy or event not in ("open", "os.rename", "os.mkdir", "os.remove"):
            return
        path = str(arguments[0])
        writes = event != "open" or bool(int(str(arguments[2])) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if writes and path.startswith(self.folder) and not path.startswith(f"{self.folder}/of_"):
            self.busy = True
            with self.note.open("a") as file:
                file.write(f"{event} {path}\n")
            self.busy = False


def test_the_parts_of_a_batch_have_masks_of_unequal_size(together: Path) -> None:
    """Else the comparisons below would not see a mean of means."""
    windows = small_windows(together)
    assert len(windows.mask.float().mean(1).unique()) > 2


def test_two_processes_train_as_one(tmp_path: Path, together: Path, kind: PolicyKind) -> None:
    Trainer(tmp_path, of_kind(kind), small_windows(tmp_path / "data")).train()
    assert losses(together / "whole") == pytest.approx(losses(tmp_path), rel=1e-5)
    alone = load_file(tmp_path / "weights.safetensors")
    for name, weight in load_file(together / "whole" / "weights.safetensors").items():
        torch.testing.assert_close(weight, alone[name], **ROUNDING)


@pytest.mark.parametrize("change", ["joined", "left"])
def test_a_run_goes_on_with_another_number_of_processes(together: Path, change: str) -> None:
    folder = together / change
    assert losses(folder) == pytest.approx(losses(together / "whole"), rel=1e-5)
    expected = load_file(together / "whole" / "weights.safetensors")
    for name, weight in load_file(folder / "weights.safetensors").items():
        torch.testing.assert_close(weight, expected[name], **ROUNDING)


def test_a_run_goes_on_where_only_the_first_machine_has_its_folder(together: Path) -> None:
    folder = together / "of_0" / "apart"
    assert losses(folder) == pytest.approx(losses(together / "whole"), rel=1e-5)
    expected = load_file(together / "whole" / "weights.safetensors")
    for name, weight in load_file(folder / "weights.safetensors").items():
        torch.testing.assert_close(weight, expected[name], **ROUNDING)
    assert not (together / "of_1" / "apart").exists()


def test_only_the_first_process_writes(together: Path) -> None:
    written = together / "written_by_others"
    assert not written.exists(), written.read_text()
    assert (together / "whole" / "checkpoints" / "update_000008.safetensors").exists()


def test_several_processes_write_checkpoints_no_more_often_than_one(together: Path) -> None:
    lines = read_lines(together / "paced" / "metrics.jsonl")  # a line each checkpoint, 0.3 s apart
    assert 2 <= len(lines) <= lines[-1]["wall_s"] / 0.3 + 2


@pytest.mark.parametrize(("batch_size", "world"), [(12, 1), (12, 3), (8, 4)])
def test_shares_are_equal_disjoint_and_all_of_the_batch(batch_size: int, world: int) -> None:
    rows = [torch.arange(batch_size)[ProcessGroup(rank, world).local_rows(batch_size)] for rank in range(world)]
    assert torch.cat(rows).tolist() == list(range(batch_size))
    assert {len(part) for part in rows} == {batch_size // world}
    with pytest.raises(PrismError, match=f"batch_size {batch_size} does not divide among 5 processes"):
        ProcessGroup(0, 5).local_rows(batch_size)


def test_two_processes_on_the_cpu_join_beside_a_single_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    backends = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: backends.append(backend))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    with join("cpu") as group:
        assert (group.rank, group.world_size) == (1, 2)
    assert backends == ["gloo"]
    with pytest.raises(PrismError, match="expected at most one for each of 1 GPUs"), join("auto"):
        pass


def failed(exitcode: int, message: str = "") -> SimpleNamespace:
    reported = {"message": message, "extraInfo": {}} if message else f"Signal {-exitcode} received"
    return SimpleNamespace(exitcode=exitcode, message=reported)


def test_the_cause_is_told_from_what_followed() -> None:
    """A process that spoke, one that was killed, one that was stopped, and those that lost the connection to them."""
    spoke, spoke_and_was_ended = failed(2, "PrismError: no space left"), failed(-15, "PrismError: no space left")
    killed, stopped = failed(-9), failed(130, "KeyboardInterrupt: ")
    lost, ended = failed(1, "RuntimeError: Connection closed by peer"), failed(-15)
    assert failure_priority(spoke) == failure_priority(spoke_and_was_ended)
    order = [spoke, killed, stopped, lost]
    assert sorted((lost, stopped, killed, spoke), key=failure_priority) == order
    assert failure_priority(lost) == failure_priority(ended)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "settings", "sentence"),
    [
        (("--processes", "3"), (), "batch_size 8 does not divide among 3 processes"),
        (("--processes", "2"), ("--policy.encoder.norm batch",), "norm 'batch' with several processes"),
        (("--processes", "2"), ("--train.stepz 3",), "Unrecognized options: --train.stepz"),
        (("--processes", "2"), ("--policy.horizon 2",), "need a horizon of at least"),
    ],
)
def test_bad_input_of_several_processes_is_one_sentence(
    tmp_path: Path, arguments: tuple[str, ...], settings: tuple[str, ...], sentence: str
) -> None:
    write_demos(tmp_path / "demos.hdf5")
    assert sentence in prism_train(tmp_path, "--out", tmp_path / "run", *arguments, settings=settings, code=2)
    assert "horizon" in sentence or not (tmp_path / "run").exists()


def started(folder: Path, *settings: str) -> subprocess.Popen[str]:
    """A training in two processes, some updates after its start."""
    write_demos(folder / "demos.hdf5")
    process = subprocess.Popen(
        command(folder, "--processes", "2", "--out", folder / "run", settings=settings),
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while len(read_lines(folder / "run" / "metrics.jsonl")) < 20:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return process


LONG = ("--train.steps 120", "--train.checkpoint-minutes 0", "--train.eps 0.01")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_ends_the_others_and_the_run_goes_on(tmp_path: Path, rank: int) -> None:
    process = started(tmp_path, *LONG)
    surroundings = {child: child.environ() for child in psutil.Process(process.pid).children()}
    children = {int(about["RANK"]): child for child, about in surroundings.items() if "RANK" in about}
    children[rank].send_signal(signal.SIGKILL)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "killed" not in printed  # what went wrong is for standard error
    assert len(errors.strip().splitlines()) == 1, errors
    assert f"process {rank} of 2 was killed by signal 9 and the others were stopped" in errors
    assert not any(child.is_running() for child in children.values())
    reached = read_lines(tmp_path / "run" / "metrics.jsonl")[-1]["step"]
    assert reached < 120
    prism_train(tmp_path, "--out", tmp_path / "run", "--processes", "2", settings=LONG)
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 121))
    Trainer(tmp_path / "alone", small_config(*LONG), small_windows(tmp_path)).train()
    alone = read_lines(tmp_path / "alone" / "metrics.jsonl")
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in alone], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("group", [True, False])
def test_several_processes_that_are_told_to_stop_do_so_with_a_checkpoint(
    tmp_path: Path, number: signal.Signals, group: bool
) -> None:
    process = started(tmp_path, *LONG[:1], "--train.checkpoint-minutes 0")
    (os.killpg if group else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.strip() == "prism: stopped; the same command goes on from here"
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    _, metadata = read_tensors(tmp_path / "run" / "checkpoints" / "last.safetensors")
    assert metadata["updates"] == str(lines[-1]["step"])
    prism_train(tmp_path, "--out", tmp_path / "run", settings=(*LONG[:1], "--train.checkpoint-minutes 0"))
    assert [line["step"] for line in read_lines(tmp_path / "run" / "metrics.jsonl")] == list(range(1, 121))
