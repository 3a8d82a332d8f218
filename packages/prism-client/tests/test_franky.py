"""`FrankyRobot` against franky-sim, in an environment of its own, whose Python PRISM_FRANKY_PYTHON names.

`python3 -m venv franky && franky/bin/pip install franky-control franky-sim msgpack websockets` makes one.
"""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import prism_client

PYTHON = os.environ.get("PRISM_FRANKY_PYTHON", "")
SCRIPTS = Path(__file__).parent / "franka"


def started(stack: ExitStack, name: str, *arguments: object) -> subprocess.Popen[str]:
    source = str(Path(prism_client.__file__).parent.parent)
    process = stack.enter_context(
        subprocess.Popen(
            [PYTHON, str(SCRIPTS / f"{name}.py"), *map(str, arguments)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join((source, str(SCRIPTS)))},
        )
    )
    stack.callback(process.kill)
    return process


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason="PRISM_FRANKY_PYTHON names no Python with franky-control and franky-sim")
def test_a_simulated_franka_connects_sees_executes_a_chunk_and_holds_when_the_server_dies(tmp_path: Path) -> None:
    with ExitStack() as stack:
        arm = started(stack, "server", tmp_path)
        address = said(arm)
        assert address.startswith("127."), "franky-sim did not start"
        policy = started(stack, "policy")
        check = started(stack, "check", address, tmp_path, said(policy))
        assert said(check) == "moving"
        policy.kill()
        found: dict[str, Any] = json.loads(said(check))
    assert found["image"][:3] == [120, 160, 3]
    assert found["image"][3] > 5
    assert min(found["cubes"]) > 10  # both are seen
    assert found["chunk_mm"] < 5
    assert found["turn_rad"] < 0.05
    assert abs(found["width_m"] - 0.03) < 0.005
    assert found["ended"] == "fault"
    assert found["void"]
    assert found["drift_mm"] < 2
    assert abs(found["home"][6] - 0.08) < 0.005
