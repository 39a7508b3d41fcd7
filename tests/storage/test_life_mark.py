"""What a life under durability `replicated` leaves behind for the next one (RULES W7, W8): a process that was killed
has forgotten nothing; a machine that stopped may have, and is marked before anything else."""

import random

import pytest

from consensus.storage import lifemark
from consensus.storage.errors import StorageFailed, StorageFull, UnknownFormat
from consensus.storage.filesystem import OsFileSystem
from consensus.storage.interface import Recovery
from consensus.storage.lifemark import open_log
from consensus.storage.memory import FaultPlan, MemoryFileSystem, PowerLost
from consensus.storage.wal import Wal
from tests.storage.logs import IDENTITY, OPTIONS, append, indexes, span, vote

FOLDER = "/data"


def open_folder(disk: MemoryFileSystem, *, replicated: bool = True) -> tuple[Wal, Recovery]:
    disk.faults = FaultPlan()
    return open_log(disk, FOLDER, IDENTITY, OPTIONS, replicated=replicated)


def used(disk: MemoryFileSystem) -> Wal:
    """A life in which group 1 acknowledged entries 1 to 5, of which only the first two are synced; group 2 is new."""
    wal, _ = open_folder(disk)
    wal.write([vote(1, 1), append(1, 1, 2)])
    wal.sync()
    wal.write([append(1, 3, 5)])
    return wal


def stop_machine(disk: MemoryFileSystem) -> None:
    disk.crash(random.Random(1), torn=False)


def test_a_killed_process_has_forgotten_nothing() -> None:
    disk = MemoryFileSystem()
    used(disk)
    disk.kill()
    _, recovery = open_folder(disk)
    assert indexes(recovery, 1) == span(1, 5)
    assert not recovery.groups[1].forgetful
    # What it recovered is synced (RULES W3): the mark of the next crash is there all the same, for what may come.
    stop_machine(disk)
    _, recovery = open_folder(disk)
    assert indexes(recovery, 1) == span(1, 5)
    assert recovery.groups[1].forgetful


def test_a_stopped_machine_may_have_forgotten_and_stays_marked() -> None:
    disk = MemoryFileSystem()
    used(disk)
    stop_machine(disk)
    _, recovery = open_folder(disk)
    assert indexes(recovery, 1) == span(1, 2)
    assert recovery.groups[1].forgetful
    assert recovery.groups[1].hard_state.term == 1
    assert not recovery.groups[1].hard_state_lost
    assert "machine stopped" in recovery.groups[1].damage
    disk.kill()
    _, recovery = open_folder(disk)
    assert recovery.groups[1].forgetful


def test_one_that_never_had_a_term_has_nothing_to_forget() -> None:
    disk = MemoryFileSystem()
    open_folder(disk)
    stop_machine(disk)
    wal, recovery = open_folder(disk)
    assert recovery.groups == {}
    wal.write([vote(1, 1)])
    wal.sync()


def test_a_clean_stop_forgets_nothing_whatever_the_machine_does_next() -> None:
    disk = MemoryFileSystem()
    wal = used(disk)
    wal.close()
    lifemark.end(disk, FOLDER)
    stop_machine(disk)
    _, recovery = open_folder(disk)
    assert indexes(recovery, 1) == span(1, 5)
    assert not recovery.groups[1].forgetful
    # The mark of the clean stop is gone before that life acknowledges anything.
    stop_machine(disk)
    assert lifemark.forgotten(disk, FOLDER)


def test_going_back_to_fsync_still_honours_a_crash_of_the_life_before() -> None:
    disk = MemoryFileSystem()
    used(disk)
    stop_machine(disk)
    wal, recovery = open_folder(disk, replicated=False)
    assert recovery.groups[1].forgetful
    assert not disk.exists(f"{FOLDER}/life")
    wal.write([vote(2, 1), append(2, 1, 1)])
    wal.sync()
    stop_machine(disk)
    _, recovery = open_folder(disk, replicated=False)
    assert recovery.groups[1].forgetful
    assert not recovery.groups[2].forgetful


def test_a_failed_disk_counts_as_a_crash_in_the_same_boot() -> None:
    disk = MemoryFileSystem()
    wal = used(disk)
    disk.faults.fail_syncs = 1
    with pytest.raises(StorageFailed):
        wal.sync()
    lifemark.doubt(disk, FOLDER)
    disk.kill()
    _, recovery = open_folder(disk)
    assert recovery.groups[1].forgetful
    assert "disk failed" in recovery.groups[1].damage
    assert not lifemark.forgotten(disk, FOLDER)


