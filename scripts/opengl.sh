#!/usr/bin/env bash
# Make sure that MuJoCo can draw without a screen.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/apt.sh

works() {
  .venv/bin/python - <<'PYTHON'
import os, sys
from prism_policy.envs.simulators import prepare_opengl

prepare_opengl()
sys.exit(os.environ.get("MUJOCO_GL") == "disable")
PYTHON
}

works && exit 0
apt_install "software OpenGL" libegl1 libgl1-mesa-dri libosmesa6
works || {
  echo "software OpenGL is installed, but MuJoCo still cannot draw; try MUJOCO_GL=egl or MUJOCO_GL=osmesa to see why" >&2
  exit 2
}
