"""A leader's side: windows, conflicts, lost requests, lives of peers, and what counts for commit."""

import pytest

from consensus.core.errors import Busy, InvariantViolated, NotLeader
from consensus.core.interface import Configuration, EntryKind, Role
from consensus.core.raft import RaftConfig
from tests.unit.core.harness import (
    AppendRequest,
    AppendResponse,
    Cluster,
    Heartbeat,
    HeartbeatResponse,
    Host,
    VoteResponse,
    entry,
    follower,
    leader,
    meta,
    of,
)


def reject(host: Host, sender: int, *, index: int, term: int = 0, incarnation: int = 1) -> list[AppendRequest]:
    answer = host.message(
        AppendResponse,
        sender=sender,
        incarnation=incarnation,
        rejected=True,
        match_index=0,
        conflict_index=index,
        conflict_term=term,
    )
    return of(AppendRequest, host.step(answer), to=sender)


def indexes(requests: list[AppendRequest]) -> list[list[int]]:
    return [[one.index for one in request.entries] for request in requests]


def replicating(*terms: int, **rest) -> Host:  # type: ignore[no-untyped-def]
    """A leader whose peers hold its whole log, no-op included."""
    host = leader(*terms, **rest)
    for peer in (2, 3):
        host.match(peer, host.core.status().last_index)
    host.sent.clear()
    return host


# --- requests -------------------------------------------------------------------------------------------------------


def test_new_leader_heartbeats_and_probes_with_its_no_op() -> None:
    host = follower(1, 1, replica=1)
    host.tick(300)
    for pre in (True, False):
        left = host.step(host.message(VoteResponse, sender=2, term=2, pre=pre, granted=True)) + host.persist()
        if not pre:
            assert {one.to for one in of(Heartbeat, left)} == {2, 3}
            (request,) = of(AppendRequest, left, to=2)
            assert (request.previous_index, request.previous_term) == (2, 1)
            assert [one.kind for one in request.entries] == [EntryKind.NOOP]


def test_entries_go_out_in_parallel_with_the_own_write() -> None:
    host = replicating(1)
    left = host.propose(b"a")
    assert len(host.writing) == 1
    assert {one.to for one in of(AppendRequest, left)} == {2, 3}


def test_proposals_that_come_together_travel_together() -> None:
    host = replicating(1)
    assert indexes(of(AppendRequest, host.propose(b"a", b"b", b"c"), to=2)) == [[3, 4, 5]]


def test_requests_are_pipelined() -> None:
    host = replicating(1)
    for payload in (b"a", b"b", b"c"):
        host.propose(payload)
    requests = of(AppendRequest, host.sent, to=2)
    assert [(one.previous_index, len(one.entries)) for one in requests] == [(2, 1), (3, 1), (4, 1)]


def test_one_request_is_bounded_in_bytes_but_carries_a_larger_entry_alone() -> None:
    host = replicating(1, config=RaftConfig(append_bytes_max=100, probe_bytes_max=100))
    left = host.propose(bytes(60), bytes(60), bytes(30), bytes(500), bytes(1))
    assert indexes(of(AppendRequest, left, to=2)) == [[3], [4, 5], [6], [7]]


def test_window_is_bounded_in_messages_and_moves_with_answers() -> None:
    host = replicating(1, config=RaftConfig(inflight_messages_max=2))
    for _ in range(5):
        host.propose(b"x")
    assert indexes(of(AppendRequest, host.sent, to=2)) == [[3], [4]]
    assert indexes(of(AppendRequest, host.match(2, 3), to=2)) == [[5, 6, 7]]
    assert indexes(of(AppendRequest, host.match(2, 4), to=2)) == []


def test_window_is_bounded_in_bytes() -> None:
    config = RaftConfig(inflight_bytes_max=100, append_bytes_max=100, probe_bytes_max=0)
    host = replicating(1, config=config)
    for _ in range(4):
        host.propose(bytes(60))
    assert indexes(of(AppendRequest, host.sent, to=2)) == [[3], [4]]
    assert indexes(of(AppendRequest, host.match(2, 4), to=2)) == [[5], [6]]


