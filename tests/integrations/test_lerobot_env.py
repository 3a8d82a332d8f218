"""The environment plug-in in the real LeRobot, with robosuite beside it: integrations/lerobot_env_prism/README.md."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from commandline import prism
from small_run import prism_train, write_demos

PYTHON = os.environ.get("PRISM_LEROBOT_PYTHON", "")
ROOT = Path(__file__).parents[2]
SOURCES = [ROOT / "src", ROOT / "packages/prism-client/src", *(ROOT / "integrations").glob("*/src")]


EVAL = "import lerobot_env_prism, lerobot_policy_prism; from lerobot.scripts.lerobot_eval import main; main()"


def has_robosuite() -> bool:
    find = "import importlib.util, sys; sys.exit(importlib.util.find_spec('robosuite') is None)"
    return bool(PYTHON) and subprocess.run([PYTHON, "-c", find], check=False).returncode == 0


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_robosuite(), reason="needs LeRobot and robosuite; PRISM_LEROBOT_PYTHON names a Python"),
]


def lerobot(*command: object) -> str:
    settings = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    settings["PYTHONPATH"] = os.pathsep.join(map(str, SOURCES))
    done = subprocess.run(
        [PYTHON, *map(str, command)],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def test_episodes_start_and_go_as_those_of_prism_evaluate() -> None:
    assert "equal starts" in lerobot(Path(__file__).parent / "same_starts.py")


def test_lerobot_eval_measures_an_exported_run(tmp_path: Path) -> None:
    write_demos(tmp_path / "demos.hdf5")
    prism_train(tmp_path, "--task", "lift", "--out", tmp_path / "run", settings=("--train.steps 2",))
    done = prism("export", tmp_path / "run", "--format", "lerobot", "--out", tmp_path / "checkpoint")
    assert done.returncode == 0, done.stderr
    lerobot(
        "-c", EVAL, f"--policy.path={tmp_path}/checkpoint", "--policy.device=cpu",
        "--env.type=prism", "--env.task=lift", '--env.cameras=["agentview"]', "--env.resolution=32",
        "--env.max_steps=6", "--eval.n_episodes=2", "--eval.batch_size=1", f"--output_dir={tmp_path}/out", "--seed=0",
    )  # fmt: skip
    info = json.loads((tmp_path / "out" / "eval_info.json").read_text())
    assert info["overall"]["n_episodes"] == 2
    assert info["overall"]["pc_success"] == 0.0
