"""Snapshots are written beside apply: piece by piece, within a budget of memory, behind the log (RULES W6)."""

from collections.abc import Iterator
from typing import Any

import pytest

from consensus.core.configuration import encode_configuration
from consensus.core.errors import InvariantViolated
from consensus.core.interface import Configuration, Entry, EntryKind, Payload
from consensus.runtime import RuntimeOptions
from consensus.runtime.machine import MachineHost
from consensus.runtime.pacing import Pace
from consensus.storage.checksum import crc32c
from tests.unit.runtime.cluster import Cluster, Journal, Node
from tests.unit.runtime.test_runtime_snapshots import numbered

PIECES = RuntimeOptions(
    snapshot_log_bytes_min=1 << 30, keep_bytes_max=0, snapshot_piece_bytes=1, snapshot_budget_bytes=1000
)


class Borrowing(Journal):
    """Each entry applied while a snapshot is being written costs it what the entry is long."""

    def __init__(self) -> None:
        super().__init__()
        self.lent = 0
        self.peak = 0
        self.writing = False

    def apply(self, entry: Entry) -> Any:
        if self.writing:
            self.lent += len(entry.payload)
            self.peak = max(self.peak, self.lent)
        return super().apply(entry)

    def snapshot(self) -> Iterator[Payload]:
        self.writing, self.lent = True, 0
        return super().snapshot()

    def lent_bytes(self, entry: Entry | None = None) -> int:
        return self.lent + (len(entry.payload) if entry is not None else 0) if self.writing else 0

    def end_snapshot(self) -> None:
        self.writing, self.lent = False, 0


def one(options: RuntimeOptions = PIECES) -> tuple[Cluster, Node]:
    cluster = Cluster(nodes=1, options=options, machine=Borrowing)
    return cluster, cluster.leader()


def ask(cluster: Cluster, node: Node) -> None:
    """Let it begin a snapshot; the files lane is held, so no piece of it is written."""
    node.lanes.held.add("files")
    with node.runtime.input():
        node.handle._snapshots.want()
    cluster.quiet()


def test_apply_goes_on_while_a_snapshot_is_written_and_does_not_show_in_it() -> None:
    cluster, node = one()
    cluster.commit(*numbered(10))
    ask(cluster, node)
    cluster.commit(*numbered(5, 10))
    assert len(node.machine.commands) == 15
    node.lanes.held.clear()
    cluster.run(50)
    meta = node.handle._snapshots.newest
    assert meta is not None
    assert meta.index == 11, "ten commands and the no-op"
    held = Journal()
    held.restore(node.snapshots.read(1, meta.snapshot_id))
    assert held.commands == numbered(10)
    cluster.crash(1)
    again = cluster.start(1)
    cluster.leader()
    cluster.run(50)
    assert again.machine.commands == numbered(15)


def test_pieces_and_applies_take_turns() -> None:
    cluster, node = one()
    cluster.commit(*numbered(10))
    ask(cluster, node)
    seen: list[str] = []
    run = node.lanes.run

    def watched(lane: str, work: Any, done: Any) -> None:
        seen.append(lane)
        run(lane, work, done)

    node.lanes.run = watched  # type: ignore[method-assign]
    node.lanes.held.clear()
    for number in range(4):
        cluster.propose(b"%d" % number)
        node.writer.work()
        node.lanes.work()
    cluster.run(50)
    order = "".join("f" if lane == "files" else "a" for lane in seen)
    assert "af" in order.strip("f"), order
    assert order.count("f") >= 10, "a piece is a job of its own"
    assert node.handle.status().snapshots_written == 1


