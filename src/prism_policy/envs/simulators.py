"""MuJoCo and robosuite, imported when they are first used, and the OpenGL that draws: EGL or OSMesa, whichever works.

Both packages choose OpenGL while they are imported, and robosuite writes into the environment, the logs and the
temporary folder then. Importing this library must do nothing of that, and OpenGL has to be chosen first.
"""

from __future__ import annotations

import importlib
import logging
import os
import subprocess
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

from prism_policy.errors import PrismError

if TYPE_CHECKING:
    import mujoco as mujoco
    import robosuite as robosuite
else:

    class _Package:
        """A package that is imported when one of its names is first used."""

        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, attribute: str) -> Any:
            if attribute.startswith("__") and attribute != "__version__":  # whoever inspects it does not use it
                raise AttributeError(attribute)
            prepare_robosuite()
            value = getattr(importlib.import_module(self._name), attribute)
            setattr(self, attribute, value)
            return value

    mujoco, robosuite = _Package("mujoco"), _Package("robosuite")

NO_OPENGL = (
    "no working OpenGL found (tried EGL and OSMesa); install software OpenGL with `make system` or "
    "`apt-get install libegl1 libgl1-mesa-dri libosmesa6`, then run again"
)
_backend = ""
_PROBE = "import mujoco; mujoco.GLContext(16, 16).make_current()"


@cache
def prepare_robosuite() -> None:
    """Choose OpenGL and import the simulator, without the warnings that it prints then."""
    prepare_opengl()
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # robosuite warns about optional packages on import
    try:
        importlib.import_module("mujoco")
        importlib.import_module("robosuite")
    except ModuleNotFoundError as error:
        install = "run `pip install prism-policy[sim]`"
        raise PrismError(f"the simulator is not installed ({error.name} is missing); {install}") from error
    except Exception as error:  # PyOpenGL raises what it likes when MUJOCO_GL names a back end that is not there
        raise PrismError(f"{opengl_trouble()} ({error})") from error
    finally:
        logging.disable(level)
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)


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
    """An OpenGL context for frames of `size` x `size` [px], current in this thread."""
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
