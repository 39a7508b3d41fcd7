"""Replicas that are deleted beside another of their group, or whose log damage made nameless: nobody votes twice."""

from consensus.core.interface import HardState
from consensus.runtime.behind import Behind
from consensus.runtime.interface import Refused, ReplicaCreated, ReplicaDeleted
from consensus.storage.interface import Creation, GroupAppend
from consensus.storage.records import Kind, find_headers
from consensus.storage.segments import segment_numbers, segment_path
from tests.unit.runtime.cluster import Cluster
from tests.unit.runtime.test_runtime_damage import rot, stop
from tests.unit.runtime.test_runtime_members import LATER, delete, learner_of, with_a_learner


def test_a_replica_that_may_have_voted_does_not_begin_again_when_another_is_buried() -> None:
    """Seen to its end: else a majority would be made that forgot what was acknowledged."""
    cluster = Cluster()
    cluster.commit(b"zero")
    leader = cluster.leader()
    number, other = (node.runtime.node for node in cluster.followers())
    cluster.kill(other)
    cluster.commit(b"acknowledged")  # On the leader, and on `number`.
    stop(cluster, number)
    rot(cluster, number, Kind.HARD_STATE, last=True)
    node = cluster.restart(number)
    assert node.handle.core is None
    outcomes = delete(node, LATER)
    cluster.quiet()
    assert outcomes == [ReplicaDeleted(1, LATER)]
    assert node.runtime.groups[1].replica == number
    stop(cluster, number)
    cluster.kill(leader.runtime.node)
    cluster.restart(other)
    node = cluster.restart(number)
    cluster.run(3000)
    assert node.handle.core is None
    assert "paramserver node replace" in node.handle.problem
    assert [node for node in cluster.nodes.values() if node.handle is not None and node.handle.ready_to_serve] == []


def test_a_vote_that_rots_before_a_tombstone_of_another_is_missed() -> None:
    cluster = Cluster()
    cluster.commit(b"one", b"two")
    victim = cluster.followers()[0]
    number = victim.runtime.node
    delete(victim, LATER)
    cluster.quiet()
    stop(cluster, number)
    disk = cluster.disks[number]
    rotten = 0
    for segment in segment_numbers(disk, "wal"):
        path = segment_path("wal", segment)
        for header in find_headers(disk.read(path), 0, segment):
            if header.kind is Kind.HARD_STATE:
                disk.flip_bit(path, header.payload_offset)
                rotten += 1
    assert rotten
    assert cluster.restart(number).handle.core is None


def test_a_log_whose_creation_rotted_behind_a_tombstone_of_another_is_buried_for_good() -> None:
    """The situation of seed 552191: nothing is made on what is left, and group 0's order ends it."""
    cluster, joined = with_a_learner()
    delete(joined, LATER + 7)
    cluster.quiet()
    cluster.commit(b"three")
    stop(cluster, 4)
    rot(cluster, 4, Kind.CREATE)
    joined = cluster.restart(4)
    again = cluster.create(4, LATER, learner_of(1, 2, 3))
    cluster.quiet()
    assert [type(outcome) for outcome in again] == [Refused]
    buried = delete(joined, LATER)
    cluster.quiet()
    assert buried == [ReplicaDeleted(1, LATER)]
    created = cluster.create(4, LATER + 1, learner_of(1, 2, 3, replica=LATER + 1))
    cluster.quiet()
    assert created == [ReplicaCreated(1, LATER + 1)]


def test_another_is_buried_while_one_is_made_and_while_one_is_deleted() -> None:
    cluster = Cluster()
    joined = cluster.join(4)
    joined.writer.held = True
    created = cluster.create(4, LATER, learner_of(1, 2, 3))
    other, own = delete(joined, LATER + 1), delete(joined, LATER)
    assert isinstance(own[0], Refused)
    assert own[0].busy
    joined.writer.held = False
    cluster.quiet()
    assert (created, other) == ([ReplicaCreated(1, LATER)], [ReplicaDeleted(1, LATER + 1)])
    joined.lanes.held.add("apply")
    own, other = delete(joined, LATER), delete(joined, LATER + 2)
    cluster.run(20)
    assert (own, other) == ([], [ReplicaDeleted(1, LATER + 2)])
    joined.lanes.held.clear()
    cluster.run(20)
    assert own == [ReplicaDeleted(1, LATER)]
    cluster.crash(4)
    joined = cluster.restart(4)
    assert joined.runtime.creations == {}
    assert all(joined.runtime.deleted(1, LATER + more) for more in range(3))


def test_the_term_of_a_new_replica_is_synced_though_the_one_before_it_had_the_same() -> None:
    """RULES W8: what another replica of the group promised was not promised by this one."""
    behind = Behind()
    term = GroupAppend(group=1, hard_state=HardState(5, 0, 0))
    assert not behind.may_follow([term])
    assert behind.may_follow([term])
    assert not behind.may_follow([GroupAppend(group=1, tombstone=65_540)])
    assert not behind.may_follow([GroupAppend(group=1, create=Creation(65_541, learner_of(1, replica=65_541)))])
    assert not behind.may_follow([term])
