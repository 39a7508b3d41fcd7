"""A replica that may have forgotten what it acknowledged counts for nothing until it is filled again (RULES W7)."""

import pytest

from consensus.core.errors import InvariantViolated, MembershipRefused
from consensus.core.interface import (
    AppendResponse,
    Configuration,
    HardState,
    HeartbeatResponse,
    MembershipChange,
    RejoinRequest,
    RejoinResponse,
    Role,
    VoteRequest,
    VoteResponse,
)
from tests.unit.core.harness import THREE, Cluster, Disk, Host, entry, leader, log_of, meta, of, offer, only


def forgetful(*terms: int, term: int = 3, vote: int = 0, commit: int = 4, replica: int = 2) -> Host:
    """In term 3 it knew four committed entries; what is left of its log has these terms."""
    return Host(replica, disk=Disk(HardState(term, vote, commit), list(log_of(*terms)), forgetful=True))


def answer(host: Host, last_index: int, **changes) -> list:  # type: ignore[no-untyped-def]
    fields = {"sender": 1, "last_index": last_index, "for_incarnation": host.disk.incarnation, **changes}
    return host.step(host.message(RejoinResponse, **fields))


def clearing(host: Host) -> bool:
    """Whether a batch that ends the mark waits to be written."""
    host.drain()
    return any(ready.clear_forgetful for ready in host.writing)


# --- what it may not do ---------------------------------------------------------------------------------------------


def test_its_log_may_end_before_what_it_knew_to_be_committed() -> None:
    host = forgetful(1, 1)
    assert host.core.status().forgetful
    # Nothing of it is taken for committed before a leader confirms it.
    assert host.core.status().commit_index == 0
    assert host.persist() == []
    assert host.applied == []
    with pytest.raises(InvariantViolated, match="4 entries were committed"):
        Host(2, disk=Disk(HardState(3, 0, 4), list(log_of(1, 1))))


def test_it_does_not_vote() -> None:
    host = forgetful()
    for pre in (True, False):
        left = host.step(host.message(VoteRequest, sender=1, term=4, pre=pre, last_index=9, last_term=3))
        assert not only(VoteResponse, left + host.persist()).granted
    assert host.core.status().vote == 0


def test_it_does_not_campaign() -> None:
    assert forgetful().tick(5000) == []
    host = forgetful()
    host.heartbeat(sender=1)
    host.core.connection(1, closed=True)
    assert of(VoteRequest, host.tick(5000)) == []


def test_it_confirms_no_read() -> None:
    host = forgetful()
    host.heartbeat(sender=1)
    host.core.read(7)
    assert [(one.token, one.refused) for one in host.core.ready().reads] == [(7, True)]


def test_every_answer_says_so() -> None:
    host = forgetful()
    left = host.append(*log_of(1, 2, 3, 3), sender=1) + host.heartbeat(sender=1) + host.persist()
    left += host.heartbeat(sender=3, term=1)
    left += host.append(entry(3, 9), after=(3, 8), sender=1)
    answers = of(AppendResponse, left) + of(HeartbeatResponse, left)
    assert len(answers) == 4
    assert all(one.forgetful for one in answers)


# --- how it comes back ----------------------------------------------------------------------------------------------


def test_without_a_leader_it_stays_forgetful_whatever_is_left() -> None:
    """Nothing at all was left, term 0 too: the empty answer of nobody fitted it (simulated seed 550696)."""
    host = forgetful(term=0, commit=0)
    host.tick(1000)
    assert not clearing(host)
    left = host.step(host.message(VoteRequest, sender=1, term=1, pre=True, last_index=0, last_term=0))
    assert not only(VoteResponse, left + host.persist()).granted
    assert host.core.status().forgetful


def test_it_counts_again_once_it_holds_what_the_leader_named() -> None:
    host = forgetful(1, 2)
    (asked,) = of(RejoinRequest, host.heartbeat(sender=1))
    assert (asked.to, asked.term, asked.incarnation) == (1, 3, host.disk.incarnation)
    answer(host, 4)
    assert not clearing(host)
    host.append(entry(3, 3), entry(3, 4), after=(2, 2), sender=1)
    assert not clearing(host)  # held, but not durable yet
    host.persist_one()
    assert clearing(host)
    assert host.core.status().forgetful  # that is not durable yet either
    left = host.persist()
    assert not host.core.status().forgetful
    # The leader hears of it at once.
    assert [(one.match_index, one.forgetful) for one in of(AppendResponse, left)] == [(4, False)]
    assert not host.disk.forgetful
    host.start()
    assert not host.core.status().forgetful


def test_entries_need_not_be_committed_to_count() -> None:
    host = forgetful()
    host.heartbeat(sender=1)
    host.append(*log_of(1, 2, 3), sender=1, commit=1)
    answer(host, 3)
    host.persist()
    assert not host.core.status().forgetful
    assert host.core.status().commit_index == 1


def test_a_snapshot_fills_it_too() -> None:
    host = forgetful()
    host.heartbeat(sender=1)
    answer(host, 6)
    host.step(offer(host, meta(5, 3)))
    host.append(entry(3, 6), after=(3, 5), sender=1)
    assert not clearing(host)
    host.persist()
    assert not host.core.status().forgetful


def test_it_asks_again_until_it_is_answered() -> None:
    host = forgetful()
    for _ in range(2):
        assert of(RejoinRequest, host.heartbeat(sender=1))
    answer(host, 4)
    assert of(RejoinRequest, host.heartbeat(sender=1)) == []


def test_what_is_left_of_its_own_log_counts_only_when_verified() -> None:
    host = forgetful(1, 2, 3, 3)
    host.heartbeat(sender=1)
    answer(host, 4)
    assert not clearing(host)
    host.append(after=(3, 4), sender=1)
    assert clearing(host)


