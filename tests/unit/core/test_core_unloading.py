"""Which payloads leave memory, and what is asked of the log on disk instead."""

import pytest

from consensus.core.interface import Entry, EntryKind, HardState, SnapshotMeta
from consensus.core.raft import RaftConfig
from consensus.core.raft.log import Log, size_of
from consensus.core.raft.membership import Membership
from tests.unit.core.harness import (
    THREE,
    AppendRequest,
    AppendResponse,
    Cluster,
    Disk,
    Host,
    configuration_entry,
    entry,
    follower,
    leader,
    log_of,
    meta,
    of,
)

TEN = b"x" * 10
NOTHING_KEPT = RaftConfig(unloaded_after_bytes=0)


def loaded(host: Host) -> list[int]:
    """Indexes of commands whose payload is in memory."""
    status = host.core.status()
    found = [host.core.entry(index) for index in range(status.first_index, status.last_index + 1)]
    return [one.index for one in found if one is not None and one.kind is EntryKind.NORMAL and not one.stored_bytes]


def led(config: RaftConfig, count: int = 8) -> Host:
    """A leader with a no-op at 1, and ten bytes each from 2 on; the others hold nothing yet."""
    host = leader(config=config)
    host.propose(*[TEN] * count)
    host.persist()
    return host


def test_a_follower_leaves_what_it_applied_and_nothing_else() -> None:
    host = follower(1, 1, term=1)
    host.append(*(entry(1, index, TEN) for index in range(3, 7)), after=(1, 2), commit=4)
    assert loaded(host) == [3, 4, 5, 6], "1 and 2 were durable before"
    host.persist()
    assert host.core.status().applied_index == 4
    assert loaded(host) == [5, 6]
    assert [one.payload for one in host.applied[2:]] == [TEN, TEN]
    assert host.core.uncommitted_bytes() == 20, "sizes stay known"


def test_a_leader_keeps_what_is_not_applied() -> None:
    host = led(NOTHING_KEPT)
    assert loaded(host) == list(range(2, 10))
    host.match(2, 5)
    assert host.core.status().applied_index == 5
    assert loaded(host) == [6, 7, 8, 9]


def test_a_leader_keeps_what_a_member_that_answers_lacks_up_to_the_bound() -> None:
    host = led(RaftConfig(unloaded_after_bytes=45))
    host.match(3, 1)
    host.match(2, 9)
    assert host.core.status().applied_index == 9
    assert loaded(host) == [6, 7, 8, 9], "45 bytes of the log's end, in whole entries"
    host.match(3, 8)
    host.tick(10)
    assert loaded(host) == [9]
    host.match(3, 9)
    host.tick(10)
    assert loaded(host) == []


def test_a_member_that_does_not_answer_keeps_nothing_in_memory() -> None:
    host = led(RaftConfig())
    host.match(3, 1)
    host.match(2, 9)
    assert loaded(host) == list(range(2, 10))
    for waited in range(0, 400, 50):
        assert loaded(host) == ([] if waited >= 300 else list(range(2, 10)))
        host.tick(50)
        host.answer_round(2, host.core._replication.round, match=9)


def test_who_is_far_behind_is_sent_what_was_left_within_a_window_of_its_own() -> None:
    config = RaftConfig(
        unloaded_after_bytes=0,
        append_bytes_max=20,
        probe_bytes_max=0,
        inflight_bytes_max=200,
        inflight_stored_bytes_max=40,
    )
    host = led(config, count=20)
    host.match(2, 21)
    assert loaded(host) == []
    host.match(3, 0, incarnation=2)
    host.step(
        host.message(
            AppendResponse, sender=3, incarnation=2, rejected=True, match_index=0, conflict_index=2, last_index=1
        )
    )
    left = host.match(3, 1, incarnation=2)
    requests = [request for request in of(AppendRequest, left, to=3) if request.entries]
    assert [one.index for request in requests for one in request.entries] == [2, 3, 4, 5]
    assert all(one.payload == TEN for request in requests for one in request.entries)
    left = host.match(3, 3, incarnation=2)
    requests = [request for request in of(AppendRequest, left, to=3) if request.entries]
    assert [one.index for request in requests for one in request.entries] == [6, 7]


