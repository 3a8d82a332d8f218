"""What `prism info FILE` says of a file, against counts by numpy; the replay, against recordings of two simulators."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import commandline
import community
from prism_policy.data.facts import read_facts
from prism_policy.data.robomimic import write_masks
from prism_policy.demos.inspect import print_demos
from prism_policy.errors import PrismError


def test_facts_are_those_of_the_arrays(tmp_path: Path) -> None:
    demos = {f"demo_{i}": community.demo(5 + i, i, ("agentview", "robot0_eye_in_hand"), 12) for i in range(4)}
    for arrays in demos.values():
        arrays["actions"][:, 6] = np.sign(arrays["actions"][:, 6])
        arrays["actions"][0, 1] = 1
    demos["demo_3"]["rewards"][:] = 0
    path = community.write_file(tmp_path / "a.hdf5", demos, community.env_args("v1.5"), {"x": ["demo_0", "demo_2"]})
    facts = read_facts(path)
    actions = np.concatenate([arrays["actions"] for arrays in demos.values()])
    assert (facts.demos, facts.steps, facts.successes, facts.bad) == (4, 5 + 6 + 7 + 8, 3, {})
    assert (facts.steps_min, facts.steps_median, facts.steps_max) == (5, 6.5, 8)
    assert facts.images == {"agentview": (12, 12), "robot0_eye_in_hand": (12, 12)}
    assert facts.low_dim == {"object": 10, "robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
    assert (facts.states, facts.next_obs, facts.masks, facts.render) == (32, True, {"x": 2}, None)
    for i, row in enumerate(facts.actions):
        assert (row.min, row.max) == (actions[:, i].min(), actions[:, i].max())
        assert row.mean == pytest.approx(actions[:, i].mean())
        assert row.at_limit == pytest.approx((np.abs(actions[:, i]) == 1).mean())
    assert facts.actions[6].at_limit == 1
    assert facts.actions[1].at_limit == pytest.approx(4 / len(actions))


def test_machine_generated_files_with_gaps_failures_and_a_hundred_demos(tmp_path: Path) -> None:
    demos = {f"demo_{3 * i}": community.demo(2, i) for i in range(150)}
    for name, arrays in demos.items():
        arrays["rewards"] = np.full(2, 0.3 if name != "demo_30" else 1.0)  # dense rewards
    path = community.write_file(tmp_path / "dense.hdf5", demos, community.env_args("v0.1"))
    facts = read_facts(path)
    assert (facts.demos, facts.steps, facts.successes, facts.env.layout) == (150, 300, 1, "v0.1")


def test_absolute_actions_have_no_limits_but_the_grippers(tmp_path: Path) -> None:
    demo = community.demo()
    demo["actions"][:, 3] = 3.1
    facts = read_facts(community.write_file(tmp_path / "abs.hdf5", {"demo_0": demo}, community.env_args("v1.4")))
    assert facts.env.action_mode == "absolute"
    assert [row.name for row in facts.actions] == ["x", "y", "z", "rx", "ry", "rz", "gripper"]
    assert [row.at_limit is None for row in facts.actions] == [True] * 6 + [False]


def test_bad_demos_are_counted_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demos = {f"demo_{i}": community.demo(5, i) for i in range(3)}
    demos["demo_1"]["actions"][4, 4] = np.nan
    path = community.write_file(tmp_path / "a.hdf5", demos, community.env_args("v1.5"))
    facts = read_facts(path)
    assert (facts.demos, facts.steps, list(facts.bad)) == (3, 10, ["demo_1"])
    assert np.isfinite([row.mean for row in facts.actions]).all()
    print_demos(path, replay=0)
    assert "bad demo_1: actions are not finite at step 4; repair or remove this demo" in capsys.readouterr().out


def test_a_file_that_cannot_run_here_is_told_about_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    about = {**community.env_args("v1.5"), "env_version": "1.7.0"}
    path = community.write_file(tmp_path / "new.hdf5", {"demo_0": community.demo(cameras=("agentview",))}, about)
    monkeypatch.chdir(tmp_path)
    print_demos(path)
    printed = capsys.readouterr().out
    assert "No replay: written by robosuite 1.7.0; this library runs up to 1.5" in printed
    assert printed.splitlines()[-1].startswith("Next: ")
    sheet = Image.open(tmp_path / "new-contact.png")  # of the images in the file
    assert sheet.width == 8 * 120
    with pytest.raises(PrismError, match=r"new.hdf5: written by robosuite 1.7.0"):
        print_demos(path, replay=1)
    with pytest.raises(PrismError, match="replay: expected 0 or more demonstrations, got -1"):
        print_demos(path, replay=-1)


def prism(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return commandline.prism(*arguments, cwd=cwd)


def test_both_forms_of_the_command_and_bad_files(tmp_path: Path) -> None:
    path = community.write_file(tmp_path / "a.hdf5", {"demo_0": community.demo()}, community.env_args("v1.4"))
    short = prism("info", path, "--json", "--replay", 0, cwd=tmp_path)
    assert short.returncode == 0, short.stderr
    summary = json.loads(short.stdout)
    assert (summary["demos"], summary["env"]["task"], summary["contact_sheet"]) == (1, "lift", None)
    assert prism("info", "demos", path, "--json", "--replay", 0, cwd=tmp_path).stdout == short.stdout
    (tmp_path / "cut.hdf5").write_bytes(path.read_bytes()[:3000])
    for bad, sentence in (("none.hdf5", "not found"), ("cut.hdf5", "not a readable HDF5 file, or it is cut short")):
        done = prism("info", tmp_path / bad, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"prism: {tmp_path / bad}")
        assert sentence in line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.hdf5", "cut.hdf5"]


class TestReplay:
    """With the simulator."""

    @pytest.fixture(autouse=True)
    def _simulator(self) -> None:
        pytest.importorskip("robosuite", reason="needs prism-policy[sim]")

    def test_a_recording_of_robosuite_141_succeeds_again(self, tmp_path: Path) -> None:
        """And one whose actions do nothing fails, though its states succeed: neither is taken for the other."""
        good, idle = community.recorded_demo(), community.recorded_demo()
        idle["actions"] = np.concatenate([np.zeros((len(idle["actions"]) - 1, 7)), idle["actions"][-1:]])
        path = community.write_file(
            tmp_path / "low_dim.hdf5", {"demo_0": good, "demo_1": idle}, community.env_args("v1.4")
        )
        done = prism("info", path, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "demo_1" in done.stdout.partition("replayed here")[2]
        assert "Frames: low_dim-contact.png" in done.stdout
        with Image.open(tmp_path / "low_dim-contact.png") as sheet:
            assert sheet.size == (8 * 120, 2 * (20 + 2 * 120 + 4))  # two demos, two cameras, eight moments
        summary = json.loads(prism("info", path, "--json", "--out", "other.png", cwd=tmp_path).stdout)
        assert summary["contact_sheet"] == "other.png"
        first, second = summary["replays"]
        assert (first["actions_succeed"], first["states_succeed"]) == (True, True)
        assert 0 < first["deviation_mm"] < 5
        assert (second["actions_succeed"], second["states_succeed"]) == (False, True)
        assert second["deviation_mm"] > 100

    @pytest.mark.parametrize("layout", [pytest.param("v1.4", marks=pytest.mark.slow), "v1.5"])
    def test_absolute_actions_are_replayed(self, layout: str, tmp_path: Path) -> None:
        """As diffusion_policy's conversion leaves them: in place of the deltas, with nothing said in `env_args`."""
        from prism_policy.config.settings import TaskConfig
        from prism_policy.data.actions import encode_absolute
        from prism_policy.data.robomimic import iter_demos
        from prism_policy.demos.replay import replay_demos
        from prism_policy.envs.robosuite import RobosuiteEnv

        demo = community.recorded_demo()
        env = RobosuiteEnv(TaskConfig("lift", reference_frame="world"), render_images=False)
        absolute = []
        for state, action in zip(demo["states"], demo["actions"], strict=True):
            env.set_state(state)
            absolute.append(env.absolute(action))
        env.close()
        demo["actions"] = np.stack(absolute)
        path = community.write_file(tmp_path / "abs.hdf5", {"demo_0": demo}, community.env_args(layout))
        (replay,) = replay_demos(path, ["demo_0"], read_facts(path).env.task_config(str(path)))
        assert replay.actions_succeed
        assert replay.deviation_mm < 5
        (episode,) = iter_demos(path, action_mode="absolute")
        np.testing.assert_allclose(episode.actions, encode_absolute(demo["actions"]), atol=1e-6)

    def test_states_of_another_task_are_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = community.write_file(
            tmp_path / "a.hdf5", {"demo_0": community.demo()}, community.env_args("v1.5", "ToolHang")
        )
        sentence = "demo_0: expected states of 58 numbers .*ToolHang in robosuite 1.5.*got shape"
        with pytest.raises(PrismError, match=sentence):
            print_demos(path, replay=1)

    def test_drawing_keeps_names_and_masks_of_a_file(self, tmp_path: Path) -> None:
        from prism_policy.config.settings import RenderConfig, TaskConfig
        from prism_policy.data.robomimic import open_demos, read_demos, read_masks
        from prism_policy.demos.render import render_demos

        demos = {"demo_4": community.recorded_demo(), "demo_17": community.recorded_demo()}
        path = community.write_file(
            tmp_path / "low_dim.hdf5", demos, community.env_args("v1.4"), {"better": ["demo_17"]}
        )
        task = TaskConfig("lift", ("agentview",), render=RenderConfig(32))
        images = render_demos(path, task, tmp_path, workers=1)
        assert [episode.name for episode in read_demos(images)] == ["demo_4", "demo_17"]
        with open_demos(images) as file:
            assert read_masks(file) == {"better": ["demo_17"]}
        assert read_facts(images).env.cameras == ("agentview",)
        # Observations are those of the state; robosuite's, seen live, lag it by a substep of 2 ms.
        live = demos["demo_4"]["obs/robot0_eef_pos"]
        assert np.abs(read_demos(images)[0].state[:, :3] - live).max() < 2e-3

    @pytest.mark.parametrize("without", ["states", "task"])
    def test_what_cannot_be_drawn_is_named(self, without: str, tmp_path: Path) -> None:
        from prism_policy.config.settings import TaskConfig
        from prism_policy.demos.render import render_demos

        demo = community.recorded_demo()
        if without == "states":
            del demo["states"]
        path = community.write_file(
            tmp_path / "a.hdf5",
            {"demo_3": demo},
            community.env_args("v1.4", "Lift" if without == "states" else "ToolHang"),
        )
        sentence = "demo_3: expected simulator states, got none" if without == "states" else "'lift', got 'tool_hang'"
        with pytest.raises(PrismError, match=sentence):
            render_demos(path, TaskConfig("lift"), tmp_path, workers=1)
        assert list(tmp_path.iterdir()) == [path]


def test_masks_that_are_written_are_counted(tmp_path: Path) -> None:
    path = community.write_file(tmp_path / "a.hdf5", {f"demo_{i}": community.demo(2, i) for i in range(10)}, None)
    write_masks(path, 0.2)
    assert read_facts(path).masks == {"train": 8, "valid": 2}
