"""Small files as the community's tools write them; what is not given here is left out, as old files leave it out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

RECORDED = Path(__file__).parent / "assets" / "lift_robosuite_1_4_1.hdf5"
"""A demonstration of Lift recorded by robosuite 1.4.1 itself, in robomimic's layout of that time."""

OSC = {
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150,
    "damping": 1,
    "impedance_mode": "fixed",
    "kp_limits": [0, 300],
    "damping_limits": [0, 10],
    "position_limits": None,
    "orientation_limits": None,
    "uncouple_pos_ori": True,
    "control_delta": True,
    "interpolation": None,
    "ramp_ratio": 0.2,
}


def env_args(
    layout: str, env_name: str = "Lift", controller: dict[str, Any] | None = None, **kwargs: Any
) -> dict[str, Any]:
    """`env_args` as robomimic v0.1, v1.4 or v1.5 writes them; `controller` and `kwargs` change single entries."""
    arm = {**OSC, **(controller or {})}
    made: dict[str, Any] = {"env_name": env_name, "type": 1}
    if layout == "v1.5":
        made["env_version"] = "1.5.1"
        arm = {"input_ref_frame": "world", **arm, "gripper": {"type": "GRIP"}}
        kwargs = {
            "controller_configs": {"type": "BASIC", "body_parts": {"right": arm}},
            "lite_physics": False,
            **kwargs,
        }
    else:
        kwargs = {"controller_configs": arm, **kwargs}
        if layout == "v1.4":
            made["env_version"] = "1.4.1"
    common = {"has_renderer": False, "ignore_done": True, "use_object_obs": True, "use_camera_obs": False}
    common |= {"control_freq": 20, "robots": ["Panda"], "camera_heights": 84, "camera_widths": 84}
    return {**made, "env_kwargs": {**common, "reward_shaping": False, **kwargs}}


def demo(steps: int = 6, seed: int = 0, cameras: Sequence[str] = (), size: int = 8) -> dict[str, np.ndarray]:
    """Arrays of a demonstration that no simulator made."""
    rng = np.random.default_rng(seed)
    arrays = {"actions": rng.uniform(-0.9, 0.9, (steps, 7)), "states": rng.standard_normal((steps, 32))}
    arrays |= {"rewards": np.eye(steps)[-1], "dones": np.eye(steps, dtype=np.int64)[-1]}
    for prefix in ("obs", "next_obs"):
        for key, width in (("object", 10), ("robot0_eef_pos", 3), ("robot0_eef_quat", 4), ("robot0_gripper_qpos", 2)):
            arrays[f"{prefix}/{key}"] = rng.standard_normal((steps, width))
        for camera in cameras:
            arrays[f"{prefix}/{camera}_image"] = rng.integers(0, 256, (steps, size, size, 3), np.uint8)
    return arrays


def recorded_demo() -> dict[str, np.ndarray]:
    """Arrays of `RECORDED`'s demonstration."""
    arrays: dict[str, np.ndarray] = {}
    with h5py.File(RECORDED) as file:
        file["data/demo_0"].visititems(
            lambda path, item: arrays.update({path: item[:]}) if isinstance(item, h5py.Dataset) else None
        )
    return arrays


def write_file(
    path: Path,
    demos: dict[str, dict[str, np.ndarray]],
    about: dict[str, Any] | None,
    masks: dict[str, list[str]] | None = None,
    compression: str | None = None,
    only: Sequence[str] = (),
) -> Path:
    """Write `demos` by name with plain h5py; `only` keeps datasets whose path starts with one of these."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for name, arrays in demos.items():
            group = data.create_group(name)
            for key, values in arrays.items():
                if not only or key.startswith(tuple(only)):
                    group.create_dataset(key, data=values, compression=compression)
            group.attrs["num_samples"] = len(arrays["actions"])
        if about is not None:
            data.attrs["env_args"] = json.dumps(about)
        for mask, names in (masks or {}).items():
            file[f"mask/{mask}"] = np.array(names, dtype="S")
    return path
