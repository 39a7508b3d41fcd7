# Every target sets up what it needs first; a machine with Python 3.11 or later, make and a C compiler is enough.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PROTOC := .venv-protoc
PROTOC_STAMP := $(PROTOC)/.installed
PEERS := .venv-peers
PEERS_STAMP := $(PEERS)/.installed
ARGS ?=

.DEFAULT_GOAL := help

.PHONY: help
help: ## What there is to make
	@grep -hE '^[a-z][a-z-]*:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

.PHONY: install
install: $(STAMP) ## Set up .venv with all that demo, tests and benchmarks need

# pip runs under a lock, so that two makes started at once do not write the same environment.
$(STAMP): pyproject.toml
	@tools/venv.sh $(PYTHON) $(VENV) $(STAMP) pyproject.toml -e '.[dev]'

.PHONY: lint
lint: install ## ruff, mypy, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: demo
demo: install ## Train, kill a leader, compare the bits; flags in ARGS="--json"
	@$(BIN)/paramserver demo $(ARGS)

.PHONY: clean
clean: ## Remove environments, caches and build outputs
	rm -rf .venv .venv-* build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find consensus paramserver worker tests benchmarks tools -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
