"""Elections: pre-vote, check-quorum, the closed-connection hint, and what must be durable before it counts."""

import pytest

from consensus.core.interface import Configuration, HardState, Role
from consensus.core.raft import RaftConfig
from tests.unit.core.harness import (
    AppendResponse,
    Cluster,
    Disk,
    HeartbeatResponse,
    Host,
    VoteRequest,
    VoteResponse,
    entry,
    follower,
    leader,
    log_of,
    of,
    only,
)


def ask(host: Host, *, sender: int, term: int, pre: bool = False, last: tuple[int, int] = (9, 9)) -> list:
    """A candidate's request; its log ends at (term, index) `last`."""
    last_term, last_index = min(last[0], term), last[1]
    return host.step(
        host.message(VoteRequest, sender=sender, term=term, pre=pre, last_term=last_term, last_index=last_index)
    )


def grant(host: Host, sender: int, *, pre: bool, granted: bool = True, term: int | None = None) -> list:
    asked = host.term + (pre and granted)
    return host.step(
        host.message(VoteResponse, sender=sender, term=asked if term is None else term, pre=pre, granted=granted)
    )


# --- one voter ------------------------------------------------------------------------------------------------------


def test_single_voter_elects_itself_and_commits_only_what_is_durable() -> None:
    """HAZARDS 8."""
    host = Host(1, Configuration((1,)))
    host.tick(300)
    assert host.role is Role.CANDIDATE  # its own vote is not durable yet
    host.persist_one()
    assert host.role is Role.LEADER
    host.propose(b"x")
    assert (host.core.status().commit_index, host.applied) == (0, [])
    assert host.core.status().ready_to_serve is False
    host.persist()
    assert [one.index for one in host.applied] == [1, 2]
    assert host.core.status().ready_to_serve is True


def test_learner_never_campaigns() -> None:
    host = Host(9, Configuration((1, 2), (9,)))
    assert host.tick(5000) == []
    assert host.role is Role.FOLLOWER


# --- pre-vote -------------------------------------------------------------------------------------------------------


def test_pre_vote_changes_nobodys_term() -> None:
    candidate, voter = follower(1, term=1, replica=1), follower(1, term=1, replica=2)
    requests = of(VoteRequest, candidate.tick(300), to=2)
    assert [(one.pre, one.term) for one in requests] == [(True, 2)]
    answer = only(VoteResponse, voter.step(*requests))
    assert (answer.pre, answer.granted, answer.term) == (True, True, 2)
    assert (candidate.term, voter.term) == (1, 1)
    assert (candidate.writing, voter.writing) == ([], [])


def test_candidate_without_a_majority_never_raises_its_term() -> None:
    host = follower(1, term=1, replica=1)
    host.tick(10_000)
    assert (host.role, host.term) == (Role.PRE_CANDIDATE, 1)


def test_pre_vote_of_a_lower_term_is_answered_with_the_own_term() -> None:
    """HAZARDS 11."""
    host = follower(1, term=7)
    answer = only(VoteResponse, ask(host, sender=1, term=3, pre=True))
    assert (answer.granted, answer.pre, answer.term) == (False, True, 7)


def test_refused_pre_vote_raises_the_candidates_term() -> None:
    """HAZARDS 11."""
    host = follower(1, 1, term=1, replica=1)
    host.tick(300)
    grant(host, 2, pre=True, granted=False, term=6)
    assert (host.role, host.term) == (Role.FOLLOWER, 6)


def test_higher_term_and_longer_log_on_different_replicas_still_elect() -> None:
    """HAZARDS 11: 2 has the term, 1 has the log; neither can win before 1 hears of the term. The third is away."""
    cluster = Cluster(
        follower(1, 1, 1, replica=1, term=1), follower(1, replica=2, term=5), follower(1, replica=3, term=1)
    )
    cluster.down.add(3)
    cluster.run(2500)
    assert [host.replica for host in cluster.leaders()] == [1]
    assert cluster.hosts[1].term > 5


def test_granted_pre_vote_for_another_term_does_not_count() -> None:
    host = follower(1, term=4, replica=1)
    host.tick(300)
    grant(host, 2, pre=True, term=4)
    assert host.role is Role.PRE_CANDIDATE
    grant(host, 2, pre=True, term=9)
    assert (host.role, host.term) == (Role.PRE_CANDIDATE, 4)


