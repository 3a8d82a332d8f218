"""Demonstrations on a hand that is a pose, by a person who is a file of keys, and by fake devices."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from fakes import Steps
from scipy.spatial.transform import Rotation

from prism_client.control.limits import Limits
from prism_client.control.log import read_episode
from prism_client.robots.robot import Frame
from prism_client.robots.robot_file import RobotFile
from prism_client.schema import Part, Schema
from prism_policy.config.options import RecordOptions
from prism_policy.data.facts import read_facts
from prism_policy.data.source import open_source
from prism_policy.demos.dataset import task_of
from prism_policy.errors import PrismError
from prism_policy.robots import record as recording
from prism_policy.robots.operator import Keys
from prism_policy.robots.record import kept_episodes, record
from prism_policy.robots.spacemouse import open_spacemouse
from prism_policy.robots.teleop import Command, Jog, Keyboard, SpaceMouse
from trial_bench import person

POSE = Schema(
    {"front": (16, 16)},
    (Part("hand", 3, "position"), Part("turn", 3, "rotation"), Part("width", 1, "joint")),
    (Part("hand", 3, "position"), Part("turn", 3, "rotation"), Part("width", 1, "joint")),
    20.0,
)
STEPS = Schema(
    POSE.cameras,
    POSE.state,
    (
        Part("position", 3, "position", shares=True),
        Part("rotation", 3, "rotation", shares=True),
        Part("gripper", 1, "gripper", shares=True),
    ),
    20.0,
)
FILE = RobotFile("hand", limits=Limits(frame_age_s=0, frozen_frames=0, joint_speed=0))


class Hand:
    """A pose that is where it was sent; `break_at` unplugs its camera after so many frames."""

    schema = POSE
    break_at = 10**9

    def __init__(self, file: RobotFile = FILE) -> None:
        self.clock = Steps()
        self.pose, self.frames = np.zeros(7), 0

    def connect(self) -> None:
        pass

    def observe(self) -> Frame:
        self.frames += 1
        if self.frames == self.break_at:
            raise OSError("No device connected")
        image = np.random.default_rng(self.frames).integers(0, 256, (16, 16, 3), np.uint8)
        now = self.clock.now()
        return Frame(images={"front": image}, state=self.pose.astype(np.float32), time={"state": now, "front": now})

    def act(self, action: np.ndarray) -> None:
        self.pose = np.array(action, float)

    def hold(self) -> None:
        pass

    def home(self) -> None:
        self.pose = np.zeros(7)

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "make_robot", Hand)
    monkeypatch.setattr(Hand, "break_at", 10**9)


def scripted(ending: str, steps: int = 8) -> Callable[..., Any]:
    """In the keyboard's place: `steps` steps along x, then this ending, or one of several in turn."""
    endings = ending.split()

    def make(keys: Keys, jog: Jog) -> Any:
        count = [0, 0]

        def demonstrate(frame: Frame) -> Command:
            count[0] += 1
            last = count[0] % steps == 0
            said: Any = endings[count[1]] if last else ""
            count[1] += last
            return Command(jog(np.array([1.0, 0, 0]), np.zeros(3), frame), ending=said)

        demonstrate.jog = jog  # type: ignore[attr-defined]
        return demonstrate

    return make


def run(folder: Path, keys: str, **more: Any) -> Any:
    with person(keys, folder) as operator:
        return record(FILE, RecordOptions(**{"episodes": 2, **more}), folder / "out", operator)


def test_kept_demonstrations_become_a_dataset_and_discarded_ones_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "Keyboard", scripted("keep discard keep"))
    recorded = run(tmp_path, "\n\n\n", task="push it")
    assert (recorded.kept, recorded.discarded) == (2, 1)
    source = open_source(tmp_path / "out" / "demos.hdf5")
    assert source.schema.state == POSE.state
    assert source.schema.action == POSE.action
    assert source.schema.fps == 20
    assert task_of(tmp_path / "out" / "demos.hdf5") == "recorded"
    assert "it was recorded on a robot (hand)" in read_facts(tmp_path / "out" / "demos.hdf5").train_only
    with h5py.File(tmp_path / "out" / "demos.hdf5") as file:
        demo = file["data/demo_1"]
        np.testing.assert_allclose(demo["timestamps"][:], np.arange(8) / 20, atol=1e-9)
        logged = read_episode(tmp_path / "out" / "episodes" / "episode_002").steps
        np.testing.assert_array_equal(demo["obs/front_image"][:], [step["images"]["front"] for step in logged])
        # 0.15 m/s at 20 steps a second, each from the one before
        np.testing.assert_allclose(np.diff(demo["actions"][:, 0]), 0.0075, atol=1e-6)
        assert file["data"].attrs["instruction"] == "push it"


