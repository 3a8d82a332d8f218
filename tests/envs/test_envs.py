"""The simulator: same start, same actions, same pixels, whatever happened before."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from prism_policy.config.settings import RenderConfig, TaskConfig
from prism_policy.data.recorded_env import recorded_env
from prism_policy.envs.episode import episode_rng
from prism_policy.errors import PrismError

pytest.importorskip("robosuite", reason="needs prism-policy[sim]")

from prism_policy.envs.rendering import Renderer
from prism_policy.envs.robosuite import RobosuiteEnv

TASK = TaskConfig("lift")


@pytest.fixture(scope="module")
def env() -> Iterator[RobosuiteEnv]:
    env = RobosuiteEnv(TASK)
    yield env
    env.close()


def trajectory(env: RobosuiteEnv, episode: int, steps: int = 12, **options: object) -> np.ndarray:
    """States (steps + 1, S) under actions that depend on the episode alone."""
    env.reset(seed=5, options={"split": "validate", "episode": episode, **options})
    rng = np.random.default_rng(episode)
    for _ in range(steps):
        env.advance(rng.uniform(-1, 1, 7))
    return np.stack(env.states)


def test_an_episode_does_not_depend_on_those_before_it(env: RobosuiteEnv) -> None:
    np.random.seed(1)  # noqa: NPY002 (the point: the global generator must not matter)
    alone = trajectory(env, 3)
    np.random.seed(2)  # noqa: NPY002
    for episode in (0, 1, 2):
        trajectory(env, episode)
    np.testing.assert_array_equal(trajectory(env, 3), alone)


def test_looking_does_not_change_what_happens(env: RobosuiteEnv) -> None:
    unseen = trajectory(env, 4)
    env.reset(seed=5, options={"split": "validate", "episode": 4})
    rng = np.random.default_rng(4)
    for _ in range(12):
        env.step(rng.uniform(-1, 1, 7))
        env.render("frontview", 32)
    np.testing.assert_array_equal(np.stack(env.states), unseen)


@pytest.mark.parametrize("other", [("evaluate", 0, 0), ("collect", 1, 0), ("collect", 0, 1)])
def test_each_of_split_seed_and_episode_changes_the_start(env: RobosuiteEnv, other: tuple[str, int, int]) -> None:
    def start(split: str, seed: int, episode: int) -> np.ndarray:
        env.reset(seed=seed, options={"split": split, "episode": episode})
        return env.state

    assert np.abs(start("collect", 0, 0) - start(*other)).max() > 1e-4
    assert episode_rng("collect", 0, 0).random() != episode_rng(*other).random()
    assert episode_rng("collect", 0, 0, rng_stream=1).random() != episode_rng("collect", 0, 0).random()


def test_frames_of_a_replay_equal_the_live_ones(env: RobosuiteEnv) -> None:
    live = [env.reset(seed=1, options={"episode": 2})[0]]
    rng = np.random.default_rng(0)
    for _ in range(6):
        live.append(env.step(rng.uniform(-1, 1, 7))[0])
    states = list(env.states)
    trajectory(env, 7)
    for state, observation in reversed(list(zip(states, live, strict=True))):
        env.set_state(state)
        for again in (env.observe(), env.observe(state)):
            np.testing.assert_array_equal(again["state"], observation["state"])
            for camera in TASK.cameras:
                np.testing.assert_array_equal(again["images"][camera], observation["images"][camera])
                assert observation["images"][camera].std() > 5  # not blank


def test_drawing_at_another_size_leaves_the_frames_as_they_were(env: RobosuiteEnv) -> None:
    env.reset(seed=0)
    before = env.render("agentview")
    assert env.render("agentview", 200).shape == (200, 200, 3)
    np.testing.assert_array_equal(env.render("agentview"), before)


@pytest.mark.parametrize("camera", ["agentview", "robot0_eye_in_hand", "sideview", "birdview"])
def test_leaving_out_what_is_out_of_view_changes_no_pixel(env: RobosuiteEnv, camera: str) -> None:
    states = trajectory(env, 9, steps=20)[::5]
    everything = Renderer(env.model, TASK.render, shortcuts=False)
    hidden = 0
    for state in states:
        frame = env.render(camera, None, state)
        everything.pose(state[1 : 1 + env.model.nq])
        np.testing.assert_array_equal(frame, everything.draw(camera))
        assert env._renderer is not None
        hidden += int((env._renderer.model.geom_group == 5).sum())
    assert hidden > 0
    everything.close()


def test_what_never_moves_is_kept_until_it_is_moved(env: RobosuiteEnv) -> None:
    kept, everything = (Renderer(env.model, TASK.render, shortcuts) for shortcuts in (True, False))
    states = [state[1 : 1 + env.model.nq] for state in trajectory(env, 9, steps=20)[::5]]
    frames = []
    for shift in (0.0, 0.05, 0.0):
        for renderer in (kept, everything):
            renderer.model.body("table").pos[1] += shift
        for qpos in states:
            for renderer in (kept, everything):
                renderer.pose(qpos)
            frames.append(kept.draw("agentview"))
            np.testing.assert_array_equal(frames[-1], everything.draw("agentview"))
    assert len(kept._backgrounds) == 1
    assert (frames[0] != frames[len(states)]).any()
    kept.close()
    everything.close()


def test_what_one_looks_through_is_drawn_with_the_rest() -> None:
    env = RobosuiteEnv(dataclasses.replace(TASK, name="can"))  # whose goals are translucent
    env.reset(seed=0)
    kept, everything = (Renderer(env.model, TASK.render, shortcuts) for shortcuts in (True, False))
    for renderer in (kept, everything):
        renderer.pose(env.state[1 : 1 + env.model.nq])
    np.testing.assert_array_equal(kept.draw("agentview"), everything.draw("agentview"))
    assert not kept._backgrounds
    for each in (kept, everything, env):
        each.close()


def test_shadows_draw_everything(env: RobosuiteEnv) -> None:
    renderer = Renderer(env.model, RenderConfig(shadows=True))
    assert not renderer.shortcuts
    renderer.close()


def test_images_are_upright(env: RobosuiteEnv) -> None:
    env.reset(seed=0)
    frame = env.render("frontview").astype(int)
    assert frame[-20:].mean(axis=(0, 1))[0] != pytest.approx(frame[:20].mean(axis=(0, 1))[0], abs=5)
    # The red cube lies on the table, in the lower half of the front view; the hand hangs above it.
    red = (frame[..., 0] > frame[..., 1] + 40) & (frame[..., 0] > frame[..., 2] + 40)
    assert red.any()
    assert np.argwhere(red)[:, 0].mean() > frame.shape[0] / 2


def test_a_chunk_equals_its_steps(env: RobosuiteEnv) -> None:
    actions = np.random.default_rng(3).uniform(-1, 1, (5, 7))
    env.reset(seed=2)
    steps = [env.step(action)[0] for action in actions]
    env.reset(seed=2)
    observations, success, done = env.step_chunk(actions, n_obs=2)
    assert (success, done, len(observations)) == (False, 5, 2)
    for ours, theirs in zip(observations, steps[-2:], strict=True):
        np.testing.assert_array_equal(ours["images"]["agentview"], theirs["images"]["agentview"])
        np.testing.assert_array_equal(ours["state"], theirs["state"])


def test_a_chunk_ends_at_the_step_limit(env: RobosuiteEnv) -> None:
    short = RobosuiteEnv(dataclasses.replace(TASK, max_steps=3), render_images=False)
    short.reset(seed=0)
    assert short.step_chunk(np.zeros((8, 7)), 2)[1:] == (False, 3)
    assert short.step_chunk(np.zeros((8, 7)), 2) == ([], False, 0)
    short.close()


def test_observations_fit_their_space(env: RobosuiteEnv) -> None:
    observation, info = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert info == {"success": False}


def test_state_is_what_robosuite_reports(env: RobosuiteEnv) -> None:
    import robosuite

    env.reset(seed=0)
    theirs = robosuite.make("Lift", seed=0, **env.env_kwargs)
    theirs.reset()
    theirs.sim.set_state_from_flattened(env.state)
    theirs.sim.forward()
    observation = theirs._get_observations(force_update=True)
    expected = [observation[f"robot0_{key}"] for key in ("eef_pos", "eef_quat", "gripper_qpos")]
    np.testing.assert_allclose(env.observe()["state"], np.concatenate(expected), atol=1e-6)
    theirs.close()


def test_an_unknown_camera_is_named_with_those_there_are() -> None:
    with pytest.raises(PrismError, match=r"unknown camera 'front'; this task has .*'agentview'"):
        RobosuiteEnv(dataclasses.replace(TASK, cameras=("front",)))


def test_an_unknown_task_is_named_with_those_there_are() -> None:
    with pytest.raises(PrismError, match="unknown task 'juggle'; there are lift"):
        RobosuiteEnv(dataclasses.replace(TASK, name="juggle"))


@pytest.mark.parametrize("action", [np.zeros(6), np.full(7, np.nan)])
def test_a_bad_action_is_refused(env: RobosuiteEnv, action: np.ndarray) -> None:
    env.reset(seed=0)
    with pytest.raises(PrismError, match="expected a finite action of shape"):
        env.step(action)


def test_a_state_of_another_model_is_refused(env: RobosuiteEnv) -> None:
    with pytest.raises(PrismError, match="expected a finite state of 32 numbers"):
        env.set_state(np.zeros(45))


def test_without_opengl_the_message_says_what_to_do() -> None:
    program = (
        "from prism_policy.config.settings import TaskConfig\n"
        "from prism_policy.errors import PrismError\n"
        "from prism_policy.envs.robosuite import RobosuiteEnv\n"
        "env = RobosuiteEnv(TaskConfig('lift'), render_images=False)\n"
        "env.reset()\n"  # physics needs none
        "try:\n    env.render('agentview')\nexcept PrismError as error:\n    print(error)\n"
    )
    environment = {**os.environ, "MUJOCO_GL": "disable"}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert "no working OpenGL with MUJOCO_GL=disable" in result.stdout, result.stderr
    assert "unset it and run again" in result.stdout


def test_simulator_workers_import_no_torch() -> None:
    program = "import sys, prism_policy.demos.collect, prism_policy.envs.experts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.parametrize("name", ["lift_2cm", "lift_far"])
def test_a_variation_differs_in_what_it_declares_alone(name: str) -> None:
    """And its recordings say which one they are of."""
    plain, other = (RobosuiteEnv(TaskConfig(task), render_images=False) for task in ("lift", name))
    a, b = plain.model, other.model
    cube = [a.geom("cube_g0").id, a.geom("cube_g0_vis").id]
    sizes = np.array([0.01] * 3) if name == "lift_2cm" else a.geom_size[cube[0]]
    np.testing.assert_array_equal(b.geom_size[cube], [sizes] * 2)
    rest = np.setdiff1d(np.arange(a.ngeom), cube)
    np.testing.assert_array_equal(a.geom_size[rest], b.geom_size[rest])
    np.testing.assert_array_equal(a.geom_rgba, b.geom_rgba)
    np.testing.assert_array_equal(a.cam_pos, b.cam_pos)
    wider = b.cam_fovy != a.cam_fovy
    assert [a.camera(i).name for i in np.flatnonzero(wider)] == (["agentview"] if name == "lift_far" else [])
    for env in (plain, other):
        env.reset(seed=5, options={"split": "validate", "episode": 2})
    np.testing.assert_allclose(plain.state[1:], other.state[1:], atol=1e-6)  # the same starts
    assert recorded_env(json.loads(other.metadata_json())).task == name
    assert recorded_env(json.loads(plain.metadata_json())).task == "lift"
    for env in (plain, other):
        env.close()
