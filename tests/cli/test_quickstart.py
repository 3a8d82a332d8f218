"""The main job as its user runs it: a process of its own, killed and started again, given bad input."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import commandline
from journals import read_lines
from prism_policy.config.settings import TaskConfig

PRISM = [sys.executable, "-m", "prism_policy"]


def prism(*arguments: str | Path, cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    if not environment:
        return commandline.prism(*arguments, PRISM_CACHE=str(cache))
    return subprocess.run(  # what a variable decides may have been decided in this process
        [*PRISM, *map(str, arguments)],
        env={**os.environ, "PRISM_CACHE": str(cache), **environment},
        capture_output=True,
        text=True,
        timeout=400,
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def smoke(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    done = prism("quickstart", "--smoke", "--out", folder, cache=cache)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_smoke_runs_the_whole_path(smoke: tuple[Path, str]) -> None:
    folder, printed = smoke
    summary = json.loads((folder / "results" / "summary.json").read_text())
    assert {"success_rate", "n_episodes", "wilson_95", "seed", "wall_s", "peak_rss_mib"} <= summary.keys()
    assert set(summary["wall_s"]) == {"demos", "render", "train", "evaluate", "report"}
    episodes = read_lines(folder / "results" / "last" / "evaluate-s0" / "episodes.jsonl")
    assert sorted(e["episode"] for e in episodes) == list(range(summary["n_episodes"]))
    assert summary["success_rate"] == sum(e["success"] for e in episodes) / len(episodes)
    assert summary["peak_rss_mib"] > 100
    for name in ("config.json", "weights.safetensors", "normalizer.safetensors", "report.html", "figures/saliency.png",
                 "figures/keypoints.png", "videos/last/evaluate-s0/episode_000.mp4",
                 "videos/last/evaluate-s0/grid.mp4"):  # fmt: skip
        assert (folder / name).stat().st_size > 0, name
    assert not list(folder.rglob("*.tmp"))
    assert not [p for p in folder.rglob("*") if p.suffix in (".pkl", ".pt", ".pth", ".ckpt")]
    last = printed.strip().splitlines()[-3:]
    assert re.match(r"Success: \d of 2 unseen episodes \(\d+%, 95% interval", last[0])
    assert str(folder / "report.html") in last[1]
    assert last[2].split()[1:4] == ["prism", "quickstart", "--encoder"]


def test_evaluating_a_smoke_run_again_still_calls_it_one(smoke: tuple[Path, str], cache: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(smoke[0], tmp_path / "again"))
    done = prism("evaluate", folder, cache=cache)
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "results" / "summary.json").read_text())
    before = json.loads((smoke[0] / "results" / "summary.json").read_text())
    assert summary["preset"] == "smoke"
    assert summary["n_success"] == before["n_success"]


def test_running_again_redoes_nothing(smoke: tuple[Path, str], cache: Path) -> None:
    folder, _ = smoke
    kept = (
        "weights.safetensors",
        "results/last/evaluate-s0/episodes.jsonl",
        "videos/last/evaluate-s0/episode_000.mp4",
        "figures/saliency.png",
    )
    before = {name: (folder / name).read_bytes() for name in kept}
    inodes = {name: (folder / name).stat().st_ino for name in kept if "jsonl" not in name}
    again = prism("quickstart", "--smoke", "--out", folder, cache=cache)
    assert again.returncode == 0, again.stderr
    assert before == {name: (folder / name).read_bytes() for name in kept}
    assert inodes == {name: (folder / name).stat().st_ino for name in inodes}  # not even written again


@pytest.mark.slow
def test_killed_at_any_stage_it_ends_with_what_an_uninterrupted_run_gives(
    smoke: tuple[Path, str], cache: Path, tmp_path: Path
) -> None:
    whole, _ = smoke
    folder = tmp_path / "killed"
    for sign in ("checkpoints/last.safetensors", "results/last/evaluate-s0/episodes.jsonl", "figures/saliency.png"):
        process = subprocess.Popen(
            [*PRISM, "quickstart", "--smoke", "--out", str(folder)],
            env={**os.environ, "PRISM_CACHE": str(cache)},
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        while not (folder / sign).exists() and process.poll() is None:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, f"ended before {sign} was there"
    done = prism("quickstart", "--smoke", "--out", folder, cache=cache)
    assert done.returncode == 0, done.stderr
    for name in ("config.json", "weights.safetensors", "normalizer.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    order = [
        sorted(read_lines(f / "results" / "last" / "evaluate-s0" / "episodes.jsonl"), key=lambda e: e["episode"])
        for f in (folder, whole)
    ]
    assert order[0] == order[1]


@pytest.mark.slow
def test_ctrl_c_ends_quickly_without_a_trace(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    process = subprocess.Popen(
        [*PRISM, "quickstart", "--smoke", "--out", str(folder)],
        env={**os.environ, "PRISM_CACHE": str(cache)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (folder / "weights.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the whole group
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "goes on from here" in errors
    assert "Traceback" not in errors


def test_ctrl_c_that_meets_a_destructor_is_not_lost() -> None:
    code = """
