"""Snapshots: when they are written and in which order, how they travel, what happens when they don't arrive."""

from dataclasses import replace

import pytest

from consensus.runtime import RuntimeOptions
from consensus.storage.errors import StorageFull
from consensus.transport.interface import Channel, Envelope, SnapshotAnswer, SnapshotChunk
from tests.unit.runtime.cluster import Cluster, Node

SMALL = RuntimeOptions(snapshot_log_bytes_min=2000, keep_bytes_max=0)


def numbered(count: int, start: int = 0, size: int = 50) -> list[bytes]:
    return [b"%d" % number + b"." * size for number in range(start, start + count)]


def behind(options: RuntimeOptions = SMALL, count: int = 200, size: int = 50) -> tuple[Cluster, Node, int]:
    """A cluster whose third node missed so much that the others compacted it away; (cluster, leader, third)."""
    cluster = Cluster(options=options)
    cluster.commit(b"first")
    leader = cluster.leader()
    third = cluster.followers()[-1].runtime.node
    cluster.kill(third)
    for start in range(0, count, 10):
        cluster.commit(*numbered(10, start, size))
    assert leader.handle.status().core.first_index > 2
    return cluster, leader, third


def agree(cluster: Cluster) -> bool:
    return len({tuple(node.machine.commands) for node in cluster.nodes.values()}) == 1


def test_a_snapshot_is_due_by_log_bytes_and_releases_the_log() -> None:
    cluster = Cluster(options=SMALL)
    leader = cluster.leader()
    for start in range(0, 100, 10):
        cluster.commit(*numbered(10, start))
    for node in cluster.nodes.values():
        status = node.handle.status()
        assert status.snapshots_written >= 3
        assert status.core.first_index == status.core.snapshot_index + 1
        assert node.writer.releases[-1] == (1, status.core.first_index)
    assert len(cluster.disks[leader.runtime.node].listdir("snapshots/group-1")) == 1


def test_the_file_is_durable_before_its_record_and_its_record_before_the_log_is_released() -> None:
    """HAZARDS 24."""
    cluster = Cluster(nodes=1, options=SMALL)
    node = cluster.leader()
    disk = cluster.disks[1]
    order: list[str] = []
    node.handle._snapshots.writing._on_recorded = lambda meta: order.append("recorded")  # type: ignore[union-attr]
    submit, release = node.writer.submit, node.writer.release

    def submitted(append, done):  # type: ignore[no-untyped-def]
        if append.install is not None:
            name = f"snapshots/group-1/{append.install.snapshot_id}.snapshot"
            assert name in disk._durable_names
            order.append("record submitted")
        submit(append, done)

    def released(group: int, below: int) -> None:
        order.append("released")
        release(group, below)

    node.writer.submit, node.writer.release = submitted, released  # type: ignore[method-assign]
    cluster.commit(*numbered(40))
    assert order[:3] == ["record submitted", "released", "recorded"]


def test_a_tail_is_kept_for_peers_that_lag_a_little() -> None:
    cluster = Cluster(options=RuntimeOptions(snapshot_log_bytes_min=2000, keep_bytes_max=1000))
    for start in range(0, 100, 10):
        cluster.commit(*numbered(10, start))
    status = cluster.leader().handle.status().core
    assert 0 < status.snapshot_index + 1 - status.first_index < 20


def test_a_node_restarts_from_its_snapshot_and_the_log_above() -> None:
    cluster = Cluster(options=SMALL)
    for start in range(0, 70, 10):
        cluster.commit(*numbered(10, start))
    before = cluster.leader().machine.commands
    for node in list(cluster.nodes):
        cluster.crash(node)
    for node in cluster.members:
        cluster.start(node)
    cluster.leader()
    cluster.run(200)
    assert all(node.listener.of("restored") for node in cluster.nodes.values())
    assert all(node.machine.commands == before for node in cluster.nodes.values())


