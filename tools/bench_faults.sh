#!/usr/bin/env bash
# The same drill for us and for peers, then the tables of docs/faults.md and README.md. Flags go to the peers' (--quick).
set -eu
cd "$(dirname "$0")/.."
out=benchmarks/results
ours=$(mktemp -d)
trap 'rm -rf "$ours"' EXIT
# A failed check ends with 1, and its result is shown like any other.
.venv/bin/paramserver chaos run --plan benchmarks/faults/peers/ours.json --out "$ours/run" || test $? -eq 1
cp "$ours/run/chaos.json" "$out/faults_ours.json"
.venv/bin/python -m benchmarks.faults.peers --out "$out/faults_peers.json" "$@" >/dev/null
.venv/bin/python -m benchmarks.faults.peers.report "$out/faults_peers.json" --ours "$out/faults_ours.json" --write docs/faults.md README.md
