"""One test a rule of leadership transfer: section 3.10 of "Consensus: Bridging Theory and Practice" (Ongaro, 2014)."""

import pytest

from consensus.core.errors import Busy
from consensus.core.interface import CampaignNow, Role
from tests.unit.core.harness import AppendRequest, Cluster, VoteRequest, VoteResponse, follower, leader, of, only


def settled_cluster() -> Cluster:
    cluster = Cluster.of_size(3)
    cluster.elect()
    return cluster


def test_3_10_the_prior_leader_stops_accepting_new_client_requests() -> None:
    """ "1. The prior leader stops accepting new client requests." """
    host = leader(1)
    host.core.transfer(3)
    with pytest.raises(Busy):
        host.core.propose(b"x", 1)


def test_3_10_the_prior_leader_fully_updates_the_targets_log() -> None:
    """ "2. The prior leader fully updates the target server's log to match its own, using the normal log replication
    mechanism described in Section 3.5." """
    host = leader(1)
    host.propose(b"a", b"b")
    host.core.transfer(3)
    left = host.match(3, 1)
    assert [entry.payload for one in of(AppendRequest, left, to=3) for entry in one.entries] == [b"a", b"b"]
    assert of(CampaignNow, host.persist()) == []


def test_3_10_the_prior_leader_sends_a_timeout_now_request() -> None:
    """ "3. The prior leader sends a TimeoutNow request to the target server." """
    host = leader(1)
    host.core.transfer(3)
    order = only(CampaignNow, host.match(3, 2) + host.drain())
    assert (order.to, order.term, order.last_index) == (3, 2, 2)


def test_3_10_the_target_starts_a_new_election_at_once() -> None:
    """ "This request has the same effect as the target server's election timer firing: the target server starts a new
    election (incrementing its term and becoming a candidate)." """
    host = follower(1, term=1, replica=3)
    host.append(after=(1, 1))
    host.step(host.message(CampaignNow, sender=1, last_index=1))
    assert (host.role, host.term, host.core.status().vote) == (Role.CANDIDATE, 2, 3)


def test_3_10_the_target_is_very_likely_to_win_before_anybody_else_times_out() -> None:
    """ "Once the target server receives the TimeoutNow request, it is highly likely to start an election before any
    other server and become leader in the next term." No time passes at all here."""
    cluster = settled_cluster()
    cluster.leader().core.transfer(3)
    cluster.settle()
    assert [(host.replica, host.term) for host in cluster.leaders()] == [(3, 2)]


def test_3_10_the_targets_next_message_makes_the_prior_leader_step_down() -> None:
    """ "Its next message to the prior leader will include its new term number, causing the prior leader to step down.
    At this point, leadership transfer is complete." """
    host = leader(1)
    request = host.message(
        VoteRequest, sender=3, term=host.term + 1, pre=False, last_term=2, last_index=2, transfer=True
    )
    answer = only(VoteResponse, host.step(request) + host.persist())
    assert (host.role, answer.granted) == (Role.FOLLOWER, True)
    assert host.core.status().transferee == 0


def test_3_10_a_transfer_that_takes_too_long_is_aborted() -> None:
    """ "If leadership transfer does not complete after about an election timeout, the prior leader aborts the transfer
    and resumes accepting client requests." """
    cluster = settled_cluster()
    first = cluster.leader()
    cluster.blocked = {(1, 3)}
    first.core.transfer(3)
    cluster.run(290)
    assert first.core.status().transferee == 3
    cluster.run(10)
    first.propose(b"x")
    cluster.settle()
    assert (first.role, first.core.status().commit_index) == (Role.LEADER, 2)


def test_3_10_an_abort_that_was_a_mistake_costs_an_election_at_most() -> None:
    """The prior leader may be mistaken about a target that only was slow: at worst there is an extra election."""
    cluster = settled_cluster()
    first, target = cluster.leader(), cluster.hosts[3]
    first.core.transfer(3)
    order = only(CampaignNow, first.drain())
    first.sent.clear()
    cluster.blocked = {(1, 3)}
    cluster.run(350)
    assert first.core.status().transferee == 0
    cluster.heal()
    target.step(order)  # late
    cluster.settle()
    cluster.leader().propose(b"x")
    cluster.settle()
    assert len({host.core.status().commit_index for host in cluster.up()}) == 1


def test_4_2_3_voters_help_a_candidate_that_the_leader_sent() -> None:
    """ "Leadership transfer can legitimately cause a server to start an election without waiting an election timeout.
    In that case, RequestVote messages should be processed by other servers even when they believe a current cluster
    leader exists. Those RequestVote requests can include a special flag to indicate this behavior ("I have permission
    to disrupt the leader—it told me to!")." (section 4.2.3)"""
    host = follower(1, term=1)
    host.heartbeat()
    fields = {"sender": 3, "term": 2, "pre": False, "last_term": 1, "last_index": 1}
    host.step(host.message(VoteRequest, **fields))
    assert host.term == 1
    assert only(VoteResponse, host.step(host.message(VoteRequest, transfer=True, **fields)) + host.persist()).granted


def test_3_10_a_candidate_by_order_still_needs_an_up_to_date_log() -> None:
    """Transfer is an ordinary election: section 5.4.1 of the paper holds."""
    host = follower(1, 1, term=1)
    request = host.message(VoteRequest, sender=3, term=2, pre=False, last_term=1, last_index=1, transfer=True)
    assert not only(VoteResponse, host.step(request) + host.persist()).granted
