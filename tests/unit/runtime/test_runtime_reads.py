"""Read indexes and transfers through the runtime: answered once, and only by state that has got there."""

from typing import Any

import pytest

from consensus.core.interface import Configuration, ReadResult, Role, Status
from consensus.runtime import RuntimeOptions
from consensus.runtime.interface import Committed, ReadIndex, Refused, Transferred
from consensus.runtime.requests import Reads, Transfers
from tests.unit.runtime.cluster import Cluster, Node


def read(node: Node) -> list[Any]:
    outcomes: list[Any] = []
    node.handle.read_index(outcomes.append)
    return outcomes


def transfer(node: Node, replica: int) -> list[Any]:
    outcomes: list[Any] = []
    node.handle.transfer(replica, outcomes.append)
    return outcomes


# --- reads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["leader", "follower"])
def test_a_read_is_answered_when_the_state_here_has_got_there(asked: str) -> None:
    cluster = Cluster()
    leader = cluster.leader()
    node = leader if asked == "leader" else cluster.followers()[0]
    node.lanes.held.add("apply")
    cluster.propose(b"one", at=leader)
    cluster.run(50)
    outcomes = read(node)
    cluster.run(100)
    assert outcomes == []
    node.lanes.held.clear()
    cluster.run(50)
    (answer,) = outcomes
    assert isinstance(answer, ReadIndex)
    assert answer.index == 2
    assert node.machine.commands == [b"one"]
    assert 0 <= answer.age_ms <= 150


def test_reads_wake_a_group_that_sleeps() -> None:
    cluster = Cluster()
    cluster.until(lambda: all(node.handle.asleep for node in cluster.nodes.values()), ms=10_000)
    outcomes = [read(node) for node in cluster.nodes.values()]
    cluster.run(100)
    assert [type(one[0]) for one in outcomes] == [ReadIndex] * 3


def test_a_read_that_nobody_can_confirm_is_refused_once() -> None:
    cluster = Cluster()
    leader = cluster.leader()
    for node in cluster.members:
        if node != leader.runtime.node:
            cluster.network.cut(leader.runtime.node, node)
    outcomes = read(leader)
    cluster.run(1000)
    (refused,) = outcomes
    assert isinstance(refused, Refused)
    assert refused.reason
    cluster.network.heal()
    cluster.run(1000)
    assert len(outcomes) == 1


def test_a_read_before_anybody_leads_is_refused_at_once() -> None:
    cluster = Cluster()
    assert [type(outcome) for outcome in read(cluster.nodes[2])] == [Refused]


def test_reads_that_wait_are_bounded_and_answered_when_the_node_stops() -> None:
    cluster = Cluster(options=RuntimeOptions(reads_max=3))
    leader = cluster.leader()
    outcomes = [read(leader) for _ in range(4)]
    assert [type(one[0]).__name__ if one else "" for one in outcomes] == ["", "", "", "Refused"]
    assert outcomes[3][0].busy
    leader.runtime.stop()
    assert [len(one) for one in outcomes] == [1, 1, 1, 1]
    assert [type(outcome) for outcome in read(leader)] == [Refused]


def test_an_answer_nobody_waits_for_is_no_harm() -> None:
    reads = Reads()
    reads.answered(ReadResult(5, index=1), applied_index=9, refused=Refused(0, 0))
    assert len(reads) == 0


# --- transfers ------------------------------------------------------------------------------------------------------


def test_leadership_is_handed_over_and_proposals_go_on_there() -> None:
    cluster = Cluster()
    leader, target = cluster.leader(), cluster.followers()[1]
    pending = [cluster.propose(b"%d" % number, at=leader) for number in range(20)]
    outcomes = transfer(leader, target.handle.replica)
    during = cluster.propose(b"meanwhile", at=leader)
    assert isinstance(during[0], Refused)
    assert during[0].busy
    cluster.run(50)
    assert outcomes == [Transferred(target.handle.replica, target.handle.leader()[2])]
    assert cluster.leader() is target
    assert all(isinstance(one[0], Committed) for one in pending)
    cluster.commit(b"after")
    assert target.machine.commands[-1] == b"after"


