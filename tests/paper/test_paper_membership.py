"""One test a rule of membership: section 6 of the Raft paper (extended version), chapter 4 of the dissertation
"Consensus: Bridging Theory and Practice" (Ongaro, 2014), and the condition that was added to both in 2015."""

import pytest

from consensus.core.errors import MembershipRefused
from consensus.core.interface import (
    AppendRequest,
    CampaignNow,
    Configuration,
    EntryKind,
    Heartbeat,
    HeartbeatResponse,
    MembershipChange,
    Role,
    VoteRequest,
    VoteResponse,
)
from consensus.core.invariants import SafetyChecker
from tests.unit.core.harness import Cluster, Host, configuration_entry, entry, follower, leader, of

OLD = Configuration((1, 2, 3), learners=(4, 5), next_replica=6)
JOINT = Configuration((3, 4, 5), outgoing=(1, 2, 3), next_replica=6)
NEW = Configuration((3, 4, 5), next_replica=6)


def ready_to_change(replica: int = 1, configuration: Configuration = OLD) -> Host:
    """A leader that committed in its term, and whose learners hold everything."""
    host = Host(replica, configuration).lead()
    (round_number, *_) = {one.round for one in of(Heartbeat, host.tick(50))}
    for peer in host.core.status().match:
        host.step(host.message(HeartbeatResponse, sender=peer, round=round_number, match_index=1))
    host.persist()
    host.sent.clear()
    return host


def changing(replica: int = 1) -> Host:
    """The same, with JOINT appended and durable at the leader."""
    host = ready_to_change(replica)
    host.core.propose_membership(MembershipChange(NEW.voters))
    host.persist()
    assert in_force(host) == JOINT
    return host


def in_force(host: Host) -> Configuration | None:
    return host.core.status().configuration


def asks(host: Host, sender: int, *, term: int, pre: bool = False) -> bool:
    """Whether it gets the vote; its log is long."""
    request = host.message(VoteRequest, sender=sender, term=term, pre=pre, last_index=99, last_term=term - 1)
    return any(answer.granted for answer in of(VoteResponse, host.step(request) + host.persist()))


# --- Raft section 6 -------------------------------------------------------------------------------------------------


def test_6_log_entries_are_replicated_to_all_servers_in_both_configurations() -> None:
    host = changing()
    assert {one.to for one in of(AppendRequest, host.propose(b"x"))} == {2, 3, 4, 5}


@pytest.mark.parametrize("replica", [1, 3, 4])
def test_6_any_server_from_either_configuration_may_serve_as_leader(replica: int) -> None:
    host = Host(replica, JOINT)
    host.tick(5000)
    assert {one.to for one in of(VoteRequest, host.sent)} == {1, 2, 3, 4, 5} - {replica}


@pytest.mark.parametrize(
    ("votes", "wins"),
    [({2}, False), ({2, 4}, False), ({4, 5}, False), ({2, 3}, False), ({2, 3, 4}, True), ({2, 4, 5}, True)],
)
def test_6_an_election_requires_separate_majorities_from_both(votes: set[int], wins: bool) -> None:
    host = Host(1, JOINT)
    host.tick(3000)
    for pre in (True, False):
        for voter in votes:
            if host.role is (Role.PRE_CANDIDATE if pre else Role.CANDIDATE):
                term = host.term + pre
                host.step(host.message(VoteResponse, sender=voter, term=term, pre=pre, granted=True))
        host.persist()
    assert (host.role is Role.LEADER) == wins


@pytest.mark.parametrize(("holders", "committed"), [({4, 5}, 1), ({2, 3}, 1), ({2, 4}, 1), ({2, 4, 5}, 2), ({3, 4}, 2)])
def test_6_commitment_requires_separate_majorities_from_both(holders: set[int], committed: int) -> None:
    host = changing()
    for peer in holders:
        host.match(peer, 2)
    assert host.core.status().commit_index == committed


def test_6_a_server_always_uses_the_latest_configuration_in_its_log() -> None:
    """ "Regardless of whether the entry is committed." """
    host = follower(1, replica=2)
    host.append(configuration_entry(1, 2, OLD), configuration_entry(1, 3, JOINT), after=(1, 1), commit=0)
    assert in_force(host) == JOINT
    host.tick(5000)
    host.persist()
    assert {one.to for one in of(VoteRequest, host.sent)} == {1, 3, 4, 5}


