"""Our cluster with links between its nodes that delay what goes over them.

Every node is reached through a process that forwards: members are told the forwarder's address, the node listens
elsewhere. Connections that another node opened are delayed, both ways; those of workers are passed on as they are.
Owns the forwarders. Must not know: what goes over the links, rows.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.pushpull.case import Case
from benchmarks.pushpull.ours import OurOptions, Ours
from paramserver.lab.cluster import Cluster, ServerOptions
from paramserver.lab.ports import ReservedPorts
from paramserver.lab.processes import Child

READY_TIMEOUT_S = 30.0


class LinkedCluster(Cluster):
    """Servers whose `--members` names forwarders."""

    def __init__(self, nodes: int, *, folder: Path, options: ServerOptions, delay_ms: float) -> None:
        self._behind = ReservedPorts(nodes)
        self._delay_ms = delay_ms
        super().__init__(nodes, folder=folder, options=options)
        self.forwarders: dict[int, Child] = {}

    def listens(self, node: int) -> str:
        return f"{self._behind.host}:{self._behind.numbers[node - 1]}"

    def start(self, *, wait: bool = True) -> None:
        for node, address in self.addresses.items():
            line = [sys.executable, "-m", "benchmarks.pushpull.forwarder", "--listen", address]
            line += ["--to", self.listens(node), "--delay-ms", str(self._delay_ms)]
            self.forwarders[node] = self.start_child(f"link {node}", line, self.options.environment)
        for forwarder in self.forwarders.values():
            forwarder.await_line("ready", READY_TIMEOUT_S)
        super().start(wait=wait)

    def close(self) -> None:
        super().close()
        self._behind.close()

    def _server_command(self, node: int) -> list[str]:
        return [*super()._server_command(node), "--listen", self.listens(node)]


class OursThroughLinks(Ours):
    """`cpu_s_per_gb` holds what the forwarders use, too."""

    def __init__(self, case: Case, options: OurOptions, *, delay_ms: float) -> None:
        super().__init__(case, options)
        self._delay_ms = delay_ms
        self.note = "through forwarding processes on the same two cores"

    def new_cluster(self, options: ServerOptions) -> Cluster:
        folder = self.folder / "cluster"
        return LinkedCluster(self.options.replicas, folder=folder, options=options, delay_ms=self._delay_ms)
