"""A node comes back with an empty disk (FAULTS 23, RULES I1, I2): none of its old replicas runs again; its groups are
whole again when an order made it new ones, and nothing acknowledged is lost meanwhile."""

import pytest

from consensus.runtime import NodeRuntime
from consensus.simulation.cluster import Cluster
from consensus.simulation.faults import Fault, FaultKind
from consensus.simulation.node import GroupSpec, SimulatedNode
from consensus.simulation.report import Report
from consensus.simulation.run import run_seed
from consensus.storage.interface import Recovery


def run(seed: int) -> Report:
    wipes = [Fault(at_ms=at_ms, kind=FaultKind.WIPE, nodes=(1 + at_ms // 900 % 3,), for_ms=50) for at_ms in (900, 3600)]
    kills = [Fault(at_ms=at_ms, kind=FaultKind.KILL, leader_of=1, for_ms=400) for at_ms in (940, 3640)]
    return run_seed(seed, plan=[*wipes, *kills], size=(4, 1, 3))


def test_a_wiped_node_never_runs_its_old_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    came_back: list[int] = []
    running = Cluster.running

    def look(self: Cluster, node: SimulatedNode) -> None:
        running(self, node)
        if node.wipes:
            old = {spec.replica_on(node.node) for spec in self.groups}
            came_back.append(node.node)
            assert not {handle.replica for handle in node.handles.values()} & old

    monkeypatch.setattr(Cluster, "running", look)
    wiped = 0
    for seed in range(6):
        report = run(seed)
        report.raise_if_failed()
        wiped += report.faults["wiped disk"]
    assert wiped >= 6
    assert came_back


def test_one_that_did_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    add = SimulatedNode._add_group

    def under_its_old_identity(self: SimulatedNode, runtime: NodeRuntime, recovery: Recovery, spec: GroupSpec) -> None:
        wipes, self.wipes = self.wipes, 0
        add(self, runtime, recovery, spec)
        self.wipes = wipes

    monkeypatch.setattr(SimulatedNode, "_add_group", under_its_old_identity)
    assert any(not run(seed).ok for seed in range(20))
