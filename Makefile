# Two commands matter: `make demo` and `make test`. Each does all the set-up that it needs; a second one starts at once.
# No path is absolute, so the checkout may lie anywhere, also where a name has spaces.

PYTHON ?= python3
VENV := .venv/bin
SHELL := /bin/sh
# Most tests wait for servers half of their time, so two processes are worth it also on one core.
TEST_WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo up test test-fast test-repeats lint format bench campaign reference lock clean

help: ## Show what there is
	@sed -n 's/^\([a-z-]*\): .*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'

setup: ## Virtual environment and locked dependencies, to use `.venv/bin/seawall`; other targets do their part of this themselves
	@$(PYTHON) -m tools.setup demo

demo: ## Protect a real database, lose data, get it back, and prove it (about two minutes)
	@$(PYTHON) -m tools.setup demo
	@$(VENV)/python -m deployments.demo

up: ## Start the same stack and stay; Ctrl-C stops all of it
	@$(PYTHON) -m tools.setup demo
	@$(VENV)/python -m deployments.demo --stay --place var/up

test: ## Run the tests, files side by side (TEST_WORKERS=0: one after the other); `test-repeats` has the rest
	@$(PYTHON) -m tools.setup test
	@$(VENV)/python -m pytest -n $(TEST_WORKERS) --max-worker-restart 1 --dist loadfile --no-loadscope-reorder

test-fast: ## Run the tests that need no server (two to three minutes)
	@$(PYTHON) -m tools.setup lint
	@$(VENV)/python -m pytest -n $(TEST_WORKERS) --max-worker-restart 1 --dist loadfile --no-loadscope-reorder -m "not postgres and not prefect and not servers and not slow"

test-repeats: ## Run what `make test` leaves out: the same stories on further versions and in further combinations
	@$(PYTHON) -m tools.setup test
	@$(VENV)/python -m pytest -n $(TEST_WORKERS) --max-worker-restart 1 --dist loadfile --no-loadscope-reorder --repeats -m repeats

lint: ## Format, lint, types and import contracts
	@$(PYTHON) -m tools.setup lint
	$(VENV)/ruff format --check .
	$(VENV)/ruff check .
	$(VENV)/python -m mypy
	$(VENV)/lint-imports --no-cache

format: ## Put the sources into the one format
	@$(PYTHON) -m tools.setup lint
	$(VENV)/ruff format .
	$(VENV)/ruff check --fix .

bench: ## Compare with pgBackRest and pg_basebackup on a cluster of about 3 GB
	@$(PYTHON) -m tools.setup bench
	@$(VENV)/python -m benchmarks
	@$(VENV)/python -m benchmarks.incrementals

campaign: ## Kill, cut the power, break and damage on purpose, in large numbers (over an hour); docs/reliability.md has the figures
	@$(PYTHON) -m tools.setup bench
	@$(VENV)/python -m campaigns

reference: ## Write docs/reference/errors.md and settings.md again from the sources
	@$(PYTHON) -m tools.setup lint
	@$(VENV)/python -m tools.reference

lock: ## Resolve pyproject.toml into requirements/lock.txt (UPGRADE=1: newest versions that are allowed)
	@$(PYTHON) -m tools.setup lock $(if $(UPGRADE),--upgrade)

clean: ## Remove what set-up and tests made; `var`, where `make up` keeps its data, stays
	rm -rf .venv .uv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
