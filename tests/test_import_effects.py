"""Importing the library only defines things: no process, file, environment variable, umask or global hook changes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import prism_policy

ROOT = Path(prism_policy.__file__).parent
MODULES = sorted(
    ".".join(("prism_policy", *f.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for f in ROOT.rglob("*.py")
    if f.name != "__main__.py"
)
PROGRAM = """
import importlib, json, logging, os, subprocess, sys, tempfile

modules = json.loads(sys.argv[1])


def third_parties():
    # What others' packages do when they are imported is not ours; the simulators and LIBERO are not to be imported.
    for name in ("torch", "gymnasium", "scipy.spatial.transform", "h5py", "matplotlib.pyplot", "rich.table", "PIL",
                 "tyro", "websockets.sync.client", "websockets.sync.server", "imageio_ffmpeg", "safetensors.torch",
                 "torch.utils.tensorboard"):
        try:
            importlib.import_module(name)
        except ImportError:
            pass


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def state():
    import torch
    from torch.optim import optimizer
    handlers = {name: len(logger.handlers) for name, logger in logging.root.manager.loggerDict.items()
                if isinstance(logger, logging.Logger) and name.startswith("prism")}
    return {
        "environment": dict(os.environ),
        "umask": umask(),
        "optimizer hooks": len(optimizer._global_optimizer_post_hooks) + len(optimizer._global_optimizer_pre_hooks),
        "logging": [logging.root.manager.disable, logging.root.level, len(logging.root.handlers), handlers],
        "threads": [torch.get_num_threads(), torch.get_default_dtype().is_floating_point],
        "numpy": __import__("numpy").geterr(),
    }


third_parties()
before, events = state(), []


def audit(event, arguments):
    if event in ("subprocess.Popen", "os.fork", "os.posix_spawn", "os.symlink", "os.mkdir", "os.chmod", "os.remove"):
        events.append([event, str(arguments[0])])
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        if not str(arguments[0]).startswith("/dev/") and "__pycache__" not in str(arguments[0]):
            events.append([event, str(arguments[0])])


sys.addaudithook(audit)
absent = []
for module in modules:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        absent.append(error.name)
events_of_import = list(events)
after = state()
print(json.dumps({
    "changed": {key: [before[key], after[key]] for key in before if before[key] != after[key]},
    "events": events_of_import,
    "absent": absent,
    "simulators": [name for name in ("mujoco", "robosuite", "libero") if name in sys.modules],
}))
"""


@pytest.fixture(scope="module")
def effects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    home = tmp_path_factory.mktemp("home")
    environment = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "LP_NUM_THREADS", "PYOPENGL_PLATFORM")}
    environment |= {"PRISM_CACHE": str(home / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(MODULES)],
        env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert not (home / "cache").exists()
    result: dict[str, object] = json.loads(run.stdout)
    return result


def test_every_module_was_imported(effects: dict[str, object]) -> None:
    assert len(MODULES) > 100
    assert not [name for name in effects["absent"] if str(name).startswith("prism_policy")]  # type: ignore[attr-defined]


def test_importing_changes_no_global_state(effects: dict[str, object]) -> None:
    assert effects["changed"] == {}


def test_importing_starts_no_process_and_touches_no_file(effects: dict[str, object]) -> None:
    assert effects["events"] == []


def test_importing_loads_no_simulator(effects: dict[str, object]) -> None:
    assert effects["simulators"] == []
