#!/usr/bin/env bash
# All suites of push and pull, then the tables and plots of docs/benchmarks. Flags go to every suite (--rounds 3). Wants
# the machine to itself. A suite that fails keeps its older result, and the rest is still made.
set -u
cd "$(dirname "$0")/.."
out=docs/benchmarks
mkdir -p "$out"
status=0

suite() {
    local name=$1
    shift
    echo "== $name" >&2
    .venv/bin/python -m benchmarks.push_pull --suite "$name" --out "$out/push_pull-$name.json" "$@" >/dev/null || status=1
}
suite figures --peers torch-rpc,gloo,redis,ray "$@"
suite tensors "$@"
suite pulls "$@"
suite memory "$@"
suite sweep --peers torch-rpc "$@"
echo "== terms" >&2
.venv/bin/python -m benchmarks.terms --out "$out/terms.json" >/dev/null || status=1
.venv-peers/bin/python -m benchmarks.pushpull.plots "$out" || status=1
.venv/bin/python -m benchmarks.pushpull.report "$out" --write docs/benchmarks.md || status=1
exit "$status"
