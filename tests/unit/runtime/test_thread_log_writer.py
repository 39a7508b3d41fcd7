"""Group commit on a thread, lanes, and what happens when the disk fails."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from consensus.core.interface import Entry, EntryKind, HardState
from consensus.runtime.behind import Behind
from consensus.runtime.threads import EXIT_INVARIANT_BROKEN, ThreadLanes, ThreadLogWriter, end_process
from consensus.storage.errors import EXIT_STORAGE_FAILED, StorageFailed, StorageFull
from consensus.storage.interface import GroupAppend


class Log:
    """A `LogStore` that writes down what it is told; `gate` holds a sync."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.idled = threading.Event()
        self.synced = threading.Event()
        self.full = False
        self.exhausted = False
        self.unprepared = False
        self.closed = False

    def write(self, appends: Sequence[GroupAppend]) -> None:
        if self.full and any(entry.kind is EntryKind.NORMAL for append in appends for entry in append.entries):
            raise StorageFull("no space")
        self.calls.append([append.group for append in appends])

    def sync(self) -> None:
        self.gate.wait(5)
        if self.error is not None:
            raise self.error
        self.calls.append("sync")
        self.synced.set()

    def release(self, group: int, below_index: int) -> None:
        self.calls.append(("release", group, below_index))

    def prepare(self) -> None:
        pass

    def idle(self) -> None:
        self.calls.append("idle")
        self.idled.set()

    def close(self) -> None:
        self.closed = True


class Loop:
    """`post` that collects; `drain` runs on the test's thread."""

    def __init__(self) -> None:
        self.posted: list[Callable[[], None]] = []
        self.arrived = threading.Condition()

    def post(self, call: Callable[[], None]) -> None:
        with self.arrived:
            self.posted.append(call)
            self.arrived.notify_all()

    def wait(self, count: int) -> None:
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.posted) >= count, 5)
        for call in self.posted:
            call()
        self.posted.clear()


def append(group: int, size: int = 0) -> GroupAppend:
    entries = (Entry(1, 1, EntryKind.NORMAL, bytes(size), 0),) if size else ()
    return GroupAppend(group=group, hard_state=HardState(term=group), entries=entries)


def test_all_that_is_queued_shares_one_write_and_one_sync_and_is_reported_in_one_call() -> None:
    log, loop, done = Log(), Loop(), []
    log.gate.clear()
    writer = ThreadLogWriter(log, loop.post)
    writer.submit(append(0), lambda: done.append(0))
    while not log.calls:
        pass
    for group in range(1, 6):
        writer.submit(append(group), lambda group=group: done.append(group))
    log.gate.set()
    loop.wait(2)
    assert done == [0, 1, 2, 3, 4, 5]
    assert log.calls[:4] == [[0], "sync", [1, 2, 3, 4, 5], "sync"]
    assert writer.close()
    assert log.closed


def test_entries_are_reported_before_their_sync_where_that_may_follow_behind() -> None:
    """RULES W8, durability `replicated`: never a new term or vote, and not for long."""
    log, loop, done = Log(), Loop(), list[str]()
    writer = ThreadLogWriter(log, loop.post, behind=Behind(ms_max=30_000, bytes_max=250))
    writer.submit(append(1, 100), lambda: done.append("term 1"))
    loop.wait(1)
    assert (log.calls, done) == ([[1], "sync"], ["term 1"])
    log.gate.clear()
    writer.submit(append(1, 100), lambda: done.append("same term"))
    loop.wait(1)
    assert (log.calls, done) == ([[1], "sync", [1]], ["term 1", "same term"])
    writer.submit(append(1, 300), lambda: done.append("over the bound"))
    loop.wait(1)
    assert done[2:] == ["over the bound"]
    writer.submit(GroupAppend(group=1, hard_state=HardState(term=2)), lambda: done.append("term 2"))
    log.gate.set()
    loop.wait(1)
    assert log.calls[3:] == [[1], "sync", [1], "sync"]
    assert done[3:] == ["term 2"]
    writer.submit(GroupAppend(group=1, clear_forgetful=True), lambda: done.append("mark"))
    loop.wait(1)
    assert log.calls[7:] == [[1], "sync"]
    assert writer.close()


