"""The GPU's path without a GPU: every device, type, layout and wait of training and acting, on fake tensors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler"),
    pytest.mark.skipif(torch.version.cuda is not None, reason="a build with CUDA asks the driver"),
]


def lines(*arguments: str, module: str = "fake_cuda.train") -> list[dict[str, Any]]:
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_training_and_acting_never_mix_devices_or_types_nor_wait_within_an_update() -> None:
    runs = lines()
    assert len(runs) == 15
    nothing: dict[str, Any] = {"waits": [], "mixed": [], "laid_out_anew": [], "unrepeatable": []}
    for run in runs:
        assert run == {"run": run["run"], **nothing}, json.dumps(run, indent=1)


def test_mistakes_are_found() -> None:
    waits, device, types = lines("planted")
    assert any("_local_scalar_dense" in wait for wait in waits["waits"])
    assert "error" in device
    assert "cpu" in device["error"]
    assert any("mm" in mixed for mixed in types["mixed"])


def test_a_compiled_step_lowers_to_triton_s_source_for_a_gpu() -> None:
    graphs = {line.pop("graph"): line for line in lines(module="fake_cuda.lower")}
    assert set(graphs) == {"encoder", "flow_matching", "ddpm", "meanflow"}
    for name, graph in graphs.items():
        assert len(graph["kernels"]) == 2, name
        assert min(graph["kernels"]) > 20, name
        assert graph["channels_last"] == [True, True], name