def test_6_a_new_leader_may_be_chosen_under_either_configuration() -> None:
    """ "If the leader crashes, a new leader may be chosen under either C_old or C_old,new, depending on whether the
    winning candidate has received C_old,new." The one that has not wins with the votes of old members alone."""
    host = Host(2, OLD)
    host.lead()
    assert in_force(host) == OLD


def test_6_once_the_joint_configuration_is_committed_the_leader_creates_the_new_one() -> None:
    host = changing()
    assert host.core.status().last_index == 2
    for peer in (2, 4, 5):
        host.match(peer, 2)
    assert in_force(host) == NEW
    created = host.core.entry(3)
    assert created is not None
    assert created.kind is EntryKind.CONFIGURATION


def test_6_when_the_new_configuration_is_committed_the_old_one_is_irrelevant() -> None:
    host = changing()
    for peer in (3, 4):
        host.match(peer, 2)
    host.persist()
    for peer in (4, 5):
        host.match(peer, 3)
    assert host.core.status().commit_index == 3
    assert set(host.core.status().match) == {3, 4, 5}


def test_6_new_servers_join_as_non_voting_members() -> None:
    """ "The leader replicates log entries to them, but they are not considered for majorities." """
    host = ready_to_change()
    assert {one.to for one in of(AppendRequest, host.propose(b"x"))} >= {4, 5}
    host.persist()
    for learner in (4, 5):
        host.match(learner, 2)
    assert host.core.status().commit_index == 1


def test_6_a_leader_that_is_not_in_the_new_configuration_does_not_count_itself() -> None:
    """ "It replicates log entries but does not count itself in majorities." """
    host = changing()
    for peer in (3, 4):
        host.match(peer, 2)
    host.persist()
    host.match(3, 3)
    assert host.role is Role.LEADER
    assert host.core.status().commit_index == 2
    host.match(4, 3)
    assert host.core.status().commit_index == 3


def test_6_a_leader_that_is_not_in_the_new_configuration_steps_down_once_that_is_committed() -> None:
    """It hands over first: the follower that it tells to campaign deposes it."""
    host = changing()
    for index in (2, 3):
        for peer in (3, 4):
            host.match(peer, index)
        host.persist()
    assert {one.to for one in of(CampaignNow, host.sent)} == {3}
    host.tick(350)
    assert host.role is not Role.LEADER


def test_6_removed_servers_do_not_disrupt_the_cluster() -> None:
    """ "Servers disregard RequestVote RPCs when they believe a current leader exists." With pre-votes a removed server
    does not even raise its own term."""
    cluster = Cluster.of_size(3)
    first = cluster.elect()
    removed = next(host for host in cluster.up() if host is not first)
    cluster.cut(removed.replica)
    first.core.propose_membership(MembershipChange(tuple(v for v in (1, 2, 3) if v != removed.replica)))
    cluster.run(100)
    term = first.term
    cluster.heal()
    cluster.run(5000)
    assert cluster.leader() is first
    assert first.term == term
    assert removed.core.status().removed


# --- dissertation chapter 4 -----------------------------------------------------------------------------------------


def test_dissertation_4_1_a_server_accepts_entries_of_a_leader_that_is_not_part_of_its_configuration() -> None:
    host = Host(9, Configuration((1, 2, 3)))
    left = host.append(entry(1, 1), term=1, sender=7) + host.persist()
    assert host.core.status().leader == 7
    assert host.core.status().last_index == 1
    assert left


def test_dissertation_4_1_a_server_grants_its_vote_to_a_candidate_that_is_not_part_of_its_configuration() -> None:
    host = Host(2, Configuration((1, 2, 3)))
    assert asks(host, 7, term=3, pre=True)
    assert asks(host, 7, term=3)


def test_dissertation_4_1_a_server_votes_though_it_is_not_part_of_its_own_configuration() -> None:
    """Requests are processed without consulting the own configuration, or a server that was added and has not heard of
    it could be the one vote that is missing."""
    assert asks(Host(4, Configuration((1, 2, 3))), 2, term=3)
    assert asks(Host(4, OLD), 2, term=3)


def test_dissertation_4_1_a_server_falls_back_to_the_previous_configuration_in_its_log() -> None:
    """A configuration entry that is not committed may be removed by another leader."""
    host = follower(1, replica=2)
    host.append(configuration_entry(1, 2, OLD), configuration_entry(1, 3, JOINT), after=(1, 1))
    host.append(entry(2, 3), after=(1, 2), term=2, sender=3)
    assert in_force(host) == OLD


