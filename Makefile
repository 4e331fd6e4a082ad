# Commands for development and CI. `make help` lists the targets.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# Number of pytest-xdist workers: auto means one per core.
WORKERS ?= auto
PYTEST := $(BIN)/pytest
# Minor version of Kubernetes that the tests of a control plane run on: a folder of hack/cluster/minors, or that of hack/versions if empty.
ifneq ($(KUBERNETES),)
export REATTACH_KUBERNETES := $(KUBERNETES)
endif
MINORS = $(notdir $(wildcard hack/cluster/minors/1.*))
MYPY_TESTS := tests/conftest.py tests/apicalls.py tests/controlplane.py tests/realcluster.py tests/waiting.py tests/hang_scenarios.py tests/registry.py tests/e2e

.PHONY: help
help: ## list the targets
	@awk 'BEGIN { FS = ":.*## " } /^##@/ { printf "\n%s\n", substr($$0, 5) } /^[a-z][a-z0-9-]*:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

##@ Use

.PHONY: demo
demo: $(READY) ## create a local cluster, install the chart, and run a task that crashes and reattaches
	@hack/cluster/up
	@hack/image
	@hack/install
	@$(BIN)/python hack/demo.py

.PHONY: test
test: $(READY) ## run all checks and tests, as in CI
	@hack/test

.PHONY: test-all
test-all: $(READY) ## run all tests without sampling (1,000 random histories, every case on every system, four Kubernetes versions), and write the tables in docs/conformance.md
	@rm -rf build/tables
	@REATTACH_ALL=1 REATTACH_TABLES=$(CURDIR)/build/tables hack/test
	@$(BIN)/python hack/tables.py build/tables

.PHONY: clean
clean: ## remove everything that these targets created: cluster, cache, Python environment
	@hack/cluster/down --clean
	rm -rf .venv build dist .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest-kind .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "Not removed: Go's caches (go clean -cache -modcache), official images, the Docker network kind, and installed Debian packages."

.PHONY: package
package: $(READY) ## build the packages of a release into dist/: wheel, sdist, chart, image, kubectl-reattach, bills of materials
	@hack/package

##@ Develop

.PHONY: venv
venv: $(READY) ## create the Python environment .venv from requirements.lock

# requirements.lock lists every package with its hashes. No build isolation, because installing the project must not download anything.
$(READY): requirements.lock pyproject.toml hack/venv
	@hack/venv $(PYTHON) .venv
	@touch $@

.PHONY: check
check: $(READY) ## run ruff, its formatter, the language rule, codespell, mypy, import-linter and zizmor: required before a review
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python hack/language.py
	git ls-files -z '*.md' charts crds examples | xargs -0 $(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/mypy $(MYPY_TESTS) hack/chart_readme.py hack/cli_reference.py hack/crd_reference.py hack/demo.py hack/golden.py hack/language.py hack/publish.py hack/bench hack/release
	$(BIN)/lint-imports --no-logo
	$(BIN)/zizmor --offline --quiet --persona pedantic .github

.PHONY: format
format: $(READY) ## fix and format the code with ruff
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.PHONY: lock
lock: ## resolve the dependencies and write requirements*.lock
	hack/lock $(PYTHON)

.PHONY: docs
docs: $(READY) ## build the documentation site into build/docs/site, and fail on broken links
	@hack/docs $(BIN)/python

##@ Tests by level

.PHONY: unit
unit: $(READY) ## unit tests, with full branch coverage of the planner
	$(PYTEST) tests/unit -n $(WORKERS) --cov=reattach.planner --cov-branch --cov-fail-under=100

.PHONY: integration
integration: $(READY) control-plane prometheus ## tests on a real API server without nodes (KUBERNETES=1.34: on that minor version)
	@# Keep the order of tests/integration/conftest.py. xdist would run the files with the fewest tests last, although they take longest.
	$(PYTEST) tests/integration -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: minors
minors: $(addprefix integration-,$(MINORS)) ## run the integration tests on each other Kubernetes minor version that Reattach supports

.PHONY: $(addprefix integration-,$(MINORS))
$(addprefix integration-,$(MINORS)): integration-%:
	@$(MAKE) --no-print-directory integration KUBERNETES=$*

.PHONY: crash
crash: $(READY) control-plane ## terminate the operator before and after each of its writes
	$(PYTEST) tests/crash -n $(WORKERS)

.PHONY: conformance
conformance: $(READY) control-plane ## run every crash point with the adapters, and random histories
	$(PYTEST) tests/conformance -n $(WORKERS) --dist loadgroup

.PHONY: systems
systems: $(READY) cluster-up ## run the adapters with real Ray and Slurm and with Airflow operators, which the tests start, and with Jobs of the local cluster (REATTACH_ALL=1: every case)
	@hack/systems/up $(BIN)/python
	$(PYTEST) tests/systems -n $(WORKERS) --dist loadfile

.PHONY: chart
chart: $(READY) control-plane prometheus ## lint and render the Helm chart, and test its values
	$(PYTEST) tests/chart

.PHONY: packages
packages: $(READY) control-plane ## build the packages twice, and test them (REATTACH_ALL=1: with the image)
	$(PYTEST) tests/packages

.PHONY: golden
golden: $(READY) image ## record the statuses of pods of the local cluster for the tests of docs/what-happens-when.md
	@hack/golden

.PHONY: e2e
e2e: $(READY) image registry ## test the image, the chart, every example and failures at each step on the local cluster
	hack/e2e tests/e2e

##@ Performance

.PHONY: bench
bench: $(READY) control-plane ## compare TaskRuns with Jobs: throughput, latency, API calls, CPU, memory (BENCH_ARGS=--help)
	@hack/bench/tools
	@PYTHONPATH=hack:tests $(BIN)/python -m bench $(BENCH_ARGS)

##@ Local cluster

.PHONY: cluster-up
cluster-up: ## create the kind cluster unless it exists
	@hack/cluster/up

.PHONY: cluster-down
cluster-down: ## delete the cluster and stop the dockerd that cluster-up started; keep the build cache
	@hack/cluster/down

.PHONY: control-plane
control-plane: ## build only the programs (kind, kubectl, helm, Kubernetes, etcd); needs no container engine
	@hack/cluster/tools

.PHONY: prometheus
prometheus: ## provide prometheus and promtool for the tests of the alerts
	@hack/prometheus

.PHONY: registry
registry: ## provide docker-registry for the test of the installation from a registry
	@hack/registry

.PHONY: image
image: $(READY) cluster-up ## build localhost/reattach:dev and load it into the cluster
	@hack/image
