"""How long a change of leader is felt by a client that always has one command on its way.

Owns the kills, the planned transfers, and what of the probe's record belongs to which. Must not know: how fast commands
are otherwise.
"""

from __future__ import annotations

import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.commits import probe
from benchmarks.commits.cluster import ROOT, Servers
from benchmarks.common import results
from consensus.core.interface import NodeId
from paramserver.lab.processes import Child

COMMITS_BETWEEN = 50
"""Of the probe, before the next kill or transfer."""
WAIT_S = 30.0
POLL_S = 0.002


class Watched:
    """Servers, and a probe of them."""

    def __init__(self, folder: Path, servers: Servers) -> None:
        self.servers = servers
        self._record = folder / "probe.record"
        text = ",".join(f"{node}={address}" for node, address in servers.addresses.items())
        line = [sys.executable, "-m", "benchmarks.commits.probe", "--addresses", text, "--record", str(self._record)]
        self._child = Child("probe", line, folder / "probe.log", environment={"PYTHONPATH": str(ROOT)})

    def __enter__(self) -> Watched:
        self._child.start()
        self.await_commits(time.monotonic(), COMMITS_BETWEEN)
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()

    def since(self, at_s: float) -> list[tuple[float, NodeId]]:
        return [(seen_s, node) for seen_s, node in probe.read(self._record) if seen_s > at_s]

    def await_commits(self, after_s: float, count: int, but: NodeId = 0) -> list[tuple[float, NodeId]]:
        """The first commits after that time that another node than `but` answered."""
        deadline_s = time.monotonic() + WAIT_S
        while time.monotonic() < deadline_s:
            found = [one for one in self.since(after_s) if one[1] != but]
            if len(found) >= count:
                return found[:count]
            if not self._child.running:
                raise SystemExit(f"the probe ended: {self._child.last_words()}")
            time.sleep(POLL_S)
        raise SystemExit(f"no {count} commits within {WAIT_S:g} s")


def kills(folder: Path, count: int) -> dict[str, Any]:
    """From the kill -9 of the leader to the first commit that another node answers."""
    gaps_ms: list[float] = []
    with Servers(folder) as servers, Watched(folder, servers) as watched:
        for _ in range(count):
            leader = watched.await_commits(time.monotonic(), COMMITS_BETWEEN)[-1][1]
            killed_s = servers.nodes[leader].kill()
            first_s, _ = watched.await_commits(killed_s, 1, but=leader)[0]
            gaps_ms.append((first_s - killed_s) * 1000)
            servers.nodes[leader].start()
            servers.await_ready(leader)
            servers.await_equal()
    return summary(gaps_ms)


def transfers(folder: Path, count: int) -> dict[str, Any]:
    """The longest time between two commits in a row around a planned transfer."""
    gaps_ms: list[float] = []
    problems: list[str] = []
    with Servers(folder) as servers, Watched(folder, servers) as watched:
        for turn in range(count):
            now_s = time.monotonic()
            before = watched.await_commits(now_s, COMMITS_BETWEEN)
            leader = before[-1][1]
            others = sorted(set(servers.nodes) - {leader})
            answer = servers.transfer(leader, others[turn % len(others)])
            if answer is None or not answer["transferred"]:
                problems.append(str(answer))
                continue
            watched.await_commits(time.monotonic(), COMMITS_BETWEEN)
            times = [at_s for at_s, _ in watched.since(before[0][0])]
            gaps_ms.append(max(after - one for one, after in pairwise(times)) * 1000)
    return {**summary(gaps_ms), "refused": problems}


def summary(gaps_ms: list[float]) -> dict[str, Any]:
    return {
        "count": len(gaps_ms),
        "median_ms": results.percentile(gaps_ms, 0.5),
        "p90_ms": results.percentile(gaps_ms, 0.9),
        "worst_ms": round(max(gaps_ms), 2) if gaps_ms else None,
        "gaps_ms": [round(one, 1) for one in gaps_ms],
    }
