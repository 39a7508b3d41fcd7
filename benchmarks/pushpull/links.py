"""Our cluster with links between its nodes that delay what goes over them: the laboratory's.

What servers say to each other is delayed, both ways; what workers say is not. Must not know: what goes over the links,
rows.
"""

from __future__ import annotations

from benchmarks.pushpull.case import Case
from benchmarks.pushpull.ours import OurOptions, Ours
from paramserver.lab.cluster import Cluster, ServerOptions


class OursThroughLinks(Ours):
    """`cpu_s_per_gb` holds what forwarding uses, too."""

    def __init__(self, case: Case, options: OurOptions, *, delay_ms: float) -> None:
        super().__init__(case, options)
        self._delay_ms = delay_ms
        self.note = "through a forwarding process on the same two cores"

    def new_cluster(self, options: ServerOptions) -> Cluster:
        return Cluster(self.options.replicas, folder=self.folder / "cluster", options=options, links=True)

    def start(self) -> None:
        super().start()
        self.cluster.links.all().delay(self._delay_ms)
