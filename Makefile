# Every target sets up what it needs first; a machine with Python 3.11 or later, make and a C compiler is enough.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
# Each environment has a stamp, so that a call with nothing to do is instant.
STAMP := .venv/.installed
PROTOC_STAMP := .venv-protoc/.installed
PEERS_STAMP := .venv-peers/.installed
JAX_STAMP := .venv-jax/.installed
GPU_STAMP := .venv-gpu/.installed
TORCH_STAMP := .venv-torch/.installed
ARGS ?=
# Tests, demo and benchmarks start hundreds of processes of the same sources: where the environment forbids bytecode,
# each would compile two hundred files again, which is two fifths of what a server's start costs.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help

.PHONY: help
help: ## What there is to make
	@grep -hE '^[a-z][a-z-]*:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

.PHONY: install
install: $(STAMP) ## Set up .venv with all that demo, tests and benchmarks need

$(STAMP): pyproject.toml
	@tools/venv.sh $(PYTHON) .venv pyproject.toml -e '.[dev]'

$(PROTOC_STAMP): tools/protoc-requirements.txt
	@tools/venv.sh $(PYTHON) .venv-protoc tools/protoc-requirements.txt -r tools/protoc-requirements.txt

.PHONY: install-peers
install-peers: install $(PEERS_STAMP) ## Set up .venv-peers with what benchmarks compare against

$(PEERS_STAMP): tools/peers-requirements.txt
	@tools/venv.sh $(PYTHON) .venv-peers tools/peers-requirements.txt -r tools/peers-requirements.txt -e .

.PHONY: lint
lint: install ## ruff, mypy, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: format
format: install ## Let ruff format and repair what it can
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

.PHONY: test
test: lint $(PROTOC_STAMP) ## Lint, then every test (about eight minutes on two cores)
	@tools/test.sh

$(JAX_STAMP): tools/jax-requirements.txt
	@tools/venv.sh $(PYTHON) .venv-jax tools/jax-requirements.txt -r tools/jax-requirements.txt -e .

.PHONY: test-jax
test-jax: $(JAX_STAMP) ## The adapter for JAX, on real servers, against optax (in .venv-jax; under two minutes)
	@tools/test_jax.sh $(ARGS)

$(TORCH_STAMP): tools/torch-requirements.txt
	@tools/venv.sh $(PYTHON) .venv-torch tools/torch-requirements.txt -r tools/torch-requirements.txt -e .

.PHONY: test-torch
test-torch: $(TORCH_STAMP) ## The adapter for PyTorch, on real servers, against torch.optim (in .venv-torch; two minutes)
	@tools/test_torch.sh $(ARGS)

$(GPU_STAMP): tools/gpu-requirements.txt
	@tools/venv.sh $(PYTHON) .venv-gpu tools/gpu-requirements.txt -r tools/gpu-requirements.txt -e .

# With GPU_PYTHON there is an environment already.
.PHONY: test-gpu
test-gpu: $(if $(GPU_PYTHON),,$(GPU_STAMP)) ## The way between a GPU and host memory, on a GPU (in .venv-gpu; a minute or two)
	@GPU_PYTHON='$(GPU_PYTHON)' tools/test_gpu.sh $(ARGS)

.PHONY: mutants
mutants: install ## Put every known bug back, one by one: each must make a named test fail (under ten minutes)
	@$(BIN)/python -m tests.mutations.runner $(ARGS)

.PHONY: chaos-mutants
chaos-mutants: install ## Real clusters of broken servers: each must be caught by a run of faults (half a minute)
	@$(BIN)/python -m tests.mutations.servers $(ARGS)

.PHONY: test-stub-range
test-stub-range: install ## Run the stubs on the oldest and the newest protobuf and grpcio
	@tools/stub_range.sh $(PYTHON)

.PHONY: protos
protos: install $(PROTOC_STAMP) ## Regenerate the stubs from proto/
	.venv-protoc/bin/python tools/protos.py write

.PHONY: demo
demo: install ## Train, kill a leader, compare the bits; pass flags with ARGS="--json"
	@$(BIN)/paramserver demo $(ARGS)

.PHONY: bench
bench: install ## Every benchmark of this project alone, figures as JSON
	@for name in client_overhead commit core_step failover overlap push_pull terms; do echo "== $$name"; $(BIN)/python -m benchmarks.$$name $(ARGS) || exit 1; done

.PHONY: bench-push-pull
bench-push-pull: install install-peers ## Push and pull beside peers: every suite, tables and plots of docs/benchmarks (about 40 minutes)
	@tools/bench_push_pull.sh $(ARGS)

.PHONY: bench-faults
bench-faults: install install-peers ## The drill of docs/faults.md for us and for peers: kills and pauses, tables (about 15 minutes)
	@tools/bench_faults.sh $(ARGS)

.PHONY: bench-check
bench-check: install ## Whether a ratio of the stored results fell by more than a fifth below benchmarks/baseline.json
	@$(BIN)/python -m benchmarks.check $(wildcard docs/benchmarks/*.json)

.PHONY: clean
clean: ## Remove environments, caches and build outputs
	rm -rf .venv .venv-* build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
