#!/usr/bin/env bash
# The tests of paramserver.torch, in an environment of their own; arguments go to pytest. With one thread: the tests
# compare bits between runs.
set -eu
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1
exec .venv-torch/bin/python -m pytest tests/adapters/torch "$@"
