"""Leadership handed over: on order, in time, or not at all; and by a leader whose disk stands still."""

import pytest

from consensus.core.errors import Busy, NotLeader, TransferRefused
from consensus.core.interface import AnyMessage, CampaignNow, Configuration, Role, VoteRequest, VoteResponse
from tests.unit.core.harness import AppendResponse, Cluster, Disk, Host, entry, follower, leader, of, only

LEARNING = Configuration((1, 2, 3), (4,))


def settled(host: Host, *, match: int | None = None) -> Host:
    """A leader whose entries are durable everywhere and applied."""
    last = host.core.status().last_index if match is None else match
    for peer in (2, 3):
        host.match(peer, last)
    host.persist()
    host.sent.clear()
    return host


def orders(messages: list[AnyMessage]) -> list[tuple[int, int]]:
    return [(one.to, one.last_index) for one in of(CampaignNow, messages)]


# --- who can lead ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "why"), [(1, "leads already"), (4, "learner"), (9, "no member"), (0, "no member"), (3, "not connected")]
)
def test_transfer_is_refused_with_the_reason(to: int, why: str) -> None:
    host = Host(1, LEARNING).lead()
    host.core.connection(3, closed=True)
    assert why in host.core.transfer_problem(to)
    with pytest.raises(TransferRefused, match=why):
        host.core.transfer(to)
    assert host.core.status().transferee == 0


def test_transfer_to_a_silent_replica_is_refused() -> None:
    host = leader(1)
    for _ in range(6):
        host.tick(50)
        host.match(3, 2)
    with pytest.raises(TransferRefused, match="has not answered"):
        host.core.transfer(2)
    host.core.transfer(3)


def test_transfer_to_a_forgetful_replica_is_refused() -> None:
    host = leader(1)
    host.step(host.message(AppendResponse, sender=2, rejected=False, match_index=0, forgetful=True))
    with pytest.raises(TransferRefused, match="may have forgotten"):
        host.core.transfer(2)


def test_only_a_leader_hands_over() -> None:
    with pytest.raises(NotLeader):
        follower(1).core.transfer(1)


def test_a_second_transfer_is_refused_and_the_same_one_is_not() -> None:
    host = leader(1)
    host.core.transfer(2)
    host.core.transfer(2)
    with pytest.raises(TransferRefused, match="already being handed to replica 2"):
        host.core.transfer(3)


# --- the order ------------------------------------------------------------------------------------------------------


def test_order_is_given_once_the_transferee_has_flushed_the_last_entry() -> None:
    """HAZARDS 21."""
    host = settled(leader(1))
    host.propose(b"a", b"b")
    host.core.transfer(2)
    assert orders(host.persist()) == []
    assert orders(host.match(2, 3)) == []
    assert orders(host.match(2, 4) + host.drain()) == [(2, 4)]


def test_order_waits_a_while_for_the_own_state_machine() -> None:
    """Who proposed here hears the outcome here."""
    host = settled(leader(1))
    host.propose(b"a")
    host.core.transfer(2)
    assert orders(host.match(2, 3)) == []  # committed by 2 and 3, not durable here
    host.match(3, 3)
    assert orders(host.tick(140)) == []
    assert orders(host.tick(20)) == [(2, 3)]


def test_order_is_repeated_in_case_it_was_lost() -> None:
    host = settled(leader(1))
    host.core.transfer(2)
    assert orders(host.drain()) == [(2, 2)]
    assert orders(host.tick(40)) == []
    assert orders(host.tick(20)) == [(2, 2)]


def test_transferee_campaigns_at_once_without_a_pre_vote() -> None:
    host = follower(1, 1, term=1)
    host.append(after=(1, 2))
    left = host.step(host.message(CampaignNow, sender=1, last_index=2)) + host.persist()
    asked = of(VoteRequest, left)
    assert (host.role, host.term) == (Role.CANDIDATE, 2)
    assert [(one.to, one.pre, one.transfer) for one in asked] == [(1, False, True), (3, False, True)]


def test_transferee_that_has_not_flushed_ignores_the_order() -> None:
    """HAZARDS 21: it holds the entry in memory only."""
    host = follower(1, 1, term=1)
    host.append(entry(1, 3), after=(1, 2))
    order = host.message(CampaignNow, sender=1, last_index=3)
    host.step(order)
    assert host.role is Role.FOLLOWER
    host.persist()
    host.step(order)
    assert host.role is Role.CANDIDATE