def test_stale_log_gets_no_pre_vote() -> None:
    host = follower(1, 2, term=2)
    assert not only(VoteResponse, ask(host, sender=1, term=3, pre=True, last=(1, 5))).granted
    assert not only(VoteResponse, ask(host, sender=1, term=3, pre=True, last=(2, 1))).granted
    assert only(VoteResponse, ask(host, sender=1, term=3, pre=True, last=(2, 2))).granted


# --- votes ----------------------------------------------------------------------------------------------------------


def test_vote_is_answered_only_once_durable() -> None:
    host = follower(1, term=1)
    assert ask(host, sender=1, term=2) == []
    batch = host.writing[0].hard_state
    assert batch is not None
    assert (batch.term, batch.vote) == (2, 1)
    assert only(VoteResponse, host.persist()).granted


def test_repeated_request_is_not_answered_before_the_vote_is_durable_either() -> None:
    host = follower(1, term=1)
    assert ask(host, sender=1, term=2) == []
    assert ask(host, sender=1, term=2) == []
    assert [one.granted for one in of(VoteResponse, host.persist())] == [True, True]


def test_candidate_asks_only_once_its_own_vote_is_durable() -> None:
    host = follower(1, term=1, replica=1)
    host.tick(300)
    left = grant(host, 2, pre=True)
    assert host.role is Role.CANDIDATE
    assert of(VoteRequest, left) == []
    assert [(one.to, one.term, one.pre) for one in of(VoteRequest, host.persist())] == [(2, 2, False), (3, 2, False)]


def test_vote_survives_a_restart() -> None:
    host = follower(1, term=1)
    ask(host, sender=1, term=2)
    host.persist()
    host.start()
    assert not only(VoteResponse, ask(host, sender=3, term=2)).granted
    assert only(VoteResponse, ask(host, sender=1, term=2)).granted


def test_vote_of_an_earlier_term_does_not_count() -> None:
    host = follower(1, term=1, replica=1)
    host.tick(300)
    grant(host, 2, pre=True)
    host.persist()
    assert (host.role, host.term) == (Role.CANDIDATE, 2)
    grant(host, 2, pre=False, term=1)
    assert host.role is Role.CANDIDATE
    grant(host, 2, pre=False)
    assert host.role is Role.LEADER


def test_lost_election_returns_to_following() -> None:
    host = follower(1, term=1, replica=1)
    host.tick(300)
    grant(host, 2, pre=True)
    host.persist()
    grant(host, 2, pre=False, granted=False)
    grant(host, 3, pre=False, granted=False)
    assert host.role is Role.FOLLOWER


# --- check-quorum ---------------------------------------------------------------------------------------------------


def test_follower_of_a_live_leader_helps_nobody_else() -> None:
    host = follower(1, term=1)
    host.heartbeat(sender=1)
    assert not only(VoteResponse, ask(host, sender=3, term=2, pre=True)).granted
    assert ask(host, sender=3, term=2) == []
    assert host.term == 1
    host.tick(300)
    assert only(VoteResponse, ask(host, sender=3, term=2, pre=True)).granted


def test_leader_helps_nobody_else() -> None:
    host = leader(1)
    before = host.term
    assert not only(VoteResponse, ask(host, sender=3, term=before + 1, pre=True)).granted
    ask(host, sender=3, term=before + 1)
    assert (host.role, host.term) == (Role.LEADER, before)


def test_leader_without_answers_of_a_majority_steps_down() -> None:
    host = leader(1)
    host.tick(250)
    assert host.role is Role.LEADER
    host.tick(100)
    assert (host.role, host.core.status().leader) == (Role.FOLLOWER, 0)


def test_leader_with_answers_of_a_majority_stays() -> None:
    host = leader(1)
    for _ in range(20):
        host.tick(100)
        host.step(host.message(HeartbeatResponse, sender=3, round=1, match_index=0))
    assert host.role is Role.LEADER


def test_replica_that_returns_with_a_higher_term_is_heard() -> None:
    """A leader of a lower term would be refused for ever by it, and its pre-votes by the others: one election."""
    cluster = Cluster(*(follower(1, replica=replica, term=1) for replica in (1, 2, 3)))
    cluster.elect()
    cluster.hosts[3].disk.hard_state = HardState(50)
    cluster.hosts[3].start()
    cluster.run(2000)
    assert len(cluster.leaders()) == 1
    assert cluster.leader().term > 50
    assert {host.core.status().leader for host in cluster.up()} == {cluster.leader().replica}


