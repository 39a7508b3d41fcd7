"""The Python that has the peers' libraries. Must not know: what they are compared with."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

from benchmarks.pushpull.system import Unavailable
from benchmarks.pushpull.trees import ROOT

INSTALL = "make install-peers"


@cache
def interpreter(module: str) -> str:
    """One that can import `module`. Raises `Unavailable`."""
    for path in (ROOT / ".venv-peers/bin/python", sys.executable):
        asked = ["-c", f"import importlib.util as u, sys; sys.exit(u.find_spec({module!r}) is None)"]
        try:
            if subprocess.run([str(path), *asked], capture_output=True, check=False).returncode == 0:
                return str(path)
        except OSError:
            continue
    raise Unavailable(INSTALL)


@cache
def version(module: str, distribution: str) -> str:
    code = f"from importlib import metadata; print(metadata.version({distribution!r}))"
    line = [interpreter(module), "-c", code]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()
