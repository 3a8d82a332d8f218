#!/usr/bin/env bash
# Build and check every distribution into dist/: scripts/release.sh [TAG], where a tag must be the version in the source.
set -euo pipefail
cd "$(dirname "$0")/.."
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' src/prism_policy/__init__.py)
if [ -n "${1:-}" ] && [ "$1" != "v$version" ]; then
  echo "tag $1: expected v$version, the version in src/prism_policy/__init__.py" >&2
  exit 2
fi
if [ -n "${1:-}" ] && ! grep -q "^## \[$version\]" CHANGELOG.md; then
  echo "CHANGELOG.md has no section [$version]: rename [Unreleased] before the release" >&2
  exit 2
fi
rm -rf dist
for place in . packages/*/ integrations/*/; do
  if [ -e "$place/pyproject.toml" ]; then
    python -m build --outdir dist "$place"
  fi
done
python -m twine check --strict dist/*
check-wheel-contents dist/*.whl
