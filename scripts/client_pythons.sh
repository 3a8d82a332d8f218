#!/usr/bin/env bash
# Test packages/prism-client, alone, on every Python from 3.8 to 3.13 that is installed here: make test-client
set -euo pipefail
cd "$(dirname "$0")/../packages/prism-client"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
tried=0
for version in 3.8 3.9 3.10 3.11 3.12 3.13; do
  python=$(command -v "python$version" || true)
  if [ -z "$python" ] || ! "$python" -c 'import ensurepip' 2>/dev/null; then continue; fi
  echo "Python $version"
  "$python" -m venv "$folder/$version"
  "$folder/$version/bin/python" -m pip --disable-pip-version-check --quiet install . pytest
  "$folder/$version/bin/python" -m pytest -q -m "not slow" "$@"
  tried=$((tried + 1))
done
if [ "$tried" -eq 0 ]; then
  echo "no Python from 3.8 to 3.13 found" >&2
  exit 2
fi
