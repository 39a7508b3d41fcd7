"""One test a rule of Raft. Sections are those of "In Search of an Understandable Consensus Algorithm (Extended
Version)" (Ongaro and Ousterhout, 2014); "dissertation" is Ongaro's of the same year. Membership, transfer, reads,
sessions and what else the figures say have files of their own."""

import random

import pytest

from consensus.core.interface import Configuration, EntryKind, Role
from tests.unit.core.harness import (
    THREE,
    AppendRequest,
    AppendResponse,
    Cluster,
    Heartbeat,
    HeartbeatResponse,
    Host,
    VoteRequest,
    VoteResponse,
    entry,
    follower,
    leader,
    log_of,
    meta,
    of,
    offer,
    only,
)


def candidate(*terms: int, replica: int = 1, configuration: Configuration = THREE) -> Host:
    """A replica that won its pre-vote and asks for votes."""
    host = follower(*terms, replica=replica, configuration=configuration)
    while host.role is not Role.PRE_CANDIDATE:
        host.tick(10)
    for voter in configuration.voters:
        if voter != replica and host.role is Role.PRE_CANDIDATE:
            host.step(host.message(VoteResponse, sender=voter, term=host.term + 1, pre=True, granted=True))
    host.persist()
    return host


def vote(host: Host, sender: int, *, granted: bool = True) -> None:
    host.step(host.message(VoteResponse, sender=sender, pre=False, granted=granted))


def ask(host: Host, *, sender: int, term: int, last: tuple[int, int]) -> bool:
    """Whether a candidate whose log ends at (term, index) `last` gets the vote."""
    request = host.message(VoteRequest, sender=sender, term=term, pre=False, last_term=last[0], last_index=last[1])
    return only(VoteResponse, host.step(request) + host.persist()).granted


# --- 5.1 terms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.CANDIDATE, Role.LEADER])
def test_5_1_a_higher_term_is_adopted_by_everybody(role: Role) -> None:
    """ "If one server's current term is smaller than the other's, then it updates its current term to the larger
    value. If a candidate or leader discovers that its term is out of date, it immediately reverts to follower state."
    """
    host = {Role.FOLLOWER: follower, Role.CANDIDATE: candidate, Role.LEADER: leader}[role](1)
    assert host.role is role
    host.append(term=7, sender=3)
    assert (host.role, host.term) == (Role.FOLLOWER, 7)


def test_5_1_requests_with_a_stale_term_are_rejected() -> None:
    """ "If a server receives a request with a stale term number, it rejects the request." """
    host = follower(1, term=4)
    answer = only(AppendResponse, host.append(entry(1, 2), after=(1, 1), term=3))
    assert (answer.rejected, answer.term, host.terms()) == (True, 4, [1])


def test_5_1_current_term_is_durable() -> None:
    """ "Updated on stable storage before responding to RPCs" (figure 2)."""
    host = follower(1)
    assert host.heartbeat(term=9) == []
    host.persist()
    host.start()
    assert host.term == 9


# --- 5.2 elections --------------------------------------------------------------------------------------------------


def test_5_2_servers_start_as_followers() -> None:
    assert Host().role is Role.FOLLOWER


def test_5_2_followers_stay_followers_while_they_hear_from_a_leader() -> None:
    host = follower(1)
    for _ in range(50):
        host.tick(100)
        host.heartbeat()
    assert (host.role, of(VoteRequest, host.sent)) == (Role.FOLLOWER, [])


def test_5_2_leaders_send_periodic_heartbeats() -> None:
    host = leader(1)
    beats = of(Heartbeat, host.tick(200))
    assert [sum(beat.to == peer for beat in beats) for peer in (2, 3)] == [4, 4]


def test_5_2_a_silent_timeout_starts_an_election() -> None:
    """ "To begin an election, a follower increments its current term and transitions to candidate state. It then votes
    for itself and issues RequestVote RPCs in parallel to each of the other servers." """
    host = candidate(1)
    assert (host.role, host.term, host.core.status().vote) == (Role.CANDIDATE, 2, 1)
    asked = [one for one in of(VoteRequest, host.sent) if not one.pre]
    assert [(one.to, one.term, one.last_term, one.last_index) for one in asked] == [(2, 2, 1, 1), (3, 2, 1, 1)]