def test_dissertation_4_1_changes_come_one_at_a_time() -> None:
    host = changing()
    with pytest.raises(MembershipRefused, match="one at a time"):
        host.core.propose_membership(MembershipChange((1, 2, 3)))


def test_dissertation_4_2_1_a_new_server_catches_up_before_it_votes() -> None:
    host = leader(1, replica=1, configuration=OLD)
    host.match(2, 2)
    with pytest.raises(MembershipRefused, match="learner 4 has not answered"):
        host.core.propose_membership(MembershipChange((1, 2, 3, 4)))


def test_dissertation_4_2_2_a_leader_that_is_removed_leads_until_that_is_committed() -> None:
    host = changing()
    for peer in (3, 4):
        host.match(peer, 2)
    assert in_force(host) == NEW
    assert host.role is Role.LEADER
    assert of(AppendRequest, host.propose(b"x"))


def test_dissertation_4_2_2_a_server_that_is_not_in_its_own_latest_configuration_still_starts_elections() -> None:
    """ "It might still be needed until the C_new entry is committed." Here the leader of the joint configuration, 1, is
    the only one that holds C_new: 2 can't win without its vote, and does not get it."""
    joint, new = Configuration((2,), outgoing=(1, 2), next_replica=3), Configuration((2,), next_replica=3)
    hosts = [follower(1, replica=replica, configuration=Configuration((1, 2))) for replica in (1, 2)]
    cluster = Cluster(*hosts)
    for host in hosts:
        host.append(configuration_entry(1, 2, joint), after=(1, 1), sender=3 - host.replica)
    hosts[0].append(configuration_entry(1, 3, new), after=(1, 2), sender=2)
    assert not asks(hosts[0], 2, term=1, pre=True)
    cluster.run(3000)
    assert [host.replica for host in cluster.leaders()] == [2]
    assert hosts[1].core.status().commit_index >= 3
    assert hosts[0].core.status().removed


def test_dissertation_4_2_2_it_starts_none_once_that_is_committed() -> None:
    host = follower(1, replica=2)
    host.append(configuration_entry(1, 2, OLD), configuration_entry(1, 3, NEW), after=(1, 1), commit=3)
    host.persist()
    host.sent.clear()
    host.tick(5000)
    assert of(VoteRequest, host.sent) == []


def test_dissertation_4_3_a_joint_leader_that_finds_the_change_half_done_completes_it() -> None:
    host = follower(1, replica=3, configuration=OLD)
    host.append(configuration_entry(1, 2, JOINT), after=(1, 1))
    host.persist()
    host.lead()
    for peer in (1, 4):
        host.match(peer, 3)
    assert in_force(host) == NEW


def test_dissertation_4_3_two_majorities_never_decide_apart() -> None:
    """Three servers are replaced by three others at once, old and new ones on two sides of a partition: whatever is in
    force on either side, they don't decide apart."""
    cluster = Cluster.of_size(3)
    first = cluster.elect()
    for replica in (4, 5, 6):
        cluster.hosts[replica] = Host(replica, Configuration((1, 2, 3)))
    first.core.propose_membership(MembershipChange((1, 2, 3), (4, 5, 6)))
    cluster.run(200)
    first.core.propose_membership(MembershipChange((4, 5, 6)))
    checker = SafetyChecker()

    def watch() -> None:
        checker.check([host.core for host in cluster.up()])

    cluster.cut(1, 2, 3)
    cluster.run(2000, watch=watch)
    assert first.core.status().commit_index == 2
    cluster.heal()
    cluster.run(3000, watch=watch)
    assert {host.replica for host in cluster.leaders()} <= {4, 5, 6}
    assert all(cluster.hosts[old].core.status().removed for old in (1, 2, 3))


# --- the condition of 2015 ------------------------------------------------------------------------------------------


def test_2015_no_change_before_the_leader_committed_an_entry_of_its_term() -> None:
    """raft-dev, "bug in single-server membership changes", July 2015: with configurations of two leaders uncommitted,
    their majorities need not overlap (HAZARDS 18)."""
    host = leader(1, replica=1)
    with pytest.raises(MembershipRefused, match="no entry of its own term"):
        host.core.propose_membership(MembershipChange((1, 2, 3), (4,)))
    host.match(2, 2)
    host.core.propose_membership(MembershipChange((1, 2, 3), (4,)))
