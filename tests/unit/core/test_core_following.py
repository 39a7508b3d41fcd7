"""A follower's answers speak only of what is durable here and verified against the current leader (HAZARDS 2, 4, 5)."""

import pytest

from consensus.core.errors import InvariantViolated
from consensus.core.interface import AppendRequest, Configuration, Entry, EntryKind
from consensus.core.raft import RaftConfig
from tests.unit.core.harness import (
    AppendResponse,
    HeartbeatResponse,
    Host,
    entry,
    follower,
    log_of,
    meta,
    of,
    offer,
    only,
)


def test_entries_are_acknowledged_only_once_durable() -> None:
    host = follower(1, term=1)
    # That the log was found equal up to 1 may be said at once.
    assert only(AppendResponse, host.append(entry(1, 2), after=(1, 1))).match_index == 1
    answer = only(AppendResponse, host.persist())
    assert (answer.rejected, answer.match_index, answer.to) == (False, 2, 1)


def test_duplicate_of_what_is_being_written_is_not_acknowledged() -> None:
    host = follower(1, term=1)
    host.append(entry(1, 2), after=(1, 1))
    assert of(AppendResponse, host.append(entry(1, 2), after=(1, 1))) == []
    assert only(AppendResponse, host.persist()).match_index == 2


def test_empty_request_behind_what_is_being_written_is_not_acknowledged() -> None:
    host = follower(1, term=1)
    host.append(entry(1, 2), after=(1, 1))
    assert of(AppendResponse, host.append(after=(1, 2))) == []
    assert only(AppendResponse, host.persist()).match_index == 2


def test_heartbeat_answer_speaks_of_the_flushed_cursor() -> None:
    host = follower(1, term=1)
    host.append(entry(1, 2), after=(1, 1))
    assert only(HeartbeatResponse, host.heartbeat()).match_index == 1
    host.persist()
    assert only(HeartbeatResponse, host.heartbeat()).match_index == 2


def test_heartbeat_answer_says_nothing_of_a_log_not_verified_in_this_term() -> None:
    host = follower(1, 1, term=2)
    assert only(HeartbeatResponse, host.heartbeat()).match_index == 0
    host.append(after=(1, 1))
    assert only(HeartbeatResponse, host.heartbeat()).match_index == 1


def test_junk_behind_the_verified_part_is_not_acknowledged() -> None:
    host = follower(1, 1, 1, term=2)
    answer = only(AppendResponse, host.append(after=(1, 1)))
    assert (answer.match_index, answer.last_index) == (1, 3)


def test_short_duplicate_deletes_nothing_acknowledged() -> None:
    """HAZARDS 2."""
    host = follower(term=1)
    host.append(*log_of(1, 1, 1))
    host.persist()
    host.append(*log_of(1))
    host.persist()
    assert host.terms() == [1, 1, 1]
    assert only(HeartbeatResponse, host.heartbeat()).match_index == 3
    assert len(host.disk.entries) == 3


def test_rejection_never_points_below_what_was_acknowledged() -> None:
    """The leader takes a rejection at or below its match for an old one. Here the log was found equal up to 2 without
    being told that any of it is committed, what followed was lost, and the next request meets junk of term 1."""
    host = follower(1, 1, 1, 1, 1, term=3)
    assert only(AppendResponse, host.append(after=(1, 2))).match_index == 2
    answer = only(AppendResponse, host.append(entry(2, 5), after=(2, 4)))
    assert answer.rejected
    assert answer.conflict_index == 3


def test_progress_is_told_batch_by_batch() -> None:
    host = follower(1, term=1)
    host.append(entry(1, 2), after=(1, 1))
    host.append(entry(1, 3), after=(1, 2))
    assert len(host.writing) == 2
    assert only(AppendResponse, host.persist_one()).match_index == 2
    assert only(AppendResponse, host.persist_one()).match_index == 3
    assert host.drain() == []


