"""The log alone: merging, what is durable, compaction."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.core.errors import InvariantViolated
from consensus.core.interface import Entry, SnapshotMeta
from consensus.core.raft.log import Log
from consensus.core.raft.membership import Membership
from tests.unit.core.harness import THREE, entry, log_of, meta

ALL = 1 << 40


def new_log(entries: Sequence[Entry], snapshot: SnapshotMeta | None) -> Log:
    return Log(entries, snapshot, Membership(1, THREE))


def terms(log: Log) -> list[int]:
    return [one.term for one in log.slice(log.first_index, bytes_max=ALL)]


def issue(log: Log, number: int) -> tuple[Entry, ...]:
    return log.issue(number, bytes_max=ALL)[1]


def test_shorter_duplicate_changes_nothing() -> None:
    log = new_log(log_of(1, 1, 2, 2), None)
    log.merge(log_of(1, 1), commit_index=0)
    assert terms(log) == [1, 1, 2, 2]
    assert (log.flushed, log.unissued()) == (4, False)


def test_conflict_replaces_the_tail_and_nothing_else() -> None:
    log = new_log(log_of(1, 1, 2, 2), None)
    log.merge(log_of(1, 1, 3), commit_index=2)
    assert terms(log) == [1, 1, 3]
    assert log.flushed == 2
    assert [one.term for one in issue(log, 1)] == [3]


def test_overlapping_append_hands_out_only_what_is_new() -> None:
    log = new_log(log_of(1, 1), None)
    log.merge(log_of(1, 1, 1, 1), commit_index=0)
    assert [one.index for one in issue(log, 1)] == [3, 4]


def test_committed_entries_are_never_truncated() -> None:
    log = new_log(log_of(1, 1), None)
    with pytest.raises(InvariantViolated, match="committed"):
        log.merge((entry(2, 2),), commit_index=2)


def test_batch_of_overwritten_entries_does_not_count_though_they_come_back() -> None:
    """HAZARDS 5: A is being written, B overwrites it, A comes back; the first write's report says nothing about the
    last."""
    log = new_log(log_of(1), None)
    old, other = entry(2, 2, b"old"), entry(3, 2, b"other")
    again = (entry(3, 2, b"other"), entry(3, 3, b"more"))
    log.merge((old, entry(2, 3)), commit_index=1)
    issue(log, 1)
    log.merge((other,), commit_index=1)
    issue(log, 2)
    log.merge(again, commit_index=1)
    issue(log, 3)
    log.durable(1)
    assert log.flushed == 1  # of batch 1 nothing stands in the log any more
    log.durable(2)
    assert log.flushed == 2
    log.durable(3)
    assert log.flushed == 3


def test_truncation_takes_back_what_was_durable() -> None:
    log = new_log(log_of(1, 2, 2), None)
    log.merge((entry(3, 2),), commit_index=1)
    assert log.flushed == 1


def test_one_batch_is_bounded_in_bytes_but_never_empty() -> None:
    log = new_log((), None)
    for index in range(1, 5):
        log.append(entry(1, index, bytes(10)))
    assert [one.index for one in log.issue(1, bytes_max=25)[1]] == [1, 2]
    assert [one.index for one in log.issue(2, bytes_max=5)[1]] == [3]
    assert log.unissued()


def test_payload_size_of_a_wide_memoryview_is_in_bytes() -> None:
    log = new_log((), None)
    log.append(Entry(1, 1, 1, memoryview(bytes(80)).cast("d"), 0))  # type: ignore[arg-type]
    assert log.bytes_above(0) == 80


def test_compaction_keeps_a_tail_and_the_term_before_it() -> None:
    log = new_log(log_of(1, 1, 2, 2, 3), None)
    log.compact(meta(4, 2), keep_from=3)
    assert (log.first_index, log.snapshot_index, log.term(2), log.term(1)) == (3, 4, 1, None)
    log.compact(meta(5, 3), keep_from=6)
    assert (log.first_index, log.last_index, log.last_term) == (6, 5, 3)


@pytest.mark.parametrize("snapshot", [meta(2, 9), meta(7, 1)])
def test_compaction_to_a_foreign_snapshot_is_refused(snapshot) -> None:  # type: ignore[no-untyped-def]
    log = new_log(log_of(1, 1, 1), None)
    with pytest.raises(InvariantViolated):
        log.compact(snapshot, keep_from=1)


def test_snapshot_counts_as_durable_only_when_its_record_is() -> None:
    log = new_log(log_of(1, 1), None)
    log.merge((entry(2, 3), entry(2, 4)), commit_index=2)
    issue(log, 1)
    log.restore(meta(10, 5), commit_index=2)
    log.append(entry(5, 11))
    log.durable(1)
    assert log.flushed == 2
    install, entries = log.issue(2, bytes_max=ALL)
    assert (install, [one.index for one in entries]) == (meta(10, 5), [11])
    log.durable(2)
    assert log.flushed == 11


@pytest.mark.parametrize(
    ("entries", "snapshot"),
    [
        ((entry(1, 2),), None),
        ((entry(1, 1), entry(1, 3)), None),
        ((entry(2, 1), entry(1, 2)), None),
        ((entry(1, 7),), meta(5, 1)),
        ((entry(1, 4), entry(1, 5)), meta(5, 2)),
    ],
    ids=["gap at the start", "gap", "falling term", "gap after the snapshot", "another history than the snapshot"],
)
def test_recovered_log_that_cannot_be_is_refused(entries, snapshot) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InvariantViolated):
        new_log(entries, snapshot)


@pytest.mark.parametrize(
    ("entries", "first", "last"),
    [((), 6, 5), ((entry(2, 6),), 6, 6), ((entry(1, 4), entry(2, 5), entry(2, 6)), 5, 6), ((entry(1, 2),), 6, 5)],
)
def test_recovered_entries_may_begin_below_the_snapshot(entries, first, last) -> None:  # type: ignore[no-untyped-def]
    log = new_log(entries, meta(5, 2))
    assert (log.first_index, log.last_index, log.flushed, log.snapshot_index) == (first, last, last, 5)


@given(st.lists(st.integers(0, 2), max_size=12), st.integers(0, 9))
def test_start_of_term_is_what_a_search_finds(steps: list[int], term: int) -> None:
    found = [1 + sum(steps[: position + 1]) for position in range(len(steps))]
    log = new_log(log_of(*found), None)
    expected = next((index + 1 for index, one in enumerate(found) if one >= term), len(found) + 1)
    assert log.start_of_term(term) == expected


@given(st.data())
def test_flushed_speaks_of_what_stands_in_the_log(data: st.DataObject) -> None:
    """Random appends, truncations and reports against a disk that writes the batches in order."""
    log, disk = new_log((), None), []
    queue: list[tuple[int, tuple[Entry, ...]]] = []
    term = number = 0
    for _ in range(data.draw(st.integers(1, 25))):
        move = data.draw(st.sampled_from(["merge", "issue", "durable"]))
        if move == "merge":
            term += data.draw(st.integers(0, 1))
            previous = data.draw(st.integers(0, log.last_index))
            if previous and (log.term(previous) or 0) > term:
                continue
            count = data.draw(st.integers(1, 3))
            log.merge([entry(term, previous + 1 + k) for k in range(count)], commit_index=0)
        elif move == "issue" and log.unissued():
            number += 1
            queue.append((number, log.issue(number, bytes_max=ALL)[1]))
        elif move == "durable" and queue:
            done, entries = queue.pop(0)
            disk = [one for one in disk if one.index < entries[0].index] + list(entries)
            log.durable(done)
        for index in range(1, log.flushed + 1):
            assert disk[index - 1].term == log.term(index)
