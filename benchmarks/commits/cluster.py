"""Three benchmark servers on loopback, and clients in processes of their own.

Owns folders, ports and command lines. Invariant: every process is reaped. Must not know: what is measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

from benchmarks.commits import wire
from paramserver.lab.ports import ReservedPorts
from paramserver.lab.processes import Child

ROOT = Path(__file__).resolve().parents[2]
READY_TIMEOUT_S = 30.0
POLL_S = 0.01
ASLEEP_POLL_S = 0.5
ASK_TIMEOUT_S = 1.0
WARM_UP_S_MAX = 1.0


class LoadFailed(SystemExit):
    """A client ended with an error: leadership changed, say."""


class Servers:
    """Nodes 1 to 3, each with `groups` groups."""

    def __init__(self, folder: Path, *, groups: int = 1, nodes: int = 3) -> None:
        self._ports = ReservedPorts(nodes)
        self.addresses = {node: f"{self._ports.host}:{port}" for node, port in enumerate(self._ports.numbers, start=1)}
        members = ",".join(f"{node}={address}" for node, address in self.addresses.items())
        self.nodes = {
            node: Child(
                f"server {node}",
                [
                    *(sys.executable, "-m", "benchmarks.commits.server", "--node", str(node)),
                    *("--members", members, "--data", str(folder / f"node-{node}"), "--groups", str(groups)),
                ],
                folder / f"server-{node}.log",
                environment={"PYTHONPATH": str(ROOT)},
            )
            for node in self.addresses
        }

    def __enter__(self) -> Servers:
        for server in self.nodes.values():
            server.start()
        for node in self.nodes:
            self.await_ready(node)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self.nodes.values():
            server.kill()
        self._ports.close()

    @property
    def pids(self) -> dict[int, int]:
        return {node: server.pid for node, server in self.nodes.items()}

    def await_ready(self, node: int) -> None:
        self.nodes[node].await_line(f"ready node={node} ", READY_TIMEOUT_S)

    def status(self, node: int) -> dict[str, Any] | None:
        """None when it does not answer."""
        return self._call(node, "Status", {})

    def transfer(self, node: int, to: int) -> dict[str, Any] | None:
        """Have `node`, which leads, hand over."""
        return self._call(node, "Transfer", {"to": to}, timeout_s=10.0)

    def _call(
        self, node: int, method: str, request: dict[str, Any], timeout_s: float = ASK_TIMEOUT_S
    ) -> dict[str, Any] | None:
        try:
            with grpc.insecure_channel(self.addresses[node]) as channel:
                call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{wire.SERVICE}/{method}")
                return wire.from_json(call(wire.to_json(request), timeout=timeout_s))
        except grpc.RpcError:
            return None

    def leader(self, timeout_s: float = 20.0) -> int:
        """The node that leads group 1 and serves, awaited."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            for node, server in self.nodes.items():
                answer = self.status(node) if server.running else None
                if answer is not None and answer["serves"]:
                    return node
            time.sleep(POLL_S)
        raise SystemExit(f"no leader within {timeout_s:g} s")

    def count(self, node: int) -> int:
        """Commands that the node has applied."""
        answer = self.status(node)
        if answer is None:
            raise SystemExit(f"node {node} does not answer")
        count: int = answer["count"]
        return count

    def await_leaders(self, groups: int, timeout_s: float = 30.0) -> None:
        """Until each group is led and served by somebody."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            answers = [self.status(node) for node in self.nodes]
            if sum(one["leads"] for one in answers if one is not None) == groups:
                return
            time.sleep(POLL_S)
        raise SystemExit(f"not every group had a leader within {timeout_s:g} s")

    def awake(self) -> int:
        """Groups that do not sleep, over all nodes."""
        answers = [self.status(node) for node in self.nodes]
        return sum(one["awake"] if one is not None else 1 for one in answers)

    def await_asleep(self, quiet_s: float, timeout_s: float = 120.0) -> float:
        """Until every group has slept for `quiet_s` at every node. Returns how long that took, seconds."""
        began_s = woke_s = time.monotonic()
        while time.monotonic() < began_s + timeout_s:
            if self.awake():
                woke_s = time.monotonic()
            elif time.monotonic() - woke_s >= quiet_s:
                return time.monotonic() - began_s
            time.sleep(ASLEEP_POLL_S)
        raise SystemExit(f"the groups did not fall asleep within {timeout_s:g} s")

    def await_equal(self, timeout_s: float = 30.0) -> None:
        """Until every node has applied as much as the leader had when it was asked."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            first = self.status(self.leader())
            answers = [self.status(node) for node in self.nodes]
            if first is not None and all(one is not None and one["applied"] >= first["applied"] for one in answers):
                return
            time.sleep(POLL_S)
        raise SystemExit(f"a node did not catch up within {timeout_s:g} s")


def load(mode: str, address: str, *, size: int, inflight: int, seconds: float) -> dict[str, Any]:
    """Run a client to its end. Raises `LoadFailed`."""
    line = [sys.executable, "-m", "benchmarks.commits.client", "--mode", mode, "--address", address]
    line += ["--size", str(size), "--inflight", str(inflight), "--seconds", str(seconds)]
    line += ["--warm-up", str(min(seconds, WARM_UP_S_MAX))]
    return last_json(line, timeout_s=seconds + 60)


def last_json(line: Sequence[str], *, timeout_s: float) -> dict[str, Any]:
    done = subprocess.run(line, capture_output=True, text=True, timeout=timeout_s, cwd=ROOT, check=False)
    if done.returncode != 0:
        raise LoadFailed(f"{' '.join(line)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