def test_a_recording_goes_on_and_what_was_interrupted_is_discarded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recording, "Keyboard", scripted("keep keep keep"))
    run(tmp_path, "\n", episodes=1)
    out = tmp_path / "out" / "episodes"
    run(tmp_path, "\n", episodes=2)
    before = (out / "episode_000" / "steps.bin").read_bytes()
    # The power goes during the second one: no outcome, and half a step at the end.
    (out / "episode_001" / "outcome.json").unlink()
    steps = (out / "episode_001" / "steps.bin").read_bytes()
    (out / "episode_001" / "steps.bin").write_bytes(steps[: int(len(steps) * 0.7)])
    recorded = run(tmp_path, "\n", episodes=2)
    assert "episode_001 was interrupted after 5 steps, and is discarded" in capsys.readouterr().out
    assert (recorded.kept, recorded.discarded) == (2, 1)
    assert [folder.name for folder in kept_episodes(tmp_path / "out")] == ["episode_000", "episode_002"]
    assert (out / "episode_000" / "steps.bin").read_bytes() == before
    assert json.loads((out / "episode_001" / "outcome.json").read_text())["why"] == "interrupted"


def test_each_demonstration_is_on_the_disk_before_the_next_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "Keyboard", scripted("keep keep keep"))
    seen: list[list[int]] = []
    connect, out = Hand.home, tmp_path / "out"

    def home(hand: Hand) -> None:
        seen.append([len(read_episode(folder).steps) for folder in kept_episodes(out)])
        connect(hand)

    monkeypatch.setattr(Hand, "home", home)
    run(tmp_path, "\n\n\n", episodes=3)
    assert seen == [[], [8], [8, 8]]


def test_a_camera_that_is_unplugged_discards_the_demonstration_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recording, "Keyboard", scripted("keep keep keep"))
    monkeypatch.setattr(Hand, "break_at", 13)
    recorded = run(tmp_path, "\n" * 4)
    assert (recorded.kept, recorded.discarded) == (2, 1)
    assert "episode_001: discarded after 4 steps (No device connected)" in capsys.readouterr().out


def test_leaving_keeps_what_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "Keyboard", scripted("keep leave"))
    assert run(tmp_path, "\n\n", episodes=9).kept == 1
    assert run(tmp_path, "q\n", episodes=9).kept == 1


def test_lerobots_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow", reason="needs prism-policy[lerobot]")
    monkeypatch.setattr(recording, "Keyboard", scripted("keep keep"))
    recorded = run(tmp_path, "\n\n", format="lerobot", task="push it")
    source = open_source(recorded.dataset)
    assert len(source.names) == 2
    assert next(iter(source.episodes(source.names, source.schema))).task == "push it"


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(PrismError, match=r"holds thesis\.tex and is no folder of recordings"):
        run(tmp_path, "")


def frame(state: np.ndarray) -> Frame:
    return Frame(images={}, state=state.astype(np.float32), time={})


def test_poses_move_on_from_where_the_hand_is_as_rotations_compose() -> None:
    jog, start = Jog(POSE, 0.2, 1.0), np.array([0.4, 0.1, 0.3, 0.3, -0.2, 0.1, 0.08])
    for _ in range(10):
        action = jog(np.array([0, 0, -1.0]), np.array([0, 0, 1.0]), frame(start))
    np.testing.assert_allclose(action[:3], [0.4, 0.1, 0.3 - 10 * 0.01], atol=1e-6)
    expected = Rotation.from_rotvec([0, 0, 0.5]) * Rotation.from_rotvec(start[3:6].astype(np.float32))
    np.testing.assert_allclose(Rotation.from_rotvec(action[3:6]).as_matrix(), expected.as_matrix(), atol=1e-6)
    assert action[6] == 0.08
    jog.closed = True
    assert jog(np.zeros(3), np.zeros(3), frame(start))[6] == 0.0
    jog.reset()
    np.testing.assert_allclose(jog(np.zeros(3), np.zeros(3), frame(start))[:3], start[:3], atol=1e-6)