@pytest.mark.parametrize("sender_term", [1, 2])
def test_requests_of_an_earlier_term_are_answered_with_the_own(sender_term: int) -> None:
    host = follower(1, term=3)
    rejected = only(AppendResponse, host.append(entry(1, 2), after=(1, 1), term=sender_term))
    assert (rejected.rejected, rejected.term) == (True, 3)
    assert only(HeartbeatResponse, host.heartbeat(term=sender_term)).term == 3
    refused = only(VoteResponse, ask(host, sender=1, term=sender_term))
    assert (refused.granted, refused.term) == (False, 3)
    assert host.terms() == [1]


# --- the closed-connection hint (RULES C2) --------------------------------------------------------------------------


def test_closed_connection_to_the_leader_starts_a_campaign_by_place() -> None:
    second, third = follower(1, term=1, replica=2), follower(1, term=1, replica=3)
    for host in (second, third):
        host.heartbeat(sender=1)
        host.core.connection(1, closed=True)
    # The lost leader's own place does not count: the first of those who are left goes at once.
    assert [one.pre for one in of(VoteRequest, second.drain())] == [True, True]
    assert of(VoteRequest, third.drain()) == []
    assert of(VoteRequest, third.tick(20)) == []
    assert len(of(VoteRequest, third.tick(10))) == 2


def test_last_place_of_three_waits_two_delays_when_another_led() -> None:
    host = follower(1, term=1, replica=5, configuration=Configuration((1, 2, 3, 4, 5)))
    host.heartbeat(sender=2)
    host.core.connection(2, closed=True)
    assert of(VoteRequest, host.tick(70)) == []
    assert len(of(VoteRequest, host.tick(10))) == 4


def test_closed_connection_to_another_replica_means_nothing() -> None:
    host = follower(1, term=1, replica=2)
    host.heartbeat(sender=1)
    host.core.connection(3, closed=True)
    host.core.connection(77, closed=True)
    assert of(VoteRequest, host.tick(200)) == []


def test_votes_are_granted_at_once_when_the_leaders_connection_closed() -> None:
    host = follower(1, term=1, replica=3)
    host.heartbeat(sender=1)
    assert not only(VoteResponse, ask(host, sender=2, term=2, pre=True)).granted
    host.core.connection(1, closed=True)
    assert only(VoteResponse, ask(host, sender=2, term=2, pre=True)).granted
    ask(host, sender=2, term=2)
    assert only(VoteResponse, host.persist()).granted


def test_leader_heard_again_is_a_leader_again() -> None:
    host = follower(1, term=1, replica=3)
    host.heartbeat(sender=1)
    host.core.connection(1, closed=True)
    host.heartbeat(sender=1)
    assert not only(VoteResponse, ask(host, sender=2, term=2, pre=True)).granted
    assert of(VoteRequest, host.tick(200)) == []


def test_entries_that_were_still_on_their_way_prove_nothing() -> None:
    """Bulk is read more slowly than control: what a leader sent before it died arrives after its connection closed."""
    host = follower(1, term=1, replica=3)
    host.heartbeat(sender=1)
    host.core.connection(1, closed=True)
    host.append(entry(1, 2), after=(1, 1), sender=1)
    host.persist()
    assert only(VoteResponse, ask(host, sender=2, term=2, pre=True)).granted
    assert of(VoteRequest, host.tick(20)) == []
    assert {one.pre for one in of(VoteRequest, host.tick(10))} == {True}
    # Entries go on being taken, and campaigning waits until they end.
    answers = host.append(entry(1, 3), after=(1, 2), sender=1) + host.persist()
    assert max(answer.match_index for answer in of(AppendResponse, answers)) == 3
    assert of(VoteRequest, host.tick(20)) == []
    assert of(VoteRequest, host.tick(10)) != []


def test_reopened_connection_alone_proves_nothing() -> None:
    host = follower(1, term=1, replica=3)
    host.heartbeat(sender=1)
    host.core.connection(1, closed=True)
    host.core.connection(1, closed=False)
    assert only(VoteResponse, ask(host, sender=2, term=2, pre=True)).granted


def test_refused_pre_vote_is_repeated_while_the_connection_stays_closed() -> None:
    host = follower(1, term=1, replica=2)
    host.heartbeat(sender=1)
    host.core.connection(1, closed=True)
    host.drain()
    grant(host, 3, pre=True, granted=False)
    assert len(of(VoteRequest, host.tick(10))) == 2
    host.core.connection(1, closed=False)
    grant(host, 3, pre=True, granted=False)
    assert of(VoteRequest, host.tick(200)) == []


def test_refusal_with_a_higher_term_is_repeated_soon_too() -> None:
    host = follower(1, term=1, replica=2)
    host.heartbeat(sender=1)
    host.core.connection(1, closed=True)
    host.drain()
    grant(host, 3, pre=True, granted=False, term=4)
    assert [one.term for one in of(VoteRequest, host.tick(20), to=3)] == [5]


