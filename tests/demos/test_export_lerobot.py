"""LeRobot itself opens what is exported here, and trains on it; PRISM_LEROBOT_PYTHON names a Python that has it.

LeRobot needs Python 3.12 and an environment of its own: `pip install "lerobot[dataset,training]==0.6.1"`.
"""

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commandline import prism
from community import demo, env_args, write_file
from lerobot_files import RECORDED
from prism_policy.data.lerobot import LeRobotSource

PYTHON = os.environ.get("PRISM_LEROBOT_PYTHON", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="needs LeRobot; PRISM_LEROBOT_PYTHON names a Python that has it"),
]
CAMERAS = ("agentview", "robot0_eye_in_hand")
READ = """
import sys
import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

past, future = [-0.05, 0.0], [i / 20 for i in range(-1, 15)]
dataset = LeRobotDataset("local/made", root=sys.argv[1])
rows = [dataset[i] for i in range(len(dataset))]
held = {key: np.stack([np.asarray(row[key]) for row in rows]) for key in rows[0]}
stamps = {"action": future, **{key: past for key in dataset.meta.camera_keys}}
windows = LeRobotDataset("local/made", root=sys.argv[1], delta_timestamps=stamps)[10]
held |= {f"window.{key}": np.asarray(windows[key]) for key in (*stamps, "action_is_pad")}
np.savez(sys.argv[2], **held)
"""


def run(*command: str, **options: Any) -> str:
    offline = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": ""}
    done = subprocess.run(
        command, env={**os.environ, **offline}, capture_output=True, text=True, timeout=900, check=False, **options
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def exported(folder: Path, *options: str, size: int = 64, steps: tuple[int, ...] = (20, 26)) -> LeRobotSource:
    demos = {f"demo_{i}": demo(n, i, CAMERAS, size) for i, n in enumerate(steps)}
    for arrays in demos.values():  # smooth, so that a video shows them
        for camera in CAMERAS:
            level = np.linspace(20, 230, len(arrays["actions"])).astype(np.uint8)
            arrays[f"obs/{camera}_image"][:, :, : size // 2] = level[:, None, None, None]
    file = write_file(folder / "made.hdf5", demos, env_args("v1.5"), only=("actions", "obs", "states", "rewards"))
    done = prism("export", file, "--format", "lerobot", "--out", folder / "set", "--task", "lift the cube", *options)
    assert done.returncode == 0, done.stderr
    return LeRobotSource(folder / "set")


@pytest.mark.parametrize("video", ["none", "h264", "av1"])
def test_lerobot_reads_the_same_frames_and_vectors(video: str, tmp_path: Path) -> None:
    source = exported(tmp_path, "--video", video)
    run(PYTHON, "-c", READ, str(source.path), str(tmp_path / "read.npz"))
    held = np.load(tmp_path / "read.npz")
    episodes = list(source.episodes(source.names, source.schema))
    np.testing.assert_array_equal(held["action"], np.concatenate([e.actions for e in episodes]))
    np.testing.assert_array_equal(held["observation.state"], np.concatenate([e.state for e in episodes]))
    np.testing.assert_array_equal(held["episode_index"], np.repeat([0, 1], [20, 26]))
    assert set(held["task"]) == {"lift the cube"}
    for camera in CAMERAS:
        ours = np.concatenate([e.images[camera] for e in episodes])
        theirs = (held[f"observation.images.{camera}"] * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
        # Another version of FFmpeg rounds colours differently.
        np.testing.assert_allclose(ours.astype(int), theirs.astype(int), atol=0 if video == "none" else 2)
        window = held[f"window.observation.images.{camera}"]
        np.testing.assert_array_equal(window, held[f"observation.images.{camera}"][9:11])
    np.testing.assert_array_equal(
        held["window.action"], np.concatenate([held["action"][9:20], held["action"][[19] * 5]])
    )
    assert held["window.action_is_pad"].tolist() == [False] * 11 + [True] * 5


FRAMES = """
import sys
import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

dataset = LeRobotDataset("local/recorded", root=sys.argv[1])
frames = [dataset[i][dataset.meta.camera_keys[0]].numpy() for i in map(int, sys.argv[3:])]
np.save(sys.argv[2], np.stack(frames))
"""


@pytest.mark.skipif(not RECORDED.is_dir(), reason="needs the recordings; PRISM_LEROBOT_DATA names their folder")
def test_frames_of_a_recording_are_those_that_lerobot_decodes(tmp_path: Path) -> None:
    source = LeRobotSource(RECORDED / "unitree_g1_v30")
    episodes = list(source.episodes(source.names[:2], source.schema))
    ours = np.concatenate([episode.images["cam_high"] for episode in episodes])
    rows = [0, 1, 100, len(episodes[0]) - 1, len(episodes[0]), len(ours) - 1]
    run(PYTHON, "-c", FRAMES, str(source.path), str(tmp_path / "frames.npy"), *map(str, rows))
    theirs = (np.load(tmp_path / "frames.npy") * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(ours[rows], theirs)


def test_lerobot_trains_on_it(tmp_path: Path) -> None:
    source = exported(tmp_path)
    small = "dim_model=32 dim_feedforward=32 n_heads=2 n_encoder_layers=1 chunk_size=16 n_action_steps=8 use_vae=false"
    flags = [f"--policy.{flag}" for flag in (*small.split(), "device=cpu", "push_to_hub=false", "type=act")]
    dataset = ["--dataset.repo_id=local/made", f"--dataset.root={source.path}"]
    length = ["--batch_size=4", "--num_workers=0", "--steps=2", "--log_freq=1", "--save_freq=2", "--wandb.enable=false"]
    program = str(Path(PYTHON).with_name("lerobot-train"))
    backbone = "--policy.pretrained_backbone_weights=null"
    out = f"--output_dir={tmp_path / 'run'}"
    said = run(program, *dataset, *flags, backbone, *length, out)
    assert "End of training" in said
    assert list((tmp_path / "run/checkpoints").rglob("model.safetensors"))