def test_a_life_under_fsync_leaves_no_trace_and_no_doubt() -> None:
    disk = MemoryFileSystem()
    open_folder(disk, replicated=False)
    lifemark.doubt(disk, FOLDER)
    lifemark.end(disk, FOLDER)
    assert disk.listdir(FOLDER) == ["wal"]


@pytest.mark.parametrize("boot", ["", "boot 7"])
def test_a_damaged_file_counts_as_a_crash_and_a_newer_one_is_refused(boot: str) -> None:
    disk = MemoryFileSystem()
    used(disk)
    lifemark._write(disk, FOLDER, boot)
    disk.flip_bit(f"{FOLDER}/life", 3)
    assert lifemark.forgotten(disk, FOLDER)
    disk.overwrite(f"{FOLDER}/life", b'{"boot": "", "format": 9}\n')
    line = b'{"boot": "", "format": 9}\n'
    disk.unlink(f"{FOLDER}/life")
    disk.open(f"{FOLDER}/life", create=True).pwrite([line, f"{lifemark.crc32c(line):08x}\n".encode()], 0)
    with pytest.raises(UnknownFormat):
        lifemark.forgotten(disk, FOLDER)


def test_a_boot_that_is_not_known_is_never_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = MemoryFileSystem()
    monkeypatch.setattr(disk, "boot_id", lambda: lifemark.UNKNOWN_BOOT)
    used(disk)
    disk.kill()
    _, recovery = open_folder(disk)
    assert recovery.groups[1].forgetful


def test_the_machine_tells_its_boot() -> None:
    boot = OsFileSystem().boot_id()
    assert boot
    assert boot == OsFileSystem().boot_id()


@pytest.mark.parametrize("fault", ["power cut", "power cut, torn", "error", "full disk"])
def test_a_fault_at_every_call_never_hides_a_crash(fault: str) -> None:
    """A life that is used, its machine stopped, the start after that interrupted at the n-th call, for every n, and
    then one that works: what was forgotten is known there, at the latest, and nobody was told before."""
    for call in range(1, 200):
        disk = MemoryFileSystem()
        used(disk)
        stop_machine(disk)
        fired = interrupted(disk, fault, call)
        _, recovery = open_folder(disk)
        assert recovery.groups[1].forgetful, f"{fault} at call {call}"
        if not fired:
            return
    raise AssertionError("a start takes more calls than this test counts")


@pytest.mark.parametrize("fault", ["power cut", "power cut, torn", "error"])
def test_a_fault_at_every_call_of_a_first_life_never_loses_the_mark(fault: str) -> None:
    """A start under `replicated` that comes through, or is told to have, after a fault at the n-th call of another
    start: what it acknowledges and a stopped machine loses is known to be lost."""
    for call in range(1, 200):
        disk = MemoryFileSystem()
        wal, _ = open_folder(disk, replicated=False)
        wal.close()
        fired = interrupted(disk, fault, call)
        used(disk)
        stop_machine(disk)
        _, recovery = open_folder(disk)
        assert recovery.groups[1].forgetful, f"{fault} at call {call}"
        if not fired:
            return
    raise AssertionError("a start takes more calls than this test counts")


@pytest.mark.parametrize("torn", [False, True])
def test_a_power_cut_at_every_call_of_a_clean_stop_is_clean_or_marked(torn: bool) -> None:
    for call in range(1, 50):
        disk = MemoryFileSystem()
        wal = used(disk)
        disk.faults = FaultPlan(stop_call=call)
        try:
            wal.close()
            lifemark.end(disk, FOLDER)
        except PowerLost:
            pass
        fired = disk.faults.fired
        disk.crash(random.Random(call), torn=torn)
        _, recovery = open_folder(disk)
        whole = indexes(recovery, 1) == span(1, 5)
        assert whole or recovery.groups[1].forgetful, f"call {call}"
        if not fired:
            assert whole
            assert not recovery.groups[1].forgetful
            return
    raise AssertionError("a stop takes more calls than this test counts")


def interrupted(disk: MemoryFileSystem, fault: str, call: int) -> bool:
    """A start that something happens to; whether it did. The machine stops with it, unless only a call failed."""
    disk.faults = FaultPlan(**{"error": {"fail_call": call}, "full disk": {}}.get(fault, {"stop_call": call}))
    if fault == "full disk":
        disk.faults.capacity_bytes = disk.used_bytes() + call * 4096
    try:
        open_log(disk, FOLDER, IDENTITY, OPTIONS, replicated=True)
    except (PowerLost, StorageFailed, StorageFull):
        pass
    fired = disk.faults.fired
    disk.faults = FaultPlan()
    if fault.startswith("power cut"):
        disk.crash(random.Random(call), torn=fault.endswith("torn"))
    else:
        disk.kill()
    return fired
