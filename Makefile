# Reattach: everything that people and CI run. `make help` lists the targets.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# Processes of pytest-xdist: as many as the machine has cores.
WORKERS ?= auto
PYTEST := $(BIN)/pytest
MYPY_TESTS := tests/conftest.py tests/apicalls.py tests/controlplane.py tests/realcluster.py tests/waiting.py tests/hang_scenarios.py tests/e2e

.PHONY: help
help: ## this list
	@awk 'BEGIN { FS = ":.*## " } /^##@/ { printf "\n%s\n", substr($$0, 5) } /^[a-z][a-z0-9-]*:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

##@ Use

.PHONY: demo
demo: $(READY) ## a local cluster, the chart in it, and a task that crashes and reattaches
	@hack/cluster/up
	@hack/image
	@hack/install
	@$(BIN)/python hack/demo.py

.PHONY: test
test: $(READY) ## everything that proves Reattach, as in CI
	@hack/test

.PHONY: test-all
test-all: $(READY) ## the same without sampling (1,000 random histories, every case on every system), and the tables in docs/conformance.md
	@rm -rf build/tables
	@REATTACH_ALL=1 REATTACH_TABLES=$(CURDIR)/build/tables hack/test
	@$(BIN)/python hack/tables.py build/tables

.PHONY: clean
clean: ## remove all that these targets made: cluster, cache, Python environment
	@hack/cluster/down --clean
	rm -rf .venv build dist .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest-kind .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "Left alone: Go's own caches (go clean -cache -modcache), official images, the Docker network kind, and Debian packages that were installed."

##@ Develop

.PHONY: venv
venv: $(READY) ## the Python environment in .venv, from requirements.lock

# The lock names every package with its hashes; the project itself needs no download, hence no build isolation.
$(READY): requirements.lock pyproject.toml hack/venv
	@hack/venv $(PYTHON) .venv
	@touch $@

.PHONY: check
check: $(READY) ## ruff, its formatter, the language rule, mypy and the layers: what a reviewer expects to pass
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python hack/language.py
	$(BIN)/mypy
	$(BIN)/mypy $(MYPY_TESTS) hack/demo.py hack/language.py hack/bench
	$(BIN)/lint-imports --no-logo

.PHONY: format
format: $(READY) ## put the code in order
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.PHONY: lock
lock: ## resolve the requirements*.lock again
	hack/lock $(PYTHON)

##@ Tests, level by level

.PHONY: unit
unit: $(READY) ## pure code; every branch of the planner
	$(PYTEST) tests/unit -n $(WORKERS) --cov=reattach.planner --cov-branch --cov-fail-under=100

.PHONY: integration
integration: $(READY) control-plane ## on a real API server, without nodes
	@# In the order of tests/integration/conftest.py: xdist's own has the files with the fewest tests last, and these take longest.
	$(PYTEST) tests/integration -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: crash
crash: $(READY) control-plane ## the operator's process dies before and after each of its writes
	$(PYTEST) tests/crash -n $(WORKERS)

.PHONY: conformance
conformance: $(READY) control-plane ## every crash point against the adapters, and random histories
	$(PYTEST) tests/conformance -n $(WORKERS) --dist loadgroup

.PHONY: systems
systems: $(READY) cluster-up ## the adapters against real Ray and real Slurm, started by the tests (REATTACH_ALL=1: every case)
	@hack/systems/up $(BIN)/python
	$(PYTEST) tests/systems -n $(WORKERS) --dist loadfile

.PHONY: chart
chart: $(READY) control-plane ## the Helm chart: lint, render, values
	$(PYTEST) tests/chart

.PHONY: e2e
e2e: $(READY) image ## on the local cluster: the image, the chart, every example, and what dies on the way to one job
	hack/e2e tests/e2e

##@ Performance

.PHONY: bench
bench: $(READY) control-plane ## TaskRuns beside Jobs: throughput, latency, API calls, CPU, memory (BENCH_ARGS=--help)
	@hack/bench/tools
	@PYTHONPATH=hack:tests $(BIN)/python -m bench $(BENCH_ARGS)

##@ The local cluster

.PHONY: cluster-up
cluster-up: ## create the kind cluster, or find it there
	@hack/cluster/up

.PHONY: cluster-down
cluster-down: ## delete it, and stop the dockerd that cluster-up started; what was built stays cached
	@hack/cluster/down

.PHONY: control-plane
control-plane: ## build the programs alone (kind, kubectl, helm, Kubernetes, etcd); needs no container engine
	@hack/cluster/tools

.PHONY: image
image: $(READY) cluster-up ## build localhost/reattach:dev and load it into the cluster
	@hack/image