def test_asking_for_the_same_transfer_twice_is_one_transfer() -> None:
    cluster = Cluster()
    leader, target = cluster.leader(), cluster.followers()[0].handle.replica
    outcomes = [transfer(leader, target), transfer(leader, target)]
    other = transfer(leader, cluster.followers()[1].handle.replica)
    assert isinstance(other[0], Refused)
    assert other[0].busy
    cluster.run(50)
    assert outcomes[0] == outcomes[1]
    assert isinstance(outcomes[0][0], Transferred)


def test_who_leads_already_is_told_so() -> None:
    cluster = Cluster()
    leader = cluster.leader()
    assert transfer(leader, leader.handle.replica) == [Transferred(leader.handle.replica, leader.handle.leader()[2])]


@pytest.mark.parametrize(("replica", "words"), [(9, "no member"), (2, "not connected")])
def test_who_can_not_take_over_is_refused_with_the_reason(replica: int, words: str) -> None:
    cluster = Cluster()
    leader = cluster.leader()
    cluster.kill(2)
    (refused,) = transfer(leader, replica)
    assert isinstance(refused, Refused)
    assert words in refused.reason
    assert cluster.leader() is leader


def test_a_transfer_at_a_follower_is_refused_with_the_leader() -> None:
    cluster = Cluster()
    leader = cluster.leader()
    (refused,) = transfer(cluster.followers()[0], 2)
    assert (type(refused), refused.leader) == (Refused, leader.handle.replica)


def test_a_transfer_that_comes_to_nothing_is_given_up_and_the_leader_leads_on() -> None:
    cluster = Cluster()
    leader, target = cluster.leader(), cluster.followers()[0]
    cluster.network.cut(leader.runtime.node, target.runtime.node)
    outcomes = transfer(leader, target.handle.replica)
    cluster.run(600)
    (refused,) = outcomes
    assert isinstance(refused, Refused)
    assert "did not take over" in refused.reason
    assert cluster.leader() is leader
    cluster.network.heal()
    cluster.commit(b"on")


def test_a_transfer_that_waits_gets_an_outcome_when_the_node_stops() -> None:
    cluster = Cluster()
    outcomes = transfer(cluster.leader(), cluster.followers()[0].handle.replica)
    cluster.leader().runtime.stop()
    assert [type(outcome) for outcome in outcomes] == [Refused]


def status(**changes: Any) -> Status:
    values: dict[str, Any] = {
        "role": Role.FOLLOWER,
        "term": 4,
        "leader": 0,
        "vote": 0,
        "first_index": 1,
        "last_index": 1,
        "last_term": 1,
        "flushed_index": 1,
        "commit_index": 1,
        "applied_index": 1,
        "snapshot_index": 0,
        "ready_to_serve": False,
        "configuration": Configuration((1, 2, 3)),
    }
    return Status(**(values | changes))


@pytest.mark.parametrize(
    ("seen", "elapsed", "outcome"),
    [
        (status(leader=2, term=5), 0, Transferred(2, 5)),
        (status(leader=3, term=5), 0, Refused(3, 5, reason="replica 3 leads instead")),
        (status(term=5), 999, None),
        (status(term=5), 1000, Refused(0, 5, reason="no new leader is known yet")),
        (status(role=Role.LEADER, leader=1, transferee=2), 300, None),
    ],
    ids=["the target", "another", "nobody yet", "nobody for long", "under way"],
)
def test_what_a_transfer_comes_to(seen: Status, elapsed: int, outcome: Any) -> None:
    outcomes: list[Any] = []
    transfers = Transfers()
    transfers.add(2, 4, outcomes.append)
    transfers.tick(elapsed)
    transfers.settle(seen, give_up_ms=1000)
    assert outcomes == ([outcome] if outcome is not None else [])
