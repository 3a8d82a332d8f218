"""What is written here, opened by robomimic's own code: its training data set and its playback script.

robomimic's requirements do not fit beside this library's, so these tests are skipped where it is not installed;
docs/data.md says how to run them.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

pytest.importorskip("robomimic", reason="needs robomimic, see docs/data.md")

from prism_policy.data.robomimic import merge_demos, write_demo, write_masks

T, DEMOS, PX = (7, 5, 9, 6), 4, 12
TORCHVISION = [f"torchvision{part}" for part in ("", ".transforms", ".transforms.functional", ".models", ".utils")]
CAMERA, LOW_DIM = "agentview_image", ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")


class _Stub(types.ModuleType):
    """Stands for a package that robomimic imports on the way and these tests do not use."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Stub(name)


def stub(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        try:
            __import__(name)
        except ImportError:
            monkeypatch.setitem(sys.modules, name, _Stub(name))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Four demonstrations with images, low-dim observations and their successors."""
    rng = np.random.default_rng(0)
    parts = []
    for i, steps in enumerate(T):
        arrays = {
            "actions": rng.uniform(-1, 1, (steps, 7)),
            "states": rng.standard_normal((steps, 32)),
            "rewards": np.eye(steps)[-1],
            "dones": np.eye(steps, dtype=np.int64)[-1],
            f"obs/{CAMERA}": rng.integers(0, 256, (steps, PX, PX, 3), np.uint8),
        }
        arrays |= {
            f"obs/{key}": rng.standard_normal((steps, width)) for key, width in zip(LOW_DIM, (3, 4, 2), strict=True)
        }
        parts.append(tmp_path / f"part_{i}.hdf5")
        with h5py.File(parts[-1], "w", libver="latest") as part:
            write_demo(part.create_group("demo"), arrays, {"model_file": "<mujoco/>" + " " * 100_000}, next_obs=True)
    merge_demos(parts, tmp_path / "demos.hdf5", '{"env_name": "Lift", "type": 1, "env_kwargs": {"robots": "Panda"}}')
    write_masks(tmp_path / "demos.hdf5", valid_share=0.25, seed=3)
    return tmp_path / "demos.hdf5"


@pytest.mark.parametrize("cache", ["all", "low_dim", None])
@pytest.mark.parametrize("mask", ["train", "valid", None])
@pytest.mark.parametrize("next_obs", [True, False])
def test_its_data_set_gives_what_was_written(
    file: Path, cache: str | None, mask: str | None, next_obs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub(monkeypatch, *TORCHVISION)
    from robomimic.utils import obs_utils
    from robomimic.utils.dataset import SequenceDataset

    keys = ("actions", "rewards", "dones", *(f"obs/{key}" for key in (CAMERA, *LOW_DIM)))
    with h5py.File(file) as truth:  # and closed again: robomimic opens it in a mode of its own
        chosen = [name.decode() for name in truth[f"mask/{mask}"][:]] if mask else [f"demo_{i}" for i in range(DEMOS)]
        demos = {name: {key: truth[f"data/{name}/{key}"][:] for key in keys} for name in chosen}
    specs = {"obs": {"low_dim": list(LOW_DIM), "rgb": [CAMERA]}}
    obs_utils.initialize_obs_utils_with_obs_specs(obs_modality_specs=specs)
    data = SequenceDataset(
        hdf5_path=str(file),
        obs_keys=(CAMERA, *LOW_DIM),
        dataset_keys=("actions", "rewards", "dones"),
        frame_stack=2,
        seq_length=4,
        hdf5_cache_mode=cache,
        filter_by_attribute=mask,
        load_next_obs=next_obs,
    )
    assert data.demos == chosen
    assert len(data) == sum(len(demos[name]["actions"]) for name in chosen)
    index = 0
    for name in chosen:
        demo = demos[name]
        last = len(demo["actions"]) - 1
        for t in range(last + 1):
            item = data[index]
            index += 1
            window = np.clip(np.arange(t - 1, t + 4), 0, last)  # a frame before, three after, the ends repeated
            for key in ("actions", "rewards", "dones"):
                np.testing.assert_allclose(item[key], demo[key][window], rtol=1e-6)
            for prefix, ahead in (("obs", 0), ("next_obs", 1))[: 1 + next_obs]:
                rows = np.clip(window + ahead, 0, last)
                for key in (CAMERA, *LOW_DIM):
                    np.testing.assert_array_equal(item[prefix][key], demo[f"obs/{key}"][rows])


def test_its_tools_read_the_metadata(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch, *TORCHVISION)
    from robomimic.utils import env_utils, file_utils, obs_utils

    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": list(LOW_DIM), "rgb": [CAMERA]}})
    meta = file_utils.get_env_metadata_from_dataset(str(file))
    assert env_utils.is_robosuite_env(meta)
    shapes = file_utils.get_shape_metadata_from_dataset(str(file), all_obs_keys=[CAMERA, *LOW_DIM])
    assert (shapes["ac_dim"], shapes["use_images"]) == (7, True)
    assert shapes["all_shapes"]["robot0_eef_pos"] == [3]
    train, valid = (set(file_utils.get_demos_for_filter_key(str(file), mask)) for mask in ("train", "valid"))
    assert (len(train), len(valid), train & valid) == (3, 1, set())


@pytest.mark.slow
def test_its_playback_accepts_our_demonstrations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Model, first state and actions through robomimic's environment: the cube is lifted again."""
    robosuite = pytest.importorskip("robosuite", minversion="1.5")
    stub(monkeypatch, *TORCHVISION, "mujoco_py", "egl_probe")
    from robomimic.utils import env_utils, file_utils, obs_utils

    from prism_policy.config.settings import DemoConfig, TaskConfig
    from prism_policy.demos.collect import collect

    path = collect(TaskConfig("lift"), DemoConfig(num_demos=1), tmp_path, workers=1)
    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": ["robot0_eef_pos"], "rgb": []}})
    env = env_utils.create_env_from_metadata(env_meta=file_utils.get_env_metadata_from_dataset(str(path)))
    assert (env.name, env.version) == ("Lift", robosuite.__version__)
    with h5py.File(path) as file:
        demo = file["data/demo_0"]
        states, actions, model = demo["states"][:], demo["actions"][:], demo.attrs["model_file"]
    env.reset()
    env.reset_to({"states": states[0], "model": model})
    np.testing.assert_array_equal(env.get_state()["states"], states[0])
    for action in actions:
        env.step(action)
    assert env.is_success()["task"]
