"""A run folder as LeRobot's checkpoint and back, without LeRobot; with it: tests/integrations."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from commandline import prism
from prism_policy.data.schema import Part, Schema
from prism_policy.policies import Policy
from prism_policy.run_folder import load_policy, read_data, read_run
from small_run import prism_train, write_demos


def actions(policy: Policy, seed: int = 0) -> torch.Tensor:
    rng, schema = np.random.default_rng(seed), policy.schema
    images = {c: rng.integers(0, 256, (1, 2, *size, 3), np.uint8) for c, size in schema.cameras.items()}
    centre = -policy.normalizer["state"].offset / policy.normalizer["state"].scale
    state = centre.numpy() + rng.uniform(-0.1, 0.1, (1, 2, schema.state_dim)).astype(np.float32)
    return policy.act({"images": images, "state": state}, torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    write_demos(folder / "demos.hdf5")
    prism_train(folder, "--task", "lift", "--out", folder / "run", settings=("--train.steps 3",))
    return folder / "run"


def exported(run: Path, out: Path) -> Path:
    done = prism("export", run, "--format", "lerobot", "--out", out)
    assert done.returncode == 0, done.stderr
    assert f"--policy.path={out}" in done.stdout
    return out


def test_there_and_back_the_actions_are_equal_to_the_bit(run: Path, tmp_path: Path) -> None:
    checkpoint = exported(run, tmp_path / "checkpoint")
    done = prism("import", checkpoint, tmp_path / "back")
    assert done.returncode == 0, done.stderr
    assert f"prism evaluate {tmp_path / 'back'}" in done.stdout
    before, after = load_policy(run), load_policy(tmp_path / "back")
    assert torch.equal(actions(before), actions(after))
    assert before.fingerprint() == after.fingerprint()
    assert read_run(tmp_path / "back") == read_run(run)
    assert read_data(tmp_path / "back") == read_data(run)


def test_the_checkpoint_holds_no_pickle_and_says_what_the_robot_shows(run: Path, tmp_path: Path) -> None:
    checkpoint = exported(run, tmp_path / "checkpoint")
    names = {path.name for path in checkpoint.iterdir()}
    processors = {"policy_preprocessor.json", "policy_postprocessor.json"}
    assert names == {"config.json", "model.safetensors", "prism_run.json", *processors}
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["input_features"] == {
        "observation.images.agentview": {"type": "VISUAL", "shape": [3, 32, 32]},
        "observation.state": {"type": "STATE", "shape": [9]},
    }
    assert config["output_features"] == {"action": {"type": "ACTION", "shape": [7]}}
    tensors = safetensors.torch.load_file(checkpoint / "model.safetensors")
    state = load_policy(run).state_dict()
    assert tensors.keys() == {f"model.{name}" for name in state} | {"updates"}
    assert all(torch.equal(tensors[f"model.{name}"], x) for name, x in state.items())


def test_a_checkpoint_of_lerobots_training_becomes_a_run_with_its_average(run: Path, tmp_path: Path) -> None:
    """As lerobot-train leaves it: weights and their average, a training's settings, and nothing of ours beside."""
    checkpoint = exported(run, tmp_path / "checkpoint")
    (checkpoint / "prism_run.json").unlink()
    path = checkpoint / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    averaged = {f"ema.{name[6:]}": x.clone() for name, x in tensors.items() if name.startswith("model.")}
    noise = {name: x + 1 for name, x in tensors.items() if name.startswith("model.net")}
    safetensors.torch.save_file(tensors | averaged | noise, path)
    said = {"steps": 7, "batch_size": 5, "dataset": {"root": "demos", "repo_id": "local/demos"}}
    (checkpoint / "train_config.json").write_text(json.dumps(said))
    done = prism("import", checkpoint, tmp_path / "back")
    assert done.returncode == 0, done.stderr
    assert f"prism serve {tmp_path / 'back'}" in done.stdout
    assert load_policy(tmp_path / "back").fingerprint() == load_policy(run).fingerprint()
    config = read_run(tmp_path / "back")
    assert (config.task.name, config.dataset, config.train.steps, config.train.batch_size) == (
        "recorded",
        "demos",
        7,
        5,
    )


def test_a_task_makes_it_a_run_that_can_be_rolled_out(run: Path, tmp_path: Path) -> None:
    checkpoint = exported(run, tmp_path / "checkpoint")
    (checkpoint / "prism_run.json").unlink()
    done = prism("import", checkpoint, tmp_path / "back", "--task", "can")
    assert done.returncode == 0, done.stderr
    task = read_run(tmp_path / "back").task
    assert (task.name, task.cameras, task.render.resolution, task.action_mode) == ("can", ("agentview",), 32, "delta")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"type": "diffusion"}, "expected the policy 'prism', got 'diffusion'"),
        ({"horizon": -16}, "horizon"),
        ({"down_dims": [32, 64]}, "does not fit"),
        ({"instructions": ["open it", "close it"]}, "expected a policy of one task, got open it, close it"),
        ({"robot": 7}, "robot"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_in_a_sentence(
    run: Path, tmp_path: Path, change: dict[str, object], expected: str
) -> None:
    checkpoint = exported(run, tmp_path / "checkpoint")
    (checkpoint / "prism_run.json").unlink()
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    done = prism("import", checkpoint, tmp_path / "back")
    assert done.returncode == 2
    assert expected in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert [one.name for one in tmp_path.iterdir()] == ["checkpoint"]


def test_options_of_demonstrations_are_refused_for_a_run(run: Path, tmp_path: Path) -> None:
    done = prism("export", run, "--format", "lerobot", "--out", tmp_path / "out", "--video", "h264")
    assert done.returncode == 2
    assert done.stderr.startswith("prism: video:")
    done = prism("export", run, "--format", "robomimic", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert not list(tmp_path.iterdir())


def test_resized_cameras_keep_the_size_of_the_recording(tmp_path: Path) -> None:
    write_demos(tmp_path / "demos.hdf5", size=40)
    settings = ("--train.steps 2", "--data.resize 32", "--data.crop 4,0,36,40")
    prism_train(tmp_path, "--task", "recorded", "--out", tmp_path / "run", settings=settings)
    checkpoint = exported(tmp_path / "run", tmp_path / "checkpoint")
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["input_features"]["observation.images.agentview"]["shape"] == [3, 40, 40]
    assert (config["resize_shape"], config["crop_box"]) == ([32, 32], [4, 0, 36, 40])
    (checkpoint / "prism_run.json").unlink()
    assert prism("import", checkpoint, tmp_path / "back").returncode == 0
    data, config = read_run(tmp_path / "back").data, read_run(tmp_path / "run").data
    assert (data.resize, data.crop) == ("32x32", config.crop)
    assert read_data(tmp_path / "back").recorded == {"agentview": (40, 40)}
    schema = load_policy(tmp_path / "back").schema
    assert isinstance(schema, Schema)
    assert schema == load_policy(tmp_path / "run").schema
    assert all(isinstance(part, Part) for part in schema.state)
