"""Rules of figures 2 and 13 of the Raft paper (extended version, 2014) that no test of a section shows, and of sections
3.8, 6.2 and 10.2.2 of the dissertation ("Consensus: Bridging Theory and Practice", Ongaro, 2014)."""

import pytest

from consensus.core.errors import NotLeader
from consensus.core.interface import Configuration, Role
from consensus.core.raft import RaftConfig
from tests.unit.core.harness import (
    AppendRequest,
    AppendResponse,
    Cluster,
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


def ask(host: Host, *, sender: int = 1, term: int = 2, last: tuple[int, int] = (1, 1)) -> list[VoteResponse]:
    """What leaves at once when a candidate whose log ends at (term, index) `last` asks for a vote."""
    request = host.message(VoteRequest, sender=sender, term=term, pre=False, last_term=last[0], last_index=last[1])
    return of(VoteResponse, host.step(request))


# --- figure 2, persistent state: "updated on stable storage before responding to RPCs" --------------------------------


def test_figure_2_voted_for_is_durable_before_the_answer() -> None:
    host = follower(1)
    assert ask(host) == []
    assert only(VoteResponse, host.persist()).granted
    host.start()
    ask(host, sender=3)
    assert not only(VoteResponse, host.persist() + host.sent).granted


def test_figure_2_the_log_is_durable_before_the_answer() -> None:
    host = follower(1)
    (told,) = of(AppendResponse, host.append(entry(1, 2), after=(1, 1)))
    assert told.match_index == 1, "at once it speaks only of what is durable already"
    assert only(AppendResponse, host.persist()).match_index == 2
    host.start()
    assert host.terms() == [1, 1]


# --- figure 2, volatile state -----------------------------------------------------------------------------------------


def test_figure_2_next_index_starts_behind_the_log_and_match_index_at_nothing() -> None:
    """ "For each server, index of the next log entry to send to that server (initialized to leader last log index + 1);
    index of highest log entry known to be replicated (initialized to 0)." """
    cluster = Cluster.of_size(3)
    old = cluster.elect()
    for host in cluster.up():
        assert host.core.status().commit_index == 1
    old.propose(b"x")
    cluster.settle()
    host = follower(1, 1, 1, replica=1)
    host.lead()
    host.tick(50)
    assert host.core.status().commit_index == 0, "what an earlier term's leader was told is nothing"
    requests = of(AppendRequest, leader_messages(1, 1, 1))
    assert [(one.to, one.previous_index, one.previous_term) for one in requests] == [(2, 3, 1), (3, 3, 1)]


def leader_messages(*terms: int) -> list[object]:
    """What leaves a replica in the moment in which it wins."""
    host = follower(*terms, replica=1)
    while host.role is Role.FOLLOWER:
        host.tick(10)
    for pre in (True, False):
        host.persist()
        left = host.step(host.message(VoteResponse, sender=2, term=host.term + pre, pre=pre, granted=True))
    assert host.role is Role.LEADER
    return list(left)


# --- figure 2, AppendEntries and RequestVote --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "told", "commit"), [(1, 9, 2), (1, 1, 1), (0, 9, 1), (3, 3, 3)], ids=["more", "less", "none", "within"]
)
def test_figure_2_append_5_commit_stops_at_the_last_new_entry(entries: int, told: int, commit: int) -> None:
    """ "If leaderCommit > commitIndex, set commitIndex = min(leaderCommit, index of last new entry)." What lies behind
    it here was never compared."""
    host = follower(1, 1, 1, 1)
    host.append(*log_of(1, 1, 1, 1)[1 : 1 + entries], after=(1, 1), commit=told)
    host.persist()
    assert host.core.status().commit_index == commit


def test_figure_2_append_5_commit_never_goes_back() -> None:
    host = follower(1, 1, 1)
    host.append(after=(1, 3), commit=3)
    host.append(after=(1, 3), commit=1)
    assert host.core.status().commit_index == 3


def test_figure_2_vote_1_a_stale_term_gets_no_vote_but_the_term() -> None:
    """ "Reply false if term < currentTerm", with "currentTerm, for candidate to update itself"."""
    host = follower(1, term=4)
    (answer,) = ask(host, term=3, last=(3, 9))
    assert (answer.granted, answer.term) == (False, 4)


def test_figure_2_vote_2_the_same_candidate_gets_its_vote_again() -> None:
    """ "votedFor is null or candidateId": its first answer may be lost."""
    host = follower(1)
    for _ in range(2):
        left = ask(host)
        assert only(VoteResponse, [*left, *host.persist()]).granted


# --- figure 2, rules for servers --------------------------------------------------------------------------------------


def test_figure_2_followers_a_granted_vote_starts_the_timeout_anew() -> None:
    """ "If election timeout elapses without receiving AppendEntries RPC from current leader or granting vote to
    candidate: convert to candidate." """
    host = follower(1, replica=1)
    host.tick(280)
    ask(host, sender=3)
    host.persist()
    host.tick(280)
    assert host.role is Role.FOLLOWER
    host.tick(1000)
    assert host.role is not Role.FOLLOWER


def test_figure_2_candidates_a_timeout_starts_a_new_election() -> None:
    """ "If election timeout elapses: start new election." (Here with a question for votes first, 9.6.)"""
    host = follower(1, replica=1)
    terms: list[int] = []
    for _ in range(40):
        host.tick(50)
        host.persist()
        if host.role is Role.PRE_CANDIDATE:
            host.step(host.message(VoteResponse, sender=2, term=host.term + 1, pre=True, granted=True))
            host.persist()
        terms.append(host.term)
    assert sorted(set(terms)) == list(range(min(terms), max(terms) + 1))
    assert max(terms) > 3


