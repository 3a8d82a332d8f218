"""A run of a robot that nothing simulates: from file to server, and a report that says what is true."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import prism_policy as pp
from commandline import prism
from prism_policy.config.settings import RunConfig
from prism_policy.data.frames import Frames
from prism_policy.data.schema import Part, Schema
from prism_policy.deploy.session import Adapter, Session
from prism_policy.errors import PrismError
from prism_policy.evaluation.open_loop import read_open_loop
from prism_policy.models.normalizer import LinearNormalizer
from prism_policy.policies import build_policy
from prism_policy.run_folder import RunData, load_policy, read_data, read_run
from prism_policy.training.trainer import fit_normalizers
from prism_policy.utils.images import Resize
from recordings import SETTINGS, write_recording


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("recorded")
    write_recording(place / "takes.hdf5")
    flags = f"--dataset takes.hdf5 --encoder sspool {SETTINGS} --data.resize 32x40 --data.state arm_touch arm_qpos"
    done = prism("train", *flags.split(), "--out", "run", cwd=place, PRISM_CACHE=str(place / "cache"))
    assert done.returncode == 0, done.stderr
    return place / "run"


def test_what_the_file_holds_is_kept_with_the_run(folder: Path) -> None:
    data = read_data(folder)
    assert data is not None
    assert data.schema == Schema(
        {"front": (32, 40), "wrist_rgb": (32, 40)},
        (Part("arm_touch", 1), Part("arm_qpos", 5, "joint")),
        (Part("actions", 6),),
    )
    assert data.recorded == {"front": (48, 64), "wrist_rgb": (40, 40)}
    assert load_policy(folder).schema == data.schema


def sessions(folder: Path) -> tuple[Session, RunConfig, RunData]:
    config, data, policy = read_run(folder), read_data(folder), load_policy(folder)
    assert data is not None
    return Session(policy, 0, Adapter.of(policy, config, data)), config, data


def test_the_server_resizes_frames_of_the_recordings_size_as_training_did(folder: Path) -> None:
    session, _, data = sessions(folder)
    rng = np.random.default_rng(0)
    images = {c: rng.integers(0, 256, (*size, 3), np.uint8) for c, size in (data.recorded or {}).items()}
    state = np.zeros(6, np.float32)
    actions = session.answer({"images": images, "state": state})["actions"]
    resize = Resize.parse("32x40")
    assert resize is not None
    seen = {c: torch.from_numpy(resize(x))[None, None].expand(1, 2, -1, -1, -1) for c, x in images.items()}
    observation = {"images": seen, "state": torch.zeros(1, 2, 6)}
    expected = session.policy.act(observation, torch.Generator().manual_seed(0))[0].numpy()
    np.testing.assert_array_equal(actions, session.interface.clipped(expected).astype(np.float32))
    with pytest.raises(PrismError, match="camera 'front': expected the recording's 48x64, which is resized here"):
        session.answer({"images": {**images, "front": np.zeros((32, 40, 3), np.uint8)}, "state": state})


def test_actions_stay_near_what_was_demonstrated(folder: Path) -> None:
    """Joints in degrees, of which the last never moves: it is executed as recorded, exactly."""
    session, _, data = sessions(folder)
    images = {c: np.zeros((*size, 3), np.uint8) for c, size in (data.recorded or {}).items()}
    actions = np.concatenate([session.answer({"images": images, "state": np.zeros(6)})["actions"] for _ in range(3)])
    assert (actions[:, 5] == 7.5).all()
    assert data.action_range is not None
    low, high = map(np.array, data.action_range)
    assert (np.abs(low[:5]) > 30).all()
    assert (actions >= low - 0.1 * (high - low) - 1e-4).all()
    assert (actions <= high + 0.1 * (high - low) + 1e-4).all()


def test_killed_before_its_actions_were_compared_it_compares_them(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "run"))
    expected = read_open_loop(copy)
    (copy / "results" / "open_loop.json").unlink()
    flags = f"--dataset {folder.parent / 'takes.hdf5'} --encoder sspool {SETTINGS} --data.resize 32x40"
    again = f"{flags} --data.state arm_touch arm_qpos --out {copy}"
    done = prism("train", *again.split(), cwd=tmp_path, PRISM_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert read_open_loop(copy) == expected
    assert load_policy(copy).fingerprint() == load_policy(folder).fingerprint()


def test_the_report_says_what_was_measured_and_what_was_not(folder: Path) -> None:
    result = read_open_loop(folder)
    assert (result["held_out"], result["demonstrations"]) == (True, 1)
    (part,) = result["parts"]
    assert part["part"] == "actions"
    assert part["repeated"] < part["spread"] < part["error"]  # slow sines, and a network that learned nothing yet
    page = (folder / "report.html").read_text()
    assert "Not measured: success." in page
    assert "48 x 64" in page
    assert (folder / "figures" / "open_loop.png").stat().st_size > 10_000


def test_its_success_cannot_be_evaluated_and_that_is_one_sentence(folder: Path) -> None:
    done = prism("evaluate", folder)
    assert done.returncode == 2
    assert "is of a task that nothing simulates, so its success cannot be measured" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--data.cameras back", "takes.hdf5: unknown camera 'back'; there are front, wrist_rgb"),
        ("--data.state hand", "unknown part of the state 'hand'; there are arm_qpos, arm_touch, unused"),
        ("--data.action gripper", "unknown part of the action 'gripper'; there are actions"),
        ("--data.resize 4", "data.resize: expected 84, or 96x128"),
        ("--data.crop 0,30,40,40", "the box 0,30,40,40 leaves the 48x64 images of camera 'front'"),
        ("--data.mask some", "has no mask 'some'; it has few, train, valid"),
        ("--data.episodes 3", "--data.episodes chooses episodes of LeRobot's"),
    ],
)
def test_what_the_file_does_not_hold_is_one_sentence_and_makes_no_run(folder: Path, flags: str, sentence: str) -> None:
    words = f"train --dataset takes.hdf5 --encoder sspool {SETTINGS} {flags} --out other".split()
    done = prism(*words, cwd=folder.parent, PRISM_CACHE=str(folder.parent / "cache"))
    assert (done.returncode, sentence in done.stderr, len(done.stderr.strip().splitlines())) == (2, True, 1), (
        done.stderr
    )
    assert not (folder.parent / "other").exists()


def test_a_folder_from_which_the_schema_is_gone_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for path in folder.glob("*.*"):
        (tmp_path / "run" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "run" / "data.json").unlink()
    with pytest.raises(PrismError, match="does not say what the policy takes and gives"):
        pp.load_policy(tmp_path / "run")


def frames(actions: np.ndarray, parts: tuple[Part, ...]) -> Frames:
    schema = Schema({"front": (32, 32)}, (Part("arm", 2, "joint"),), parts)
    count, numbers = len(actions), torch.from_numpy(actions.astype(np.float32))
    images = {"front": torch.zeros(count, 32, 32, 3, dtype=torch.uint8)}
    return Frames(
        images, torch.zeros(count, 2), numbers, torch.zeros(count, dtype=torch.bool), (count,), ("a",), schema
    )


def fitted(actions: np.ndarray, parts: tuple[Part, ...], quantile: float = 0.0) -> LinearNormalizer:
    from prism_policy.config import presets
    from prism_policy.data.windows import Windows

    made = frames(actions, parts)
    config = presets.nano("recorded", encoder_name="sspool").policy
    encoder = config.encoder.__class__(width=16, stages=(2,), fusion="last", refine=False)
    policy = build_policy(config.__class__(encoder=encoder, down_dims=(16, 32), step_embed_dim=16), made.schema)
    fit_normalizers(policy, Windows(made, 16, 2, 8), quantile)
    normalizer = policy.normalizer["action"]
    assert isinstance(normalizer, LinearNormalizer)
    return normalizer


PARTS = (Part("joint", 1, "joint"), Part("turn", 1, "rotation"), Part("grip", 1, "gripper"), Part("still", 1))


def test_each_kind_is_scaled_as_it_should_be() -> None:
    rng = np.random.default_rng(0)
    actions = np.column_stack(
        [rng.uniform(10, 50, 99), rng.uniform(-0.4, 0.4, 99), rng.integers(0, 2, 99), np.ones(99)]
    )
    actions[0, 0], actions[1, 0] = 10, 50
    made = fitted(actions, PARTS)(torch.from_numpy(actions).float()).numpy()
    assert (made[:, 0].min(), made[:, 0].max()) == (-1, 1)
    np.testing.assert_array_equal(made[:, 1:3], actions[:, 1:3].astype(np.float32))
    np.testing.assert_array_equal(made[:, 3], 0)


def test_a_grippers_width_in_other_units_is_scaled_and_shares_beyond_one_are_refused() -> None:
    actions = np.column_stack([np.zeros(9), np.zeros(9), np.linspace(0, 85, 9), np.zeros(9)])
    made = fitted(actions, PARTS)(torch.from_numpy(actions).float())
    assert (float(made[:, 2].min()), float(made[:, 2].max())) == (-1, 1)
    shares = (*PARTS[:2], Part("grip", 1, "gripper", shares=True), PARTS[3])
    with pytest.raises(PrismError, match=r"actions, number 2: expected rotations and gripper within \[-1, 1\], got 85"):
        fitted(actions, shares)


def test_an_outlier_does_not_widen_the_range_where_quantiles_are_asked_for() -> None:
    actions = np.tile(np.linspace(-1, 1, 1001)[:, None], (1, 4))
    actions[500, 0] = 3.75
    plain, clipped = fitted(actions, PARTS), fitted(actions, PARTS, 0.01)
    np.testing.assert_allclose(float(plain.scale[0]), 2 / 4.75, rtol=1e-6)
    low, high = np.quantile(actions[:, 0], (0.01, 0.99))
    np.testing.assert_allclose(float(clipped.scale[0]), 2 / (high - low), rtol=1e-5)