@pytest.mark.parametrize(
    ("size", "votes", "role"),
    [
        (3, {2: True}, Role.LEADER),
        (3, {2: False}, Role.CANDIDATE),
        (3, {2: False, 3: False}, Role.FOLLOWER),
        (5, {2: True, 3: True}, Role.LEADER),
        (5, {2: True, 3: False}, Role.CANDIDATE),
        (5, {2: True, 3: False, 4: False}, Role.CANDIDATE),
        (5, {2: False, 3: False, 4: False}, Role.FOLLOWER),
    ],
)
def test_5_2_a_majority_of_votes_wins(size: int, votes: dict[int, bool], role: Role) -> None:
    host = candidate(1, configuration=Configuration(tuple(range(1, size + 1))))
    for sender, granted in votes.items():
        vote(host, sender, granted=granted)
    assert host.role is role


def test_5_2_one_vote_a_term_first_come_first_served() -> None:
    host = follower(1)
    assert ask(host, sender=1, term=2, last=(1, 1))
    assert not ask(host, sender=3, term=2, last=(1, 1))
    assert ask(host, sender=1, term=2, last=(1, 1))
    assert ask(host, sender=3, term=3, last=(1, 1))


def test_5_2_a_candidate_follows_a_leader_of_its_term() -> None:
    host = candidate(1)
    host.append(sender=3, after=(1, 1))
    assert (host.role, host.term, host.core.status().leader) == (Role.FOLLOWER, 2, 3)


def test_5_2_a_candidate_ignores_a_leader_of_an_earlier_term() -> None:
    host = candidate(1)
    host.append(sender=3, after=(1, 1), term=1)
    assert (host.role, host.term) == (Role.CANDIDATE, 2)


def test_5_2_timeouts_are_random_so_that_split_votes_resolve() -> None:
    """Drawn from [T, T + spread) by the randomness that is passed in."""
    timeouts = set()
    for seed in range(60):
        host = Host(1, random=random.Random(seed))
        elapsed = 0
        while host.role is Role.FOLLOWER:
            host.core.tick(1)
            elapsed += 1
        timeouts.add(elapsed)
    assert 300 <= min(timeouts) < max(timeouts) < 450
    assert len(timeouts) > 30


# --- 5.3 replication ------------------------------------------------------------------------------------------------


def test_5_3_a_leader_appends_then_replicates() -> None:
    """ "The leader appends the command to its log as a new entry, then issues AppendEntries RPCs in parallel." """
    host = leader(1)
    for peer in (2, 3):
        host.match(peer, 2)
    requests = of(AppendRequest, host.propose(b"x"))
    assert host.terms() == [1, 2, 2]
    for request in requests:
        assert (request.previous_index, request.previous_term, len(request.entries)) == (2, 2, 1)
    assert {request.to for request in requests} == {2, 3}


@pytest.mark.parametrize(
    ("size", "answers", "committed"), [(1, 0, True), (3, 0, False), (3, 1, True), (5, 1, False), (5, 2, True)]
)
def test_5_3_an_entry_commits_once_a_majority_holds_it(size: int, answers: int, committed: bool) -> None:
    host = Host(1, Configuration(tuple(range(1, size + 1)))).lead()
    host.propose(b"x")
    host.persist()
    for peer in range(2, 2 + answers):
        host.match(peer, 2)
    assert (host.core.status().commit_index == 2) is committed


def test_5_3_committing_an_entry_commits_all_before_it() -> None:
    host = leader(1, 2, 2)
    host.match(2, 4)
    assert host.core.status().commit_index == 4
    assert [one.index for one in host.applied] == [1, 2, 3, 4]


def test_5_3_followers_learn_the_commit_index_and_apply_in_order() -> None:
    host = follower(1)
    host.append(entry(1, 2), entry(1, 3), after=(1, 1), commit=2)
    host.persist()
    assert [one.index for one in host.applied] == [1, 2]
    host.append(after=(1, 3), commit=3)
    assert [one.index for one in host.applied] == [1, 2, 3]


@pytest.mark.parametrize(
    ("after", "accepted"), [((0, 0), True), ((1, 1), True), ((2, 2), True), ((2, 1), False), ((2, 3), False)]
)
def test_5_3_consistency_check(after: tuple[int, int], accepted: bool) -> None:
    """ "If the follower does not find an entry in its log with the same index and term, then it refuses." """
    host = follower(1, 2)
    host.append(after=after, sender=1)
    answer = only(AppendResponse, host.persist() + host.sent)
    assert answer.rejected is not accepted


