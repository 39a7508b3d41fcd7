#!/usr/bin/env bash
# venv.sh PYTHON VENV SOURCE PIP-ARGUMENTS...
# Makes the virtual environment VENV and installs into it, unless VENV/.installed is already newer than SOURCE.
# Runs under a lock: of two calls at once the second waits and then finds nothing left to do.
set -eu
python=$1 venv=$2 source=$3
stamp=$venv/.installed
shift 3

mkdir -p "$venv"
if command -v flock >/dev/null; then
    exec 9>"$venv/.lock"
    flock 9
fi
if [ -e "$stamp" ] && [ ! "$source" -nt "$stamp" ]; then
    exit 0
fi

"$python" - <<'PY' || exit 1
import sys
if sys.version_info < (3, 11):
    sys.exit(f"Python 3.11 or later is needed, this is {sys.version.split()[0]}; name another one: make PYTHON=python3.12 install")
try:
    import ensurepip, venv
except ImportError as error:
    sys.exit(f"this Python cannot make virtual environments ({error}); on Debian and Ubuntu: apt install python3-venv")
PY

if [ ! -x "$venv/bin/pip" ]; then
    "$python" -m venv "$venv"
fi
echo "installing into $venv ..."
touch "$venv/.started"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
# The stamp carries the time of the start: an edit made while pip ran counts as newer.
mv "$venv/.started" "$stamp"
