"""The whole path on a simulated robot, as a person goes it; and SimRobot's part in recordings and trials."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

pytest.importorskip("robosuite", reason="needs prism-policy[sim]")

from prism_client.control.log import read_episode
from prism_client.robots.robot_file import RobotFile
from prism_policy.config.options import RecordOptions
from prism_policy.deploy.sim_robot import SimRobot
from prism_policy.envs.make import make_env
from prism_policy.robots.record import record

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "robot_end_to_end.py"


@pytest.mark.slow
def test_twenty_demonstrations_two_policies_ten_trials_each_and_a_report(tmp_path: Path) -> None:
    source = os.pathsep.join(str(Path(path).absolute()) for path in sys.path if path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": source, "PRISM_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path / "run"), "--max-steps", "60"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    run = tmp_path / "run"
    with h5py.File(run / "recorded" / "demos.hdf5") as file:
        assert len(file["data"]) == 20
    summary = json.loads((run / "trials" / "summary.json").read_text())
    assert {name: one["n"] for name, one in summary["policies"].items()} == {"sspool": 10, "prism": 10}
    assert summary["simulated"]
    assert "Trials" in (run / "trials" / "prism" / "report.html").read_text()
    assert "SimRobot: simulated" in (run / "table7" / "table.md").read_text()
    first = read_episode(run / "rolled" / "episode_000")
    assert first.outcome
    assert first.outcome["steps"] == 60 or first.outcome["ended"] == "success"


@pytest.mark.slow
def test_the_recorded_expert_replayed_in_the_environment_does_the_task_again(tmp_path: Path) -> None:
    settings = {"task": "stack", "resolution": 32, "realtime": False}
    file = RobotFile("sim", settings=settings)
    recorded = record(file, RecordOptions(by="expert", episodes=2, seed=3), tmp_path / "out")
    assert recorded.kept == 2
    env = make_env(SimRobot(file).task)
    with h5py.File(tmp_path / "out" / "demos.hdf5") as demos:
        assert json.loads(demos["data"].attrs["env_args"])["env_name"] == "Stack"
        for folder in sorted((tmp_path / "out" / "episodes").iterdir()):
            episode = read_episode(folder)
            if not (episode.outcome or {}).get("kept"):
                continue
            number = int(folder.name.rpartition("_")[2])
            seen, _ = env.reset(seed=3, options={"split": "collect", "episode": number})
            success = False
            for step in episode.steps:
                np.testing.assert_array_equal(step["state"], seen["state"])
                success = env.advance(step["sent"]) or success
                seen = env.observe()
            assert success
        assert 0 < demos["data/demo_0/disturbed"][:].mean() < 0.6
    env.close()