def test_late_refusal_does_not_end_the_candidacy_it_came_too_late_for() -> None:
    """Of five, two have not noticed yet that the leader is gone; the pre-vote was won without them."""
    host = Host(2, Configuration((1, 2, 3, 4, 5)))
    host.heartbeat(sender=1, term=1)
    host.persist()
    host.core.connection(1, closed=True)
    host.drain()
    for voter in (3, 4):
        grant(host, voter, pre=True, term=2)
    assert host.role is Role.CANDIDATE
    grant(host, 5, pre=True, granted=False, term=1)
    host.tick(100)
    assert (host.role, host.term) == (Role.CANDIDATE, 2)


def test_split_vote_after_a_hint_is_repeated_soon() -> None:
    """Both who are left may have campaigned before they heard of each other; the dead one will never break the tie."""
    host = follower(1, term=1, replica=2)
    host.heartbeat(sender=1)
    host.core.connection(1, closed=True)
    host.drain()
    grant(host, 3, pre=True)
    host.persist()
    assert (host.role, host.term) == (Role.CANDIDATE, 2)
    grant(host, 3, pre=False, granted=False)
    assert host.role is Role.FOLLOWER
    assert [(one.term, one.pre) for one in of(VoteRequest, host.tick(20), to=3)] == [(3, True)]


def test_split_vote_among_connected_voters_waits_for_the_timeout() -> None:
    host = follower(1, term=1, replica=2)
    host.tick(600)
    grant(host, 3, pre=True)
    host.persist()
    grant(host, 3, pre=False, granted=False)
    assert host.role is Role.CANDIDATE
    assert of(VoteRequest, host.tick(200)) == []


def test_hint_elects_within_a_blink() -> None:
    cluster = Cluster.of_size(3)
    assert cluster.elect().replica == 1
    cluster.down.add(1)
    cluster.hosts[2].core.connection(1, closed=True)
    cluster.settle()
    assert cluster.leaders() == []  # 3 has not noticed yet and refused
    cluster.hosts[3].core.connection(1, closed=True)
    cluster.run(30)
    assert [host.replica for host in cluster.leaders()] == [2]


# --- places, timers, lives ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("replica", "expected_ms"), [(1, 300), (2, 450), (3, 600)])
def test_preferred_replicas_campaign_first(replica: int, expected_ms: int) -> None:
    host = Host(replica)
    assert of(VoteRequest, host.tick(expected_ms - 10)) == []
    assert len(of(VoteRequest, host.tick(10))) == 2


def test_one_tick_never_counts_more_than_an_election_timeout() -> None:
    host = Host(3)
    host.core.tick(60_000)
    host.core.tick(-5)
    assert host.drain() == []


def test_messages_of_an_earlier_life_are_dropped() -> None:
    """RULES C4."""
    host = follower(1, term=1, replica=1)
    host.tick(300)
    host.step(host.message(VoteResponse, sender=2, term=1, incarnation=5, pre=True, granted=False))
    host.step(host.message(VoteResponse, sender=2, term=2, incarnation=4, pre=True, granted=True))
    assert host.role is Role.PRE_CANDIDATE
    assert host.core.dropped == {"earlier_incarnation": 1}


def test_every_message_carries_the_own_incarnation() -> None:
    disk = Disk(HardState(1), list(log_of(1)), incarnation=6)
    host = Host(1, disk=disk)
    assert {one.incarnation for one in host.tick(300)} == {7}


def test_held_answers_are_bounded() -> None:
    host = follower(1, term=1, config=RaftConfig(held_messages_max=3))
    for _ in range(10):
        ask(host, sender=1, term=2)
    assert host.core.dropped == {"held_messages_full": 7}
    assert len(of(VoteResponse, host.persist())) == 3


@pytest.mark.parametrize(
    ("values", "count"),
    [
        ({}, 0),
        ({"heartbeat_ms": 300}, 1),
        ({"heartbeat_ms": 0, "append_bytes_max": -1, "nudge_ms": 1.5}, 3),
        ({"append_bytes_max": 32 * 1024 * 1024}, 1),
        ({"hint_retry_ms_min": 30, "probe_bytes_max": 5 * 1024 * 1024}, 2),
    ],
)
def test_configuration_names_all_problems_at_once(values: dict, count: int) -> None:
    problems = RaftConfig(**values).validate()
    assert len(problems) == count
    for name in values:
        assert count == 0 or any(name in problem for problem in problems)
