"""A majority is gone and comes back (FAULTS 3): writes get an outcome that says so, linearizable reads are refused,
bounded ones say how old they are or that nobody can say; it goes on by itself, and nothing acknowledged is lost."""

import pytest

from consensus.core.interface import Role
from consensus.runtime.interface import Committed, Outcome, ReadIndex, ReadOutcome, Refused, Unknown
from tests.unit.runtime.cluster import Cluster, Node


def read(node: Node) -> list[ReadOutcome]:
    outcomes: list[ReadOutcome] = []
    node.handle.read_index(outcomes.append)
    return outcomes


def without_majority(*, of: str) -> tuple[Cluster, Node, list[Outcome]]:
    """A cluster of which one node is left, the leader or a follower, with what was proposed last to the leader."""
    cluster = Cluster()
    cluster.commit(*(b"%d" % number for number in range(20)))
    leader = cluster.leader()
    left = leader if of == "leader" else cluster.followers()[0]
    for node in list(cluster.nodes):
        if node != left.runtime.node:
            cluster.crash(node)
    return cluster, left, cluster.propose(b"while it broke", at=left)


def test_the_leader_that_is_left_takes_no_writes_and_says_so() -> None:
    cluster, left, on_their_way = without_majority(of="leader")
    cluster.run(1000)
    assert left.handle.status().core.role is not Role.LEADER  # type: ignore[union-attr]
    assert [type(outcome) for outcome in on_their_way] == [Unknown], "never acknowledged, never called absent"
    (refused,) = cluster.propose(b"later", at=left)
    assert isinstance(refused, Refused)
    assert refused.leader == 0, "there is nobody to go to"


@pytest.mark.parametrize("of", ["leader", "follower"])
def test_no_read_is_answered_as_if_it_were_fresh(of: str) -> None:
    """Linearizable reads and `bounded(d)` alike ask for an index with an age; neither is to be had."""
    cluster, left, _ = without_majority(of=of)
    early = read(left)
    cluster.run(1000)
    late = read(left)
    cluster.run(1000)
    for outcomes in (early, late):
        (outcome,) = outcomes
        assert isinstance(outcome, Refused)
        assert outcome.reason
    assert left.machine.commands == [b"%d" % number for number in range(20)], "the state itself can still be looked at"


def test_a_bounded_read_tells_the_age_of_what_the_leader_knew() -> None:
    """RULES R3: the age counts from when the confirming round was sent, and is what the caller's bound is held
    against: never less than what really passed since a majority was heard."""
    cluster = Cluster()
    cluster.commit(b"x")
    leader, follower = cluster.leader(), cluster.followers()[0]
    outcomes = read(follower)
    asked = cluster.clock.now
    cluster.run(200)
    (answer,) = outcomes
    assert isinstance(answer, ReadIndex)
    assert 0 <= answer.age_ms <= cluster.clock.now - asked
    assert answer.index <= follower.handle.status().core.applied_index  # type: ignore[union-attr]
    for node in cluster.members:
        if node != leader.runtime.node:
            cluster.network.cut(leader.runtime.node, node)
    stale = read(leader)
    cluster.run(5000)
    assert [type(outcome) for outcome in stale] == [Refused], "whatever bound: nobody confirmed it"


@pytest.mark.parametrize("of", ["leader", "follower"])
def test_it_goes_on_by_itself_and_has_all_that_was_acknowledged(of: str) -> None:
    cluster, left, on_their_way = without_majority(of=of)
    cluster.run(3000)
    for node in cluster.members:
        if node != left.runtime.node:
            cluster.restart(node)
    cluster.run(2000)
    outcomes = cluster.propose(b"after")
    cluster.run(500)
    assert isinstance(outcomes[0], Committed)
    (logs,) = {tuple(node.machine.commands) for node in cluster.nodes.values()}
    assert logs[:20] == tuple(b"%d" % number for number in range(20))
    assert logs.count(b"while it broke") <= 1
    assert logs[-1] == b"after"
    assert not any(isinstance(outcome, Committed) for outcome in on_their_way)
    answers = read(cluster.followers()[0])
    cluster.run(200)
    assert isinstance(answers[0], ReadIndex)