def test_an_answer_to_an_earlier_life_or_of_another_leader_ends_nothing() -> None:
    host = forgetful()
    host.heartbeat(sender=1)
    host.append(*log_of(1, 2, 3, 3), sender=1)
    host.persist()
    answer(host, 4, for_incarnation=host.disk.incarnation - 1)
    answer(host, 4, sender=3)
    answer(host, 4, term=2)
    assert not clearing(host)
    assert host.core.dropped["stale_rejoin"] == 2


def test_another_leader_is_asked_anew() -> None:
    """Its log is another one, and nothing is verified against it yet."""
    host = forgetful()
    host.heartbeat(sender=1)
    answer(host, 4)
    host.heartbeat(sender=3, term=4)
    left = host.persist()
    assert of(RejoinRequest, left, to=3)
    host.append(*log_of(1, 2, 3, 3), sender=3, term=4)
    host.persist()
    assert not clearing(host)
    answer(host, 5, sender=3)
    host.append(entry(4, 5), after=(3, 4), sender=3, term=4)
    host.persist()
    assert not host.core.status().forgetful


def test_its_term_is_durable_before_it_asks() -> None:
    host = forgetful()
    assert of(RejoinRequest, host.heartbeat(sender=1, term=5)) == []
    assert only(RejoinRequest, host.persist()).term == 5


# --- at the leader --------------------------------------------------------------------------------------------------


def test_only_a_leader_names_its_last_index() -> None:
    host = leader(1, replica=1)
    (told,) = of(RejoinResponse, host.step(host.message(RejoinRequest, sender=2, incarnation=7)))
    assert (told.last_index, told.for_incarnation) == (2, 7)
    host = forgetful(replica=3)
    assert host.step(host.message(RejoinRequest, sender=2)) == []


def says(host: Host, sender: int, match: int, *, forgetful: bool, incarnation: int = 1) -> list:
    return host.step(
        host.message(
            HeartbeatResponse,
            sender=sender,
            round=1,
            match_index=match,
            forgetful=forgetful,
            incarnation=incarnation,
        )
    )


def test_what_a_forgetful_replica_holds_commits_nothing_until_it_counts_again() -> None:
    host = leader(1, replica=1)
    says(host, 2, 2, forgetful=True)
    assert host.core.status().commit_index == 0
    says(host, 2, 2, forgetful=False)
    assert host.core.status().commit_index == 2
    # An answer that was overtaken changes nothing.
    host.propose(b"x")
    host.persist()
    says(host, 2, 2, forgetful=True)
    says(host, 2, 3, forgetful=True)
    assert host.core.status().commit_index == 3


def test_in_a_new_life_it_may_be_forgetful_again() -> None:
    host = leader(1, replica=1)
    says(host, 2, 2, forgetful=False)
    says(host, 2, 0, forgetful=True, incarnation=2)
    host.propose(b"x")
    host.persist()
    says(host, 2, 3, forgetful=True, incarnation=2)
    assert host.core.status().commit_index == 2


def test_a_forgetful_replica_is_no_sign_of_life_for_check_quorum() -> None:
    host = leader(1, replica=1)
    for _ in range(14):
        host.tick(50)
        says(host, 2, 1, forgetful=True)
    assert host.role is not Role.LEADER


def test_a_forgetful_learner_is_not_promoted() -> None:
    host = Host(1, Configuration((1, 2, 3), learners=(4,), next_replica=5)).lead()
    for peer in (2, 3):
        says(host, peer, 1, forgetful=False)
    says(host, 4, 1, forgetful=True)
    host.persist()
    with pytest.raises(MembershipRefused, match="learner 4 may have forgotten"):
        host.core.propose_membership(MembershipChange((1, 2, 3, 4)))


# --- together -------------------------------------------------------------------------------------------------------


def test_a_damaged_follower_is_refilled_while_the_group_goes_on() -> None:
    cluster = Cluster.of_size(3)
    first = cluster.elect()
    first.propose(b"a", b"b")
    cluster.settle()
    (hurt, other) = [host for host in cluster.up() if host is not first]
    hurt.disk.damage()
    hurt.start()
    cluster.down.add(other.replica)
    first.propose(b"c")
    cluster.settle()
    # One that counts is no majority, although two hold it.
    assert first.core.status().commit_index == first.core.status().last_index - 1
    cluster.down.clear()
    cluster.run(300)
    assert not hurt.core.status().forgetful
    assert hurt.core.status().commit_index == first.core.status().last_index


def test_a_forgetful_majority_elects_nobody() -> None:
    cluster = Cluster.of_size(3)
    first = cluster.elect()
    first.propose(b"a")
    cluster.settle()
    for host in cluster.up():
        if host is not first:
            host.disk.damage()
        host.start()
    cluster.run(5000)
    assert cluster.leaders() == []
    assert sum(host.core.status().forgetful for host in cluster.up()) == 2


def test_an_acknowledged_entry_survives_the_loss_of_its_only_other_copy() -> None:
    """1 and 2 hold the entry; 2 forgets it. 3, which never had it, must not win with 2's vote."""
    cluster = Cluster(*(Host(replica, THREE) for replica in (1, 2, 3)))
    cluster.hosts[1].core.tick(300)
    cluster.settle()
    first = cluster.leader()
    cluster.down.add(3)
    first.propose(b"kept")
    cluster.settle()
    index = first.core.status().commit_index
    cluster.down = {1}
    cluster.hosts[2].disk.damage()
    cluster.hosts[2].start()
    cluster.run(3000)
    assert cluster.leaders() == []
    cluster.down.clear()
    cluster.run(3000)
    for host in cluster.up():
        kept = host.entry(index)
        assert kept is not None
        assert kept.payload == b"kept"
        assert not host.core.status().forgetful
