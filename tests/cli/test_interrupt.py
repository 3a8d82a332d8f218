"""Ctrl-C is one line and exit code 130 from the first import on, in every command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from prism_policy.cli.main import COMMANDS

PROGRAM = """
import runpy, signal, sys

class Interrupts:
    # Ctrl-C in the middle of the n-th import.
    left = int(sys.argv.pop(1))

    def find_spec(self, *_):
        Interrupts.left -= 1
        if Interrupts.left == 0:
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupts())
runpy.run_module("prism_policy", run_name="__main__", alter_sys=True)
"""
ARGUMENTS = {
    "quickstart": "--smoke --out run", "train": "--dataset x.hdf5 --out run", "evaluate": "run", "compare": "a b",
    "reproduce": "table1 --smoke --dry-run", "saliency": "run", "serve": "run", "report": "run", "collect": "--out a",
    "render": "x.hdf5", "import": "x.hdf5 y.hdf5", "export": "x.hdf5 --format lerobot --out y",
    "download": "robomimic/lift/ph --out a", "info": "encoders --json", "probe": "--out a",
    "doctor": "x.hdf5", "robot": "check x.toml", "rollout": "x.toml ws://127.0.0.1:9",
    "record": "x.toml --out y", "trials": "x.toml --policies A=run --out y",
    "push": "run user/name", "pull": "user/name",
}  # fmt: skip


def interrupted(folder: Path, imports: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, str(imports), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_interrupt_during_the_imports_is_one_line(tmp_path: Path, command: str) -> None:
    imports = int(np.random.default_rng(list(command.encode())).integers(10, 250))  # before the first work of any
    done = interrupted(tmp_path, imports, command, *ARGUMENTS[command].split())
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "prism: stopped; the same command goes on from here\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("imports", [300, 400, 700, 1000, 1300, 1600])
def test_an_interrupt_while_torch_is_imported_is_one_line(tmp_path: Path, imports: int) -> None:
    """Compiled code loses an interrupt there, or turns it into errors of its own."""
    done = interrupted(tmp_path, imports, "info", "encoders", "--json")
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "prism: stopped; the same command goes on from here\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_what_it_takes(tmp_path: Path, command: str) -> None:
    run = [sys.executable, "-m", "prism_policy", command, "--help"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--help" in done.stdout
