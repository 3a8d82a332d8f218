"""`prism saliency`: the frames it takes, what it draws and says, and what it refuses."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prism_policy.cli import main as cli
from prism_policy.config import config_json, presets
from prism_policy.config.settings import DemoConfig, RunConfig, TaskConfig
from prism_policy.data.schema import task_schema
from prism_policy.errors import PrismError
from prism_policy.run_folder import make_policy, save_normalizer, save_weights
from prism_policy.saliency.attribution import Attribution
from prism_policy.saliency.clips import Clip, Source, choose_steps, draw_clips, sources
from prism_policy.saliency.figures import draw_grid, draw_keypoints, draw_metrics, draw_stages, film
from prism_policy.saliency.study import Subject, contrast, load_subjects, run_study, saliency_maps, sides, summary
from prism_policy.saliency.tables import as_json, in_words, markdown, randomised_in_words
from prism_policy.utils.video import read_video
from small_run import config_of, small_config, write_demos


def untrained_run(folder: Path, config: RunConfig) -> Path:
    """A run folder whose weights were never trained."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config_json.to_json(config))
    torch.manual_seed(config.seed)
    policy = make_policy(config, task_schema(config.task))
    save_normalizer(folder, policy, config.task)
    weights = {name: x for name, x in policy.state_dict().items() if not name.startswith("normalizer.")}
    save_weights(folder, weights)
    return folder


def run_on_file(folder: Path, *settings: str, seed: int = 0) -> Path:
    """A run of 32 px whose frames are those of a file of demonstrations."""
    data = folder / "demos.hdf5"
    if not data.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_demos(data)
    config = replace(small_config(*settings), dataset=str(data), seed=seed)
    return untrained_run(folder / f"run-{config.policy.encoder.pooling}-{seed}", config)


