"""`prism train` as its user runs it: killed and started again, given bad input, on a full disk."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest

import prism_policy as pp
from journals import read_lines
from small_run import command, environment, prism_train, write_demos

UPDATES = ("--train.steps 60", "--train.checkpoint-minutes 0.001", "--train.keep-every 20", "--train.valid-every 15")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_demos(folder / "demos.hdf5")
    return folder


@pytest.fixture(scope="module")
def whole(data: Path) -> tuple[Path, str]:
    """A run that nothing interrupted, and what it said."""
    return data / "whole", prism_train(data, "--out", data / "whole", settings=UPDATES)


def start(data: Path, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(data, "--out", folder, settings=UPDATES),
        env=environment(data),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_after(data: Path, folder: Path, updates: int, number: signal.Signals) -> str:
    """Start the training and send a signal once the figures reach an update; returns what it complained about."""
    process = start(data, folder)
    while (read_lines(folder / "metrics.jsonl") or [{"step": 0}])[-1]["step"] < updates:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.002)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -number), errors
    return errors


def assert_same_end(folder: Path, whole: Path) -> None:
    for name in ("config.json", "weights.safetensors", "normalizer.safetensors",
                 *(f"checkpoints/update_{n:06d}.safetensors" for n in (20, 40, 60))):  # fmt: skip
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    lines, expected = ({x["step"]: x for x in read_lines(f / "metrics.jsonl")} for f in (folder, whole))
    assert list(lines) == list(range(1, 61)) == list(expected)
    for name in ("loss", "lr", "valid_loss", "valid_action_error"):
        assert [line.get(name) for line in lines.values()] == [line.get(name) for line in expected.values()]
    assert not list(folder.rglob("*.tmp"))


def test_a_training_tells_how_it_went(whole: tuple[Path, str]) -> None:
    folder, printed = whole
    lines = read_lines(folder / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 61))  # one line each, though all were checkpoints too
    assert [line["step"] for line in lines if "valid_loss" in line] == [15, 30, 45, 60]
    assert f"loss {lines[-1]['loss']:.4g}" in printed
    held_out = re.search(r"Held out: loss (\S+) \(lowest (\S+) at update (\d+)\)", printed)
    assert held_out
    best = min((line for line in lines if "valid_loss" in line), key=lambda line: line["valid_loss"])
    assert held_out.groups() == (f"{lines[-1]['valid_loss']:.4g}", f"{best['valid_loss']:.4g}", str(best["step"]))
    assert f"Next: prism evaluate {folder}" in printed
    assert pp.load_policy(folder, "40").config == pp.load_policy(folder).config


@pytest.mark.slow
def test_killed_in_the_middle_it_ends_with_the_weights_of_a_run_that_was_not(
    data: Path, whole: tuple[Path, str], tmp_path: Path
) -> None:
    kill_after(data, tmp_path / "run", random.Random(0).randrange(1, 50), signal.SIGKILL)
    prism_train(data, "--out", tmp_path / "run", settings=UPDATES)
    assert_same_end(tmp_path / "run", whole[0])


def test_a_finished_run_rewrites_nothing(data: Path, whole: tuple[Path, str], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole[0], tmp_path / "run"))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}
    with h5py.File(data / "demos.hdf5", "r+") as file:  # other demonstrations in the file's place: other statistics
        file["data/demo_0/actions"][:] *= 0.2
    try:
        printed = prism_train(data, "--out", folder, settings=UPDATES)
    finally:
        write_demos(data / "demos.hdf5")
    assert "is trained already" in printed
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    assert {path for path in folder.rglob("*") if path.is_file()} - before.keys() <= {folder / ".lock"}


def test_a_run_is_trained_by_one_process_at_a_time(data: Path, whole: tuple[Path, str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(data, folder)
    while not read_lines(folder / "metrics.jsonl"):
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGSTOP)
    output = prism_train(data, "--out", folder, settings=UPDATES, code=2)
    assert f"another process is training {folder}; wait for it" in output
    process.send_signal(signal.SIGCONT)
    assert process.wait(60) == 0
    assert_same_end(folder, whole[0])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_again_and_again_it_ends_with_the_weights_of_a_run_that_was_not(
    data: Path, whole: tuple[Path, str], tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    for updates in sorted(chance.sample(range(1, 55), 3)):
        kill_after(data, tmp_path / "run", updates, signal.SIGKILL)
    prism_train(data, "--out", tmp_path / "run", settings=UPDATES)
    assert_same_end(tmp_path / "run", whole[0])


@pytest.mark.slow
def test_ctrl_c_is_one_sentence_and_the_run_goes_on(data: Path, whole: tuple[Path, str], tmp_path: Path) -> None:
    errors = kill_after(data, tmp_path / "run", 10, signal.SIGINT)
    assert errors == "prism: stopped; the same command goes on from here\n"
    prism_train(data, "--out", tmp_path / "run", settings=UPDATES)
    assert_same_end(tmp_path / "run", whole[0])


@pytest.mark.slow
def test_a_damaged_checkpoint_is_told_and_costs_one_checkpoint(
    data: Path, whole: tuple[Path, str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    kill_after(data, folder, 20, signal.SIGINT)
    last = folder / "checkpoints" / "last.safetensors"
    last.write_bytes(last.read_bytes()[:-1])
    assert f"{last} is damaged" in prism_train(data, "--out", folder, settings=UPDATES)
    assert_same_end(folder, whole[0])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (("--train.stepz 3",), "Unrecognized options: --train.stepz"),
        (("--task.cameras sideview",), "lacks camera 'sideview'; it has agentview"),
        (("--train.lr 0.5",), "holds another run: train.lr is 0.0015 there and 0.5 now"),
    ],
)
def test_bad_input_is_one_sentence_and_changes_nothing(
    data: Path, whole: tuple[Path, str], settings: tuple[str, ...], sentence: str
) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole[0].rglob("*")}
    assert sentence in prism_train(data, "--out", whole[0], settings=(*UPDATES, *settings), code=2)
    assert before == {path: path.stat().st_mtime_ns for path in whole[0].rglob("*")}


def test_actions_of_another_dimension_are_told_before_a_run_folder_is_made(tmp_path: Path) -> None:
    write_demos(tmp_path / "demos.hdf5", actions=8)
    output = prism_train(tmp_path, "--out", tmp_path / "run", code=2)
    assert "demos.hdf5, demo_0: expected actions of 7 numbers for lift, got 8" in output
    assert not (tmp_path / "run").exists()


def test_without_demonstrations_to_learn_from_it_says_so(tmp_path: Path) -> None:
    write_demos(tmp_path / "demos.hdf5")
    with h5py.File(tmp_path / "demos.hdf5", "r+") as file:
        del file["mask/train"]
        file["mask/train"] = [b"demo_9"]
    assert "no demonstration 'demo_9'" in prism_train(tmp_path, "--out", tmp_path / "run", code=2)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.getuid() or not shutil.which("mount"):
        pytest.skip("needs root to mount a small disk")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_a_disk_without_space_is_one_sentence_and_the_run_goes_on_when_there_is_some(
    data: Path, whole: tuple[Path, str], small_disk: Path
) -> None:
    folder = small_disk / "run"
    output = prism_train(data, "--out", folder, settings=UPDATES, code=2)
    assert "no space left on the disk of" in output
    assert not list(small_disk.rglob("*.tmp"))
    assert json.loads((folder / "config.json").read_text())["train"]["steps"] == 60
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    prism_train(data, "--out", folder, settings=UPDATES)
    assert_same_end(folder, whole[0])
