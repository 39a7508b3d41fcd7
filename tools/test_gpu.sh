#!/usr/bin/env bash
# The tests of the device path on a GPU, with real streams; arguments go to pytest. GPU_PYTHON names another Python that
# has CuPy and the tests' own needs (tools/gpu-requirements.txt).
set -eu
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1 PARAMSERVER_GPU=1
exec "${GPU_PYTHON:-.venv-gpu/bin/python}" -m pytest tests/unit/device tests/adapters/gpu "$@"
