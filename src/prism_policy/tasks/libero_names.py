"""LIBERO's own names of its tasks (Liu et al., 2023), by suite, in the benchmark's order."""

from __future__ import annotations

import json
from importlib.resources import files

_TEXT = files("prism_policy.tasks").joinpath("libero_names.json").read_text(encoding="utf-8")
SUITES: dict[str, tuple[str, ...]] = {suite: tuple(names) for suite, names in json.loads(_TEXT).items()}
"""Suite -> names of its tasks, those of LIBERO's files: `<name>.bddl`, `<name>_demo.hdf5`."""