def test_a_replica_whose_snapshot_is_gone_says_so_and_is_filled_anew(caplog: pytest.LogCaptureFixture) -> None:
    cluster = Cluster(options=SMALL)
    for start in range(0, 70, 10):
        cluster.commit(*numbered(10, start))
    node = cluster.followers()[0].runtime.node
    cluster.kill(node)
    (name,) = cluster.disks[node].listdir("snapshots/group-1")
    cluster.disks[node].unlink(f"snapshots/group-1/{name}")
    started = cluster.restart(node)
    cluster.commit(b"the others go on")
    cluster.run(1000)
    assert "is filled anew by its leader" in caplog.text
    assert "is missing" in caplog.text
    assert started.machine.commands == cluster.leader().machine.commands
    assert started.machine.commands[-1] == b"the others go on"


def test_the_index_of_a_snapshot_is_that_of_the_state_it_describes() -> None:
    """HAZARDS 9: batches wait on the lane while the snapshot is asked for; none may be applied again after a restart,
    none may be missing."""
    cluster = Cluster(nodes=1)
    node = cluster.leader()
    cluster.commit(*numbered(20))
    node.lanes.held.add("apply")
    cluster.commit(*numbered(5, 20))
    node.handle._snapshots.want()
    cluster.commit(*numbered(5, 25))
    node.lanes.held.clear()
    cluster.run(100)
    assert node.handle.status().snapshots_written == 1
    before = node.machine.commands
    cluster.crash(1)
    again = cluster.start(1)
    cluster.leader()
    assert again.listener.of("restored")
    assert again.machine.commands == before == numbered(30)


def test_a_full_disk_postpones_the_snapshot() -> None:
    cluster = Cluster(nodes=1, options=SMALL)
    node = cluster.leader()
    create = node.snapshots.create

    def full(group, meta):  # type: ignore[no-untyped-def]
        raise StorageFull("no space")

    node.snapshots.create = full  # type: ignore[method-assign]
    cluster.commit(*numbered(60))
    assert node.handle.status().snapshots_written == 0
    assert node.runtime.dropped["snapshot_no_space"] == 1
    node.snapshots.create = create  # type: ignore[method-assign]
    cluster.run(SMALL.snapshot_retry_ms)
    cluster.commit(*numbered(60))
    assert node.handle.status().snapshots_written > 0


# --- on the way to a peer -------------------------------------------------------------------------------------------


def test_a_peer_that_fell_behind_catches_up_by_snapshot() -> None:
    cluster, leader, third = behind()
    started = cluster.restart(third)
    cluster.until(lambda: agree(cluster), ms=5000)
    assert leader.handle.status().snapshots_sent == 1
    assert started.listener.of("restored")
    cluster.commit(b"and on")
    assert started.machine.commands[-1] == b"and on"


