"""What a run learns from: known by content, refused where it is another, and kept with the run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

import community
from panda import frames_in
from prism_policy.config.settings import RunConfig
from prism_policy.demos.dataset import fit_to_dataset, open_dataset
from prism_policy.errors import PrismError
from prism_policy.run_folder import check_rollouts, read_data
from prism_policy.training.run import train_run
from small_run import small_config, write_demos


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRISM_CACHE", str(tmp_path / "cache"))


def config_of(data: Path, *flags: str) -> RunConfig:
    return small_config(f"--dataset {data}", "--train.steps 2", "--train.keep-every 0", *flags)


def test_the_same_content_at_another_place_is_the_same_data_and_another_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = write_demos(tmp_path / "a.hdf5"), tmp_path / "run"
    train_run(run, config_of(data), device="cpu")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    moved = Path(shutil.move(data, tmp_path / "b.hdf5"))
    train_run(run, config_of(moved), device="cpu")  # finished
    assert "another file" not in capsys.readouterr().out
    weights = run / "weights.safetensors"
    weights.unlink()
    train_run(run, config_of(moved), device="cpu")  # goes on
    assert weights.read_bytes() == before[weights]
    with h5py.File(moved, "r+") as file:
        file["data/demo_0/actions"][:] *= 0.2
    train_run(run, config_of(moved), device="cpu")
    assert "another file than the one it learned from" in capsys.readouterr().out
    weights.unlink()
    with pytest.raises(PrismError, match="began with other demonstrations; give those back"):
        train_run(run, config_of(moved), device="cpu")
    for path, content in before.items():
        if path.suffix == ".safetensors" and path != weights:
            assert path.read_bytes() == content, path


def test_a_run_that_no_simulation_can_measure_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = write_demos(tmp_path / "a.hdf5"), tmp_path / "run"
    with h5py.File(data, "r+") as file:
        about = community.env_args("v1.5", "Stack_D0", control_freq=10)
        file["data"].attrs["env_args"] = json.dumps(about)
    train_run(run, config_of(data, "--task lift", "--train.rollout-every 1"), device="cpu")
    printed = capsys.readouterr().out
    assert "No rollouts while training: expected one of robosuite's" in printed
    held = read_data(run)
    assert held is not None
    assert held.schema is not None
    assert held.schema.fps == 10
    with pytest.raises(PrismError, match=r"cannot be rolled out here: expected one of robosuite's .* 'Stack_D0'"):
        check_rollouts(run)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--data.mask none",), "has no mask 'none'; it has train, valid"),
        (("--task.render.shadows",), "images are drawn with shadows False.* choose --task.render.shadows False"),
        (("--task.render.resolution 40",), "choose --task.render.resolution 32"),
    ],
)
def test_what_does_not_fit_a_file_is_said_before_a_run_is_made(
    flags: tuple[str, ...], sentence: str, tmp_path: Path
) -> None:
    data = write_demos(tmp_path / "a.hdf5")
    with h5py.File(data, "r+") as file:
        file["data"].attrs["render"] = json.dumps({"resolution": 32, "shadows": False})
    with pytest.raises(PrismError, match=sentence):
        train_run(tmp_path / "run", config_of(data, *flags), device="cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [((24, 32, 3), "see square images"), ((3, 32, 32), r"expected images of 'agentview' as uint8 \(T, H, W, 3\)")],
)
def test_rectangular_images_and_channels_first_get_no_advice_that_cannot_work(
    shape: tuple[int, ...], sentence: str, tmp_path: Path
) -> None:
    demos = {f"demo_{i}": community.demo(6, i) for i in range(2)}
    for arrays in demos.values():
        arrays["obs/agentview_image"] = np.zeros((6, *shape), np.uint8)
    data = community.write_file(tmp_path / "a.hdf5", demos, community.env_args("v1.5"))
    with pytest.raises(PrismError, match=sentence):
        fit_to_dataset(config_of(data))


def test_a_named_mask_is_learned(tmp_path: Path) -> None:
    data = write_demos(tmp_path / "a.hdf5")
    with h5py.File(data, "r+") as file:
        file["mask/20_percent"] = [b"demo_1"]
    dataset = open_dataset(config_of(data, "--data.mask 20_percent"))
    assert dataset.names == (["demo_1"], ["demo_3"])


def test_frames_zeroed_in_the_cache_are_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_demos(tmp_path / "a.hdf5")
    images = frames_in(data, ["agentview"], tmp_path / "frames").images["agentview"].clone()
    (raw,) = tmp_path.glob("frames/frames-*/image.agentview.raw")
    about = raw.stat()
    with raw.open("r+b") as file:
        file.seek(50_000)
        file.write(bytes(4096))
    os.utime(raw, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert (frames_in(data, ["agentview"], tmp_path / "frames").images["agentview"] == images).all()
    assert "is damaged: making it again" in capsys.readouterr().out