@pytest.mark.parametrize(
    ("after", "sent", "left"),
    [
        ((2, 2), (3,), (1, 2, 3)),
        ((1, 1), (3, 4), (1, 3, 4)),
        ((0, 0), (1,), (1, 2, 2)),
        ((0, 0), (3,), (3,)),
        ((1, 1), (2, 2, 2), (1, 2, 2, 2)),
    ],
)
def test_5_3_only_a_conflict_deletes(after: tuple[int, int], sent: tuple[int, ...], left: tuple[int, ...]) -> None:
    """ "If an existing entry conflicts with a new one (same index but different terms), delete the existing entry and
    all that follow it" (figure 2), and nothing else does (HAZARDS 2)."""
    host = follower(1, 2, 2, term=4)
    host.append(*(entry(term, after[1] + 1 + k) for k, term in enumerate(sent)), after=after)
    assert host.terms() == list(left)


@pytest.mark.parametrize(
    "theirs",
    [
        (1, 1, 1, 4, 4, 5, 5, 6, 6),
        (1, 1, 1, 4),
        (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6),
        (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7),
        (1, 1, 1, 4, 4, 4, 4),
        (1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3),
    ],
    ids="abcdef",
)
def test_5_3_figure_7_logs_are_brought_into_line(theirs: tuple[int, ...]) -> None:
    ours = (1, 1, 1, 4, 4, 5, 5, 6, 6, 6)
    cluster = Cluster(
        follower(*ours, replica=1, term=8), follower(*theirs, replica=2, term=8), follower(replica=3, term=8)
    )
    # 3 would vote for anybody; it helps 1 to lead.
    cluster.blocked |= {(2, 1), (2, 3)}
    cluster.run(600)
    cluster.heal()
    cluster.run(1500)
    lead = cluster.leader()
    assert all(host.terms() == lead.terms() for host in cluster.up())
    assert {host.core.status().commit_index for host in cluster.up()} == {lead.core.status().last_index}


def test_5_3_fast_back_off_takes_a_round_trip_a_term() -> None:
    """ "The follower can include the term of the conflicting entry and the first index it stores for that term." """
    lead = follower(*[1] * 3 + [9] * 500, replica=1)
    behind = follower(*[1] * 3 + [2] * 400, replica=2, term=9)
    cluster = Cluster(lead, behind, follower(*[1] * 3 + [9] * 500, replica=3))
    lead.lead()
    trips = 0  # one way
    lead.propose(b"x")
    lead.core.tick(50)
    while behind.terms() != lead.terms():
        trips += 1
        assert trips < 12, "400 entries of another term must not take 400 round trips"
        for host in (lead, behind):
            host.persist()
        moving = lead.sent + behind.sent
        lead.sent, behind.sent = [], []
        for message in moving:
            if message.to != 3:
                cluster.deliver(message)


def test_5_3_a_leader_never_overwrites_its_own_entries() -> None:
    """Leader append-only (figure 3), whatever it is told in its own term."""
    host = leader(1, 1)
    host.append(entry(2, 2, b"other"), after=(1, 1), sender=2)
    host.append(entry(2, 3, b"other"), after=(1, 2), sender=3)
    assert host.terms() == [1, 1, 2]
    assert host.core.dropped["second_leader"] == 2


# --- 5.4 safety -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last", "granted"),
    [((1, 9), False), ((2, 2), False), ((2, 3), True), ((2, 4), True), ((3, 1), True)],
)
def test_5_4_1_only_logs_at_least_as_far_get_a_vote(last: tuple[int, int], granted: bool) -> None:
    assert ask(follower(1, 2, 2), sender=1, term=5, last=last) is granted


def test_5_4_2_entries_of_an_earlier_term_are_not_committed_by_counting() -> None:
    """Figure 8: an entry of term 2 on a majority may still be overwritten, until one of the leader's term is
    committed."""
    host = leader(1, 2, configuration=Configuration((1, 2, 3, 4, 5)))
    for peer in (2, 3):
        host.match(peer, 2)
    assert host.core.status().commit_index == 0
    for peer in (2, 3):
        host.match(peer, 3)
    assert host.core.status().commit_index == 3


def test_5_4_2_figure_8_step_by_step() -> None:
    """S1 leads term 2 and again term 4, brings its entry of term 2 to a majority and dies; S5, with an entry of term 3
    in its place, must still be able to win and overwrite it, so nobody may have applied it."""
    logs = {1: (1, 2), 2: (1, 2), 3: (1,), 4: (1,), 5: (1, 3)}
    everybody = Configuration((1, 2, 3, 4, 5))
    cluster = Cluster(
        *(follower(*log, replica=k, term=3, commit=1, configuration=everybody) for k, log in logs.items())
    )
    first = cluster.hosts[1].lead()
    assert first.term == 4
    # Its no-op gets nowhere; the entry of term 2 reaches S3.
    first.match(2, 2)
    first.match(3, 2)
    cluster.hosts[3].append(entry(2, 2), after=(1, 1), term=4)
    cluster.hosts[3].persist()
    assert first.core.status().commit_index == 1
    cluster.down.add(1)
    for host in cluster.up():
        host.sent.clear()
    assert [one.index for one in cluster.hosts[3].applied] == [1]
    # Figure 8 (d): S5 wins with votes of S3 and S4 (S2 is away), and overwrites.
    cluster.down.add(2)
    cluster.run(3000)
    assert cluster.leader().replica in (3, 5)