def test_transferee_that_never_compared_its_log_ignores_the_order() -> None:
    """It has as many entries, but perhaps not the leader's."""
    host = follower(1, 1, term=3)
    host.heartbeat()
    host.step(host.message(CampaignNow, sender=1, last_index=2))
    assert host.role is Role.FOLLOWER


def test_learner_and_stalled_replica_ignore_the_order() -> None:
    learner = Host(4, LEARNING, disk=Disk())
    stalled = follower(1)
    stalled.core.storage(stalled=True)
    for host in (learner, stalled):
        host.append(entry(1, 1), term=1)
        host.persist()
        host.step(host.message(CampaignNow, sender=1, last_index=1))
        assert host.role is Role.FOLLOWER


def test_voter_does_not_protect_a_leader_that_hands_over() -> None:
    host = follower(1, term=1)
    host.heartbeat()
    request = host.message(VoteRequest, sender=3, term=2, pre=False, last_term=1, last_index=1)
    host.step(request)
    assert host.term == 1
    request = host.message(VoteRequest, sender=3, term=2, pre=False, last_term=1, last_index=1, transfer=True)
    assert only(VoteResponse, host.step(request) + host.persist()).granted


def test_later_candidacies_are_not_by_order() -> None:
    host = follower(1, term=1)
    host.append(after=(1, 1))
    host.step(host.message(CampaignNow, sender=1, last_index=1))
    host.persist()
    host.heartbeat(sender=1, term=3)
    host.tick(1000)
    host.step(host.message(VoteResponse, sender=3, term=host.term + 1, pre=True, granted=True))
    assert {one.transfer for one in of(VoteRequest, host.persist())} == {False}


# --- meanwhile ------------------------------------------------------------------------------------------------------


def test_proposals_are_refused_while_leadership_is_handed_over() -> None:
    host = settled(leader(1))
    host.core.transfer(2)
    with pytest.raises(Busy, match="handed to replica 2") as caught:
        host.core.propose(b"x", 1)
    assert caught.value.handing_over_to == 2
    assert host.core.status().last_index == 2


def test_transfer_is_given_up_within_one_election_timeout() -> None:
    host = settled(leader(1))
    host.propose(b"a")
    host.core.transfer(2)
    for _ in range(29):
        host.tick(10)
        host.match(3, 3)
    assert host.core.status().transferee == 2
    host.tick(10)
    assert (host.core.status().transferee, host.role) == (0, Role.LEADER)
    host.propose(b"b")


def test_the_outlook_shows_a_hand_over_and_its_end() -> None:
    """Whatever began and ended it: hosts look at all else only when the outlook changed."""
    host = settled(leader(1))
    before = host.core.outlook()
    host.core.storage(stalled=True)
    assert host.core.status().transferee
    assert host.core.outlook() != before
    host.core.storage(stalled=False)
    for peer in (2, 3):
        host.core.connection(peer, closed=True)
    host.tick(10)
    assert host.core.status().transferee == 0
    assert host.core.outlook() == before


def test_transferee_that_dies_in_the_middle_ends_the_transfer() -> None:
    host = settled(leader(1))
    host.core.transfer(2)
    host.core.connection(2, closed=True)
    host.tick(10)
    assert (host.core.status().transferee, host.role) == (0, Role.LEADER)
    assert orders(host.tick(200)) == []


def test_new_leader_is_led_by_order_within_one_round_of_messages() -> None:
    cluster = Cluster.of_size(3)
    first = cluster.elect()
    first.core.transfer(3)
    cluster.settle()
    assert [host.replica for host in cluster.leaders()] == [3]
    assert first.core.status().leader == 3
    assert cluster.hosts[3].core.status().commit_index == 2


def test_transfer_brings_the_transferee_up_to_date_first() -> None:
    cluster = Cluster.of_size(3)
    first = cluster.elect()
    cluster.blocked = {(1, 3)}
    for number in range(5):
        first.propose(bytes([number]))
    cluster.settle()
    first.core.transfer(3)
    cluster.settle()
    assert first.role is Role.LEADER
    cluster.heal()
    cluster.run(200)
    assert [host.replica for host in cluster.leaders()] == [3]
    assert len(cluster.hosts[3].terms()) == 7