def test_many_chunks_go_through_a_small_window() -> None:
    cluster, _, third = behind(count=300, size=30_000)
    started = cluster.restart(third)
    chunks: list[SnapshotChunk] = []
    received = started.runtime.received
    window = SMALL.transfer_window_chunks

    def watched(node, envelopes):  # type: ignore[no-untyped-def]
        chunks.extend(envelope.message for envelope in envelopes if isinstance(envelope.message, SnapshotChunk))
        received(node, envelopes)

    started.runtime.received = watched  # type: ignore[method-assign]
    cluster.network.join(third, started.runtime)
    cluster.until(lambda: agree(cluster), ms=5000)
    assert len(chunks) > window
    assert sum(len(chunk.data) for chunk in chunks) == chunks[0].meta.size_bytes
    assert [chunk.last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


def test_an_empty_state_travels_too() -> None:
    cluster = Cluster(options=SMALL)
    cluster.run(100)
    leader = cluster.leader()
    third = cluster.followers()[-1].runtime.node
    cluster.kill(third)
    for node in cluster.nodes.values():
        node.machine.snapshot = lambda: iter(())  # type: ignore[method-assign]
    for start in range(0, 100, 10):
        cluster.commit(*numbered(10, start))
    started = cluster.restart(third)
    cluster.until(lambda: bool(started.listener.of("restored")), ms=5000)
    assert leader.handle.status().core is not None


def lose(cluster: Cluster, kind: type, every: int) -> dict[str, int]:
    """Lose every n-th message of a kind."""
    counts = {"seen": 0, "lost": 0}
    send = cluster.network.send

    def lossy(sender, node, channel, envelopes):  # type: ignore[no-untyped-def]
        kept: list[Envelope] = []
        for envelope in envelopes:
            if isinstance(envelope.message, kind):
                counts["seen"] += 1
                if counts["seen"] % every == 0:
                    counts["lost"] += 1
                    continue
            kept.append(envelope)
        send(sender, node, channel, kept)

    cluster.network.send = lossy  # type: ignore[method-assign]
    return counts


@pytest.mark.parametrize("kind", [SnapshotChunk, SnapshotAnswer])
def test_lost_chunks_and_answers_are_made_up_for(kind: type) -> None:
    cluster, _, third = behind(count=200, size=30_000)
    counts = lose(cluster, kind, every=3)
    cluster.restart(third)
    cluster.until(lambda: agree(cluster), ms=20_000)
    assert counts["lost"] > 0


def test_a_damaged_chunk_is_asked_for_again_and_never_installed() -> None:
    cluster, _, third = behind(count=200, size=30_000)
    started = cluster.restart(third)
    received = started.runtime.received
    broken: list[int] = []

    def damage(node, envelopes):  # type: ignore[no-untyped-def]
        out = []
        for envelope in envelopes:
            message = envelope.message
            if isinstance(message, SnapshotChunk) and not broken:
                broken.append(message.offset)
                data = memoryview(bytes([message.data[0] ^ 1]) + bytes(message.data[1:]))
                message = SnapshotChunk(
                    sender=message.sender,
                    to=message.to,
                    term=message.term,
                    incarnation=message.incarnation,
                    meta=message.meta,
                    offset=message.offset,
                    data=data,
                    crc=message.crc,
                    last=message.last,
                )
            out.append(Envelope(envelope.group, message, envelope.note))
        received(node, out)

    started.runtime.received = damage  # type: ignore[method-assign]
    cluster.network.join(third, started.runtime)
    cluster.until(lambda: agree(cluster), ms=20_000)
    assert started.runtime.dropped["snapshot_chunk_damaged"] == 1


def test_a_receiver_that_restarts_before_it_holds_anything_gets_it_from_the_start() -> None:
    cluster, leader, third = behind(count=200, size=30_000)
    started = cluster.restart(third)
    started.lanes.held.add("files")
    cluster.until(lambda: started.handle._snapshots is not None and started.handle._snapshots.receiving.active)
    cluster.kill(third)
    again = cluster.restart(third)
    cluster.until(lambda: agree(cluster), ms=20_000)
    assert leader.handle.status().snapshots_sent >= 2
    assert again.listener.of("restored")


def test_a_receiver_that_is_slow_to_install_is_not_sent_everything_again() -> None:
    """HAZARDS 25."""
    cluster, leader, third = behind()
    started = cluster.restart(third)
    started.lanes.held.add("files")
    cluster.run(200)
    started.lanes.held.clear()
    started.writer.held = True
    cluster.run(SMALL.transfer_timeout_ms + 5000)
    assert leader.handle.status().snapshots_sent == 1
    started.writer.held = False
    cluster.until(lambda: agree(cluster), ms=5000)
    assert leader.handle.status().snapshots_sent == 1


def test_a_transfer_that_makes_no_progress_is_given_up_and_tried_again() -> None:
    cluster, leader, third = behind()
    cluster.network.held.add((third, Channel.BULK))
    cluster.restart(third)
    cluster.run(2 * SMALL.transfer_timeout_ms)
    assert leader.runtime.dropped["snapshot_transfer_timeout"] >= 1
    cluster.network.release()
    cluster.until(lambda: agree(cluster), ms=20_000)


def test_the_log_a_receiver_will_need_is_kept_while_it_is_sent_a_snapshot() -> None:
    cluster, leader, third = behind()
    started = cluster.restart(third)
    started.lanes.held.add("files")
    cluster.until(lambda: leader.handle._snapshots is not None and leader.handle._snapshots.sending.active)
    sent = leader.handle._snapshots.newest
    for start in range(0, 200, 10):
        cluster.commit(*numbered(10, start))
    assert sent is not None
    assert leader.handle.status().core.snapshot_index > sent.index
    assert leader.handle.status().core.first_index == sent.index + 1
    started.lanes.held.clear()
    cluster.until(lambda: agree(cluster), ms=5000)
    assert leader.handle.status().snapshots_sent == 1


def test_a_leader_that_is_deposed_in_the_middle_leaves_it_to_the_next() -> None:
    cluster, leader, third = behind(count=200, size=30_000)
    started = cluster.restart(third)
    started.lanes.held.add("files")
    cluster.until(lambda: started.handle._snapshots is not None and started.handle._snapshots.receiving.active)
    cluster.kill(leader.runtime.node)
    started.lanes.held.clear()
    cluster.until(lambda: agree(cluster), ms=20_000)
    assert len(cluster.nodes) == 2


def test_a_leader_without_a_snapshot_to_send_yet_sends_one_later() -> None:
    """It won while the snapshot that its own log begins with was still on its way into the state machine."""
    cluster, leader, third = behind()
    newest, leader.handle._snapshots.newest = leader.handle._snapshots.newest, None
    cluster.restart(third)
    cluster.run(1000)
    assert leader.handle.status().snapshots_sent == 0
    leader.handle._snapshots.newest = newest
    cluster.until(lambda: agree(cluster), ms=5000)


def test_answers_of_a_transfer_given_up_can_say_that_all_is_held() -> None:
    """The file is then read to its end without finding a piece to send: it is not damaged for that."""
    cluster, leader, third = behind(count=200, size=30_000)
    leader.lanes.held.add("files")
    started = cluster.restart(third)
    cluster.until(lambda: leader.handle._snapshots is not None and leader.handle._snapshots.sending.active)
    meta = leader.handle._snapshots.newest
    assert meta is not None
    answer = SnapshotAnswer(
        sender=third,
        to=leader.runtime.node,
        term=leader.handle.leader()[2],
        incarnation=started.runtime.incarnation,
        snapshot_id=meta.snapshot_id,
        next_offset=meta.size_bytes,
    )
    leader.runtime.received(third, [Envelope(1, answer)])
    leader.lanes.held.clear()
    cluster.run(100)
    assert leader.runtime.dropped["snapshot_unreadable"] == 0
    assert leader.handle._snapshots.newest == meta


# --- chunks that nobody should send (FAULTS, bad input 18) ----------------------------------------------------------


def test_half_received_snapshots_are_removed_after_their_lease() -> None:
    cluster, _, third = behind(count=200, size=30_000)
    started = cluster.restart(third)
    started.lanes.held.add("files")
    cluster.until(lambda: started.handle._snapshots is not None and started.handle._snapshots.receiving.active)
    for node in cluster.members:
        cluster.network.cut(node, third)
    started.lanes.held.clear()
    cluster.run(SMALL.receive_lease_ms + 1000)
    assert started.runtime.dropped["snapshot_receipt_expired"] == 1
    assert cluster.disks[third].listdir("snapshots/group-1") == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, "snapshot_chunk_too_short"),
        ({"offset": 990}, "snapshot_chunk_out_of_range"),
        ({"last": True}, "snapshot_chunk_out_of_range"),
        ({"data": memoryview(b"")}, "snapshot_chunk_empty"),
        ({"data": memoryview(bytes(5 << 20))}, "snapshot_chunk_too_long"),
        ({"sender": 3}, "replica_not_on_node"),
        ({"sender": 9}, "snapshot_chunk_of_another_term"),
        ({"term": 2**63 - 1}, "snapshot_chunk_of_another_term"),
    ],
)
def test_bad_chunks_are_counted_and_dropped(change: dict[str, object], reason: str) -> None:
    cluster, leader, _ = behind()
    follower = next(node for node in cluster.followers())
    meta = leader.handle._snapshots.newest
    assert meta is not None
    future = replace(meta, index=meta.index + 1000, snapshot_id="other", size_bytes=1000)
    values: dict[str, object] = {
        "sender": leader.runtime.node,
        "to": follower.runtime.node,
        "term": leader.handle.leader()[2],
        "incarnation": leader.runtime.incarnation,
        "meta": future,
        "offset": 0,
        "data": memoryview(bytes(100)),
        "crc": 0,
        "last": False,
    }
    follower.runtime.received(leader.runtime.node, [Envelope(1, SnapshotChunk(**(values | change)))])  # type: ignore[arg-type]
    assert follower.runtime.dropped[reason] == 1
    assert not follower.handle._snapshots.receiving.active  # type: ignore[union-attr]