def test_report_of_an_overwritten_batch_acknowledges_nothing_though_the_entry_came_back() -> None:
    """HAZARDS 5, the second half: (2, 2) is being written, is overwritten by (3, 2), and is brought back."""
    host = follower(1, term=2)
    host.append(entry(2, 2), after=(1, 1), sender=1)
    host.append(entry(3, 2), after=(1, 1), sender=3, term=3)
    # The leader of term 4 has the entry of term 2 and nothing of term 3.
    host.append(entry(2, 2), after=(1, 1), sender=1, term=4)
    assert len(host.writing) == 3
    left = host.persist_one()
    # On the disk stands (2, 2), but what follows in the queue will overwrite it again.
    assert all(answer.match_index < 2 for answer in of(AppendResponse, left))
    assert host.core.status().flushed_index == 1
    left = host.persist_one()
    assert all(answer.match_index < 2 for answer in of(AppendResponse, left))
    assert only(AppendResponse, host.persist_one()).match_index == 2


def test_answer_waits_until_the_term_is_durable() -> None:
    host = follower(1, term=1)
    assert host.append(after=(1, 1), term=5) == []
    assert host.heartbeat(term=5) == []
    left = host.persist()
    assert only(AppendResponse, left).term == 5
    assert only(HeartbeatResponse, left).term == 5


def test_answer_owed_to_an_old_leader_is_not_given_to_the_next() -> None:
    host = follower(1, term=1)
    host.append(entry(1, 2), after=(1, 1), sender=1)
    host.heartbeat(sender=3, term=2)
    assert of(AppendResponse, host.persist()) == []


@pytest.mark.parametrize(
    ("terms", "after", "conflict"),
    [
        ((1, 1), (2, 5), (3, 0)),
        ((1, 1, 2, 2, 2), (3, 5), (3, 2)),
        ((), (1, 1), (1, 0)),
    ],
    ids=["too short", "another term", "empty"],
)
def test_rejection_says_where_to_try_next(terms, after, conflict) -> None:  # type: ignore[no-untyped-def]
    host = follower(*terms, term=3)
    answer = only(AppendResponse, host.append(entry(3, after[1] + 1), after=after))
    assert answer.rejected
    assert (answer.conflict_index, answer.conflict_term) == conflict
    assert host.terms() == list(terms)


def test_commit_index_stays_within_what_is_verified() -> None:
    host = follower(1, 1, 1, term=2)
    host.append(after=(1, 2), commit=3)
    assert host.core.status().commit_index == 2
    host.heartbeat(commit=3)
    assert host.core.status().commit_index == 2


def test_committed_entries_are_handed_out_only_when_durable_here() -> None:
    host = follower(1, term=1, commit=1)
    host.append(entry(1, 2), entry(1, 3), after=(1, 1), commit=3)
    assert [one.index for one in host.applied] == [1]
    host.persist()
    assert [one.index for one in host.applied] == [1, 2, 3]
    assert host.core.status().applied_index == 3


def test_committed_bytes_of_one_ready_are_bounded() -> None:
    host = follower(term=1, config=RaftConfig(committed_bytes_max=25))
    for index in range(1, 6):
        host.core.step(
            host.message(
                AppendRequest,
                sender=1,
                previous_index=index - 1,
                previous_term=1 if index > 1 else 0,
                commit=0,
                entries=(entry(1, index, bytes(10)),),
            )
        )
    host.persist()
    host.core.step(host.message(AppendRequest, sender=1, previous_index=5, previous_term=1, commit=5))
    sizes = []
    while host.core.has_ready():
        sizes.append(len(host.core.ready().committed))
    assert [size for size in sizes if size] == [2, 2, 1]


def test_commit_hint_never_speaks_of_entries_that_are_not_durable() -> None:
    """After a crash between hard state and entries the hint would call the overwritten tail committed."""
    host = follower(1, 1, 1, term=2)
    host.append(entry(2, 2), entry(2, 3), after=(1, 1), commit=3)
    assert host.core.status().commit_index == 3
    hint = host.writing[0].hard_state
    assert hint is None or hint.commit <= 1