def prism(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *arguments: str | Path) -> str:
    """Refused with one sentence, which is returned."""
    monkeypatch.setattr(sys, "argv", ["prism", "saliency", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    return said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "magic"], "unknown method 'magic'; there are gradient,"),
        (["--method", "layercam", "--stage", "3"], "unknown stage 3; this encoder's trunk has stages 1 to 2"),
        (["--target", "elbow"], "unknown target 'elbow'; expected chunk, position, rotation, gripper,"),
        (["--camera", "nowhere"], "unknown camera 'nowhere'; these runs see agentview"),
        (["--noise-level", "2"], "noise_level: expected more than 0 to 1, got 2.0"),
        (["--frames", "0"], "frames: expected at least 1, got 0"),
        (["--format", "gif"], "format: expected png or pdf, got 'gif'"),
        (["--episode", "9"], "has no demonstration 9; it has 0 to 3"),
        (["--compare"], "expected runs of at least two encoders or policies to compare, got 1 of sspool alone"),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, arguments: list[str], message: str
) -> None:
    run = run_on_file(tmp_path)
    assert message in prism(monkeypatch, capsys, run, *arguments, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_runs_that_cannot_be_looked_at_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run = run_on_file(tmp_path)
    assert "config.json" in prism(monkeypatch, capsys, tmp_path / "nothing")
    assert "expected each run once" in prism(monkeypatch, capsys, run, run)
    other = untrained_run(tmp_path / "other", small_config("--task.render.resolution 48"))
    assert "expected runs that take the same frames, got task.render" in prism(monkeypatch, capsys, run, other)
    (tmp_path / "demos.hdf5").unlink()
    assert "no frames to look at; run `prism evaluate" in prism(monkeypatch, capsys, run)


@pytest.mark.slow
def test_frames_of_a_file_need_no_simulator(tmp_path: Path) -> None:
    """Those of this file are made up: no simulator draws them, and masks of other frames would lie."""
    run = run_on_file(tmp_path)
    (subject,) = load_subjects([run])
    (source,) = sources(run, subject.config, [1], 2)
    (clip,) = draw_clips([(source, 4, "even")])
    assert clip.steps.tolist() == [0, 6, 13, 20]
    assert clip.masks == {}
    assert clip.phases == [""] * 4
    assert clip.observation["images"]["agentview"].shape == (4, 2, 32, 32, 3)
    study = run_study([subject], [clip], Attribution(), ["agentview"])
    assert np.isfinite(study.values("entropy")).all()
    assert np.isnan(study.values("lift")).all()
    json.dumps(as_json(study, Attribution()), allow_nan=False)  # unknown is null


def test_which_frames_are_chosen() -> None:
    assert choose_steps(11, 3, "even").tolist() == [0, 5, 10]
    assert choose_steps(2, 40, "even").tolist() == [0, 1]
    assert choose_steps(11, 4, "pairs").tolist() == [0, 1, 9, 10]
    assert choose_steps(6, 9, "phases", ["a", "a", "a", "b", "b", "c"]).tolist() == [1, 4, 5]
    assert choose_steps(6, 2, "phases", [""] * 6).tolist() == [0, 5]


def test_runs_that_differ_in_their_seed_alone_are_one_side(tmp_path: Path) -> None:
    runs = [run_on_file(tmp_path, seed=0), run_on_file(tmp_path, "--policy.encoder.pooling avg", seed=0),
            run_on_file(tmp_path, seed=1)]  # fmt: skip
    assert sides(load_subjects(runs)) == {"sspool": [0, 2], "avgpool": [1]}


def made_up_clip(cameras: tuple[str, ...], size: int = 84, frames: int = 3, episode: int = 0) -> Clip:
    rng = np.random.default_rng(episode)
    images = {c: rng.integers(0, 256, (frames, 2, size, size, 3), np.uint8) for c in cameras}
    masks = {c: np.zeros((frames, size, size), np.uint8) for c in cameras}
    for mask in masks.values():
        mask[:, 20:40, 30:50], mask[:, 50:60, 10:30] = 2, 1
    observation = {"images": images, "state": rng.random((frames, 2, 9), np.float32)}
    names = ["approach", "grasp", "lift"][:frames]
    return Clip(TaskConfig(), f"episode {episode}", episode, False, 60, np.arange(frames), names, observation, masks)


def untrained(name: str, seed: int = 0) -> Subject:
    torch.manual_seed(seed)
    config = presets.nano(encoder_name=name, seed=seed)
    return Subject(Path(f"{name}-{seed}"), config, make_policy(config, task_schema(config.task)).eval())


def test_pictures_and_film_are_drawn_and_repeat_exactly(tmp_path: Path) -> None:
    subjects = [untrained("prism"), untrained("avgpool")]
    clip = made_up_clip(tuple(subjects[0].config.task.cameras))
    maps = [saliency_maps(s.policy, clip, Attribution()) for s in subjects]
    for name in ("first", "second"):
        draw_grid(subjects, clip, maps, ["agentview"], tmp_path / name / "grid.png")
        draw_stages(subjects[0], clip, "agentview", tmp_path / name / "stages.png")
    for picture in ("grid.png", "stages.png"):
        assert (tmp_path / "first" / picture).read_bytes() == (tmp_path / "second" / picture).read_bytes()
    draw_grid(subjects, clip, maps, ["agentview"], tmp_path / "grid.pdf")
    assert (tmp_path / "grid.pdf").read_bytes().startswith(b"%PDF")
    for some in (subjects, subjects[:1]):
        film(some, clip, maps[: len(some)], tmp_path / "film.mp4")
        assert len(list(read_video(tmp_path / "film.mp4"))) == 3


@pytest.mark.parametrize("encoder", ["prism", "sspool"])
def test_figures_of_a_report_are_drawn_and_repeat_exactly(tmp_path: Path, encoder: str) -> None:
    subject = untrained(encoder)
    cameras = subject.config.task.cameras
    clip = made_up_clip(cameras)
    for name in ("first", "second"):
        maps = [saliency_maps(subject.policy, clip, Attribution())]
        draw_grid([subject], clip, maps, cameras, tmp_path / name / "saliency.png")
        draw_keypoints(subject, clip, cameras, tmp_path / name / "keypoints.png")
    for picture in ("saliency.png", "keypoints.png"):
        first, second = (np.asarray(Image.open(tmp_path / name / picture)) for name in ("first", "second"))
        assert (first == second).all()
        assert min(first.shape[:2]) > 500


def test_an_encoder_without_keypoints_says_so(tmp_path: Path) -> None:
    subject = untrained("avgpool")
    clip = made_up_clip(subject.config.task.cameras)
    with pytest.raises(PrismError, match="no keypoints"):
        draw_keypoints(subject, clip, subject.config.task.cameras, tmp_path / "k.png")


@pytest.mark.slow
def test_a_study_says_which_side_is_more_localised(tmp_path: Path) -> None:
    subjects = [untrained("sspool", 0), untrained("sspool", 1), untrained("avgpool", 0), untrained("avgpool", 1)]
    clips = [made_up_clip(tuple(subjects[0].config.task.cameras), episode=e) for e in range(2)]
    study = run_study(subjects, clips, Attribution(noise_level=1.0), ["agentview"], checked=1)
    means = summary(study)
    one = contrast(study, "sspool", "avgpool")
    for number in ("lift", "entropy", "time"):  # the same episodes on both sides: differences are paired
        assert one.episodes[number].mean == pytest.approx(means["sspool"][number].mean - means["avgpool"][number].mean)
        assert one.seeds[number].mean == pytest.approx(one.episodes[number].mean)
        assert one.seeds[number].n == 4
    assert one.episodes["lift"].n == 2
    assert "seeds" in means["sspool"]
    words = in_words(one, study)
    assert words.startswith(f'"sspool is more localised than avgpool": {one.these} for these networks.')
    assert "2 + 2 trainings" in words
    assert words in markdown(study, Attribution())
    checked = randomised_in_words(study)
    assert [line.partition(":")[0] for line in checked] == ["sspool", "avgpool"]
    assert all("not passed" in line for line in checked)  # they were never trained
    draw_metrics(study, tmp_path / "numbers.png")


@pytest.mark.slow
def test_the_command_on_the_experts_demonstrations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was evaluated and there is no file: the expert shows the task, and the simulator says what is where."""
    pytest.importorskip("robosuite", reason="needs prism-policy[sim]")
    tiny = ("--policy.down-dims 16 32", "--policy.step-embed-dim 16")
    runs = [untrained_run(tmp_path / n, config_of(f"--encoder {n}", *tiny)) for n in ("prism", "avgpool")]
    for out in ("first", "second"):
        call = ["prism", "saliency", "--compare", *map(str, runs), "--episodes", "2", "--frames", "4", "--out"]
        monkeypatch.setattr(sys, "argv", [*call, str(tmp_path / out)])
        cli.main()
    written = {p.name for p in (tmp_path / "first").iterdir()}
    cameras = ("agentview", "robot0_eye_in_hand")
    assert written >= {f"{kind}-{c}.png" for kind in ("saliency", "keypoints-prism-s0") for c in cameras}
    assert written >= {"film.mp4", "numbers.png", "numbers.json", "table.md"}
    first, second = (json.loads((tmp_path / out / "numbers.json").read_text()) for out in ("first", "second"))
    assert first == second
    assert first["contrasts"][0]["over_episodes"]["lift"]["mean"] is not None
    assert "more localised" in (tmp_path / "first" / "table.md").read_text()


@pytest.mark.slow
def test_the_experts_frames_are_its_states(tmp_path: Path) -> None:
    pytest.importorskip("robosuite", reason="needs prism-policy[sim]")
    from prism_policy.envs.experts import demonstrate
    from prism_policy.envs.robosuite import RobosuiteEnv

    task, demos = presets.task_config("lift"), DemoConfig()
    source = Source(task, 2, 0, "the expert's", demos=demos)
    (clip,) = draw_clips([(source, 9, "phases")], workers=1)
    assert clip.phases == ["approach", "grasp", "lift"]
    env = RobosuiteEnv(task)
    states = demonstrate(env, demos, 0).states
    assert clip.length == len(states)
    for place, step in enumerate(clip.steps):
        for back in (0, 1):
            shown = env.observe(states[step - back])
            for camera in task.cameras:
                assert (clip.observation["images"][camera][place, 1 - back] == shown["images"][camera]).all()
            assert (clip.observation["state"][place, 1 - back] == shown["state"]).all()
    env.close()


def test_the_first_failed_episode_is_filmed_once(tmp_path: Path) -> None:
    pytest.importorskip("robosuite", reason="needs prism-policy[sim]")
    from prism_policy.envs.robosuite import RobosuiteEnv
    from prism_policy.evaluation.results import EpisodeSet
    from prism_policy.saliency.run import film_failure

    subject = untrained("prism")
    episodes = EpisodeSet(tmp_path, "last", "evaluate", 0)
    (episodes.folder / "states").mkdir(parents=True)
    outcomes = [True, False, False]
    lines = [{"episode": i, "success": success, "steps": 2} for i, success in enumerate(outcomes)]
    (episodes.folder / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:1]))
    assert film_failure(subject.config, subject.policy, episodes, subject.config.task) is None
    (episodes.folder / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    env = RobosuiteEnv(subject.config.task, render_images=False)
    np.save(episodes.folder / "states" / "episode_001.npy", np.stack([env.state] * 3))
    env.close()
    path = film_failure(subject.config, subject.policy, episodes, subject.config.task)
    assert path is not None
    assert path.name == "episode_001_saliency.mp4"
    assert len(list(read_video(path))) == 3
    written = path.stat().st_mtime_ns
    film_failure(subject.config, subject.policy, episodes, subject.config.task)
    assert path.stat().st_mtime_ns == written
