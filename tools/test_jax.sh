#!/usr/bin/env bash
# The tests of paramserver.jax, in an environment of their own; arguments go to pytest. On the processor and with one
# thread of XLA: the tests compare bits between runs.
set -eu
cd "$(dirname "$0")/.."
export JAX_PLATFORMS=cpu OMP_NUM_THREADS=1
export XLA_FLAGS="${XLA_FLAGS:-} --xla_cpu_multi_thread_eigen=false"
exec .venv-jax/bin/python -m pytest tests/adapters/jax "$@"
