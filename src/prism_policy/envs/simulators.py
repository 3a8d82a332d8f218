"""MuJoCo and robosuite, imported when they are first used, and the OpenGL that draws: EGL or OSMesa, whichever works.

Both packages choose OpenGL while they are imported, and robosuite writes into the environment, the logs and the
temporary folder then. Importing this library must do nothing of that, and OpenGL has to be chosen first.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from prism_policy.envs.process import how_it_ended
from prism_policy.errors import PrismError
from prism_policy.utils.progress import console
from prism_policy.utils.text import one_line

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

_PACKAGES = ("mujoco", "robosuite")
_DRAW = """
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco/>")
context = mujoco.GLContext(16, 16)
context.make_current()
mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
"""
_IMPORT = f"import {', '.join(_PACKAGES)}"
_TRIAL = """
import os, sys
try:
    exec(sys.argv[1])
    os._exit(0)
except BaseException as error:
    print(type(error).__name__, error, sep=": ", file=sys.stderr, flush=True)
    os._exit(1)  # before what was half made fails to free itself
"""
_TRIAL_S = 60
_BEHIND = re.compile(r"MUJOCO_|PYOPENGL_|_*EGL_|_*GLX?_|LIBGL_|MESA_|GALLIUM_|LP_|VK_|NUMBA_|CUDA_|LD_|DISPLAY$")
"""Beginnings of the environment variables that decide whether the simulator can be imported and draws."""
BACKENDS = ("egl", "osmesa")
_backend = ""


@cache
def prepare_robosuite() -> None:
    """Choose OpenGL and import the simulator, without the warnings that it prints then."""
    prepare_opengl()
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # robosuite warns about optional packages on import
    try:
        for package in _PACKAGES:
            importlib.import_module(package)
    except ModuleNotFoundError as error:
        install = "run `pip install prism-policy[sim]`"
        raise PrismError(f"the simulator is not installed ({error.name} is missing); {install}") from error
    except Exception as error:  # each of a hundred packages fails in its own way
        raise PrismError(_import_trouble(error)) from error
    finally:
        logging.disable(level)
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)


def prepare_opengl() -> None:
    """Set MUJOCO_GL, unless the user did, to what works here: EGL, else OSMesa, else none ("disable").

    Child processes inherit the answer.
    """
    global _backend
    # Software OpenGL's own threads do not make a small frame faster, and fight the other workers for the cores.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    if "MUJOCO_GL" not in os.environ and sys.platform.startswith("linux"):
        os.environ["MUJOCO_GL"] = next((name for name in BACKENDS if not _cannot_draw(os.environ, name)), "disable")
    _backend = os.environ.get("MUJOCO_GL", "")  # remembered, because robosuite overwrites it


def opengl_context(model: mujoco.MjModel, size: int) -> tuple[Any, mujoco.MjrContext]:
    """OpenGL's context for frames of `size` x `size` [px], current in this thread, and MuJoCo's with `model` in it."""
    # `mujoco.GLContext` is settled by MUJOCO_GL when mujoco is first imported, which may have been long before.
    name = f"mujoco.{_backend}" if _backend in BACKENDS else "mujoco"
    kind: Any = None
    try:
        with warnings.catch_warnings(action="ignore"):  # the error says it all
            kind = importlib.import_module(name).GLContext
            context = kind(size, size)
            context.make_current()
            return context, mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
    except Exception as error:  # each back end fails in its own way
        if kind is not None:
            kind.__del__ = lambda self: None  # it would free what was never made, with a traceback
        raise PrismError(_opengl_trouble()) from error


def _opengl_trouble() -> str:
    """Why nothing can be drawn and what to do: in each back end's own words, or the variable that is to blame."""
    environment = dict(os.environ, MUJOCO_GL=_backend)
    if why := _why_no_drawing(environment):
        if name := _to_blame(environment, _why_no_drawing):
            return f"no working OpenGL with {name}={os.environ[name]} ({why}); unset it and run again"
        packages = "`make system` or `apt-get install libegl1 libgl1-mesa-dri libosmesa6`"
        return f"no working OpenGL ({why}); install software OpenGL with {packages}, then run again"
    return f"no working OpenGL with MUJOCO_GL={_backend}; unset it and run again"


def _import_trouble(error: Exception) -> str:
    """Why the simulator cannot be imported, and what to do."""
    why = one_line(f"{type(error).__name__}: {error}", 130)
    if name := _to_blame(dict(os.environ, MUJOCO_GL=_backend), lambda environment: _trial(_IMPORT, environment)):
        return f"the simulator cannot be imported ({why}); {name}={os.environ[name]} is to blame: unset it, run again"
    if "cannot cache function" in why:
        return f"the simulator cannot be imported ({why}); set NUMBA_CACHE_DIR to a folder you may write to"
    return f"the simulator cannot be imported ({why}); mend that, or `pip install prism-policy[sim]` anew"


def _why_no_drawing(environment: Mapping[str, str]) -> str:
    """Why no back end draws, in its own words; "" where one does. MUJOCO_GL names one, or the usual ones are tried."""
    wanted = environment.get("MUJOCO_GL", "")
    causes = []
    for name in BACKENDS if wanted in ("", "disable") else (wanted,):
        if not (cause := _cannot_draw(environment, name)):
            return ""
        causes.append(f"{name}: {cause}")
    return "; ".join(causes)


def _cannot_draw(environment: Mapping[str, str], backend: str) -> str:
    """Why a back end does not draw; "" where it does.

    One that does not may raise on import, on creation, crash, or not come back: hence a process of its own.
    """
    return _trial(_DRAW, {**environment, "MUJOCO_GL": backend})


def _to_blame(environment: Mapping[str, str], trouble: Callable[[Mapping[str, str]], str]) -> str:
    """The environment variable without which there is no trouble; "" where there is none."""
    for name in filter(_BEHIND.match, sorted(os.environ)):
        if not trouble({key: value for key, value in environment.items() if key != name}):
            return name
    return ""


def _trial(code: str, environment: Mapping[str, str]) -> str:
    """What goes wrong in a process that runs `code`: its last line, or the signal that ended it; "" if nothing does."""
    command = [sys.executable, "-W", "ignore", "-c", _TRIAL, code]
    try:
        trial = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_TRIAL_S)
    except subprocess.TimeoutExpired:
        return f"no answer within {_TRIAL_S} s"
    if trial.returncode == 0:
        return ""
    said = trial.stderr.strip() if trial.returncode > 0 else ""
    return one_line(said.partition("\n")[0], 130) or how_it_ended(trial.returncode)


def robosuite_knows(env_name: str) -> bool:
    """Whether robosuite is installed and has a task of this name, of its own or of MimicGen where that is installed."""
    return importlib.util.find_spec("robosuite") is not None and env_name in robosuite_tasks()


@cache
def robosuite_tasks() -> frozenset[str]:
    """Names of robosuite's tasks, among them MimicGen's, which join them when it is imported, such as Coffee_D0."""
    robosuite.ALL_ENVIRONMENTS  # noqa: B018 (robosuite first, as it has to be prepared)
    if importlib.util.find_spec("mimicgen"):
        try:
            importlib.import_module("mimicgen")
        except Exception as error:  # as it was made for another robosuite than the one that is installed
            console.print(f"mimicgen is installed and cannot be imported ({one_line(error, 200)}): without its tasks")
    return frozenset(robosuite.ALL_ENVIRONMENTS)
