"""Which OpenGL draws MuJoCo's frames: EGL or OSMesa, whichever works here."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from typing import Any

from prism_policy.errors import PrismError

NO_OPENGL = (
    "no working OpenGL found (tried EGL and OSMesa); install software OpenGL with `make system` or "
    "`apt-get install libegl1 libgl1-mesa-dri libosmesa6`, then run again"
)
_backend = ""
_PROBE = "import mujoco; mujoco.GLContext(16, 16).make_current()"


def prepare_opengl() -> None:
    """Set MUJOCO_GL, unless the user did, to what works here: EGL, else OSMesa, else none ("disable").

    A back end that does not work may raise on import, on creation or not come back at all, hence the trial in a process
    of its own. Child processes inherit the answer.
    """
    global _backend
    # Software OpenGL's own threads do not make a small frame faster, and fight the other workers for the cores.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    if "MUJOCO_GL" not in os.environ and sys.platform.startswith("linux"):
        os.environ["MUJOCO_GL"] = next((name for name in ("egl", "osmesa") if _works(name)), "disable")
    _backend = os.environ.get("MUJOCO_GL", "")  # remembered, because robosuite overwrites it


def opengl_trouble() -> str:
    """Why nothing can be drawn and what to do, after an attempt failed."""
    if _backend == "disable":
        return NO_OPENGL
    return f"OpenGL does not work with MUJOCO_GL={_backend}; unset it to let prism choose, or see `make system`"


def opengl_context(size: int) -> Any:
    """An OpenGL context for frames of `size` x `size` [px], current in this thread.

    Raises:
        PrismError: OpenGL does not work.
    """
    # `mujoco.GLContext` is settled by MUJOCO_GL when mujoco is first imported, which may have been long before.
    name = f"mujoco.{_backend}" if _backend in ("egl", "osmesa") else "mujoco"
    try:
        context = importlib.import_module(name).GLContext(size, size)
        context.make_current()
    except Exception as error:  # each back end fails in its own way
        raise PrismError(opengl_trouble()) from error
    return context


def _works(backend: str) -> bool:
    environment = {**os.environ, "MUJOCO_GL": backend}
    try:
        probe = subprocess.run([sys.executable, "-c", _PROBE], env=environment, capture_output=True, timeout=60)
    except subprocess.TimeoutExpired:
        return False
    return probe.returncode == 0
