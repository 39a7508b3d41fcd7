"""PySyncObj as a peer: three nodes in an environment of their own, which `make install-peers` sets up.

Owns their command lines and reading their results. Must not know: what is measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.commits.cluster import ROOT
from paramserver.lab.ports import ReservedPorts
from paramserver.lab.processes import Child

INSTALL = "make install-peers"
NODE = Path(__file__).with_name("pysyncobj_node.py")
POLL_S = 0.1
READY_TIMEOUT_S = 30.0


def interpreter() -> str | None:
    """One that has the library."""
    for path in (ROOT / ".venv-peers/bin/python", Path(sys.executable)):
        if path.exists():
            asked = subprocess.run([str(path), "-c", "import pysyncobj"], capture_output=True, check=False)
            if asked.returncode == 0:
                return str(path)
    return None


def version(path: str) -> str:
    code = "from importlib import metadata; print(metadata.version('pysyncobj'))"
    return subprocess.run([path, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def run(folder: Path, path: str, loads: Sequence[tuple[int, int]], seconds: float) -> list[dict[str, Any]]:
    """Each load in turn, driven by the node that leads."""
    wanted = ",".join(f"{size}:{inflight}" for size, inflight in loads)
    with ReservedPorts(3) as ports:
        addresses = [f"127.0.0.1:{number}" for number in ports.numbers]
    nodes = []
    for at, address in enumerate(addresses):
        others = ",".join(other for other in addresses if other != address)
        line = [path, "-P", str(NODE), address, others, wanted, str(seconds)]
        nodes.append(Child(f"pysyncobj {at}", line, folder / f"node-{at}.log"))
    for node in nodes:
        node.start()
    try:
        return _await_results(nodes, READY_TIMEOUT_S + len(loads) * (seconds + 30))
    finally:
        for node in nodes:
            node.kill()


def _await_results(nodes: Sequence[Child], timeout_s: float) -> list[dict[str, Any]]:
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        for node in nodes:
            if not node.running:
                raise SystemExit(f"{node.name} ended: {node.last_words()}")
            lines = node.output().splitlines()
            if "done" in lines:
                return [json.loads(line.removeprefix("result ")) for line in lines if line.startswith("result ")]
        time.sleep(POLL_S)
    raise SystemExit("PySyncObj came to no end")
