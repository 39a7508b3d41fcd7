"""A full disk through the runtime: commands are refused before the core or the disk is touched, everything else goes
on, and it clears by itself (RULES W5, FAULTS 10)."""

from consensus.core.interface import Role
from consensus.runtime.interface import Committed, ReadIndex, Refused
from tests.unit.runtime.cluster import SEGMENT_BYTES, Cluster, Node

COMMAND = bytes(4000)


def fill(cluster: Cluster, *nodes: Node) -> None:
    """No more space on these nodes' disks; commands until they notice."""
    for node in nodes:
        disk = cluster.disks[node.runtime.node]
        disk.faults.capacity_bytes = disk.used_bytes()
    for _ in range(4 * SEGMENT_BYTES // len(COMMAND)):
        if all(node.writer.full() for node in nodes):
            return
        cluster.propose(COMMAND)
        cluster.quiet()
    raise AssertionError("the disk never gets full")


def clear(cluster: Cluster) -> None:
    for disk in cluster.disks.values():
        disk.faults.capacity_bytes = 1 << 40


def test_commands_are_refused_and_all_else_goes_on() -> None:
    cluster = Cluster()
    leader = cluster.leader()
    cluster.commit(b"before")
    fill(cluster, *cluster.nodes.values())
    term = leader.handle.status().core.term  # type: ignore[union-attr]
    last = leader.handle.status().core.last_index  # type: ignore[union-attr]
    outcomes = cluster.propose(COMMAND, leader)
    assert outcomes == [Refused(leader.handle.replica, term, full=True, reason="the disk is full")]
    assert leader.handle.status().core.last_index == last  # type: ignore[union-attr]
    cluster.run(2000)
    assert cluster.leader() is leader, "heartbeats go on, and a full disk is no stalled one"
    reads: list[object] = []
    leader.handle.read_index(reads.append)
    cluster.run(100)
    assert isinstance(reads[0], ReadIndex)


def test_leaders_are_elected_on_full_disks() -> None:
    """Votes and no-ops go to the reserve."""
    cluster = Cluster()
    leader = cluster.leader()
    fill(cluster, *cluster.nodes.values())
    cluster.run(200)
    before = {node.runtime.node: len(node.machine.commands) for node in cluster.nodes.values()}
    for _ in range(3):
        number = leader.runtime.node
        for other in set(cluster.members) - {number}:
            cluster.network.cut(number, other)
        cluster.run(1500)
        cluster.network.heal()
        cluster.run(500)
        assert cluster.leader() is not leader
        leader = cluster.leader()
        assert isinstance(cluster.propose(COMMAND, leader)[0], Refused)
    assert {node.runtime.node: len(node.machine.commands) for node in cluster.nodes.values()} == before


def test_it_clears_when_space_returns() -> None:
    cluster = Cluster()
    leader = cluster.leader()
    fill(cluster, *cluster.nodes.values())
    clear(cluster)
    cluster.run(100)
    outcomes = cluster.propose(b"after", leader)
    cluster.run(300)
    assert isinstance(outcomes[0], Committed)
    assert len({tuple(node.machine.commands) for node in cluster.nodes.values()}) == 1


def test_one_full_follower_holds_up_nobody_and_catches_up() -> None:
    cluster = Cluster()
    leader = cluster.leader()
    follower = cluster.followers()[0]
    fill(cluster, follower)
    for _ in range(30):
        outcomes = cluster.propose(COMMAND, leader)
        cluster.run(20)
        assert isinstance(outcomes[0], Committed)
    assert follower.runtime.dropped["disk_full"]
    assert follower.handle.status().core.role is Role.FOLLOWER  # type: ignore[union-attr]
    clear(cluster)
    cluster.run(1500)
    assert follower.machine.commands == leader.machine.commands


def test_a_full_leader_with_sound_followers_refuses_and_what_it_took_is_committed() -> None:
    cluster = Cluster()
    leader = cluster.leader()
    fill(cluster, leader)
    assert isinstance(cluster.propose(COMMAND, leader)[0], Refused)
    cluster.run(300)
    assert len({tuple(node.machine.commands) for node in cluster.nodes.values()}) == 1


def test_what_was_acknowledged_on_the_way_to_a_full_disk_outlives_a_power_cut() -> None:
    cluster = Cluster()
    cluster.commit(b"before")
    fill(cluster, *cluster.nodes.values())
    cluster.run(200)
    held = [tuple(node.machine.commands) for node in cluster.nodes.values()]
    for node in list(cluster.nodes):
        cluster.crash(node)
    clear(cluster)
    for node in cluster.members:
        cluster.restart(node)
    cluster.leader()
    cluster.run(300)
    assert {tuple(node.machine.commands) for node in cluster.nodes.values()} == set(held)