def test_the_core_itself_asks_for_them() -> None:
    """What the harness reads back for others is without payload, and says how long it is."""
    host = led(NOTHING_KEPT, count=3)
    host.match(2, 4)
    progress = host.core._replication.progress[3]
    progress.probe(2)
    host.core._replication._due = True
    ready = host.core.ready()
    (request,) = of(AppendRequest, ready.messages, to=3)
    assert [(one.index, one.payload, one.stored_bytes, size_of(one)) for one in request.entries] == [
        (2, b"", 10, 10),
        (3, b"", 10, 10),
        (4, b"", 10, 10),
    ]
    assert [one.crc for one in request.entries] == [sum(TEN)] * 3


def test_a_cluster_goes_on_with_nothing_in_memory() -> None:
    cluster = Cluster(*(Host(replica, THREE, config=NOTHING_KEPT) for replica in (1, 2, 3)))
    cluster.hosts[1].core.tick(300)
    cluster.settle()
    first = cluster.leader()
    cluster.down.add(3)
    payloads = [b"%d" % number for number in range(30)]
    for payload in payloads:
        first.propose(payload)
        cluster.settle()
    assert loaded(first) == []
    cluster.down.clear()
    cluster.run(1000)
    for host in cluster.up():
        assert [one.payload for one in host.applied if one.kind is EntryKind.NORMAL] == payloads
        assert loaded(host) == []


def test_configurations_stay() -> None:
    host = follower(1, term=1)
    host.append(configuration_entry(1, 2, THREE), entry(1, 3, TEN), after=(1, 1), commit=3)
    host.persist()
    assert loaded(host) == []
    kept = host.core.entry(2)
    assert kept is not None
    assert kept.payload


@pytest.mark.parametrize("kind", EntryKind)
@pytest.mark.parametrize("length", [0, 10])
def test_nothing_that_stays_refers_to_the_frame_it_came_in(kind: EntryKind, length: int) -> None:
    """A no-op is a view of nothing, which holds a frame of megabytes all the same."""
    frame = bytearray(1000)
    came = Entry(1, 1, kind, memoryview(frame)[5 : 5 + length].toreadonly(), 0)
    kept = came.left_out()
    assert len(kept.payload) + kept.stored_bytes == length
    del came
    frame.clear()  # BufferError while anything refers to it
    assert kept.left_out() == kept


def test_what_recovery_left_on_disk_is_applied_sent_and_overwritten_like_the_rest() -> None:
    whole = log_of(1, 1, 1, 1)
    disk = Disk(HardState(1, 0, 2), [one.left_out() for one in whole])
    host = Host(2, disk=disk)
    assert loaded(host) == []
    host.persist()
    assert [one.index for one in host.applied] == [1, 2]
    assert host.core.entry(2) is not None
    other = [entry(2, index, TEN) for index in (3, 4, 5)]
    host.heartbeat(term=2)
    host.append(*other, after=(1, 2), term=2, commit=3)
    assert loaded(host) == [3, 4, 5], "what took their place is whole until it is durable and applied"
    host.persist()
    assert loaded(host) == [4, 5]
    assert disk.entries[2:] == other


@pytest.mark.parametrize("term", [1, 2])
def test_a_snapshot_takes_the_place_of_what_was_left(term: int) -> None:
    log = Log([one.left_out() for one in log_of(1, 1, 1, 1)], None, Membership(1, THREE))
    assert log.unloaded == 4
    log.restore(meta(2, term), commit_index=0)
    assert log.unloaded == 2
    log.merge([entry(2, index, TEN) for index in (3, 4)], commit_index=2)
    log.issue(1, bytes_max=100)
    log.unload(4)
    assert log.entry(4) == entry(2, 4, TEN), "not durable yet"
    log.durable(1)
    log.unload(4)
    assert log.entry(4) == entry(2, 4, TEN).left_out()
    log.compact(SnapshotMeta(3, 2, THREE, "s"), keep_from=4)
    log.unload(4)
    assert (log.first_index, log.bytes_above(3)) == (4, 10)