def test_what_was_reported_unsynced_is_synced_soon() -> None:
    log, loop = Log(), Loop()
    writer = ThreadLogWriter(log, loop.post, behind=Behind(ms_max=1), idle_ms=30_000)
    writer.submit(append(1, 100), lambda: None)
    loop.wait(1)
    log.synced.clear()
    writer.submit(append(1, 100), lambda: None)
    loop.wait(1)
    assert log.synced.wait(5)
    assert log.calls == [[1], "sync", [1], "sync"]
    assert writer.close()


def test_a_flush_is_bounded_and_one_larger_append_goes_alone() -> None:
    log, loop = Log(), Loop()
    log.gate.clear()
    writer = ThreadLogWriter(log, loop.post, flush_bytes_max=100)
    writer.submit(append(0), lambda: None)
    while not log.calls:
        pass
    for group, size in ((1, 60), (2, 40), (3, 60), (4, 500), (5, 1)):
        writer.submit(append(group, size), lambda: None)
    log.gate.set()
    loop.wait(5)
    assert [call for call in log.calls if isinstance(call, list)] == [[0], [1, 2], [3], [4], [5]]
    writer.close()


def test_a_vote_goes_into_the_next_flush_but_never_before_what_its_own_group_submitted() -> None:
    """RULES W5, HAZARDS 7."""
    log, loop, done = Log(), Loop(), []
    log.gate.clear()
    writer = ThreadLogWriter(log, loop.post, flush_bytes_max=100)
    writer.submit(append(0), lambda: done.append(0))
    while not log.calls:
        pass
    for group, size in ((1, 90), (2, 90), (3, 90), (4, 0), (2, 0), (5, 0), (4, 90)):
        writer.submit(append(group, size), lambda group=group: done.append(group))
    log.gate.set()
    loop.wait(5)
    assert [call for call in log.calls if isinstance(call, list)] == [[0], [4, 5, 1], [2], [3, 2], [4]]
    assert done == [0, 4, 5, 1, 2, 3, 2, 4]
    writer.close()


def test_quiet_covers_the_last_batch_once() -> None:
    log, loop = Log(), Loop()
    writer = ThreadLogWriter(log, loop.post, idle_ms=5)
    writer.submit(append(1), lambda: None)
    loop.wait(1)
    log.idled.clear()
    assert log.idled.wait(5)
    log.idled.clear()
    assert not log.idled.wait(0.05)
    assert log.calls.count("idle") <= 2
    writer.close()


def test_releases_come_after_what_was_submitted_before() -> None:
    log, loop = Log(), Loop()
    log.gate.clear()
    writer = ThreadLogWriter(log, loop.post)
    writer.submit(append(1), lambda: None)
    writer.release(1, 7)
    log.gate.set()
    writer.close()
    assert log.calls[:2] == [[1], "sync"]
    assert ("release", 1, 7) in log.calls[2:]


def command(group: int, index: int) -> GroupAppend:
    return GroupAppend(group=group, entries=(Entry(1, index, EntryKind.NORMAL, b"", 0),))


def test_a_full_disk_turns_commands_away_lets_votes_pass_and_clears_by_itself() -> None:
    """RULES W5: nothing ends, nothing is lost, and no group's appends change their order."""
    log, loop, done = Log(), Loop(), []
    log.full = True
    writer = ThreadLogWriter(log, loop.post, full_retry_ms=5)

    def submit(append: GroupAppend, name: str) -> None:
        writer.submit(append, lambda: done.append(name))

    submit(command(1, 1), "1a")
    submit(GroupAppend(group=2, hard_state=HardState(1)), "2a")
    loop.wait(1)
    assert done == ["2a"]
    assert writer.full()
    submit(GroupAppend(group=1, hard_state=HardState(2)), "1b")
    submit(GroupAppend(group=3, entries=(Entry(1, 1, EntryKind.NOOP, b"", 0),)), "3a")
    loop.wait(1)
    submit(command(2, 2), "2b")
    submit(GroupAppend(group=3, hard_state=HardState(3)), "3b")
    loop.wait(1)
    assert done == ["2a", "3a", "3b"], "1b waits for 1a: one ordered stream"
    log.full = False
    while len(done) < 6:
        loop.wait(1)
    assert [name for name in done if name[0] == "1"] == ["1a", "1b"]
    assert not writer.full()
    assert writer.close()


