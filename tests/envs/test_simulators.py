"""A simulator's trouble in its own words, the variable that did it, and what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from prism_policy.envs import simulators

pytest.importorskip("mujoco", reason="needs prism-policy[sim]")

DRAW = """
from prism_policy.envs import simulators
from prism_policy.errors import PrismError

try:
    simulators.prepare_robosuite()
    simulators.opengl_context(simulators.mujoco.MjModel.from_xml_string("<mujoco/>"), 16)
    print("drawn")
except PrismError as error:
    print(error)
"""


def drawing(**environment: str) -> str:
    """What comes of a context in a process with this environment."""
    clean = {name: value for name, value in os.environ.items() if not simulators._BEHIND.match(name)}
    done = subprocess.run(
        [sys.executable, "-c", DRAW], env=clean | environment, capture_output=True, text=True, timeout=300
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert len(done.stdout.splitlines()) == 1, done.stdout
    assert len(done.stdout) <= 500
    return done.stdout.strip()


@pytest.fixture(scope="module")
def egl() -> None:
    if drawing(MUJOCO_GL="egl") != "drawn":
        pytest.skip("no EGL here")


@pytest.mark.parametrize(
    ("variables", "cause", "blamed"),
    [
        ({"MUJOCO_GL": "egl", "MUJOCO_EGL_DEVICE_ID": "7"}, "must be an integer between 0", "MUJOCO_EGL_DEVICE_ID=7"),
        ({"MUJOCO_GL": "glx"}, "an OpenGL platform library has not been loaded", "MUJOCO_GL=glx"),
        ({"MUJOCO_GL": "disable"}, "", "MUJOCO_GL=disable"),
        ({"MUJOCO_GL": "egl", "__EGL_VENDOR_LIBRARY_FILENAMES": "/none"}, "Cannot initialize", "__EGL_VENDOR"),
        ({"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "nothing"}, "egl: ", "PYOPENGL_PLATFORM=nothing"),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_the_variable_that_did_it_is_named(egl: None, variables: dict[str, str], cause: str, blamed: str) -> None:
    said = drawing(**variables)
    assert said.startswith("no working OpenGL")
    assert cause in said
    assert blamed in said
    assert "unset it and run again" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "cause", "blamed"),
    [
        ({"CUDA_VISIBLE_DEVICES": "1", "MUJOCO_EGL_DEVICE_ID": "0"}, "AssertionError", "CUDA_VISIBLE_DEVICES=1"),
        ({"MUJOCO_GL": "nonsense"}, "RuntimeError: invalid value", "MUJOCO_GL=nonsense"),
    ],
)  # fmt: skip
def test_what_the_simulator_refuses_is_told_in_its_words(
    egl: None, variables: dict[str, str], cause: str, blamed: str
) -> None:
    said = drawing(**variables)
    assert said.startswith(f"the simulator cannot be imported ({cause}")
    assert f"{blamed} is to blame: unset it" in said


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, str]]:
    """Nothing draws, whatever the environment; what was tried."""
    tried: list[Mapping[str, str]] = []

    def fail(code: str, environment: Mapping[str, str]) -> str:
        tried.append(environment)
        return "killed by SIGSEGV" if environment["MUJOCO_GL"] == "egl" else "ImportError: no libOSMesa.so"

    monkeypatch.setattr(simulators, "_trial", fail)
    for name in list(os.environ):
        if simulators._BEHIND.match(name):
            monkeypatch.delenv(name)
    return tried


def test_where_nothing_draws_each_back_end_says_why_and_packages_are_named(trials: list[Mapping[str, str]]) -> None:
    simulators.prepare_opengl()
    said = simulators._opengl_trouble()
    assert "no working OpenGL (egl: killed by SIGSEGV; osmesa: ImportError: no libOSMesa.so)" in said
    assert "apt-get install libegl1 libgl1-mesa-dri libosmesa6" in said
    assert len(said) <= 500


def test_a_cache_that_cannot_be_written_is_told_as_one(trials: list[Mapping[str, str]]) -> None:
    error = RuntimeError("cannot cache function 'mat2quat': no locator available for file '/opt/robosuite/utils.py'")
    said = simulators._import_trouble(error)
    assert "RuntimeError: cannot cache function 'mat2quat': no locator available" in said
    assert "set NUMBA_CACHE_DIR to a folder you may write to" in said
    said = simulators._import_trouble(ImportError("libGL.so.1: cannot open shared object file: No such file\nmore" * 9))
    assert "ImportError: libGL.so.1: cannot open shared object file" in said
    assert len(said) <= 500
    assert "\n" not in said


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("pass", ""),
        ("import os; os.abort()", "killed by SIGABRT"),
        ("import signal; signal.raise_signal(9)", "killed by SIGKILL (as the kernel does where memory runs short)"),
        ("raise ImportError('libEGL is missing')", "ImportError: libEGL is missing"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import os; os._exit(4)", "ended with exit code 4"),
        ("import time; time.sleep(60)", "no answer within 2 s"),
    ],
)
def test_a_trial_says_how_it_ended(monkeypatch: pytest.MonkeyPatch, code: str, words: str) -> None:
    monkeypatch.setattr(simulators, "_TRIAL_S", 2 if "sleep" in code else 60)
    assert simulators._trial(code, os.environ) == words


@pytest.mark.slow
def test_a_broken_package_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "robosuite.py").write_text("raise RuntimeError('cannot cache function: no locator available')")
    said = drawing(PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    assert "set NUMBA_CACHE_DIR to a folder you may write to" in said