def test_nothing_in_flight_is_sent_again_when_its_beginning_is_acknowledged() -> None:
    """HAZARDS 3."""
    host = replicating(1)
    for payload in (b"a", b"b", b"c"):
        host.propose(payload)
    host.sent.clear()
    host.match(2, 3)
    host.tick(60)
    host.step(host.message(HeartbeatResponse, sender=2, round=9, match_index=3))
    host.propose(b"d")
    assert indexes(of(AppendRequest, host.sent, to=2)) == [[6]]


def test_silence_is_answered_by_a_question_behind_everything_sent() -> None:
    host = replicating(1)
    host.propose(b"a")
    host.propose(b"b")
    (question,) = of(AppendRequest, host.tick(150), to=2)
    assert (question.previous_index, question.entries) == (4, ())
    # What was lost is then sent again from where the peer says.
    assert indexes(reject(host, 2, index=3)) == [[3, 4]]


def test_reopened_connection_is_such_a_silence() -> None:
    host = replicating(1)
    host.propose(b"a")
    host.core.connection(2, closed=False)
    (question,) = of(AppendRequest, host.drain(), to=2)
    assert (question.previous_index, question.entries) == (3, ())


def test_one_gap_leads_to_one_resend_however_many_rejections_it_makes() -> None:
    host = replicating(1)
    for payload in (b"a", b"b", b"c"):
        host.propose(payload)
    assert indexes(reject(host, 2, index=3)) == [[3, 4, 5]]
    assert reject(host, 2, index=3) == []
    assert reject(host, 2, index=3) == []


def test_settled_rejection_is_ignored() -> None:
    host = replicating(1)
    host.propose(b"a")
    host.match(2, 3)
    assert reject(host, 2, index=2) == []
    assert host.core.status().match[2] == 3


def test_lost_probe_is_repeated_after_a_heartbeat_answer() -> None:
    host = leader(1)
    assert of(AppendRequest, host.tick(60)) == []
    left = host.step(host.message(HeartbeatResponse, sender=2, round=1, match_index=0))
    assert indexes(of(AppendRequest, left, to=2)) == [[2]]


def test_probe_carries_no_heavy_payload() -> None:
    host = replicating(1, config=RaftConfig(probe_bytes_max=10))
    host.propose(bytes(100))
    (probe,) = reject(host, 2, index=3)
    assert (probe.previous_index, probe.entries) == (2, ())
    assert indexes(of(AppendRequest, host.match(2, 2), to=2)) == [[3]]


# --- conflicts ------------------------------------------------------------------------------------------------------


def test_conflict_steps_back_a_whole_term() -> None:
    host = leader(1, 1, 1, 4, 4, 5, 5)
    # The peer has 1 1 1 2 2 2 2: nothing of ours with its term 2.
    (probe,) = reject(host, 2, index=4, term=2)
    assert (probe.previous_index, probe.previous_term) == (3, 1)
    # The peer has 1 1 1 4 4 4 4: we share two of its term 4.
    (probe,) = reject(host, 3, index=4, term=4)
    assert (probe.previous_index, probe.previous_term) == (5, 4)


def test_short_log_is_resumed_at_its_end() -> None:
    host = leader(1, 1, 1, 4, 4)
    (probe,) = reject(host, 2, index=3)
    assert (probe.previous_index, probe.previous_term) == (2, 1)


@pytest.mark.parametrize(
    "theirs",
    [
        (),
        (1,),
        (1, 1, 1, 1),
        (1, 1, 1, 2, 2, 2, 2, 2),
        (1, 1, 1, 3, 3),
        (1, 1, 2, 2, 3, 3, 3, 3, 3),
        (2, 2, 2, 2),
        (1, 1, 1, 4, 4, 4, 4, 4, 4, 4, 4),
    ],
)
def test_any_log_is_brought_into_line(theirs: tuple[int, ...]) -> None:
    """The logs of figure 7, more or less."""
    ours = (1, 1, 1, 4, 4, 5, 5, 6, 6, 6)
    one, two, three = (follower(*log, replica=k, term=8) for k, log in ((1, ours), (2, theirs), (3, ours)))
    cluster = Cluster(one, two, three)
    cluster.elect().propose(b"x")
    cluster.run(100)
    assert one.role is Role.LEADER
    assert two.terms() == one.terms()
    assert [found.index for found in two.applied] == list(range(1, 13))


