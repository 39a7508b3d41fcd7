"""Crash at every IO call of every operation, and recover to a legal state each time (FAULTS rows 4, 5, 9).

The operations, and what is legal: `crashing.py`. Snapshot files: `test_crash_snapshots.py`; the identity:
`test_identity_file.py`.
"""

import errno
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from consensus.core.interface import HardState
from consensus.storage import wal as wal_module
from consensus.storage.errors import StorageError, StorageFailed, StorageFull
from consensus.storage.interface import GroupAppend
from consensus.storage.live import LiveLog
from consensus.storage.memory import MemoryFileSystem, PowerLost
from consensus.storage.records import Kind
from consensus.storage.recovery import Reader
from consensus.storage.segments import Prepared, SegmentPool
from consensus.storage.wal import Wal
from tests.storage.crashing import SCENARIOS, CountingDisk, Model, run
from tests.storage.logs import OPTIONS, append, entries, open_log, vote

CALLS_MAX = 10_000
PLENTY = 1 << 62


def power_cut_at(call: int, name: str) -> bool:
    """The n-th IO call is the last; unsynced sectors are lost, torn or there. A second cut hits the recovery, or the
    process was only killed before it. Whether the run came that far."""
    model, chance = Model(MemoryFileSystem()), random.Random(call)
    disk = model.disk
    disk.faults.stop_call = call
    try:
        run(model, SCENARIOS[name])
    except PowerLost:
        pass
    reached = disk.faults.calls >= call
    disk.faults.capacity_bytes = PLENTY
    for again in (chance.randrange(1, 20), 0):
        disk.crash(chance)
        disk.faults.calls, disk.faults.stop_call = 0, again
        try:
            model.check(open_log(disk)[1])
        except PowerLost:
            pass
    return reached


def error_at(call: int, name: str, number: int = errno.EIO) -> bool:
    """The n-th IO call fails. The process ends; at the next start, or at the one after it and a power cut, what was
    synced is there, and nothing that the first of them told of is gone at the second. Whether the run came that far."""
    model = Model(MemoryFileSystem())
    disk = model.disk
    disk.faults.fail_call, disk.faults.fail_errno = call, number
    try:
        run(model, SCENARIOS[name])
    except (StorageFailed, StorageFull):
        pass
    if disk.faults.calls < call:
        return False
    disk.faults.capacity_bytes = PLENTY
    if call % 3 == 0:
        disk.kill()
        model.check(open_log(disk)[1])
    disk.crash(random.Random(call), torn=bool(call % 2))
    model.check(open_log(disk)[1])
    return True


def at_every_call(hit: Callable[[int, str], bool], name: str) -> None:
    if not any(not hit(call, name) for call in range(1, CALLS_MAX)):
        pytest.fail("a run without a fault never came")


@pytest.mark.parametrize("name", SCENARIOS)
def test_power_cut_at_every_call(name: str) -> None:
    at_every_call(power_cut_at, name)


@pytest.mark.parametrize("name", SCENARIOS)
def test_io_error_at_every_call(name: str) -> None:
    at_every_call(error_at, name)


@pytest.mark.parametrize("name", ["rotate", "recycle", "rewrite", "mark", "reserve"])
def test_no_space_at_every_call(name: str) -> None:
    """A disk that is full at the n-th call costs at most the process, and nothing that was synced."""
    at_every_call(lambda call, name: error_at(call, name, errno.ENOSPC), name)


