"""Environments by the name of their task."""

from __future__ import annotations

import gc
import importlib
from typing import Any

from prism_policy.config.settings import TaskConfig

_env: Any = None


def make_env(task: TaskConfig, render_images: bool = True) -> Any:
    """The environment of a single task."""
    module, _, name = task.spec.simulator.environment.partition(":")
    return getattr(importlib.import_module(module), name)(task, render_images)


def kept_env(task: TaskConfig, render_images: bool) -> Any:
    """This process's environment, made at the first call and kept: that takes seconds, an episode less."""
    global _env
    if _env is None or (_env.task, _env.render_images) != (task, render_images):
        if _env is not None:
            _env.close()
            _env = None
            gc.collect()  # before another one takes as much memory: LIBERO's scenes hold a gigabyte, and cycles
        _env = make_env(task, render_images)
    return _env
