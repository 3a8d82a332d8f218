"""A gymnasium environment written here, of which the library knows nothing, goes the whole way."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pytest

from commandline import prism
from prism_client.client import PolicyClient
from prism_client.schema import Part, Schema
from prism_policy.config.presets import task_config
from prism_policy.config.settings import TaskConfig
from prism_policy.data.source import open_source
from prism_policy.demos.record import Recorder, check_fits
from prism_policy.envs.episode import episode_rng
from prism_policy.envs.gym import AdaptedEnv, Camera, ObservationAdapter, StatePart
from prism_policy.envs.gym.env import GymEnv, describe, load
from prism_policy.errors import PrismError
from prism_policy.evaluation.results import read_states
from prism_policy.run_folder import read_data
from recordings import SETTINGS
from served_run import served

pytestmark = pytest.mark.usefixtures("own_simulators")

MODULE = '''
"""A dot that has to be moved to a cross, as a user would write it."""

import gymnasium
import numpy as np

from prism_policy.envs.gym import AdaptedEnv, Camera, ObservationAdapter, StatePart


class Dots(gymnasium.Env):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    observation_space = gymnasium.spaces.Box(0, 1, (2,), np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.dot, self.cross = self.np_random.uniform(0.1, 0.9, (2, 2))
        self.steps = 0
        return self.dot.copy(), {}

    def step(self, action):
        self.dot = np.clip(self.dot + 0.1 * action, 0, 1)
        self.steps += 1
        near = float(np.linalg.norm(self.dot - self.cross))
        return self.dot.copy(), -near, False, self.steps == 12, {"is_success": near < 0.1}

    def render(self):
        image = np.full((48, 64, 3), 255, np.uint8)
        for (x, y), colour in ((self.cross, (0, 0, 255)), (self.dot, (255, 0, 0))):
            row, column = int(y * 40) + 2, int(x * 56) + 2
            image[row : row + 4, column : column + 4] = colour
        return image


def towards(env, rng):
    while True:
        yield (env.cross - env.dot) * rng.uniform(4, 6)


ADAPTER = ObservationAdapter(
    cameras={"top": Camera(lambda env, observation: env.render(), 36, 48)},
    state={"dot": StatePart(lambda env, observation: observation, "position", ("x", "y"))},
    expert=towards,
)


def make():
    return AdaptedEnv(Dots(), ADAPTER)


def not_adapted():
    return Dots()


def broken():
    raise RuntimeError("no such\\nrobot")


class Fickle(Dots):
    def step(self, action):
        return super().step(action + np.random.normal(size=2))


def fickle():
    return AdaptedEnv(Fickle(), ADAPTER)


class Buttons(Dots):
    action_space = gymnasium.spaces.Discrete(4)


def buttons():
    return AdaptedEnv(Buttons(), ADAPTER)


NUMBER = 7
if "Dots-v0" not in gymnasium.registry:
    gymnasium.register("Dots-v0", Dots)
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "dots.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "dots", raising=False)
    return tmp_path


def moved(env: AdaptedEnv) -> Any:
    return env.env.unwrapped


def record(path: Path, env: AdaptedEnv, count: int) -> None:
    with Recorder(path, env.schema(), "dots:make") as recorder:
        for seed in range(count):
            observation, _ = env.reset(seed=seed)
            done = False
            while not done:
                action = np.clip((moved(env).cross - moved(env).dot) * 5, -1, 1)
                recorder.step(observation, action)
                observation, _, success, truncated, _ = env.step(action)
                done = success or truncated
            recorder.end(success)


TASK = TaskConfig("dots:make", cameras=())


@pytest.mark.slow
def test_the_whole_way_from_recorder_to_server(here: Path) -> None:
    record(here / "demos.hdf5", load(TASK), 6)
    cache = str(here / "cache")
    flags = f"--task dots:make --dataset demos.hdf5 --encoder sspool {SETTINGS} --evaluate.n-episodes 3 --out run"
    done = prism("train", *flags.split(), PRISM_CACHE=cache)
    assert done.returncode == 0, done.stderr
    data = read_data(here / "run")
    assert data is not None
    parts = (Part("dot", 2, "position", ("x", "y")),), (Part("action", 2, shares=True),)
    assert data.schema == Schema({"top": (36, 48)}, *parts, 10.0)

    outcomes = []
    for workers in (1, 2):
        shutil.copytree(here / "run", here / f"run{workers}")
        done = prism("evaluate", f"run{workers}", "--workers", workers, PRISM_CACHE=cache)
        assert done.returncode == 0, done.stderr
        assert "of 3 unseen episodes" in done.stdout
        place = here / f"run{workers}" / "results" / "last" / "evaluate-s0"
        lines = [json.loads(line) for line in (place / "episodes.jsonl").read_text().splitlines()]
        states = [read_states(path).tobytes() for path in sorted((place / "states").iterdir())]
        outcomes.append((sorted(lines, key=lambda line: line["episode"]), states))
        assert (here / f"run{workers}" / "videos" / "last" / "evaluate-s0" / "grid.mp4").stat().st_size > 1000
        assert (here / f"run{workers}" / "figures" / "saliency.png").exists()
        assert (here / f"run{workers}" / "report.html").exists()
    assert outcomes[0] == outcomes[1]
    assert len(outcomes[0][1]) == 3
    assert all(1 <= line["steps"] <= 12 for line in outcomes[0][0])  # the environment's own end

    (here / "dots.py").unlink()  # a robot's computer has no simulator
    with served(here / "run", state="and state (2,): dot (x, y)") as (url, _), PolicyClient(url) as client:
        assert client.metadata["cameras"] == {"top": [36, 48, 3]}
        frame = {"images": {"top": np.zeros((36, 48, 3), np.uint8)}, "state": np.zeros(2, np.float32)}
        assert client.infer(frame)["actions"].shape == (8, 2)


def test_the_recorder_writes_what_it_was_given(here: Path) -> None:
    schema = load(TASK).schema()
    rng = np.random.default_rng(0)
    images, states = rng.integers(0, 256, (7, 36, 48, 3), np.uint8), rng.normal(size=(7, 2)).astype(np.float32)
    actions = rng.uniform(-1, 1, (7, 2)).astype(np.float32)
    with Recorder(here / "demos.hdf5", schema, "dots:make") as recorder:
        for success in (True, False, True):
            for image, state, action in zip(images, states, actions, strict=True):
                recorder.step({"images": {"top": image}, "state": state}, action)
            recorder.end(success)
        assert recorder.count == 2
        assert not (here / "demos.hdf5").exists()
    source = open_source(here / "demos.hdf5")
    assert source.schema == schema
    for episode in source.episodes(source.names, schema):
        np.testing.assert_array_equal(episode.images["top"], images)
        np.testing.assert_array_equal(episode.state, states)
        np.testing.assert_array_equal(episode.actions, actions)
    assert (len(source.names), sorted(source.masks)) == (2, ["train", "valid"])


def test_an_error_while_recording_keeps_the_demonstrations_that_ended(here: Path) -> None:
    frame = {"images": {"top": np.zeros((36, 48, 3), np.uint8)}, "state": np.zeros(2)}
    schema = Schema({"top": (36, 48)}, (Part("dot", 2),), (Part("action", 2),))
    for ended in (True, False):
        path = here / f"{ended}.hdf5"
        with contextlib.suppress(KeyboardInterrupt), Recorder(path, schema) as recorder:
            recorder.step(frame, np.zeros(2))
            if ended:
                recorder.end()
                recorder.step(frame, np.ones(2))
            raise KeyboardInterrupt
        assert path.exists() == ended
    with h5py.File(here / "True.hdf5") as file:
        assert list(file["data"]) == ["demo_0"]
        assert len(file["data/demo_0/actions"]) == 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"state": np.zeros(3)}, "state: expected 2 finite numbers"),
        ({"state": np.array([0, np.nan])}, "state: expected 2 finite numbers"),
        ({"images": {}}, "camera 'top': expected uint8"),
        ({"images": {"top": np.zeros((36, 48, 3))}}, "camera 'top': expected uint8 .36, 48, 3., got float64"),
    ],
)
def test_what_does_not_fit_the_schema_is_not_recorded(here: Path, change: dict[str, Any], sentence: str) -> None:
    frame = {"images": {"top": np.zeros((36, 48, 3), np.uint8)}, "state": np.zeros(2), **change}
    schema = Schema({"top": (36, 48)}, (Part("dot", 2),), (Part("action", 2),))
    recorder = Recorder(here / "demos.hdf5", schema)
    with pytest.raises(PrismError, match=sentence):
        recorder.step(frame, np.zeros(2))


def test_nothing_recorded_is_no_file(here: Path) -> None:
    schema = Schema({"top": (36, 48)}, (Part("dot", 2),), (Part("action", 2),))
    with pytest.raises(PrismError, match="at least one successful demonstration"), Recorder(here / "a.hdf5", schema):
        pass
    assert not list(here.glob("*.hdf5"))
    assert not list(here.glob(".prism*"))


def test_an_episode_is_its_split_seed_and_number(here: Path) -> None:
    env = GymEnv(TASK)
    for split, seed, episode in (("evaluate", 0, 0), ("evaluate", 0, 1), ("validate", 0, 0), ("collect", 3, 5)):
        observation, _ = env.reset(seed=seed, options={"split": split, "episode": episode})
        start = int(episode_rng(split, seed, episode).integers(2**31))
        dot = np.random.Generator(np.random.PCG64(np.random.SeedSequence(start))).uniform(0.1, 0.9, (2, 2))[0]
        np.testing.assert_allclose(observation["state"], dot, rtol=1e-6)


def test_any_state_of_an_episode_is_shown_again(here: Path) -> None:
    env, rng = GymEnv(TASK), np.random.default_rng(0)
    observation, _ = env.reset(seed=0, options={"episode": 4})
    seen = [observation]
    while not (env.over or env.success) and len(seen) < 9:
        env.advance(rng.uniform(-1, 1, 2))
        seen.append(env.observe())
    states = np.stack(env.states)
    other = GymEnv(TASK)
    for state in states:
        other.set_state(state)
    for step in rng.permutation(len(states)):
        again = other.observe(states[step])
        np.testing.assert_array_equal(again["images"]["top"], seen[step]["images"]["top"])
        np.testing.assert_array_equal(again["state"], seen[step]["state"])
    assert other.render("top", 240, states[2]).shape == (240, 320, 3)
    with pytest.raises(PrismError, match="step 5 of an episode whose steps before it are not known"):
        GymEnv(TASK).observe(states[5])


def test_a_chunk_ends_where_the_episode_does_and_its_last_frames_are_seen(here: Path) -> None:
    env = GymEnv(TASK)
    env.reset(seed=0, options={"episode": 0})
    moved(env.env).cross = np.array([5.0, 5.0])  # out of reach
    latest, success, done = env.step_chunk(np.zeros((8, 2)), 2)
    assert (len(latest), success, done, env.over) == (2, False, 8, False)
    latest, success, done = env.step_chunk(np.zeros((8, 2)), 2)
    assert (success, done, env.over) == (False, 4, True)
    assert len(env.states) == 13


@pytest.mark.slow
def test_collect_repeats_itself_and_marks_pushes(here: Path) -> None:
    for workers in (1, 2):
        place = str(here / f"cache{workers}")
        words = f"collect --task dots:make --num-demos 5 --noise 0.5 --workers {workers} --out {workers}.hdf5"
        done = prism(*words.split(), PRISM_CACHE=place)
        assert done.returncode == 0, done.stderr
        assert "Next: prism train --task dots:make --dataset" in done.stdout
    one, two = (open_source(here / f"{workers}.hdf5") for workers in (1, 2))
    assert one.schema == two.schema
    pairs = list(zip(one.episodes(one.names, one.schema), two.episodes(two.names, two.schema), strict=True))
    assert len(pairs) == 5
    for a, b in pairs:
        np.testing.assert_array_equal(a.images["top"], b.images["top"])
        np.testing.assert_array_equal(a.actions, b.actions)
    assert any(a.disturbed.any() for a, _ in pairs)
    assert not all(a.disturbed.all() for a, _ in pairs)


@pytest.mark.parametrize(
    ("task", "adapter", "sentence"),
    [
        ("gym:Nowhere-v0", "dots:ADAPTER", "gymnasium raised NameNotFound"),
        ("gym:CartPole-v1", "", "no adapter is known for it; say where its images, state and success are with --task"),
        ("gym:Dots-v0", "dots:NUMBER", "task.adapter 'dots:NUMBER': expected an ObservationAdapter, got int"),
        ("gym:Dots-v0", "dots:NOTHING", "dots has no 'NOTHING'; it has"),
        ("gym:Dots-v0", "absent:ADAPTER", "No module named 'absent'; install absent, or run where it lies"),
        ("dots:not_adapted", "", "expected AdaptedEnv.env, adapter. from the function, got Dots"),
        ("dots:broken", "", "the function raised RuntimeError: no such robot"),
        ("dots:fickle", "", "the same actions led elsewhere the second time"),
        ("dots:buttons", "", "expected actions in a Box of real numbers of shape .A,., got Discrete.4.; policies here"),
    ],
)
def test_what_is_no_environment_or_adapter_is_one_sentence(here: Path, task: str, adapter: str, sentence: str) -> None:
    with pytest.raises(PrismError, match=sentence) as caught:
        describe(TaskConfig(task, cameras=(), adapter=adapter))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["gym", "a:b:c", "a b:c", ":f", "m:"])
def test_names_of_no_form_are_one_sentence(name: str) -> None:
    with pytest.raises(PrismError, match=r"unknown task|expected gym:ID"):
        task_config(name)


class Nothing(gymnasium.Env[Any, Any]):
    action_space = gymnasium.spaces.Box(-2, 2, (3,), np.float32)
    metadata = {"render_modes": []}  # noqa: RUF012 (declared so by gymnasium)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(2), {}

    def step(self, action: Any) -> Any:
        return np.zeros(2), 0.0, False, False, {"score": 3}


def adapter(**changes: Any) -> ObservationAdapter:
    camera = Camera(lambda env, observation: np.zeros((8, 8, 3), np.uint8), 8, 8)
    settings = {"cameras": {"a": camera}, "state": {"s": StatePart(lambda env, observation: observation)}, **changes}
    return ObservationAdapter(**settings)


def run(env: AdaptedEnv) -> None:
    env.reset(seed=0)
    env.step(np.zeros(3))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "expected `is_success` or `success` in the environment's info, got score; give the adapter"),
        ({"cameras": {}}, "the adapter has no cameras"),
        ({"cameras": {"a": Camera(lambda e, o: np.zeros((8, 8)))}}, "camera 'a': expected an image uint8"),
        ({"cameras": {"a": Camera(lambda e, o: None)}}, "camera 'a': expected an image uint8"),
        ({"cameras": {"a": Camera(lambda e, o: o["x"])}}, "camera 'a': the adapter's function raised IndexError"),
        ({"state": {"s": StatePart(lambda e, o: [np.inf])}}, "state 's': expected 1 finite numbers"),
        ({"state": {"s": StatePart(lambda e, o: np.zeros((2, 2)))}}, "state 's': expected 4 finite numbers"),
        ({"action": (Part("arm", 2),)}, "parts of an action have 2 numbers, the environment takes 3"),
    ],
)
def test_a_wrong_adapter_is_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PrismError, match=sentence):
        run(AdaptedEnv(Nothing(), adapter(**changes)))


def test_success_may_be_anything_that_a_step_gives() -> None:
    env = AdaptedEnv(Nothing(), adapter(success=lambda reward, terminated, info: info["score"] > 2))
    env.reset(seed=0)
    assert env.step(np.zeros(3))[4]["success"]
    assert env.action == (Part("action", 3),)  # bounds of 2 are no shares


@pytest.mark.parametrize(
    ("recorded", "sentence"),
    [
        (
            Schema({"top": (36, 40)}, (Part("dot", 2),), (Part("a", 2),)),
            "are 36x40, and the adapter of d:m shows 36x48",
        ),
        (Schema({"hand": (36, 48)}, (), (Part("a", 2),)), "camera 'hand' are 36x48, and the adapter of d:m has top"),
        (Schema({"top": (36, 48)}, (Part("dot", 3),), (Part("a", 2),)), "'dot' with 3 numbers, .* has dot .2."),
        (Schema({"top": (36, 48)}, (Part("dot", 2),), (Part("a", 4),)), "actions have 4 numbers, and d:m takes 2"),
    ],
)
def test_demonstrations_of_another_robot_are_one_sentence(recorded: Schema, sentence: str) -> None:
    shown = Schema({"top": (36, 48)}, (Part("dot", 2),), (Part("action", 2),))
    check_fits(shown, shown, "file", "d:m")
    with pytest.raises(PrismError, match=sentence):
        check_fits(recorded, shown, "file", "d:m")