def test_the_operations_do_what_they_are_named_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scenario that never recycles, rewrites or takes from the reserve shows nothing of it."""
    did: dict[str, Counter[str]] = {name: Counter() for name in SCENARIOS}
    name = ""
    take, move = SegmentPool.take, LiveLog.move

    def noted_take(self: SegmentPool, needed: int, *, urgent: bool) -> Prepared:
        prepared = take(self, needed, urgent=urgent)
        did[name]["taken from the reserve"] += prepared.reserve
        return prepared

    def noted_move(self: LiveLog, index: int, segment: int, size: int, offset: int) -> None:
        # What is copied when the log is opened is known to lie in the new segment before it is written.
        did[name]["rewritten"] += all(run.segment != segment for run in self.runs if run.first <= index <= run.last)
        move(self, index, segment, size, offset)

    monkeypatch.setattr(SegmentPool, "take", noted_take)
    monkeypatch.setattr(LiveLog, "move", noted_move)
    for name, operations in SCENARIOS.items():
        model = Model(CountingDisk())
        run(model, operations)
        assert isinstance(model.disk, CountingDisk)
        did[name].update(model.disk.counts)
    assert did["reserve"]["taken from the reserve"] == 1
    assert did["rewrite"]["rewritten"] >= 3
    assert did["recycle"]["rename"] >= 2
    assert did["compact"]["rename"] + did["compact"]["unlink"] >= 1
    assert did["rotate"]["preallocate"] > did["append"]["preallocate"]


# --- that the checks can fail -----------------------------------------------------------------------------------------


def _no_folder_sync(patch: pytest.MonkeyPatch) -> None:
    """New files and new names of segments are used before they are durable."""
    patch.setattr(MemoryFileSystem, "sync_directory", lambda self, path: self.check("sync_directory", path))


def _head_without(**left_out: object) -> Callable[[pytest.MonkeyPatch], None]:
    row = LiveLog.row
    return lambda patch: patch.setattr(LiveLog, "row", lambda self: replace(row(self), **left_out))


def _no_tombstones(patch: pytest.MonkeyPatch) -> None:
    head = wal_module.Head
    patch.setattr(wal_module, "Head", lambda **fields: head(**{**fields, "tombstones": ()}))


def _ends_every_log(patch: pytest.MonkeyPatch) -> None:
    """Of its group, though it names another replica."""
    patch.setattr(Reader, "_deleted", lambda self, group, replica: self._out.groups.pop(group, None))


def _retired_at_once(patch: pytest.MonkeyPatch) -> None:
    """A segment's file goes back, and is used again, while no later table is durable."""
    retire, rotate = Wal._retire, Wal._rotate

    def rotate_and_retire(self: Wal, prepared: Prepared) -> None:
        rotate(self, prepared)
        active = self._usable()
        first, active.first_batch = active.first_batch, 0
        retire(self)
        self._pool._retired.reverse()  # The file that went back last is used first.
        self._prepare()
        active.first_batch = first

    patch.setattr(Wal, "_rotate", rotate_and_retire)


def _released_without_record(patch: pytest.MonkeyPatch) -> None:
    """Log goes although no durable snapshot record covers it."""
    release = LiveLog.release

    def eager(self: LiveLog, below_index: int) -> None:
        self.durable_snapshot_index = max(self.durable_snapshot_index, below_index)
        release(self, below_index)

    patch.setattr(LiveLog, "release", eager)


def _copies_supersede(patch: pytest.MonkeyPatch) -> None:
    """What is rewritten looks like a new entry, and drops what is above it."""
    record = wal_module.entry_record
    patch.setattr(wal_module, "entry_record", lambda kind, group, entry: record(Kind.ENTRY, group, entry))


def _half_of_it_without_space(patch: pytest.MonkeyPatch) -> None:
    """A full disk is noticed after a part was written."""

    def write(self: Wal, plans: list[object], *, urgent: bool) -> None:
        for plan in plans:
            (prepared,) = self._acquire(self._usable(), [plan], urgent=urgent)  # type: ignore[list-item]
            if prepared is not None:
                self._rotate(prepared)
            self._append(plan)  # type: ignore[arg-type]

    patch.setattr(Wal, "_write", write)


def _no_sync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Wal, "_datasync", lambda self: None)


