"""The session for a GPU runs on a CPU, too: its limits, what it imports, and its smallest stages."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gpu_session  # noqa: E402


def called(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A call at the tiniest sizes."""
    small = ("--device", "cpu", "--sizes", "tiny", "--batch-size", "2")
    command = [sys.executable, str(BENCHMARKS / "gpu_session.py"), "--out", str(out), *small, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)


def test_a_call_ends_within_ten_minutes_and_what_is_measured_follows_what_is_right() -> None:
    for name, stages in gpu_session.CALLS.items():
        assert gpu_session.MINUTES[name] < 10
        caps = [gpu_session.STAGES[stage] for stage in stages]
        assert sum(caps[:-1]) < 60 * gpu_session.MINUTES[name], "the last stage would never begin"
    assert {stage for stages in gpu_session.CALLS.values() for stage in stages} == set(gpu_session.STAGES)
    first = gpu_session.CALLS["1"]
    assert first.index("step") > max(first.index("gradients"), first.index("resume"))


def test_stages_print_and_write_what_they_find_at_once(tmp_path: Path) -> None:
    done = called(tmp_path, "--stages", "gradients", "act")
    assert done.returncode == 0, done.stdout + done.stderr
    numbers = json.loads((tmp_path / "session.json").read_text())
    assert set(numbers) == {"gradients", "act"}
    assert 0 < numbers["gradients"]["flow_matching, float32: off by (bar 0.002)"] < 2e-3
    assert numbers["act"]["meanflow, float32 [ms]"] < numbers["act"]["ddpm, float32 [ms]"]  # one step, not a hundred
    text = (tmp_path / "session.txt").read_text()
    assert "act: meanflow, float32: " in text
    assert all(line in done.stdout for line in text.splitlines())


# Refuses the modules that are named.
WITHOUT = """
import sys
folder, *refused = sys.argv[1:]
sys.path.insert(0, folder)
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in refused:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
import gpu_stages
print(*gpu_stages.STAGES)
"""


def test_of_what_the_library_depends_on_only_what_is_asked_for_is_imported() -> None:
    project = tomllib.loads((BENCHMARKS.parent / "pyproject.toml").read_text())["project"]
    extras = itertools.chain.from_iterable(project["optional-dependencies"].values())
    names = {re.split(r"[^\w-]", line)[0].replace("-", "_") for line in (*project["dependencies"], *extras)}
    refused = names - {*gpu_session.NEEDED, "prism_policy"}
    assert {"tyro", "websockets", "robosuite"} <= refused
    command = [sys.executable, "-c", WITHOUT, str(BENCHMARKS), *refused]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert set(done.stdout.split()) == set(gpu_session.STAGES)


def test_what_is_missing_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_session, "NEEDED", ("json", "no_such_module"))
    monkeypatch.setattr(sys, "argv", ["gpu_session.py", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="gpu_session needs no_such_module: set PYTHONPATH=src"):
        gpu_session.main()
    assert not (tmp_path / "out").exists()


def test_a_stage_that_takes_too_long_is_ended_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stages = ["step", "oom"]
    small = ["--device", "cpu", "--sizes", "tiny", "--batch-size", "2"]
    monkeypatch.setattr(sys, "argv", ["gpu_session.py", "--out", str(tmp_path), *small, "--stages", *stages])
    monkeypatch.setitem(gpu_session.STAGES, "step", 1)
    with pytest.raises(SystemExit) as ended:
        gpu_session.main()
    assert ended.value.code
    printed = capfd.readouterr().out
    assert "===== step: ended, its time is over" in printed
    assert "===== oom: done" in printed


@pytest.mark.slow
def test_every_stage_runs_on_a_cpu(tmp_path: Path) -> None:
    for call, stages in gpu_session.CALLS.items():
        done = called(tmp_path / call, "--call", call)
        assert done.returncode == 0, done.stdout + done.stderr
        assert set(json.loads((tmp_path / call / "session.json").read_text())) == set(stages)
        assert len(list((tmp_path / call).iterdir())) <= 8
