"""Which OpenGL MuJoCo uses. It decides when `mujoco` is first imported, so this comes before."""

from __future__ import annotations

import os
import subprocess
import sys

_PROBE = "import mujoco; mujoco.GLContext(16, 16).make_current()"


def choose_opengl() -> None:
    """Set MUJOCO_GL, unless the user did, to what works here: EGL, else OSMesa, else none ("disable").

    A back end that does not work may raise on import, on creation or not come back at all, hence the trial in a process
    of its own. Child processes inherit the answer.
    """
    # Software OpenGL's own threads do not make a small frame faster, and fight the other workers for the cores.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    if "MUJOCO_GL" in os.environ or not sys.platform.startswith("linux"):
        return
    os.environ["MUJOCO_GL"] = next((name for name in ("egl", "osmesa") if _works(name)), "disable")


def _works(backend: str) -> bool:
    environment = {**os.environ, "MUJOCO_GL": backend}
    try:
        probe = subprocess.run([sys.executable, "-c", _PROBE], env=environment, capture_output=True, timeout=60)
    except subprocess.TimeoutExpired:
        return False
    return probe.returncode == 0
