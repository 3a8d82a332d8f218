"""The plug-in in the real LeRobot; PRISM_LEROBOT_PYTHON names a Python that has it (see docs/lerobot.md).

That Python needs what this library does besides, not this library: both sources are put on its path.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from commandline import prism
from community import demo, env_args, write_file
from lerobot_files import TASKS, write
from prism_policy.config.presets import ENCODERS
from small_run import prism_train, write_demos

PYTHON = os.environ.get("PRISM_LEROBOT_PYTHON", "")
ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "integrations" / "lerobot_policy_prism" / "src"
HERE = Path(__file__).parent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="needs LeRobot; PRISM_LEROBOT_PYTHON names a Python that has it"),
]
CAMERAS = ("agentview", "robot0_eye_in_hand")
SMALL = (
    "--policy.type=prism",
    "--policy.size=nano",
    "--policy.encoder.name=sspool@2",
    "--policy.encoder.width=16",
    "--policy.down_dims=[16,32]",
    "--policy.step_embed_dim=16",
    "--policy.device=cpu",
    "--policy.push_to_hub=false",
)


def lerobot(*command: object, code: int = 0) -> str:
    """Run a script or module in LeRobot's Python with the sources of this library and the plug-in."""
    settings = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    settings["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT / "src", ROOT / "packages/prism-client/src", PLUGIN, HERE)))
    done = subprocess.run(
        [PYTHON, *map(str, command)],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def train(dataset: Path, out: Path, *flags: str) -> str:
    return lerobot(
        "-m", "lerobot.scripts.lerobot_train", "--policy.discover_packages_path=lerobot_policy_prism",
        "--dataset.repo_id=local/made", f"--dataset.root={dataset}", f"--output_dir={out}", *SMALL,
        "--wandb.enable=false", "--num_workers=0", "--batch_size=4", "--log_freq=1", "--seed=0", *flags,
    )  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two demonstrations of Lift's robot with pushes, exported."""
    folder = tmp_path_factory.mktemp("made")
    demos = {f"demo_{i}": demo(n, i, CAMERAS, 32) for i, n in enumerate((20, 26))}
    for arrays in demos.values():
        arrays["disturbed"] = np.isin(np.arange(len(arrays["actions"])), (5, 6, 14))
    write_file(folder / "made.hdf5", demos, env_args("v1.5"))
    done = prism("export", folder / "made.hdf5", "--format", "lerobot", "--out", folder / "set", "--task", "lift it")
    assert done.returncode == 0, done.stderr
    return folder / "set"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_demos(folder / "demos.hdf5", size=40)
    settings = ("--train.steps 3", "--data.resize 32", "--data.crop 0,0,36,40")
    prism_train(folder, "--task", "recorded", "--out", folder / "run", settings=settings)
    return folder / "run"


@pytest.mark.parametrize("resized", [True, False])
def test_an_exported_run_acts_in_lerobot_as_it_does_here_to_the_bit(run: Path, tmp_path: Path, resized: bool) -> None:
    if not resized:
        prism_train(run.parent, "--task", "recorded", "--out", tmp_path / "run", settings=("--train.steps 2",))
        run = tmp_path / "run"
    done = prism("export", run, "--format", "lerobot", "--out", tmp_path / "checkpoint")
    assert done.returncode == 0, done.stderr
    said = lerobot(HERE / "same_actions.py", run, tmp_path / "checkpoint", tmp_path / "saved", tmp_path / "back")
    assert "24 actions equal" in said
    saved, written = (
        {p.name: json.loads(p.read_text()) for p in (tmp_path / x).glob("*.json")} for x in ("saved", "checkpoint")
    )
    for name in ("policy_preprocessor.json", "policy_postprocessor.json"):
        assert saved[name] == written[name]
    known, ours = saved["config.json"], written["config.json"]
    assert ours.pop("device") is None
    assert {name: known[name] for name in ours} == ours


def test_lerobot_trains_on_from_an_exported_run_with_its_statistics(run: Path, tmp_path: Path) -> None:
    demos = run.parent / "demos.hdf5"
    for source, out in ((run, "checkpoint"), (demos, "set")):
        done = prism("export", source, "--format", "lerobot", "--out", tmp_path / out)
        assert done.returncode == 0, done.stderr
    lerobot(
        "-c", "import lerobot_policy_prism; from lerobot.scripts.lerobot_train import main; main()",
        f"--policy.path={tmp_path}/checkpoint", "--policy.device=cpu", "--dataset.repo_id=local/made", "--steps=2",
        f"--dataset.root={tmp_path}/set", f"--output_dir={tmp_path}/out", "--batch_size=4", "--num_workers=0",
        "--wandb.enable=false",
    )  # fmt: skip
    checkpoint = tmp_path / "out/checkpoints/last/pretrained_model"
    before, after = (load_file(place / "model.safetensors") for place in (tmp_path / "checkpoint", checkpoint))
    statistics = [name for name in before if ".normalizer." in name]
    assert len(statistics) == 4
    assert all(torch.equal(before[name], after[name]) for name in statistics)
    weights = {name for name in before if name not in ("updates", *statistics)}
    moved = max(float((before[name] - after[name]).abs().max()) for name in weights)
    assert 0 < moved < 1e-2
    assert after["updates"] == 2


def test_every_encoder_and_policy_learns_is_saved_and_loaded(tmp_path: Path) -> None:
    said = lerobot(HERE / "every_policy.py", tmp_path, *ENCODERS)
    assert f"{3 * len(ENCODERS)} policies" in said


def test_the_loss_is_that_of_prism_train(dataset: Path, tmp_path: Path) -> None:
    """Same data, order, weights and noise; the optimisers differ in their last bits (ours is fused)."""
    lerobot(HERE / "loss_curve.py", dataset, tmp_path)
    ours, theirs = (json.loads((tmp_path / f"{who}.json").read_text()) for who in ("prism", "lerobot"))
    assert len(ours) == 12
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)


def test_a_resumed_training_ends_as_one_that_was_not_stopped(dataset: Path, tmp_path: Path) -> None:
    train(dataset, tmp_path / "a", "--steps=4", "--save_freq=2")
    checkpoints = tmp_path / "a" / "checkpoints"
    whole = (checkpoints / "000004/pretrained_model/model.safetensors").read_bytes()
    (checkpoints / "last").unlink()
    (checkpoints / "last").symlink_to("000002")
    lerobot(
        "-m", "lerobot.scripts.lerobot_train", "--policy.discover_packages_path=lerobot_policy_prism", "--resume=true",
        f"--config_path={checkpoints}/last/pretrained_model/train_config.json",
    )  # fmt: skip
    assert (checkpoints / "000004/pretrained_model/model.safetensors").read_bytes() == whole


def test_tasks_are_told_apart_by_lerobots_words(tmp_path: Path) -> None:
    made = write(tmp_path / "made", video=None)
    done = prism("export", made.folder, "--format", "lerobot", "--out", tmp_path / "set")  # with statistics
    assert done.returncode == 0, done.stderr
    train(tmp_path / "set", tmp_path / "out", "--steps=2", "--policy.resize_shape=[32,32]")
    config = json.loads((tmp_path / "out/checkpoints/last/pretrained_model/config.json").read_text())
    assert sorted(config["instructions"]) == sorted(TASKS)
    assert config["robot"]["cameras"] == {"front": [32, 32]}


@pytest.mark.parametrize("inference", ["sync", "rtc"])
def test_lerobot_rollout_runs_a_robot(dataset: Path, tmp_path: Path, inference: str) -> None:
    train(dataset, tmp_path / "out", "--steps=1")
    said = lerobot(
        HERE / "rollout_made_up_arm.py",
        "--robot.type=made_up_arm",
        f"--policy.path={tmp_path}/out/checkpoints/last/pretrained_model",
        f"--inference.type={inference}",
        "--policy.device=cpu",
        "--device=cpu",
        "--fps=20",
        "--duration=3",
        "--task=lift it",
        "--play_sounds=false",
    )
    assert "Rollout finished" in said
    assert "inference error" not in said
    sent = int(said.rpartition("actions sent: ")[2].split()[0])
    assert sent > 10
