"""Transfers and membership changes with a crash in them (FAULTS 21 to 23), and what they may cost."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from consensus.core.interface import NodeId, Status
from consensus.runtime.interface import Refused, Transferred
from consensus.simulation.administrator import _Goal
from consensus.simulation.faults import FaultKind
from consensus.simulation.node import SimulatedNode
from consensus.simulation.schedule import MS
from tests.simulation.single_fault import (
    SMALL_SNAPSHOTS,
    TIMEOUT_MS,
    Run,
    of_leader,
    prepare,
)


@pytest.mark.parametrize("dies", [False, True])
def test_fault_21_a_transfer_ends_within_an_election_timeout_also_when_the_target_dies(dies: bool) -> None:
    for seed in range(3):
        run = prepare(seed=seed)
        ended: list[tuple[int, object]] = []

        def hand_over(run: Run = run, ended: list[tuple[int, object]] = ended) -> None:
            leader, target = run.leader(), run.followers()[-1]

            def done(outcome: object) -> None:
                ended.append((run.now_ms, outcome))

            leader.later(0, "hands over", lambda: leader.handles[1].transfer(target.node, done))
            if dies:
                run.cluster.scheduler.after(300, lambda: target.kill("killed as it is to lead"))
                run.at(2000, target.start)

        run.at(1000, hand_over)
        run.run((1000, 2000))
        assert len(ended) == 1
        assert ended[0][0] <= 1000 + TIMEOUT_MS + 250, "an election timeout, and the drain before it"
        assert isinstance(ended[0][1], Refused if dies else Transferred)


def replacing(run: Run, old: Callable[[], NodeId], new: NodeId) -> None:
    """From 800 ms on the administrator gives the group a new member in place of an old one."""

    def order() -> None:
        administrator = run.cluster.administrator
        assert administrator is not None
        administrator.settle()  # it hurts nobody by chance
        configuration = run.cluster.roster.latest(1)
        made = {administrator._new_id(1): new}
        voters = tuple(voter for voter in configuration.voters if voter != old())
        administrator._begin(1, _Goal((*voters, *made), configuration.learners, made))

    run.at(800, order)


def in_force(status: Status, *, learners: bool, joint: bool, committed: bool) -> bool:
    """The new member is a learner, or a voter, in the joint or the final configuration."""
    configuration = status.configuration
    if configuration is None or learners != bool(configuration.learners) or joint != bool(configuration.outgoing):
        return False
    new = max(configuration.voters) > 65535
    return new != learners and committed == (status.commit_index >= status.configuration_index)


STAGES: dict[str, Callable[[Status], bool]] = {
    "learner": lambda status: in_force(status, learners=True, joint=False, committed=False),
    "learner, committed": lambda status: in_force(status, learners=True, joint=False, committed=True),
    "joint": lambda status: in_force(status, learners=False, joint=True, committed=False),
    "final": lambda status: in_force(status, learners=False, joint=False, committed=False),
    "final, committed": lambda status: in_force(status, learners=False, joint=False, committed=True),
}


def four_nodes_three_replicas(seed: int) -> Run:
    return prepare(seed=seed, nodes=4, replicas=3, load_ms=2500, options=SMALL_SNAPSHOTS)


@pytest.mark.parametrize("victim", ["leader", "new member"])
@pytest.mark.parametrize("stage", STAGES)
def test_fault_22_a_crash_at_each_stage_of_a_membership_change(stage: str, victim: str) -> None:
    power = len(stage) % 2
    run = four_nodes_three_replicas(seed=len(stage))
    struck: list[int] = []
    replacing(run, lambda: run.followers()[0].node, 4)

    def look() -> None:
        node = run.cluster.leader_of(1)
        status = run.status(run.cluster.nodes[node]) if node is not None else None
        if struck or status is None or not STAGES[stage](status):
            return
        struck.append(run.now_ms)
        hit = run.cluster.nodes[4] if victim == "new member" else run.leader()
        if power:
            hit.power_cut("struck")
        else:
            hit.kill("killed")
        run.cluster.scheduler.after(300 * MS, hit.start)

    run.watch(look, every_ms=1)
    run.run((800, 1800))
    assert struck
    assert run.report.counts["membership changes finished"] == 1
    assert max(run.cluster.roster.latest(1).voters) == 65536


def test_fault_22_the_leader_is_removed() -> None:
    run = four_nodes_three_replicas(seed=3)
    replacing(run, lambda: run.leader().node, 4)
    run.run((800, 2000))
    assert run.report.counts["membership changes finished"] == 1
    assert len(run.elections(800, 3500)) <= 2


def test_fault_22_a_dead_node_is_replaced() -> None:
    run = four_nodes_three_replicas(seed=4)
    dead: list[SimulatedNode] = []

    def strike() -> None:
        dead.append(run.followers()[0])
        dead[0].power_cut("dead")

    run.at(790, strike)
    replacing(run, lambda: dead[0].node, 4)

    def replaced() -> None:
        assert set(run.cluster.roster.latest(1).voters) == {1, 2, 3, 65536} - {dead[0].node}

    run.at(2400, replaced)
    run.run((800, 2000))


@pytest.mark.parametrize("seed", range(3))
def test_fault_23_a_wiped_disk_comes_back_under_a_new_replica_id(seed: int) -> None:
    run = prepare([of_leader(FaultKind.WIPE, 1200, 300)], seed=seed).run((1200, 1500), during=False)
    assert run.report.faults == {"wiped disk": 1}
    assert max(run.cluster.roster.latest(1).voters) >= 65536
    assert len(run.cluster.roster.latest(1).voters) == 3
