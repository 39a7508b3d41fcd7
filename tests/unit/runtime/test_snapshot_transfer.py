"""A transfer goes on where it broke off, whoever restarted; and ends, whatever is sent (FAULTS 24, bad input 18)."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from consensus.runtime import RuntimeOptions
from consensus.storage.checksum import crc32c
from consensus.storage.memory import MemoryFileSystem
from consensus.storage.snapshots import CHUNK_BYTES
from consensus.transport.interface import Envelope, SnapshotAnswer, SnapshotChunk, SnapshotRequest
from tests.unit.runtime.cluster import Cluster, Node
from tests.unit.runtime.test_runtime_snapshots import SMALL, agree, behind, numbered

NARROW = RuntimeOptions(snapshot_log_bytes_min=2000, keep_bytes_max=0, transfer_window_chunks=1)


class Wire:
    """Sees, and may change, the chunks that arrive at a node."""

    def __init__(self, cluster: Cluster, node: Node) -> None:
        self.chunks: list[SnapshotChunk] = []
        self.stop_at = 1 << 60
        """Chunks from this offset on are lost."""
        self.change: Callable[[SnapshotChunk], list[SnapshotChunk]] = lambda chunk: [chunk]
        self._received = node.runtime.received
        node.runtime.received = self.received  # type: ignore[method-assign]
        cluster.network.join(node.runtime.node, node.runtime)

    def received(self, sender: int, envelopes: Any) -> None:
        out: list[Envelope] = []
        for envelope in envelopes:
            message = envelope.message
            if not isinstance(message, SnapshotChunk):
                out.append(envelope)
            elif message.offset < self.stop_at:
                self.chunks.append(message)
                out += [Envelope(envelope.group, chunk) for chunk in self.change(message)]
        self._received(sender, out)

    @property
    def offsets(self) -> list[int]:
        return [chunk.offset for chunk in self.chunks]


def half_way(options: RuntimeOptions = NARROW) -> tuple[Cluster, Node, int, Wire]:
    """The third node holds half of a snapshot; the rest does not arrive."""
    cluster, leader, third = behind(options, count=200, size=30_000)
    started = cluster.restart(third)
    wire = Wire(cluster, started)
    wire.stop_at = 3 * CHUNK_BYTES
    cluster.until(lambda: len(wire.chunks) == 3)
    cluster.run(100)
    return cluster, leader, third, wire


def test_after_a_cut_connection_only_the_rest_is_sent() -> None:
    cluster, leader, third, wire = half_way()
    cluster.network.leave(third)
    cluster.run(1000)
    wire.chunks.clear()
    wire.stop_at = 1 << 60
    cluster.network.join(third, cluster.nodes[third].runtime)
    cluster.network.connect(third)
    cluster.until(lambda: agree(cluster), ms=5000)
    assert wire.offsets == [3 * CHUNK_BYTES, 4 * CHUNK_BYTES, 5 * CHUNK_BYTES]
    assert leader.handle.status().snapshots_sent == 2


def restarted(end: Callable[[Cluster, int], None]) -> tuple[Cluster, list[int]]:
    cluster, _, third, _ = half_way()
    end(cluster, third)
    again = cluster.restart(third)
    wire = Wire(cluster, again)
    cluster.until(lambda: agree(cluster), ms=20_000)
    assert again.listener.of("restored")
    return cluster, wire.offsets


def test_a_receiver_that_was_killed_goes_on_with_what_it_holds() -> None:
    _, offsets = restarted(lambda cluster, third: cluster.kill(third))
    assert offsets[0] == 3 * CHUNK_BYTES
    assert sorted(set(offsets)) == [3 * CHUNK_BYTES, 4 * CHUNK_BYTES, 5 * CHUNK_BYTES]


def test_a_receiver_that_was_stopped_cleanly_too() -> None:
    def stop(cluster: Cluster, third: int) -> None:
        cluster.nodes[third].runtime.stop()
        cluster.quiet()
        cluster.kill(third)

    _, offsets = restarted(stop)
    assert sorted(set(offsets)) == [3 * CHUNK_BYTES, 4 * CHUNK_BYTES, 5 * CHUNK_BYTES]


def test_a_receiver_that_lost_power_says_from_where_it_needs_it() -> None:
    """What it wrote was not synced: the sender must go back behind what was once answered."""
    _, offsets = restarted(lambda cluster, third: cluster.crash(third))
    first = min(offsets)
    assert first < 3 * CHUNK_BYTES
    assert set(offsets) == set(range(first, 6 * CHUNK_BYTES, CHUNK_BYTES))


def holds_all(end: Callable[[Cluster, int], None]) -> tuple[Cluster, Node, list[int]]:
    """The third node holds all of a snapshot, has said so, and ends before it is installed."""
    cluster, leader, third = behind(count=200, size=30_000)
    started = cluster.restart(third)
    receiving = started.handle._snapshots.receiving
    assert receiving is not None
    offered: list[Any] = []
    receiving._offer = lambda meta, chunk: offered.append(meta)
    cluster.until(lambda: bool(offered))
    cluster.run(10)
    end(cluster, third)
    again = cluster.restart(third)
    wire = Wire(cluster, again)
    cluster.until(lambda: agree(cluster), ms=5000)
    assert again.listener.of("restored")
    return cluster, leader, wire.offsets


def test_a_receiver_that_was_killed_before_it_installed_what_it_holds_is_sent_it_again() -> None:
    """It has said that it holds all, and in its next life says nothing of itself: the sender asks. (Seeds 200373,
    200571 and 250692 waited for the installation of what was gone, again and again.)"""
    _, leader, offsets = holds_all(lambda cluster, third: cluster.kill(third))
    assert offsets
    assert leader.handle.status().snapshots_sent == 2, "the connection closed, and the transfer went on"


def test_a_receiver_that_lost_power_before_it_installed_what_it_holds_too() -> None:
    holds_all(lambda cluster, third: cluster.crash(third))


def test_a_receiver_whose_restart_closed_no_connection_yet_too() -> None:
    def end(cluster: Cluster, third: int) -> None:
        del cluster.nodes[third]
        cluster.disks[third].kill()

    _, leader, _ = holds_all(end)
    assert leader.handle.status().snapshots_sent == 1


def test_a_flipped_bit_in_what_an_earlier_life_received_is_asked_for_again() -> None:
    def rot(cluster: Cluster, third: int) -> None:
        cluster.kill(third)
        (name,) = cluster.disks[third].listdir("snapshots/group-1")
        cluster.disks[third].flip_bit(f"snapshots/group-1/{name}", CHUNK_BYTES + 1000)

    _, offsets = restarted(rot)
    assert CHUNK_BYTES in offsets
    assert 0 not in offsets


def test_what_an_earlier_life_received_is_removed_when_nobody_goes_on_with_it() -> None:
    cluster, _, third, _ = half_way()
    cluster.kill(third)
    again = cluster.start(third)
    cluster.run(SMALL.receive_lease_ms - 100)
    assert len(cluster.disks[third].listdir("snapshots/group-1")) == 1
    cluster.run(200)
    assert cluster.disks[third].listdir("snapshots/group-1") == []
    assert again.runtime.dropped["snapshot_receipt_expired"] == 0


def test_the_log_and_the_file_are_kept_for_a_peer_that_may_go_on() -> None:
    """HAZARDS 25: snapshots go on being taken while a slow transfer is cut again and again."""
    cluster, leader, third, wire = half_way()
    before = leader.handle._snapshots.newest
    assert before is not None
    cluster.network.leave(third)
    for start in range(0, 200, 10):
        cluster.commit(*numbered(10, start))
        if start == 100:
            leader.handle._snapshots.want()
    newest = leader.handle._snapshots.newest
    assert newest is not None
    assert newest.index > before.index
    assert leader.handle.status().core.first_index == before.index + 1  # type: ignore[union-attr]
    wire.stop_at = 1 << 60
    wire.chunks.clear()
    cluster.network.join(third, cluster.nodes[third].runtime)
    cluster.network.connect(third)
    cluster.until(lambda: agree(cluster), ms=5000)
    assert {chunk.meta.snapshot_id for chunk in wire.chunks} == {before.snapshot_id}
    cluster.run(NARROW.transfer_resume_ms)
    name = f"{newest.snapshot_id}.snapshot"
    assert cluster.disks[leader.runtime.node].listdir("snapshots/group-1") == [name], "and then they go"


def test_what_is_kept_for_a_peer_that_stays_away_is_released_in_time() -> None:
    cluster, leader, third, _ = half_way()
    cluster.kill(third)
    cluster.run(NARROW.transfer_resume_ms + 1000)
    for start in range(0, 200, 10):
        cluster.commit(*numbered(10, start))
    leader.handle._snapshots.want()
    cluster.run(100)
    status = leader.handle.status().core
    assert status is not None
    assert status.first_index == status.snapshot_index + 1


def test_doubled_and_reordered_chunks_do_no_harm() -> None:
    cluster, _, third = behind(count=200, size=30_000)
    started = cluster.restart(third)
    wire = Wire(cluster, started)
    source, kept = random.Random(1), list[SnapshotChunk]()

    def shuffle(chunk: SnapshotChunk) -> list[SnapshotChunk]:
        kept.append(chunk)
        source.shuffle(kept)
        out = [kept.pop() for _ in range(source.randrange(len(kept) + 1))]
        return out + out[: source.randrange(2)]

    wire.change = shuffle
    cluster.until(lambda: agree(cluster), ms=60_000)
    assert started.listener.of("restored")


def test_overlapping_chunks_are_not_taken() -> None:
    cluster, _, third = behind(count=200, size=30_000)
    started = cluster.restart(third)
    wire = Wire(cluster, started)

    def overlap(chunk: SnapshotChunk) -> list[SnapshotChunk]:
        if chunk.offset == 0 or len(wire.chunks) > 12:
            return [chunk]
        data = memoryview(bytes(100) + bytes(chunk.data))
        return [replace(chunk, offset=chunk.offset - 100, data=data, crc=crc32c(data)), chunk]

    wire.change = overlap
    cluster.until(lambda: agree(cluster), ms=20_000)


def test_a_snapshot_that_never_ends_ends_with_its_lease() -> None:
    """Every chunk is damaged: each is asked for again, none renews the lease."""
    cluster, _, third = behind(count=200, size=30_000)
    started = cluster.restart(third)
    wire = Wire(cluster, started)
    wire.change = lambda chunk: [replace(chunk, crc=chunk.crc ^ 1)]
    cluster.run(SMALL.receive_lease_ms + 5000)
    assert started.runtime.dropped["snapshot_receipt_expired"] >= 1
    assert started.runtime.dropped["snapshot_chunk_damaged"] > 3
    wire.change = lambda chunk: [chunk]
    cluster.until(lambda: agree(cluster), ms=60_000)


def test_an_answer_beyond_the_end_changes_nothing() -> None:
    cluster, leader, third, wire = half_way()
    meta = leader.handle._snapshots.newest
    assert meta is not None
    answer = SnapshotAnswer(
        sender=third,
        to=leader.runtime.node,
        term=leader.handle.leader()[2],
        incarnation=cluster.nodes[third].runtime.incarnation,
        snapshot_id=meta.snapshot_id,
        next_offset=meta.size_bytes + 1,
    )
    leader.runtime.received(third, [Envelope(1, answer)])
    assert leader.runtime.dropped["snapshot_answer_stale"] == 1
    wire.stop_at = 1 << 60
    cluster.until(lambda: agree(cluster), ms=5000)


def test_sending_is_paced() -> None:
    options = replace(SMALL, transfer_bytes_per_s=2 * CHUNK_BYTES)
    cluster, _, third = behind(options, count=200, size=30_000)
    started = cluster.restart(third)
    wire = Wire(cluster, started)
    cluster.until(lambda: bool(wire.chunks))
    began = cluster.clock.now
    cluster.until(lambda: agree(cluster), ms=20_000)
    assert 2000 <= cluster.clock.now - began <= 4000


def test_a_leader_whose_log_is_purged_reaches_a_reset_follower_without_a_proposal() -> None:
    """HAZARDS 26."""
    cluster, leader, third = behind()
    cluster.disks[third] = MemoryFileSystem()
    last = leader.handle.status().core.last_index  # type: ignore[union-attr]
    cluster.restart(third)
    cluster.until(lambda: agree(cluster), ms=5000)
    assert leader.handle.status().core.last_index == last, "nothing was proposed"  # type: ignore[union-attr]


def test_a_peer_may_ask_for_a_snapshot_although_its_log_is_whole() -> None:
    """RULES D1: a replica whose state is not to be trusted. The leader writes a new one when its newest is too old."""
    cluster = Cluster(options=RuntimeOptions(snapshot_log_bytes_min=1 << 30))
    cluster.commit(*numbered(20))
    leader = cluster.leader()
    follower = cluster.followers()[0]
    sent: list[Any] = []
    send = cluster.network.send

    def watched(sender: int, node: int, channel: Any, envelopes: Any) -> None:
        sent.extend(envelope.message for envelope in envelopes if isinstance(envelope.message, SnapshotChunk))
        send(sender, node, channel, envelopes)

    cluster.network.send = watched  # type: ignore[method-assign]
    request = SnapshotRequest(
        sender=follower.runtime.node,
        to=leader.runtime.node,
        term=leader.handle.leader()[2],
        incarnation=follower.runtime.incarnation,
        index=21,
    )
    for _ in range(2):
        leader.runtime.received(follower.runtime.node, [Envelope(1, request)])
        cluster.run(100)
    assert sent
    assert sent[0].meta.index == 21
    assert sent[0].to == follower.runtime.node
    for change in ({"term": 99}, {"sender": 3 if follower.runtime.node == 2 else 2, "term": 1 << 40}):
        leader.runtime.received(follower.runtime.node, [Envelope(1, replace(request, **change))])  # type: ignore[arg-type]
    assert leader.runtime.dropped["snapshot_request_unexpected"] == 1
