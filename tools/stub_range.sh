#!/usr/bin/env bash
# stub_range.sh PYTHON: run the stubs on the oldest and the newest grpcio and protobuf that pyproject.toml allows, each
# in an environment of its own that is thrown away afterwards.
set -eu
cd "$(dirname "$0")/.."
python=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

ranges() { # the ranges as pyproject.toml states them, or only their lower ends
    "$python" - "$1" <<'PY'
import re, sys, tomllib
with open("pyproject.toml", "rb") as file:
    dependencies = tomllib.load(file)["project"]["dependencies"]
for dependency in dependencies:
    if re.match(r"(grpcio|protobuf)\b", dependency):
        oldest = re.sub(r">=([^,]+),.*", r"==\1", dependency)
        print(oldest if sys.argv[1] == "oldest" else dependency)
PY
}

for end in oldest newest; do
    mapfile -t wanted < <(ranges "$end")
    "$python" -m venv "$folder/$end"
    "$folder/$end/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade "${wanted[@]}"
    echo -n "$end: "
    "$folder/$end/bin/python" -W error::DeprecationWarning:consensus -W error::DeprecationWarning:paramserver \
        tools/stub_range.py
done