def test_5_4_3_committed_entries_survive_every_change_of_leader() -> None:
    cluster = Cluster.of_size(3)
    applied = 0
    for _ in range(6):
        lead = cluster.elect()
        lead.propose(b"x")
        cluster.run(100)
        assert lead.core.status().commit_index > applied
        applied = lead.core.status().commit_index
        cluster.down = {lead.replica}
    cluster.down.clear()
    cluster.run(2000)
    assert len({tuple(host.terms()) for host in cluster.up()}) == 1


# --- 5.5, 5.6, 7, 8, dissertation -----------------------------------------------------------------------------------


def test_5_5_requests_are_idempotent() -> None:
    host = follower(1)
    for _ in range(3):
        host.append(entry(1, 2), entry(1, 3), after=(1, 1), commit=3)
        host.persist()
    assert host.terms() == [1, 1, 1]
    assert [one.index for one in host.applied] == [1, 2, 3]


def test_7_a_snapshot_replaces_a_log_that_lacks_its_last_entry() -> None:
    host = follower(1, 1, 1)
    host.step(offer(host, meta(8, 1)))
    host.persist()
    assert (host.terms(), host.core.status().snapshot_index, host.core.status().applied_index) == ([], 8, 8)


def test_7_a_snapshot_of_a_prefix_keeps_the_entries_behind_it() -> None:
    """ "If existing log entry has same index and term as snapshot's last included entry, retain log entries following
    it" (figure 13)."""
    host = follower(1, 1, 1)
    host.step(offer(host, meta(2, 1)))
    assert host.terms() == [1, 1, 1]


def test_8_a_leader_begins_its_term_with_a_no_op() -> None:
    """ "Raft handles this by having each leader commit a blank no-op entry into the log at the start of its term." """
    host = leader(1)
    no_op = host.core.entry(2)
    assert no_op is not None
    assert (no_op.kind, no_op.term, len(no_op.payload)) == (EntryKind.NOOP, 2, 0)
    assert not host.core.status().ready_to_serve
    host.match(2, 2)
    assert host.core.status().ready_to_serve


def test_dissertation_6_2_a_leader_cut_off_steps_down() -> None:
    """Check-quorum: within an election timeout without a heartbeat round of a majority."""
    cluster = Cluster.of_size(3)
    old = cluster.elect()
    cluster.cut(old.replica)
    cluster.run(610)
    assert old.role is not Role.LEADER
    cluster.run(1500)
    assert [host.replica for host in cluster.leaders()] != [old.replica]


def test_dissertation_9_6_pre_vote_a_partitioned_server_does_not_disrupt() -> None:
    cluster = Cluster.of_size(3)
    lead = cluster.elect()
    term = lead.term
    cluster.cut(3)
    cluster.run(5000)
    assert cluster.hosts[3].term == term
    cluster.heal()
    cluster.run(2000)
    assert (lead.role, lead.term) == (Role.LEADER, term)


def test_dissertation_4_2_3_votes_are_refused_while_a_leader_is_heard() -> None:
    """ "If a server receives a RequestVote request within the minimum election timeout of hearing from a current
    leader, it does not update its term or grant its vote." """
    host = follower(1)
    host.heartbeat()
    request = host.message(VoteRequest, sender=3, term=5, pre=False, last_term=4, last_index=9)
    assert host.step(request) == []
    assert host.term == 1


def test_dissertation_10_2_1_the_leader_writes_in_parallel_with_its_followers() -> None:
    """ "The leader may even commit an entry before it has been written to its own disk, if a majority of followers
    have." """
    host = leader(1)
    for peer in (2, 3):
        host.match(peer, 2)
    host.propose(b"x")
    assert host.writing
    host.match(2, 3)
    assert host.core.status().commit_index == 2
    host.match(3, 3)
    assert host.core.status().commit_index == 3


def test_figure_2_heartbeat_answers_do_not_claim_what_was_not_compared() -> None:
    host = follower(*[1] * 5)
    assert only(HeartbeatResponse, host.heartbeat()).match_index == 0
    host.append(*log_of(1, 1))
    assert only(HeartbeatResponse, host.heartbeat()).match_index == 2
