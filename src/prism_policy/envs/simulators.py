"""MuJoCo and robosuite, imported when they are first used.

Both choose OpenGL while they are imported, and robosuite writes into the environment, the logs and the temporary folder
then. Importing this library must do nothing of that, and OpenGL has to be chosen first.
"""

from __future__ import annotations

import importlib
import logging
from functools import cache
from typing import TYPE_CHECKING, Any

from prism_policy.envs.opengl import opengl_trouble, prepare_opengl
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
            prepare_robosuite()
            value = getattr(importlib.import_module(self._name), attribute)
            setattr(self, attribute, value)
            return value

    mujoco, robosuite = _Package("mujoco"), _Package("robosuite")


@cache
def prepare_robosuite() -> None:
    """Choose OpenGL and import the simulator, without the warnings that it prints then.

    Raises:
        PrismError: it is not installed, or OpenGL does not work.
    """
    prepare_opengl()
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # robosuite warns about optional packages on import
    try:
        importlib.import_module("mujoco")
        importlib.import_module("robosuite")
    except ModuleNotFoundError as error:
        raise PrismError(
            f"the simulator is not installed ({error.name} is missing); run `pip install prism-policy[sim]`"
        ) from error
    except Exception as error:  # PyOpenGL raises what it likes when MUJOCO_GL names a back end that is not there
        raise PrismError(f"{opengl_trouble()} ({error})") from error
    finally:
        logging.disable(level)
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