def test_a_disk_found_full_while_idle_is_looked_at_again() -> None:
    """Found by the simulator (seed 95): making spares ready when idle met a full disk, and nobody looked for space any
    more, for commands are refused then and nothing comes to be written."""

    class Found(Log):
        looked = threading.Event()

        def idle(self) -> None:
            self.full = True
            super().idle()

        def prepare(self) -> None:
            if self.full:
                self.full = False
                self.looked.set()

    log = Found()
    writer = ThreadLogWriter(log, Loop().post, idle_ms=1, full_retry_ms=5)
    assert log.idled.wait(5)
    assert log.looked.wait(5)
    assert not writer.full()
    assert writer.close()


def test_a_writer_closes_on_a_full_disk() -> None:
    log, loop, done = Log(), Loop(), []
    log.full = True
    writer = ThreadLogWriter(log, loop.post, full_retry_ms=5)
    writer.submit(command(1, 1), lambda: done.append(1))
    assert writer.close(timeout_s=5)
    assert (done, log.closed) == ([], True)


def test_after_a_failed_write_or_sync_nothing_is_reported_and_the_process_ends() -> None:
    """HAZARDS 22."""
    error = StorageFailed("fsync: EIO")
    log, loop = Log(), Loop()
    log.error = error
    ended, seen, done = threading.Event(), [], []

    def fatal(error: BaseException) -> None:
        seen.append(error)
        ended.set()

    noted: list[str] = []
    writer = ThreadLogWriter(log, loop.post, fatal=fatal, failed=lambda: noted.append("failed"))
    writer.submit(append(1), lambda: done.append(1))
    assert ended.wait(5)
    assert noted == ["failed"]
    log.error = None
    writer.submit(append(2), lambda: done.append(2))
    writer.close(timeout_s=5)
    assert seen == [error]
    assert done == []
    assert loop.posted == []
    assert "sync" not in log.calls


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (StorageFailed("syncing the log: EIO"), EXIT_STORAGE_FAILED, "storage failed"),
        (ValueError("x"), EXIT_INVARIANT_BROKEN, "invariant"),
    ],
)
def test_the_process_ends_with_a_documented_code_and_a_clear_line(
    error: Exception, code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []
    monkeypatch.setattr("os._exit", codes.append)
    end_process(error)
    assert codes == [code]
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith("fatal: ")
    assert words in first
    assert str(error) in first


# --- lanes ----------------------------------------------------------------------------------------------------------


def test_work_of_a_lane_runs_in_order_on_its_own_thread_and_ends_on_the_loop() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        started: list[str] = []
        lanes = ThreadLanes(loop.call_soon_threadsafe, at_start=started.append)
        results: list[tuple[int, str, str]] = []
        finished = asyncio.Event()

        def done(result: tuple[int, str]) -> None:
            results.append((*result, threading.current_thread().name))
            if len(results) == 20:
                finished.set()

        for number in range(20):
            lane = "apply" if number % 2 else "sum"
            lanes.run(lane, lambda number=number: (number, threading.current_thread().name), done)
        await asyncio.wait_for(finished.wait(), 5)
        assert sorted(started) == ["apply", "sum"]
        assert [number for number, name, _ in results if name == "lane-apply"] == list(range(1, 20, 2))
        assert {where for _, _, where in results} == {threading.current_thread().name}
        assert lanes.close()

    asyncio.run(main())


def test_work_that_raises_is_fatal_and_reports_nothing() -> None:
    loop, seen, ended = Loop(), [], threading.Event()

    def fatal(error: BaseException) -> None:
        seen.append(error)
        ended.set()

    lanes = ThreadLanes(loop.post, fatal=fatal)
    lanes.run("apply", lambda: 1 // 0, lambda result: None)
    assert ended.wait(5)
    assert isinstance(seen[0], ZeroDivisionError)
    assert loop.posted == []