def test_apply_waits_for_the_writer_when_the_budget_is_used_up() -> None:
    cluster, node = one()
    machine = node.machine
    assert isinstance(machine, Borrowing)
    cluster.commit(*numbered(10))
    ask(cluster, node)
    outcomes = [cluster.propose(payload) for payload in numbered(40, 10)]
    cluster.quiet()
    assert 900 < machine.lent <= PIECES.snapshot_budget_bytes
    assert len(machine.commands) < 50, "the rest waits"
    assert node.handle.status().core.applied_index == len(machine.commands) + 1  # type: ignore[union-attr]
    node.lanes.held.clear()
    cluster.run(50)
    assert machine.commands == numbered(50)
    assert [len(outcome) for outcome in outcomes] == [1] * 40
    assert machine.peak <= PIECES.snapshot_budget_bytes
    assert node.handle.status().snapshots_written == 1


def test_a_writer_without_progress_is_given_up_and_apply_goes_on() -> None:
    cluster, node = one()
    cluster.commit(*numbered(10))
    ask(cluster, node)
    node.lanes.held.clear()
    node.lanes.work()
    node.lanes.held.add("files")
    assert len(cluster.disks[1].listdir("snapshots/group-1")) == 1
    for payload in numbered(40, 10):
        cluster.propose(payload)
    cluster.run(PIECES.snapshot_wait_ms - 100)
    assert len(node.machine.commands) < 50
    cluster.run(200)
    assert node.machine.commands == numbered(50)
    assert node.runtime.dropped["snapshot_too_slow"] == 1
    node.lanes.held.clear()
    cluster.run(100)
    assert node.handle.status().snapshots_written == 0
    assert cluster.disks[1].listdir("snapshots/group-1") == [], "what was half there is removed"
    cluster.run(PIECES.snapshot_retry_ms)
    node.handle._snapshots.want()
    cluster.run(50)
    assert node.handle.status().snapshots_written == 1


def test_a_piece_lets_the_log_go_first_but_not_for_ever() -> None:
    cluster, node = one()
    cluster.commit(*numbered(3))
    busy = True
    object.__setattr__(node.handle._snapshots.writing._services, "log_busy", lambda: busy)  # type: ignore[union-attr]
    node.handle._snapshots.want()
    cluster.quiet()
    work = node.handle._snapshots.writing._work  # type: ignore[union-attr]
    assert work is not None
    assert work.writer is None, "nothing is written yet"
    cluster.run(PIECES.snapshot_yield_ms)
    assert work.writer is not None
    assert not work.written, "a piece a time"
    busy = False
    cluster.run(20)
    assert work.written


def test_writing_is_paced() -> None:
    cluster, node = one(
        RuntimeOptions(snapshot_log_bytes_min=1 << 30, snapshot_piece_bytes=100, snapshot_bytes_per_s=1000)
    )
    cluster.commit(*numbered(30))
    node.handle._snapshots.want()
    began = cluster.clock.now
    cluster.until(lambda: node.handle.status().snapshots_written == 1, ms=20_000)
    size = node.handle._snapshots.newest.size_bytes  # type: ignore[union-attr]
    assert size - 300 < cluster.clock.now - began < size + 300


def test_a_pace_lets_bursts_through_and_keeps_the_rate() -> None:
    pace, now, sent = Pace(10_000), 0, 0
    while now < 10_000:
        if pace.may(now):
            pace.took(500, now)
            sent += 500
        now += 7
    assert 99_000 <= sent <= 103_000
    assert Pace(0).may(0)


def test_a_snapshot_of_the_same_index_replaces_a_damaged_one() -> None:
    """The newest snapshot of an idle leader rots: the next one has the same index, another name, and counts."""
    cluster, node = one()
    cluster.commit(*numbered(10))
    node.handle._snapshots.want()
    cluster.run(50)
    first = node.handle._snapshots.newest
    (name,) = cluster.disks[1].listdir("snapshots/group-1")
    cluster.disks[1].flip_bit(f"snapshots/group-1/{name}", 60)
    node.handle._snapshots.want()
    cluster.run(50)
    second = node.handle._snapshots.newest
    assert first is not None
    assert second is not None
    assert first.index == second.index
    assert first.snapshot_id != second.snapshot_id
    assert cluster.disks[1].listdir("snapshots/group-1") == [f"{second.snapshot_id}.snapshot"]
    cluster.crash(1)
    again = cluster.start(1)
    cluster.leader()
    assert again.machine.commands == numbered(10)