def test_steps_are_shares_of_the_controllers_range() -> None:
    jog = Jog(STEPS, 0.2, 1.0, share_m=0.05, share_rad=0.5)
    action = jog(np.array([1.0, 0, -0.5]), np.array([0, 0, 1.0]), frame(np.zeros(7)))
    np.testing.assert_allclose(action, [0.2, 0, -0.1, 0, 0, 0.1, -1.0])


def test_other_robots_are_refused() -> None:
    joints = Schema({}, (), (Part("joints", 6, "joint"),), 30.0)
    with pytest.raises(PrismError, match=r"expected actions of a hand's position \(3\)"):
        Jog(joints, 0.1, 0.5)


def test_a_hand_that_was_kept_in_its_box_comes_back_at_once() -> None:
    jog, start = Jog(POSE, 0.2, 1.0), np.zeros(7)
    for _ in range(50):
        action = jog(np.array([1.0, 0, 0]), np.zeros(3), frame(start))
        action[0] = min(action[0], 0.05)
        jog.follow(action)
    assert jog(np.array([-1.0, 0, 0]), np.zeros(3), frame(start))[0] == pytest.approx(0.04)


def test_a_key_moves_for_a_moment_and_space_toggles_the_gripper(tmp_path: Path) -> None:
    now = [0.0]
    with person("w\n \nr\n", tmp_path) as keys:
        keyboard = Keyboard(keys, Jog(STEPS, 1.0, 1.0), lambda: now[0])
        first = keyboard(frame(np.zeros(7)))
        np.testing.assert_allclose(first.action, [1, 0, 1, 0, 0, 0, 1])
        assert first.ending == "leave"  # the file of keys has ended
        now[0] = 1.0
        np.testing.assert_allclose(keyboard(frame(np.zeros(7))).action, [0, 0, 0, 0, 0, 0, 1])


@pytest.mark.parametrize(("key", "ending"), [("\n", "keep"), ("\x7f\n", "discard"), ("q\n", "leave")])
def test_keys_end_a_demonstration(key: str, ending: str, tmp_path: Path) -> None:
    with person(key, tmp_path) as keys:
        assert Keyboard(keys, Jog(STEPS, 1.0, 1.0))(frame(np.zeros(7))).ending == ending


def test_a_spacemouse_moves_beyond_its_dead_zone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    states = [
        types.SimpleNamespace(x=0.5, y=1.0, z=0.05, roll=0, pitch=0, yaw=-0.5, buttons=[button, 0])
        for button in (0, 1, 1, 0, 1)
    ]
    device = types.SimpleNamespace(read=lambda: states.pop(0))
    monkeypatch.setitem(sys.modules, "pyspacemouse", types.SimpleNamespace(open=lambda: device))
    with person("", tmp_path) as keys:
        mouse = SpaceMouse(open_spacemouse(), keys, Jog(STEPS, 1.0, 1.0))
        actions = [mouse(frame(np.zeros(7))).action for _ in range(5)]
    np.testing.assert_allclose(actions[0][:6], [1.0, -0.5, 0, 0, 0, 0.05])
    assert [action[6] for action in actions] == [-1, 1, 1, 1, -1]


def test_a_spacemouses_latest_report_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    reports = [types.SimpleNamespace(t=t, x=t, y=0, z=0, roll=0, pitch=0, yaw=0, buttons=[0]) for t in (0.1, 0.2, 0.3)]
    device = types.SimpleNamespace(read=lambda: reports.pop(0) if len(reports) > 1 else reports[0])
    monkeypatch.setitem(sys.modules, "pyspacemouse", types.SimpleNamespace(open=lambda: device))
    assert open_spacemouse()()[0][1] == -0.3


def test_no_spacemouse_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyspacemouse", None)
    with pytest.raises(PrismError, match=r"pip install prism-policy\[spacemouse\]"):
        open_spacemouse()
    monkeypatch.setitem(sys.modules, "pyspacemouse", types.SimpleNamespace(open=lambda: None))
    with pytest.raises(PrismError, match="there is no SpaceMouse"):
        open_spacemouse()


def test_only_a_simulated_robot_has_an_expert(tmp_path: Path) -> None:
    with pytest.raises(PrismError, match="--by expert: only a simulated robot"):
        run(tmp_path, "", by="expert")
