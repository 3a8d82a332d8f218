"""A Rerun recording read back: what the policy saw, did and predicted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prism_policy.config.settings import RunConfig

pytest.importorskip("rerun", reason="needs prism-policy[rerun]")

from prism_policy.data.schema import task_schema
from prism_policy.evaluation.rollouts import episode_noise, evaluate, sample_chunks, states_path
from prism_policy.evaluation.videos import observe_all
from prism_policy.reports.rerun import record
from prism_policy.run_folder import make_policy


def read(path: Path, contents: str) -> dict[str, list[Any]]:
    import rerun.dataframe

    view = rerun.dataframe.load_recording(path).view(index="step", contents=contents)
    table = view.select().read_all()
    return table.drop_columns(["log_time", "time"]).to_pydict()


def test_a_recording_holds_cameras_keypoints_actions_and_chunks(tmp_path: Path, tiny_config: RunConfig) -> None:
    torch.manual_seed(0)
    policy = make_policy(tiny_config, task_schema(tiny_config.task)).eval()
    evaluate(tmp_path, tiny_config, policy, replace(tiny_config.evaluate, n_episodes=1))
    states, path = states_path(tmp_path, 0), tmp_path / "recordings" / "episode_000.rrd"
    record(path, tiny_config.task, policy, states, "evaluate", 0, 0)
    assert [p.name for p in path.parent.iterdir()] == ["episode_000.rrd"]

    actual = read(path, "/**")
    steps = tiny_config.task.max_steps
    assert list(actual["step"]) == list(range(steps + 1))
    observations = observe_all(tiny_config.task, states)
    for camera in tiny_config.task.cameras:
        buffers = actual[f"/cameras/{camera}:ImageBuffer"]
        for step in (0, steps):
            image = np.asarray(buffers[step][0], np.uint8).reshape(84, 84, 3)
            np.testing.assert_array_equal(image, observations[step]["images"][camera])
        for stage in tiny_config.policy.encoder.stages_read:
            points = np.stack(actual[f"/cameras/{camera}/keypoints/stage_{stage}:Position2D"][0])
            assert points.shape[1] == 2
            assert ((points >= 0) & (points <= 84)).all()
    # The chunk of the first step is the one that was executed.
    first = {
        "images": {c: np.stack([x, x]) for c, x in observations[0]["images"].items()},
        "state": np.stack([observations[0]["state"]] * 2),
    }
    chunk = sample_chunks(policy, [first], [episode_noise("evaluate", 0, 0)], [0], 1)[0]
    logged = [float(actual["/action/x:Scalar"][step][0]) for step in range(8)]
    np.testing.assert_allclose(logged, chunk[1:9, 0], rtol=1e-6)
    predictions = [step for step, actual in enumerate(actual["/chunk:TensorData"]) if actual is not None]
    assert predictions == list(range(0, steps, 8))


def test_a_recording_repeats_what_the_policy_did(tmp_path: Path, tiny_config: RunConfig) -> None:
    """The actions in it, executed, give the recorded states."""
    from prism_policy.envs.robosuite import RobosuiteEnv

    torch.manual_seed(0)
    policy = make_policy(tiny_config, task_schema(tiny_config.task)).eval()
    evaluate(tmp_path, tiny_config, policy, replace(tiny_config.evaluate, n_episodes=1))
    path = tmp_path / "episode.rrd"
    record(path, tiny_config.task, policy, states_path(tmp_path, 0), "evaluate", 0, 0)
    actual = read(path, "/action/**")
    names = ("x", "y", "z", "rx", "ry", "rz", "gripper")
    env = RobosuiteEnv(tiny_config.task, render_images=False)
    env.reset(seed=0, options={"split": "evaluate", "episode": 0})
    for step in range(tiny_config.task.max_steps):
        env.advance(np.array([actual[f"/action/{name}:Scalar"][step][0] for name in names]))
    np.testing.assert_allclose(np.stack(env.states), np.load(states_path(tmp_path, 0)), atol=1e-6)
    env.close()