def test_a_manifest_that_rots_before_older_files_are_removed_ends_nothing() -> None:
    cluster, node = one()
    cluster.commit(*numbered(10))
    node.handle._snapshots.want()
    cluster.run(50)
    (name,) = cluster.disks[1].listdir("snapshots/group-1")
    path = f"snapshots/group-1/{name}"
    cluster.disks[1].flip_bit(path, len(cluster.disks[1].read(path)) - 20)
    with node.runtime.input():
        node.handle._snapshots._tidy()
    cluster.run(50)
    assert node.runtime.dropped["snapshot_unreadable"] == 1
    assert node.handle.status().snapshots_written == 2, "another one was written instead"
    assert name not in cluster.disks[1].listdir("snapshots/group-1")


def test_a_snapshot_that_is_asked_for_twice_in_a_row_is_written_once_more_not_twice_at_once() -> None:
    """HAZARDS 24: two snapshots close together; each has its record before its log is released."""
    cluster, node = one()
    cluster.commit(*numbered(10))
    ask(cluster, node)
    node.handle._snapshots.want()
    cluster.commit(*numbered(5, 10))
    node.handle._snapshots.want()
    node.lanes.held.clear()
    cluster.run(50)
    assert node.handle.status().snapshots_written == 1
    node.handle._snapshots.want()
    cluster.run(50)
    assert node.writer.log == ["record 11", "record 16"]


# --- the configuration ----------------------------------------------------------------------------------------------


def configured(index: int, payload: bytes) -> Entry:
    return Entry(1, index, EntryKind.CONFIGURATION, payload, crc32c(payload))


def test_a_snapshot_carries_the_configuration_that_was_applied() -> None:
    """HAZARDS 20: the committed one, not what stands uncommitted behind it."""
    first, joint = Configuration((1, 2, 3)), Configuration((1, 2, 4), outgoing=(1, 2, 3), next_replica=5)
    host = MachineHost(group=1, machine=Journal(), configuration=first, node=1, incarnation=1, load=tuple)
    host.apply((Entry(1, 1, EntryKind.NOOP, b"", 0),))
    for number, configuration in ((1, first), (2, joint)):
        capture = host.capture(number)
        assert capture is not None
        assert capture.meta.configuration == configuration
        host.apply((configured(number + 1, encode_configuration(joint)),))
    assert host.position() == (3, 1)


def test_a_state_to_which_nothing_was_applied_is_not_written() -> None:
    """Its record would stand for no entry of the log and so supersede all of them (simulation, seed 36)."""
    cluster, node = one()
    host = MachineHost(group=1, machine=Journal(), configuration=Configuration((1,)), node=1, incarnation=1, load=tuple)
    assert host.capture(1) is None
    cluster.leader()
    node.handle._machine._index = 0
    node.handle._snapshots.want()
    cluster.run(50)
    assert node.handle.status().snapshots_written == 0
    assert not node.handle._snapshots.writing.active  # type: ignore[union-attr]


def test_a_committed_entry_that_is_no_configuration_stops_the_group() -> None:
    host = MachineHost(group=1, machine=Journal(), configuration=Configuration((1,)), node=1, incarnation=1, load=tuple)
    with pytest.raises(InvariantViolated, match="no configuration"):
        host.apply((configured(1, b"x"),))


def test_a_payload_that_changed_in_memory_ends_the_process() -> None:
    host = MachineHost(group=1, machine=Journal(), configuration=Configuration((1,)), node=1, incarnation=1, load=tuple)
    payload = b"some command"
    with pytest.raises(InvariantViolated, match="damaged"):
        host.apply((Entry(1, 1, EntryKind.NORMAL, payload, crc32c(payload) ^ 1),))
