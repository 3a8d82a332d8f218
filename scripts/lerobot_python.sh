#!/usr/bin/env bash
# Make .venv-lerobot: the real LeRobot with its own PyTorch and numpy 2, robosuite, this library and its plug-ins.
# Run by make test-lerobot.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! [ -x .venv-lerobot/bin/pip ]; then
  if ! command -v python3.12 >/dev/null; then
    echo "LeRobot needs Python 3.12, and there is no python3.12 on the PATH; install it" >&2
    exit 2
  fi
  python3.12 -m venv .venv-lerobot
fi
echo "installing LeRobot (several gigabytes)"
pip=(.venv-lerobot/bin/python -m pip --disable-pip-version-check --quiet)
"${pip[@]}" install "lerobot[dataset,training,diffusion]==0.6.1" pytest --editable packages/prism-client --editable '.[lerobot,hub]' \
  --editable integrations/lerobot_policy_prism --editable integrations/lerobot_env_prism
# robosuite pins numpy < 2, which LeRobot does not take: integrations/lerobot_env_prism/README.md
"${pip[@]}" install --no-deps robosuite==1.5.2 mink==0.0.5 mujoco==3.9.0
"${pip[@]}" install numba qpsolvers termcolor opencv-python-headless glfw pyopengl etils absl-py
