"""A replica that lost something of its disk: marked, filled anew by its leader, whole again (RULES W7, FAULTS 7, 8)."""

import random

from consensus.core.interface import Role
from consensus.storage.interface import Identity
from consensus.storage.lastresort import accept_loss
from consensus.storage.options import WalOptions
from consensus.storage.records import Kind, find_headers
from consensus.storage.segments import segment_numbers, segment_path
from tests.unit.runtime.cluster import CLUSTER, SEGMENT_BYTES, Cluster, Node


def commands(count: int) -> list[bytes]:
    return [b"%04d" % number for number in range(count)]


def rot(cluster: Cluster, number: int, kind: Kind, *, last: bool = False) -> None:
    """A bit of a payload of that kind flips in the newest segment of the node, which is down."""
    disk = cluster.disks[number]
    hits = [
        (segment_path("wal", segment), header)
        for segment in segment_numbers(disk, "wal")
        for header in find_headers(disk.read(segment_path("wal", segment)), 0, segment)
        if header.kind is kind and header.length
    ]
    path, header = hits[-1 if last else 0]
    disk.flip_bit(path, header.payload_offset)


def stop(cluster: Cluster, number: int) -> None:
    """A clean stop, so that the last batch is covered: damage of it is no tear."""
    cluster.nodes[number].writer.wal.close()  # type: ignore[attr-defined]
    cluster.kill(number)


def status(node: Node):  # type: ignore[no-untyped-def]
    core = node.handle.status().core
    assert core is not None
    return core


def a_stopped_follower(cluster: Cluster) -> int:
    cluster.commit(*commands(20))
    number = cluster.followers()[0].runtime.node
    stop(cluster, number)
    return number


def test_lost_entries_are_refilled_and_until_then_nobody_counts_it() -> None:
    cluster = Cluster()
    number = a_stopped_follower(cluster)
    other = cluster.followers()[0].runtime.node
    cluster.kill(other)
    rot(cluster, number, Kind.ENTRY)
    cluster.run(1000)
    node = cluster.restart(number)
    assert status(node).forgetful
    cluster.run(1000)
    assert not any(each.handle.ready_to_serve for each in cluster.nodes.values()), "one sound voter of three"
    assert status(node).role is Role.FOLLOWER
    cluster.restart(other)
    cluster.run(1500)
    assert not status(node).forgetful
    assert node.machine.commands == cluster.leader().machine.commands == commands(20)
    stop(cluster, number)
    assert not status(cluster.restart(number)).forgetful, "the mark ended durably"


def test_the_mark_outlives_a_crash_before_the_refill() -> None:
    """By then nothing else tells: the damaged segment is gone."""
    cluster = Cluster()
    number = a_stopped_follower(cluster)
    rot(cluster, number, Kind.ENTRY)
    for life in range(3):
        node = cluster.start(number)
        assert status(node).forgetful, life
        del cluster.nodes[number]
        cluster.disks[number].crash(random.Random(life))
    cluster.restart(number)
    cluster.run(1500)
    assert cluster.nodes[number].machine.commands == commands(20)


def test_a_lost_vote_keeps_it_from_running_and_names_the_repair() -> None:
    cluster = Cluster()
    number = a_stopped_follower(cluster)
    rot(cluster, number, Kind.HARD_STATE, last=True)
    node = cluster.restart(number)
    assert node.handle.core is None
    assert "paramserver node replace" in node.handle.problem
    cluster.commit(b"more")
    assert cluster.leader().machine.commands[-1] == b"more"


def snapshot_everywhere(cluster: Cluster) -> None:
    for node in cluster.nodes.values():
        node.handle.want_snapshot()
    cluster.run(200)


def rot_snapshot(cluster: Cluster, number: int) -> None:
    disk = cluster.disks[number]
    folder = "snapshots/group-1"
    (name,) = disk.listdir(folder)
    disk.flip_bit(f"{folder}/{name}", 50)


def test_a_rotten_snapshot_is_made_a_mark_and_filled_anew() -> None:
    cluster = Cluster()
    cluster.commit(*commands(20))
    snapshot_everywhere(cluster)
    number = cluster.followers()[0].runtime.node
    stop(cluster, number)
    rot_snapshot(cluster, number)
    node = cluster.restart(number)
    cluster.quiet()
    assert status(node).forgetful
    cluster.run(2000)
    assert not status(node).forgetful
    assert node.machine.commands == commands(20)
    stop(cluster, number)
    node = cluster.restart(number)
    cluster.run(200)
    assert node.machine.commands == commands(20)
    assert not status(node).forgetful


def test_a_rotten_snapshot_is_marked_before_the_replica_speaks() -> None:
    """Killed between the start and the refill: the next start must not believe what is left of the log."""
    cluster = Cluster()
    cluster.commit(*commands(20))
    snapshot_everywhere(cluster)
    number = cluster.followers()[0].runtime.node
    stop(cluster, number)
    rot_snapshot(cluster, number)
    node = cluster.start(number)
    node.writer.held = True
    while node.lanes.work():
        pass
    assert node.handle.core is None, "it does not run before the mark is durable"
    node.writer.held = False
    node.writer.work()
    assert status(node).forgetful
    del cluster.nodes[number]
    cluster.disks[number].crash(random.Random(3))
    assert status(cluster.start(number)).forgetful


def a_forgetful_majority(cluster: Cluster) -> dict[int, int]:
    """Two of three lost the last of 20 entries, and are up again; the last index that each holds."""
    cluster.commit(*commands(20))
    hit = [cluster.leader().runtime.node, cluster.followers()[0].runtime.node]
    for number in hit:
        stop(cluster, number)
        rot(cluster, number, Kind.ENTRY, last=True)
    for number in hit:
        cluster.restart(number)
    cluster.run(3000)
    assert all(status(cluster.nodes[number]).forgetful for number in hit)
    return {number: status(cluster.nodes[number]).last_index for number in hit}


def accept(cluster: Cluster, number: int, index: int) -> None:
    identity = Identity(cluster=CLUSTER, node=number, node_uuid=bytes([number]) * 16)
    options = WalOptions(segment_bytes=SEGMENT_BYTES, reserve_bytes=SEGMENT_BYTES)
    accept_loss(cluster.disks[number], ".", identity, Cluster.GROUP, index, options)


def test_a_forgetful_majority_stands_still_until_an_operator_names_the_loss() -> None:
    cluster = Cluster()
    last = a_forgetful_majority(cluster)
    assert not any(each.handle.ready_to_serve for each in cluster.nodes.values())
    number, other = last
    stop(cluster, number)
    accept(cluster, number, last[number])
    node = cluster.restart(number)
    assert not status(node).forgetful
    cluster.commit(b"more")
    cluster.until(lambda: not status(cluster.nodes[other]).forgetful)
    # The third one lost nothing, so neither did the group.
    assert [each.machine.commands for each in cluster.nodes.values()] == [[*commands(20), b"more"]] * 3


def test_without_a_sound_replica_what_was_accepted_as_lost_is_lost_everywhere() -> None:
    cluster = Cluster()
    third = cluster.followers()[1].runtime.node
    last = a_forgetful_majority(cluster)
    cluster.kill(third)
    for number, index in last.items():
        stop(cluster, number)
        accept(cluster, number, index)
        cluster.restart(number)
    cluster.commit(b"more")
    cluster.restart(third)
    cluster.run(1500)
    assert [each.machine.commands for each in cluster.nodes.values()] == [[*commands(19), b"more"]] * 3
