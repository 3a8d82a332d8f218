"""Demonstrations as LIBERO's own files have them: what a test of the import starts from."""

import json
from pathlib import Path

import h5py
import numpy as np

from prism_policy.data.libero import FIRST, IMAGE_KEYS
from prism_policy.data.robomimic import demo_names, open_demos, read_attributes, write_demo
from prism_policy.errors import PrismError
from prism_policy.tasks.spec import TaskSpec


def export_libero(source: Path, target: Path, task: TaskSpec) -> Path:
    """Write demonstrations with images as LIBERO does, for whoever reads its files.

    What followed the last action is not recorded here; the last observation stands for it. `first_obs` keeps what
    LIBERO leaves out, so that `libero_episodes` gives back every step.

    Args:
        source: demonstrations of `task` in robomimic's layout, with images.
        target: where to; replaced as a whole.
        task: whose they are.

    Raises:
        PrismError: unreadable, without images or states, or no space left.
    """
    attributes = read_attributes(source)
    with open_demos(source) as file, h5py.File(target, "w", libver="latest") as out:
        data, total = out.create_group("data"), 0
        for name in demo_names(file):
            demo = file["data"][name]
            cameras = {key: camera for camera, key in IMAGE_KEYS.items() if f"obs/{camera}_image" in demo}
            if "states" not in demo or not cameras:
                raise PrismError(f"{source}, {name}: expected states and images; run `prism render` on it first")
            group = data.create_group(name)
            # What ours hold beyond LIBERO's, where cabinet and stove stand, is in `model_file`, too.
            actions, own = demo["actions"][:], 7 * len(demo.attrs.get("fixtures", ()))
            states = demo["states"][:, : demo["states"].shape[1] - own]
            seen = {key: demo[f"obs/{camera}_image"][:][:, ::-1] for key, camera in cameras.items()}
            position, quaternion = demo["obs/robot0_eef_pos"][:], demo["obs/robot0_eef_quat"][:]
            orientation, fingers = to_axis_angle(quaternion), demo["obs/robot0_gripper_qpos"][:]
            seen |= {"ee_pos": position, "ee_ori": orientation, "ee_states": np.hstack([position, orientation])}
            seen |= {"gripper_states": fingers, "joint_states": states[:, 1:8]}
            robot = np.hstack([fingers, position, quaternion])
            done = np.zeros(len(actions), np.uint8)
            done[-1] = 1
            arrays = {
                "actions": actions,
                "states": states,
                "robot_states": _next(robot),
                "rewards": done,
                "dones": done,
            }
            write_demo(group, arrays | {f"obs/{key}": _next(values) for key, values in seen.items()}, {})
            for key, values in {**seen, "robot_states": robot}.items():
                group[f"{FIRST}/{key}"] = values[0]
            group.attrs["model_file"] = demo.attrs.get("model_file", "")
            group.attrs["init_state"] = states[0]
            total += len(actions)
        data.attrs["total"], data.attrs["num_demos"] = total, len(data)
        data.attrs["env_args"] = json.dumps(attributes.get("env_args", {}))
        data.attrs["bddl_file_name"] = f"bddl_files/{task.suite}/{task.env_name}.bddl"
        data.attrs["problem_info"] = json.dumps({"domain_name": "robosuite", "language_instruction": task.wordings[-1]})
        data.attrs["macros_image_convention"], data.attrs["tag"] = "opengl", "libero-v1"
    return target


def to_axis_angle(quaternions: np.ndarray) -> np.ndarray:
    """Quaternions (T, 4), x y z w, as LIBERO's `ee_ori` (T, 3): angles from 0 to 2 pi, so nothing jumps at pi."""
    w = np.clip(quaternions[:, 3:], -1.0, 1.0)
    sine = np.sqrt(1.0 - w * w)
    axis = np.where(sine > 1e-9, quaternions[:, :3] / np.maximum(sine, 1e-9), 0.0)
    return np.asarray(axis * 2.0 * np.arccos(w))


def _next(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values[1:], values[-1:]])