# --- answers that must not count ------------------------------------------------------------------------------------


def test_late_acknowledgement_of_an_earlier_term_does_not_count() -> None:
    """HAZARDS 5, the first half: it was said of another log."""
    host = leader(1, 1)
    host.match(2, 3, term=host.term - 1)
    assert host.core.status().match[2] == 0
    assert host.core.status().commit_index == 0


def test_match_beyond_the_log_is_dropped() -> None:
    host = leader(1)
    host.match(2, 50)
    assert host.core.dropped["match_beyond_log"] == 1


def test_restarted_peer_is_forgotten_and_its_earlier_life_ignored() -> None:
    """RULES C4."""
    host = replicating(1)
    host.propose(b"a")
    assert host.core.status().match[2] == 2
    host.step(host.message(HeartbeatResponse, sender=2, incarnation=2, round=1, match_index=0))
    assert host.core.status().match[2] == 0
    host.match(2, 3, incarnation=1)
    assert host.core.status().match[2] == 0
    host.match(2, 3, incarnation=2)
    assert host.core.status().match[2] == 3


def test_learners_are_served_but_do_not_count() -> None:
    configuration = Configuration((1, 2, 3), (4,))
    host = follower(1, replica=1, configuration=configuration).lead()
    host.match(4, 2)
    assert host.core.status().commit_index == 0
    host.match(2, 2)
    assert host.core.status().commit_index == 2
    assert of(AppendRequest, host.propose(b"x"), to=4)


# --- commit ---------------------------------------------------------------------------------------------------------


def test_leader_counts_itself_only_when_its_own_write_is_durable() -> None:
    host = replicating(1)
    host.propose(b"a")
    host.match(2, 3)
    assert host.core.status().commit_index == 2
    host.persist()
    assert host.core.status().commit_index == 3


def test_majority_of_others_commits_what_the_leader_has_not_written_but_does_not_apply_it() -> None:
    host = replicating(1)
    host.propose(b"a")
    host.match(2, 3)
    host.match(3, 3)
    assert host.core.status().commit_index == 3
    assert [one.index for one in host.applied] == [1, 2]
    host.persist()
    assert [one.index for one in host.applied] == [1, 2, 3]


def test_commit_is_announced_at_once_to_peers_with_nothing_in_flight() -> None:
    host = replicating(1)
    host.propose(b"a")
    host.persist()
    left = host.match(2, 3)
    (announcement,) = of(AppendRequest, left)
    assert (announcement.to, announcement.commit, announcement.entries) == (2, 3, ())
    (announcement,) = of(AppendRequest, host.match(3, 3))
    assert (announcement.to, announcement.commit) == (3, 3)
    assert of(AppendRequest, host.match(3, 3)) == []


def test_a_commit_waits_for_the_next_entries_or_for_its_time_to_be_told() -> None:
    host = replicating(1, config=RaftConfig(announce_ms=20))
    host.propose(b"a")
    host.persist()
    assert of(AppendRequest, host.match(2, 3) + host.match(3, 3)) == []
    (request,) = of(AppendRequest, host.propose(b"b"), to=2)
    assert (request.commit, len(request.entries)) == (3, 1)
    host.persist()
    host.match(2, 4)
    assert of(AppendRequest, host.tick(10)) == []
    (announcement,) = of(AppendRequest, host.tick(10))
    assert (announcement.to, announcement.commit, announcement.entries) == (2, 4, ())
    assert of(AppendRequest, host.tick(20)) == []


def test_heartbeat_tells_no_more_than_the_receiver_holds() -> None:
    host = leader(1)
    host.match(2, 2)
    assert {one.to: one.commit for one in of(Heartbeat, host.tick(50))} == {2: 2, 3: 0}