BUGS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "append: acknowledged unsynced": ("append", _no_sync),
    "hard state: acknowledged unsynced": ("hard state", _no_sync),
    "truncate: acknowledged unsynced": ("truncate", _no_sync),
    "rotate: the new name is not durable": ("rotate", _no_folder_sync),
    "recycle: used again too early": ("recycle", _retired_at_once),
    "recycle: the new name is not durable": ("recycle", _no_folder_sync),
    "recycle: the vote goes with its segment": ("recycle", _head_without(hard_state=HardState())),
    "compact: released before the record": ("compact", _released_without_record),
    "snapshot: the table forgets it": ("snapshot", _head_without(snapshot=None)),
    "create: the table forgets it": ("create", _head_without(create=None)),
    "tombstone: the table forgets it": ("tombstone", _no_tombstones),
    "tombstone: it ends the log of another": ("tombstone", _ends_every_log),
    "mark: the table forgets it": ("mark", _head_without(marks=0)),
    "rewrite: copies supersede": ("rewrite", _copies_supersede),
    "reserve: half is written without space": ("reserve", _half_of_it_without_space),
}


@pytest.mark.parametrize("bug", BUGS)
def test_the_checks_can_fail(bug: str) -> None:
    name, install = BUGS[bug]
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        with pytest.raises((AssertionError, StorageError)):
            at_every_call(power_cut_at, name)


# --- of one operation -------------------------------------------------------------------------------------------------


def test_recovered_is_durable_before_it_is_told() -> None:
    """RULES W3: read from the page cache after a kill -9, then the power goes: it must still be there."""
    for seed in range(20):
        disk = MemoryFileSystem()
        wal, _ = open_log(disk)
        wal.write([append(1, 1, 5), vote(1, 3, 2)])
        wal.sync()
        wal.write([append(1, 4, 9, term=3), vote(1, 4, 1)])
        disk.kill()
        told = open_log(disk)[1]
        disk.crash(random.Random(seed))
        assert open_log(disk)[1].groups == told.groups
        assert told.groups[1].hard_state == HardState(4, 1, 0)
        assert [entry.index for entry in told.groups[1].entries] == list(range(1, 10))


def test_entries_of_a_term_never_precede_its_hard_state() -> None:
    """HAZARDS 7: one ordered stream; also when one append is cut into several batches."""
    big = GroupAppend(group=1, hard_state=HardState(5, 2, 0), entries=entries(1, 30, 5, 5_000))
    assert sum(len(entry.payload) for entry in big.entries) > 4 * OPTIONS.flush_bytes_max
    for call in range(1, 10_000):
        disk = MemoryFileSystem()
        disk.faults.stop_call = call
        try:
            wal, _ = open_log(disk)
            wal.write([big])
            wal.sync()
        except PowerLost:
            pass
        fired = disk.faults.fired
        disk.crash(random.Random(call))
        disk.faults.stop_call = 0
        group = open_log(disk)[1].groups.get(1)
        if group is not None and group.entries:
            assert group.hard_state == big.hard_state
        if not fired:
            assert group is not None
            assert group.entries == big.entries
            return


def test_a_failed_sync_is_the_end() -> None:
    """HAZARDS 22: the kernel dropped the pages, so a second sync that succeeds means nothing."""
    disk = MemoryFileSystem()
    wal, _ = open_log(disk)
    wal.write([append(1, 1, 3)])
    wal.sync()
    wal.write([append(1, 4, 6)])
    disk.faults.fail_syncs = 1
    with pytest.raises(StorageFailed, match="syncing the log"):
        wal.sync()
    for call in (wal.sync, wal.idle, lambda: wal.write([append(1, 7, 7)]), lambda: wal.release(1, 2)):
        with pytest.raises(StorageFailed, match="takes nothing any more"):
            call()
    wal.prepare()
    wal.close()
    disk.crash(random.Random(0), torn=False)
    assert [entry.index for entry in open_log(disk)[1].groups[1].entries] == [1, 2, 3]