def test_figure_2_leaders_respond_after_the_entry_was_applied() -> None:
    """ "If command received from client: append entry to local log, respond after entry applied to state machine." The
    owner is handed an entry only once it is committed."""
    host = leader(1)
    host.propose(b"x")
    host.persist()
    assert [one.payload for one in host.applied if one.payload == b"x"] == []
    host.match(2, 3)
    assert [one.payload for one in host.applied][-1] == b"x"


def test_figure_2_leaders_send_from_next_index_and_step_back_when_refused() -> None:
    """ "If last log index >= nextIndex for a follower: send AppendEntries with log entries starting at nextIndex; if
    successful: update nextIndex and matchIndex; if it fails because of log inconsistency: decrement nextIndex and
    retry." """
    host = leader(1, 1, 1)
    refusal = host.message(AppendResponse, sender=2, rejected=True, match_index=0, last_index=1, conflict_index=2)
    again = only(AppendRequest, host.step(refusal), to=2)
    assert again.previous_index < 3
    host.match(2, 4)
    follows = only(AppendRequest, host.propose(b"x"), to=2)
    assert (follows.previous_index, [one.index for one in follows.entries]) == (4, [5])


# --- 5.6 --------------------------------------------------------------------------------------------------------------


def test_5_6_heartbeats_come_well_within_an_election_timeout() -> None:
    """ "broadcastTime << electionTimeout << MTBF": a configuration in which no leader could last is refused."""
    (problem,) = RaftConfig(heartbeat_ms=300, election_timeout_ms=300).validate()
    assert "heartbeat_ms (300) must be below election_timeout_ms (300)" in problem
    standard = RaftConfig()
    assert standard.validate() == []
    assert 3 * standard.heartbeat_ms <= standard.election_timeout_ms


# --- figure 13, InstallSnapshot ---------------------------------------------------------------------------------------


def test_figure_13_1_a_stale_leader_installs_nothing() -> None:
    """ "Reply immediately if term < currentTerm." (Here its heartbeats are what is replied to.)"""
    host = follower(1, term=4)
    host.step(offer(host, meta(8, 3), term=3))
    assert (host.terms(), host.core.status().snapshot_index, host.writing) == ([1], 0, [])
    assert host.core.dropped["earlier_term"] == 1
    assert only(HeartbeatResponse, host.heartbeat(term=3)).term == 4


def test_figure_13_5_what_is_older_than_the_state_changes_nothing() -> None:
    host = follower(1, 1, 1, commit=3)
    host.drain()
    host.step(offer(host, meta(2, 1)))
    assert host.writing == []
    assert (host.terms(), host.core.status().commit_index) == ([1, 1, 1], 3)


def test_figure_13_7_a_log_of_another_history_is_discarded() -> None:
    """ "Discard the entire log": its entry at the snapshot's last index is of another term."""
    host = follower(1, 2, 2, 2, term=5)
    host.step(offer(host, meta(3, 3), term=5))
    host.persist()
    assert (host.terms(), host.core.status().last_index) == ([], 3)


def test_figure_13_8_the_snapshots_configuration_is_loaded() -> None:
    """ "Reset state machine using snapshot contents (and load snapshot's cluster configuration)." """
    host = follower(1)
    host.step(offer(host, meta(5, 1, Configuration((2, 1)))))
    host.persist()
    assert host.core.configuration.voters == (2, 1)
    assert host.core.status().applied_index == 5


# --- dissertation -----------------------------------------------------------------------------------------------------


def test_dissertation_3_8_what_was_applied_is_found_anew_after_a_restart() -> None:
    """Commit index and last applied index are volatile: after a restart the same entries are committed and handed out
    again, in the same order."""
    cluster = Cluster.of_size(3)
    host = cluster.elect()
    for payload in (b"a", b"b", b"c"):
        host.propose(payload)
    cluster.settle()
    before = [one.payload for one in host.applied]
    for each in cluster.up():
        each.start()
    cluster.run(2000)
    for each in cluster.up():
        assert [one.payload for one in each.applied][: len(before)] == before


def test_dissertation_6_2_who_does_not_lead_names_the_leader() -> None:
    """ "If the client's first choice is not the leader, that server will reject the client's request and supply
    information about the most recent leader it has heard from" (the paper's section 8)."""
    host = follower(1)
    with pytest.raises(NotLeader) as unknown:
        host.core.propose(b"x", 1)
    assert unknown.value.leader == 0
    host.heartbeat(sender=3)
    with pytest.raises(NotLeader) as known:
        host.core.propose(b"x", 1)
    assert known.value.leader == 3


def test_dissertation_10_2_2_batching() -> None:
    """Commands that come together travel in one request and are written at once."""
    host = leader(1)
    for peer in (2, 3):
        host.match(peer, 2)
    request = only(AppendRequest, host.propose(b"a", b"b", b"c"), to=2)
    assert [one.payload for one in request.entries] == [b"a", b"b", b"c"]
    assert len(host.writing) == 1


def test_dissertation_10_2_2_pipelining() -> None:
    """The next request goes out before the one before is acknowledged: the next index moves when entries are sent."""
    host = leader(1)
    for peer in (2, 3):
        host.match(peer, 2)
    host.sent.clear()
    for payload in (b"a", b"b", b"c"):
        host.propose(payload)
    sent = of(AppendRequest, host.sent, to=2)
    assert [(one.previous_index, len(one.entries)) for one in sent] == [(2, 1), (3, 1), (4, 1)]