def test_conflict_below_commit_ends_the_process() -> None:
    host = follower(1, 1, term=2, commit=2)
    with pytest.raises(InvariantViolated, match="committed"):
        host.append(entry(2, 2), after=(1, 1))


def test_request_that_begins_in_the_compacted_part_is_taken_from_there() -> None:
    host = follower(1, 1, 1, term=1, commit=3)
    host.persist()
    host.core.compact(meta(3, 1), keep_from=4)
    host.append(*log_of(1, 1, 1, 1))
    assert only(AppendResponse, host.persist()).match_index == 4
    host.append(entry(1, 2), after=(1, 1))
    assert only(HeartbeatResponse, host.heartbeat()).match_index == 4


# --- snapshots ------------------------------------------------------------------------------------------------------


def test_snapshot_is_acknowledged_when_durable_and_applied_from_when_installed() -> None:
    host = follower(1, 1, term=2)
    host.step(offer(host, meta(10, 2)))
    assert host.writing[0].install == meta(10, 2)
    assert (host.core.status().last_index, host.core.status().applied_index) == (10, 0)
    host.append(entry(2, 11), after=(2, 10), commit=11)
    assert host.applied == []
    assert only(AppendResponse, host.persist_one()).match_index == 10
    host.persist()
    assert [one.index for one in host.applied] == [11]
    assert (host.core.status().snapshot_index, host.core.status().applied_index) == (10, 11)


def test_nothing_is_applied_while_a_snapshot_is_being_installed() -> None:
    host = follower(term=2)
    host.step(offer(host, meta(10, 2)))
    host.append(entry(2, 11), after=(2, 10), commit=11)
    while host.writing:
        host.core.persisted(host.writing.pop(0).persist_number)
    host.drain()
    assert host.applied == []
    host.core.installed(meta(10, 2))
    host.drain()
    assert [one.index for one in host.applied] == [11]


def test_snapshot_of_what_the_log_holds_only_commits_it() -> None:
    host = follower(1, 1, 1, term=1)
    left = host.step(offer(host, meta(2, 1)))
    assert host.writing == []
    assert only(AppendResponse, left).match_index == 2
    assert [one.index for one in host.applied] == [1, 2]
    assert host.terms() == [1, 1, 1]


def test_old_snapshot_is_ignored() -> None:
    host = follower(1, 1, 1, term=1, commit=3)
    host.drain()
    host.step(offer(host, meta(2, 1)))
    assert host.writing == []
    assert host.core.status().commit_index == 3


def test_snapshot_configuration_is_adopted() -> None:
    host = follower(term=1)
    host.step(offer(host, meta(5, 1, Configuration((2, 1, 3)))))
    assert host.core.configuration.voters == (2, 1, 3)
    host.step(offer(host, meta(9, 1, Configuration(()))))
    assert host.core.dropped["bad_snapshot"] == 1


# --- the two ends of a life -----------------------------------------------------------------------------------------


def test_log_ahead_of_the_durable_term_is_refused() -> None:
    """HAZARDS 7: the term of an entry is durable before the entry."""
    with pytest.raises(InvariantViolated, match="durable term"):
        follower(1, 2, term=1)


def test_durable_commit_beyond_the_log_is_refused() -> None:
    with pytest.raises(InvariantViolated, match="committed"):
        follower(1, term=1, commit=2)


def test_report_of_a_batch_never_issued_is_refused() -> None:
    with pytest.raises(InvariantViolated, match="issued"):
        Host().core.persisted(1)


def test_hard_state_and_entries_are_one_batch_with_the_term_first() -> None:
    host = follower(1, term=1)
    host.append(entry(4, 2), after=(1, 1), term=4)
    (batch,) = host.writing
    assert batch.hard_state is not None
    assert (batch.hard_state.term, [one.term for one in batch.entries]) == (4, [4])


def test_payloads_are_passed_on_by_reference() -> None:
    host = follower(term=1)
    payload = memoryview(bytes(100))
    host.append(Entry(1, 1, EntryKind.NORMAL, payload, 0), commit=1)
    assert host.writing[0].entries[0].payload is payload
    host.persist()
    assert host.applied[0].payload is payload