import sys, time
from prism_policy.__main__ import repeat_lost_interrupt

class Dying:
    def __del__(self):
        raise KeyboardInterrupt  # as the signal's handler does, wherever the program is

sys.unraisablehook = repeat_lost_interrupt
try:
    Dying()
    time.sleep(60)
except KeyboardInterrupt:
    print("stopped")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert (done.stdout, done.stderr) == ("stopped\n", "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--task", "juggle"], "juggle"),
        (["--encoder", "resnet"], "prism"),
        (["--task.cameras", "agentview", "front"], "unknown camera 'front'; task 'lift' has agentview"),
        (["--task.cameras", "agentview", "agentview"], "each only once"),
        (["--seed", "-1"], "expected 0 or more, got -1"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    tmp_path: Path, cache: Path, arguments: list[str], sentence: str
) -> None:
    done = prism("quickstart", "--out", tmp_path / "run", *arguments, cache=cache)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_configuration_is_left_alone(smoke: tuple[Path, str], cache: Path) -> None:
    folder, _ = smoke
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    done = prism("quickstart", "--smoke", "--seed", "1", "--out", folder, cache=cache)
    assert done.returncode == 2
    assert "holds another run: demos.seed is 0 there and 1 now" in done.stderr
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*")}


@pytest.mark.slow
def test_with_opengl_turned_off_it_says_what_turned_it_off(tmp_path: Path, cache: Path) -> None:
    done = prism("quickstart", "--smoke", "--seed", "5", "--out", tmp_path / "run", cache=cache, MUJOCO_GL="disable")
    assert done.returncode == 2
    assert "no working OpenGL" in done.stderr
    assert "MUJOCO_GL=disable" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("mount"), reason="needs root to mount a small disk")
@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_the_run_goes_on_elsewhere_later(
    cache: Path, smoke: tuple[Path, str], tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        done = prism("quickstart", "--smoke", "--out", disk / "run", cache=cache)
        assert done.returncode == 2
        assert "no space left" in done.stderr
        assert "Traceback" not in done.stderr
        assert not list(disk.rglob("*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=2g", str(disk)], check=True)
        done = prism("quickstart", "--smoke", "--out", disk / "run", cache=cache)
        assert done.returncode == 0, done.stderr
        weights = disk / "run" / "weights.safetensors"
        assert weights.read_bytes() == (smoke[0] / "weights.safetensors").read_bytes()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_report_of_a_folder_without_results_is_refused(tmp_path: Path, cache: Path) -> None:
    done = prism("report", tmp_path, cache=cache)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_list_of_cameras_is_the_simulators() -> None:
    from prism_policy.envs.robosuite import RobosuiteEnv

    env = RobosuiteEnv(TaskConfig(), render_images=False)
    names = [env.model.camera(i).name for i in range(env.model.ncam)]
    assert sorted(names) == sorted(TaskConfig().spec.simulator.cameras)
    env.close()
