#!/usr/bin/env bash
# Make .venv with the pinned packages. Run by make when pyproject.toml or constraints.txt is newer than the last time.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/apt.sh

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.11 python3.12 python3}; do
    # The simulator's packages pin numpy < 2, which has no wheels for 3.13 and later.
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "no Python 3.11 or 3.12 found (tried ${PYTHON:-python3.11, python3.12, python3}); install one, or name it: make PYTHON=/path/to/python3.11" >&2
  return 2
}

if ! [ -x .venv/bin/pip ]; then
  python=$(find_python)
  version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
  "$python" -c 'import ensurepip, venv' 2>/dev/null || apt_install "virtual environments" "$version-venv"
  echo "virtual environment: .venv ($("$python" --version))"
  "$python" -m venv .venv
fi
# robosuite depends on evdev, which has no wheels: it is compiled against the kernel's and Python's headers.
headers=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("include"))')
if ! command -v cc >/dev/null || ! [ -e /usr/include/linux/input.h ] || ! [ -e "$headers/Python.h" ]; then
  apt_install "compiler for evdev" gcc libc6-dev linux-libc-dev "$(basename "$headers")-dev"
fi

pip=(.venv/bin/python -m pip --disable-pip-version-check --quiet)
# PyTorch first and alone: without an NVIDIA GPU the build without CUDA saves gigabytes.
torch=$(grep '^torch==' constraints.txt)
if [ "$(.venv/bin/python -c 'from importlib.metadata import version; print("torch==" + version("torch").split("+")[0])' 2>/dev/null)" != "$torch" ]; then
  echo "installing $torch"
  cpu=(--extra-index-url https://download.pytorch.org/whl/cpu)
  if command -v nvidia-smi >/dev/null; then cpu=(); fi
  "${pip[@]}" install --retries 2 --no-deps "$torch" "${cpu[@]}"
fi
echo "installing the pinned packages"
"${pip[@]}" install --constraint constraints.txt --editable packages/prism-client --editable '.[sim,dev]'
# robosuite's functions are compiled once and kept; otherwise the first simulators would all do it, side by side.
echo "compiling the simulator's functions"
.venv/bin/python - <<'PYTHON' 2>/dev/null || echo "(left to the first run)"
import numpy as np
from prism_policy.config.settings import TaskConfig
from prism_policy.envs.robosuite import RobosuiteEnv

env = RobosuiteEnv(TaskConfig("lift"), render_images=False)
env.reset(seed=0)
env.advance(np.zeros(7))
env.close()
PYTHON
