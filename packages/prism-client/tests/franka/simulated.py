"""`FrankyRobot` with a camera drawn by MuJoCo from what server.py says of the scene."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Callable

import numpy as np

os.environ.setdefault("MUJOCO_GL", "egl")

import mujoco

from prism_client.robots.franky import FrankyRobot
from prism_client.robots.robot_file import CameraFile


def simulated_time(folder: Path) -> float:
    """Seconds that the arm has simulated: on a busy machine fewer than have gone by."""
    return float(np.memmap(folder / "state.bin", np.float64, "r")[0])


class SimulatedFranka(FrankyRobot):
    """Its cameras' `serial` is the server's folder."""

    def open_camera(self, name: str, camera: CameraFile) -> Callable[[], np.ndarray]:
        """A function that draws the scene as it is now."""
        folder = Path(camera.serial)
        model = mujoco.MjModel.from_xml_path(str(folder / "scene.xml"))
        state = np.memmap(folder / "state.bin", np.float64, "r")
        data, renderers = mujoco.MjData(model), []

        def read() -> np.ndarray:
            if not renderers:  # OpenGL belongs to the thread that draws
                renderers.append(mujoco.Renderer(model, camera.height, camera.width))
            time.sleep(1 / camera.rate_hz)
            data.qpos[:] = state[1:]
            mujoco.mj_forward(model, data)
            renderers[0].update_scene(data, name)
            return np.array(renderers[0].render())

        return read
