"""Bad input is one sentence and exit code 2 in every command, and leaves nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from commandline import prism
from prism_policy.cli.main import COMMANDS
from prism_policy.utils.terminal import console

BAD = {
    "quickstart": ["--seed -1 --out new", "--task juggle --out new"],
    "train": ["--dataset nothing.hdf5 --out new", "--dataset . --out new"],
    "evaluate": ["nothing", "file", ""],
    "compare": ["nothing nothing", "file file"],
    "reproduce": [
        "table9",
        "table7",
        "table7 --trials nothing --out new",
        "table1 --smoke --dataset lift",
        "table1 --smoke --tasks juggle",
    ],
    "saliency": ["nothing", "file"],
    "serve": ["nothing", "file", "nothing --tls-cert file", "nothing --tls-cert file --tls-key file"],
    "push": ["nothing user/name", "file user/name", "nothing name"],
    "pull": ["name --out new", "user/name --out file"],
    "robot": ["check nothing.toml", "check file"],
    "record": ["nothing.toml --out new", "file --out new", "file --out file --episodes 0"],
    "trials": [
        "nothing.toml --policies a=nothing --out new",
        "file --policies a=ws://127.0.0.1:9 --out new",
        "file --policies a=file --starts 0",
    ],
    "rollout": ["nothing.toml ws://127.0.0.1:9", "file ws://127.0.0.1:9"],
    "report": ["nothing", "file"],
    "collect": ["--num-demos 0", "--out file", "--task juggle", "--workers 0 --out new"],
    "render": ["nothing.hdf5", "file", "empty"],
    "import": ["nothing.hdf5 new", "file new", "empty new"],
    "export": [
        *(f"{source} --format lerobot --out new" for source in ("nothing", "file", "empty", "hf:nobody")),
        "file --format robomimic --out file",
        "file --format robomimic --out new --video h264",
    ],
    "download": ["robomimic/lift/xx --out new"],
    "info": ["nothing.hdf5", "./file"],
    "doctor": ["nothing.hdf5", "file", "empty", "", "--task juggle", "file --task lift", "file nothing"],
    "probe": ["--encoders nothing --out new", "--seeds -1 --out new"],
}


@pytest.mark.parametrize(("command", "arguments"), [(c, a) for c in COMMANDS for a in BAD[c]])
def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path: Path, command: str, arguments: str) -> None:
    (tmp_path / "file").write_text("neither HDF5 nor a folder")
    (tmp_path / "empty").mkdir()
    done = prism(command, *arguments.split(), cwd=tmp_path, PRISM_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if "──" not in done.stderr:  # tyro's box about flags
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert done.stderr.startswith("prism: ")
        assert len(done.stderr) <= 500 + len("prism: \n")
    assert (tmp_path / "file").read_text() == "neither HDF5 nor a folder"
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    made = {name for name in made if not name.startswith("cache/sound/")}  # notes that a file's structure is sound
    assert made == {"file"}


def test_output_that_cannot_be_written_is_no_success() -> None:
    with open("/dev/full", "w") as full:
        run = [sys.executable, "-m", "prism_policy", "reproduce", "table1", "--smoke", "--dry-run"]
        done = subprocess.run(run, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "prism: cannot write the output (No space left on device)"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [pytest.param("reproduce table1 --smoke --dry-run", marks=pytest.mark.slow), "--help", "train --help-all"],
)
def test_a_reader_that_stops_reading_ends_the_command_quietly(arguments: str) -> None:
    run = f"{sys.executable} -m prism_policy {arguments} | true"
    done = subprocess.run(["bash", "-c", run], capture_output=True, text=True, timeout=120)
    assert done.stderr == ""


def test_info_takes_a_folder_of_any_name(tmp_path: Path) -> None:
    done = prism("info", "unitree_g1", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("prism: unitree_g1")


def test_a_file_that_nobody_foresaw_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise PermissionError(13, os.strerror(13), str(tmp_path / "[x]"))

    monkeypatch.setattr("prism_policy.cli.main.parse", lambda arguments: fail)
    done = prism("info", "x")
    assert done.returncode == 2
    assert done.stderr.startswith(f"prism: {tmp_path / '[x]'}: Permission denied; ")
    assert console.encoding