def test_uncommitted_bytes_are_bounded_and_come_back() -> None:
    host = replicating(1, config=RaftConfig(uncommitted_bytes_max=100))
    host.propose(bytes(500))  # larger than the bound, but alone
    with pytest.raises(Busy) as caught:
        host.propose(b"x")
    assert (caught.value.uncommitted_bytes, caught.value.uncommitted_bytes_max) == (500, 100)
    host.persist()
    host.match(2, 3)
    host.propose(bytes(60), bytes(40))
    with pytest.raises(Busy):
        host.propose(b"x")


def test_uncommitted_bytes_of_earlier_terms_count_too() -> None:
    """HAZARDS 27."""
    host = follower(1, 1, replica=1, config=RaftConfig(uncommitted_bytes_max=8)).lead()
    with pytest.raises(Busy):
        host.propose(bytes(3))
    host.match(2, 3)
    host.propose(bytes(3))


def test_only_a_leader_takes_proposals_and_only_commands() -> None:
    host = follower(1, replica=2)
    host.heartbeat(sender=3)
    with pytest.raises(NotLeader) as caught:
        host.core.propose(b"x", 0)
    assert (caught.value.leader, caught.value.term) == (3, 1)
    for kind in (EntryKind.CONFIGURATION, EntryKind.NOOP):
        with pytest.raises(ValueError, match=kind.name):
            leader(1).core.propose(b"", 0, kind)


# --- snapshots ------------------------------------------------------------------------------------------------------


def test_peer_behind_the_log_gets_a_snapshot() -> None:
    host = replicating(1, 1, 1)
    host.core.compact(meta(4, 2), keep_from=5)
    host.core.compact(meta(3, 1), keep_from=1)  # an older one changes nothing
    assert reject(host, 3, index=1) == []
    host.step(host.message(HeartbeatResponse, sender=3, incarnation=2, round=1, match_index=0))
    assert reject(host, 3, index=1, incarnation=2) == []
    assert host.snapshots_asked == [3]
    host.propose(b"x")
    assert of(AppendRequest, host.sent, to=3)[1:] == []
    host.core.snapshot_sent(3, meta(4, 2), ok=True)
    (probe,) = of(AppendRequest, host.drain(), to=3)
    assert (probe.previous_index, indexes([probe])) == (4, [[5]])


def test_failed_transfer_is_tried_again_after_a_sign_of_life() -> None:
    host = replicating(1)
    host.core.compact(meta(2, 2), keep_from=3)
    host.step(host.message(HeartbeatResponse, sender=3, incarnation=2, round=1, match_index=0))
    reject(host, 3, index=1, incarnation=2)
    host.core.snapshot_sent(3, None, ok=False)
    host.drain()
    assert host.snapshots_asked == [3]
    host.step(host.message(HeartbeatResponse, sender=3, incarnation=2, round=2, match_index=0))
    assert host.snapshots_asked == [3, 3]


def test_purged_log_reaches_an_empty_peer_without_a_proposal() -> None:
    """HAZARDS 26."""
    cluster = Cluster.of_size(3)
    lead = cluster.elect()
    lead.propose(b"x")
    cluster.run(100)
    last = lead.core.status().applied_index
    lead.core.compact(meta(last, lead.term), keep_from=last + 1)
    cluster.hosts[3] = Host(3)
    cluster.hosts[3].disk.incarnation = 5
    cluster.hosts[3].start()
    cluster.run(200)
    assert lead.snapshots_asked == [3]


def test_compaction_beyond_what_is_applied_is_refused() -> None:
    host = replicating(1)
    host.propose(b"x")
    with pytest.raises(InvariantViolated, match="applied"):
        host.core.compact(meta(3, 2), keep_from=1)


def test_deposed_leader_forgets_its_peers() -> None:
    host = replicating(1)
    host.append(entry(9, 3), after=(2, 2), term=9, sender=2)
    assert (host.role, host.core.status().match) == (Role.FOLLOWER, {})
    host.match(3, 2)
    assert host.core.dropped["stale_answer"] == 1