def test_transferee_killed_after_the_order_leaves_the_group_a_leader() -> None:
    cluster = Cluster.of_size(3)
    first = cluster.elect()
    first.core.transfer(3)
    first.drain()
    cluster.down.add(3)
    cluster.run(2000)
    leader_now = cluster.leader()
    leader_now.propose(b"on")
    cluster.settle()
    assert leader_now.core.status().commit_index == leader_now.core.status().last_index


def test_two_voters_and_learners_can_hand_over() -> None:
    configuration = Configuration((1, 2), (3,))
    cluster = Cluster(*(Host(replica, configuration) for replica in (1, 2, 3)))
    cluster.elect().core.transfer(2)
    cluster.settle()
    assert [host.replica for host in cluster.leaders()] == [2]


# --- a disk that stands still ---------------------------------------------------------------------------------------


def test_stalled_leader_hands_over_to_who_has_most() -> None:
    """HAZARDS 16."""
    host = settled(leader(1))
    host.propose(b"a", b"b")
    host.match(2, 3)
    host.match(3, 4)
    host.core.storage(stalled=True)
    assert host.core.status().transferee == 3
    assert orders(host.drain()) == [(3, 4)]


def test_group_goes_on_without_the_stalled_leaders_disk() -> None:
    """HAZARDS 16: nothing becomes durable at the leader any more, heartbeats go on."""
    cluster = Cluster.of_size(3)
    first = cluster.elect()
    first.propose(b"a")
    first.core.storage(stalled=True)
    for _ in range(100):
        for host in cluster.up():
            host.core.tick(10)
            host.drain()
            if host is not first:
                host.persist()
            queue, host.sent = host.sent, []
            for message in queue:
                cluster.deliver(message)
    second = cluster.leader()
    assert second.replica == 2
    assert second.core.status().commit_index == second.core.status().last_index


def test_stalled_leader_steps_down_when_nobody_takes_over() -> None:
    host = settled(leader(1))
    host.core.storage(stalled=True)
    for _ in range(40):
        host.tick(10)
        host.match(2, 2)
        host.match(3, 2)
    assert host.role is Role.FOLLOWER


def test_stalled_leader_with_nobody_in_reach_steps_down() -> None:
    host = settled(leader(1))
    for peer in (2, 3):
        host.core.connection(peer, closed=True)
    host.core.storage(stalled=True)
    assert host.role is Role.FOLLOWER


@pytest.mark.parametrize("voters", [(1,), (1, 2)])
def test_stalled_leader_without_which_there_is_no_quorum_leads_on(voters: tuple[int, ...]) -> None:
    host = Host(1, Configuration(voters)).lead()
    host.core.storage(stalled=True)
    for _ in range(20):
        host.tick(50)
        if 2 in voters:
            host.match(2, 1)
    assert (host.role, host.core.status().transferee) == (Role.LEADER, 0)


def test_stalled_replica_does_not_campaign_until_its_disk_is_back() -> None:
    host = follower(1)
    host.core.storage(stalled=True)
    assert of(VoteRequest, host.tick(3000)) == []
    assert host.core.status().storage_stalled
    host.core.storage(stalled=False)
    assert of(VoteRequest, host.tick(1000)) != []


def test_stalled_leader_that_those_who_are_left_need_keeps_trying() -> None:
    """3 is down and 2 lacks entries: if 1 stepped down, which does not campaign, nobody could win."""
    host = settled(leader(1))
    host.propose(b"a", b"b")
    host.core.connection(3, closed=True)
    host.core.storage(stalled=True)
    for _ in range(200):
        host.tick(10)
        host.match(2, 2)
        assert host.role is Role.LEADER
    host.tick(10)
    host.match(2, 4)
    host.tick(100)
    assert host.core.status().transferee == 2
    assert orders(host.sent)[-1] == (2, 4)


def test_disk_that_stands_still_again_hands_over_again() -> None:
    host = settled(leader(1))
    for stalled in (True, False):
        host.core.storage(stalled=stalled)
        assert host.core.status().transferee == 2
    while host.core.status().transferee:
        host.tick(10)
        host.match(2, 2)
        host.match(3, 2)
    host.core.storage(stalled=True)
    assert (host.role, host.core.status().transferee) == (Role.LEADER, 2)
