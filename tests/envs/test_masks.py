"""Masks are aligned with the images, pixel by pixel, whichever way up these are stored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from prism_policy.config import presets
from prism_policy.config.settings import DemoConfig, RenderConfig
from prism_policy.errors import PrismError

pytest.importorskip("robosuite", reason="needs prism-policy[sim]")

from prism_policy.envs.episode import phases
from prism_policy.envs.experts import demonstrate
from prism_policy.envs.masks import GRIPPER, OBJECT, REST, task_mask
from prism_policy.envs.robosuite import RobosuiteEnv
from prism_policy.tasks import task_spec


@pytest.fixture(scope="module")
def env() -> RobosuiteEnv:
    return RobosuiteEnv(presets.task_config("lift"))


def recoloured(env: RobosuiteEnv, body: str, state: np.ndarray) -> dict[str, np.ndarray]:
    """Where the images change when a body glows: what the renderer itself says of where it is."""
    before = env.observe(state)["images"]
    model = env._renderer.model
    geoms = model.geom_bodyid == env.model.body(body).id
    emission, kept = model.mat_emission.copy(), model.geom_matid.copy()
    colours = model.geom_rgba.copy()
    model.geom_matid[geoms] = -1
    model.geom_rgba[geoms, :3] = (0.1, 0.9, 0.9)
    after = env.observe(state)["images"]
    model.geom_matid[:], model.geom_rgba[:], model.mat_emission[:] = kept, colours, emission
    return {c: (before[c] != after[c]).any(-1) for c in before}


def test_a_pixel_of_the_cube_is_a_pixel_of_the_mask(env: RobosuiteEnv) -> None:
    demo = demonstrate(env, DemoConfig(), 0)
    for state in (demo.states[0], demo.states[len(demo.states) // 2], demo.states[-1]):
        changed = recoloured(env, "cube_main", state)
        for camera in env.task.cameras:
            cube = task_mask(env, camera, state) == OBJECT
            assert cube.any()
            assert (changed[camera] == cube).all(), camera
            # A mask upside down or mirrored would not do: the test can tell.
            assert (changed[camera] != cube[::-1]).sum() > cube.sum() / 2
            assert (changed[camera] != cube[:, ::-1]).any()


def test_the_gripper_is_where_its_fingers_are(env: RobosuiteEnv) -> None:
    state = demonstrate(env, DemoConfig(), 0).states[0]
    for finger in ("gripper0_right_leftfinger", "gripper0_right_finger_joint1_tip"):
        changed = recoloured(env, finger, state)
        for camera in env.task.cameras:
            gripper = task_mask(env, camera, state) == GRIPPER
            assert not (changed[camera] & ~gripper).any()
            assert 0.01 < gripper.mean() < 0.5


def test_anti_aliased_images_have_masks_without_mixed_labels(env: RobosuiteEnv) -> None:
    smooth = RobosuiteEnv(replace(env.task, render=RenderConfig(msaa=4)))
    state = smooth.state
    for camera in env.task.cameras:
        assert (task_mask(smooth, camera, state) == task_mask(env, camera, state)).all()
    smooth.close()


def test_drawing_a_mask_leaves_the_images_as_they_were(env: RobosuiteEnv) -> None:
    state = env.state
    before = env.observe(state)["images"]
    task_mask(env, "agentview", state)
    assert all((env.observe(state)["images"][c] == before[c]).all() for c in before)
    assert (env.state == state).all()


def test_an_unknown_camera_is_named(env: RobosuiteEnv) -> None:
    with pytest.raises(PrismError, match="unknown camera 'nowhere'"):
        task_mask(env, "nowhere", env.state)


@pytest.mark.parametrize("task", ["can", "square", "tool_hang"])
def test_every_task_shows_its_objects_and_the_gripper(task: str) -> None:
    env = RobosuiteEnv(presets.task_config(task))
    labels = [task_mask(env, camera, env.state) for camera in env.task.cameras]
    assert {REST, OBJECT} <= set(np.unique(labels[0]))
    assert GRIPPER in np.unique(np.concatenate(labels))
    assert len(task_spec(task).phases) == len(task_spec(task).stages)
    env.close()


def test_phases_follow_the_demonstration_in_order(env: RobosuiteEnv) -> None:
    actual, expected = phases(env, demonstrate(env, DemoConfig(noise=0.0), 0).states), task_spec("lift").phases
    assert list(dict.fromkeys(actual)) == list(expected)
    assert actual == sorted(actual, key=expected.index)
