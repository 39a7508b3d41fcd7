"""Changing members: what a leader refuses and why, what it does by itself, and those who come and go."""

from dataclasses import replace

import pytest

from consensus.core.configuration import MEMBERS_MAX
from consensus.core.errors import MembershipRefused, NotLeader
from consensus.core.interface import (
    AppendRequest,
    AppendResponse,
    CampaignNow,
    Configuration,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    Home,
    MembershipChange,
    Removed,
    Role,
    VoteRequest,
    VoteResponse,
)
from consensus.core.raft import RaftConfig
from consensus.core.raft.past import LIVES_MAX
from tests.unit.core.harness import (
    THREE,
    Cluster,
    Disk,
    Host,
    configuration_entry,
    entry,
    follower,
    leader,
    meta,
    of,
    offer,
)

LEARNING = Configuration((1, 2, 3), learners=(4,), next_replica=5)


def in_force(host: Host) -> Configuration:
    configuration = host.core.status().configuration
    assert configuration is not None
    return configuration


def serving(configuration: Configuration = LEARNING, *, silent: tuple[int, ...] = (), **rest) -> Host:  # type: ignore[no-untyped-def]
    """A leader whose no-op is committed, and whom everybody answered lately, but for the `silent`."""
    host = Host(1, configuration, **rest).lead()
    for _ in range(2):
        sent = of(Heartbeat, host.tick(200))
        for peer in (*configuration.voters, *configuration.learners):
            if peer != 1 and peer not in silent:
                host.answer_round(peer, sent[-1].round, match=1)
    host.persist()
    assert host.core.status().commit_index == 1
    host.sent.clear()
    return host


def change(*voters: int, learners: tuple[int, ...] = (), homes: tuple[Home, ...] = ()) -> MembershipChange:
    return MembershipChange(voters, learners, homes)


def refused(host: Host, wanted: MembershipChange) -> MembershipRefused:
    """The refusal; nothing may have been appended."""
    before = host.core.status()
    with pytest.raises(MembershipRefused) as caught:
        host.core.propose_membership(wanted)
    assert host.core.status() == before
    return caught.value


def commit(host: Host) -> None:
    """Everybody whom the leader serves holds everything."""
    for peer in list(host.core.status().match):
        host.match(peer, host.core.status().last_index)
    host.persist()


# --- steps ----------------------------------------------------------------------------------------------------------


def test_a_change_of_learners_is_one_plain_entry() -> None:
    host = serving(THREE)
    home = Home(4, 4, b"u" * 16, "localhost:1")
    host.core.propose_membership(change(1, 2, 3, learners=(4,), homes=(home,)))
    assert in_force(host) == Configuration((1, 2, 3), learners=(4,), homes=(home,), next_replica=5)
    commit(host)
    assert host.core.status().last_index == 2


def test_a_change_of_voters_passes_through_a_joint_configuration() -> None:
    host = serving()
    assert host.core.propose_membership(change(1, 2, 4)) == (1, 2)
    assert in_force(host) == Configuration((1, 2, 4), outgoing=(1, 2, 3), next_replica=5)
    host.persist()
    assert host.core.status().last_index == 2
    host.match(2, 2)
    # A majority of both: 1 and 2 are one of {1, 2, 4} and of {1, 2, 3}. The leader then leaves it by itself.
    assert host.core.status().commit_index == 2
    assert in_force(host) == Configuration((1, 2, 4), next_replica=5)
    assert host.core.status().configuration_index == 3


def test_the_order_of_voters_changes_in_one_step() -> None:
    host = serving()
    host.core.propose_membership(change(3, 1, 2, learners=(4,)))
    assert in_force(host) == replace(LEARNING, voters=(3, 1, 2))


def test_homes_follow_their_members() -> None:
    homes = tuple(Home(replica, replica, b"", f"host:{replica}") for replica in (1, 2, 3, 4))
    host = serving(replace(LEARNING, homes=homes))
    host.core.propose_membership(change(1, 2, 4))
    assert in_force(host).homes == homes
    commit(host)
    assert in_force(host).homes == (homes[0], homes[1], homes[3])


def test_a_new_leader_leaves_the_joint_configuration_that_it_finds() -> None:
    joint = Configuration((1, 2, 4), outgoing=(1, 2, 3), next_replica=5)
    host = follower(1, replica=2, configuration=LEARNING)
    host.append(configuration_entry(1, 2, joint), after=(1, 1))
    host.persist()
    host.lead()
    assert in_force(host) == joint
    host.match(1, 3)
    assert in_force(host) == replace(joint, outgoing=())
    assert host.core.status().configuration_index == 4


# --- asking again ---------------------------------------------------------------------------------------------------


def test_asking_for_what_is_so_changes_nothing() -> None:
    host = serving()
    assert host.core.propose_membership(change(1, 2, 3, learners=(4,))) == (0, 0)
    first = host.core.propose_membership(change(1, 2, 4))
    assert host.core.propose_membership(change(1, 2, 4)) == first
    commit(host)
    assert host.core.propose_membership(change(1, 2, 4)) == (1, 3)
    commit(host)
    assert host.core.propose_membership(change(1, 2, 4)) == (1, 3)
    assert host.core.status().last_index == 3


def test_what_is_so_is_named_by_the_snapshot_when_its_entry_is_compacted() -> None:
    host = serving()
    host.core.propose_membership(change(1, 2, 3))
    host.propose(b"x", b"y")
    commit(host)
    host.core.compact(meta(4, 1, in_force(host)), keep_from=5)
    assert host.core.propose_membership(change(1, 2, 3)) == (1, 4)


# --- refusals -------------------------------------------------------------------------------------------------------


def test_only_a_leader_changes_members() -> None:
    host = follower(1)
    with pytest.raises(NotLeader):
        host.core.propose_membership(change(1, 2))


def test_refused_until_an_entry_of_the_own_term_is_committed() -> None:
    """HAZARDS 18."""
    host = leader(1, replica=1)
    no = refused(host, change(1, 2, 3, learners=(4,)))
    assert no.later
    assert "no entry of its own term" in str(no)
    host.match(2, 2)
    host.core.propose_membership(change(1, 2, 3, learners=(4,)))


def test_one_at_a_time() -> None:
    host = serving()
    host.core.propose_membership(change(1, 2, 4))
    assert refused(host, change(1, 2)).later
    host.persist()
    host.match(2, 2)
    # The final one is appended, but not committed.
    no = refused(host, change(1, 2))
    assert no.later
    assert "under way, entry 3: one at a time" in str(no)
    host.persist()
    host.match(4, 3)
    host.core.propose_membership(change(1, 2))


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (change(), "at least one voter; the change would remove replicas 1, 2, 3 and leave none"),
        (change(1, 2, 2), "stands in it twice"),
        (change(1, 2, 3, learners=(3,)), "stands in it twice"),
        (change(1, 2, 3, learners=(0,)), "positive"),
        (change(1, 2, 3, learners=tuple(range(100, 100 + MEMBERS_MAX))), f"more than {MEMBERS_MAX} members"),
        (change(1, 2, 3, 7), "replica 7 must be a learner that has caught up before it votes"),
        (change(1, 2, learners=(3, 4)), "replica 3 votes, and a voter does not become a learner again"),
        (change(1, 2, 3, learners=(5, 6)), "replicas 5, 6 left the group or was passed over"),
        (change(1, 2, 3, learners=(4,), homes=(Home(9, 9),)), "homes [4, 9] are not those of members"),
        (change(1, 2, 3, learners=(4,), homes=(Home(4, 9),)), "replica 4 lives on node 4"),
        (change(1, 2, 3, learners=(4, 7), homes=(Home(7, 0),)), "lives nowhere"),
    ],
)
def test_changes_that_can_never_be_made(wanted: MembershipChange, reason: str) -> None:
    host = serving(replace(LEARNING, homes=(Home(4, 4),), next_replica=7))
    no = refused(host, wanted)
    assert reason in str(no)
    assert not no.later


def test_an_id_is_never_used_twice() -> None:
    host = serving()
    host.core.propose_membership(change(1, 2, 3))
    commit(host)
    assert "at least 5" in str(refused(host, change(1, 2, 3, learners=(4,))))
    host.core.propose_membership(change(1, 2, 3, learners=(5,)))


def test_a_silent_learner_is_not_promoted() -> None:
    host = serving(silent=(4,))
    no = refused(host, change(1, 2, 3, 4))
    assert no.later
    assert "learner 4 has not answered" in str(no)


def test_a_new_learner_is_not_promoted_before_it_ever_answered() -> None:
    host = serving(THREE)
    host.core.propose_membership(change(1, 2, 3, learners=(4,)))
    commit_index = host.core.status().last_index
    host.persist()
    host.match(2, commit_index)
    assert "learner 4 has not answered" in str(refused(host, change(1, 2, 3, 4)))


def test_a_learner_that_lags_is_promoted_once_it_has_caught_up() -> None:
    host = serving(config=RaftConfig(caught_up_bytes_max=5))
    host.propose(b"123456")
    host.persist()
    host.match(2, 2)
    no = refused(host, change(1, 2, 3, 4))
    assert no.later
    assert "lacks 6 bytes of the log; it may be promoted at 5" in str(no)
    host.match(4, 2)
    host.core.propose_membership(change(1, 2, 3, 4))


def test_a_learner_that_waits_for_a_snapshot_is_not_promoted() -> None:
    host = serving()
    host.propose(b"x", b"y")
    host.persist()
    host.match(2, 3)
    host.core.compact(meta(3, 1, LEARNING), keep_from=4)
    assert "waits for a snapshot" in str(refused(host, change(1, 2, 3, 4)))


def test_removing_what_leaves_no_quorum_is_refused_with_the_arithmetic() -> None:
    host = serving(Configuration((1, 2, 3), next_replica=4), silent=(2,))
    no = refused(host, change(1, 2))
    assert no.later
    assert str(no) == (
        "removing replica 3 would leave 1 of 2 voters reachable (replica 2 does not answer); a majority of 2 is 2"
    )
    # The dead one may go.
    host.core.propose_membership(change(1, 3))


def test_a_new_leader_does_not_take_for_alive_who_never_answered_it() -> None:
    """Seeds 30064 and 30065: a joint configuration that waits for a dead voter, begun milliseconds after an election,
    ends the group."""
    host = Host(1, Configuration((1, 2, 3), next_replica=4)).lead()
    host.match(3, 1)
    assert host.core.status().commit_index == 1
    assert "replica 2 does not answer" in str(refused(host, change(1, 2)))
    host.match(2, 1)
    host.core.propose_membership(change(1, 2))


def test_a_dead_node_is_replaced_in_one_change() -> None:
    host = serving(silent=(3,))
    host.core.propose_membership(change(1, 2, 4))
    host.persist()
    host.match(2, 2)
    host.persist()
    host.match(2, 3)
    assert host.core.status().commit_index == 3
    assert sorted(host.core.status().match) == [2, 4]


def test_no_change_while_leadership_is_handed_over() -> None:
    host = serving()
    host.core.transfer(2)
    with pytest.raises(MembershipRefused, match="handed to replica 2") as caught:
        host.core.propose_membership(change(1, 2, 3))
    assert caught.value.later


# --- counting -------------------------------------------------------------------------------------------------------


def test_joint_decisions_need_a_majority_of_both() -> None:
    configuration = Configuration((1, 2, 3), learners=(4, 5), next_replica=6)
    host = serving(configuration)
    host.core.propose_membership(change(1, 4, 5))
    host.persist()
    host.match(4, 2)
    host.match(5, 2)
    assert host.core.status().commit_index == 1  # {1} is no majority of {1, 2, 3}
    host.match(3, 2)
    assert host.core.status().commit_index == 2


def test_a_leader_that_leaves_does_not_count_itself() -> None:
    host = serving(Configuration((1, 2, 3), learners=(4,), next_replica=5))
    host.core.propose_membership(change(2, 3))
    host.persist()
    host.match(2, 2)
    host.match(3, 2)
    host.persist()
    assert in_force(host).voters == (2, 3)
    host.match(2, 3)
    assert host.core.status().commit_index == 2
    assert host.role is Role.LEADER
    host.match(3, 3)
    assert host.core.status().commit_index == 3


def test_a_leader_that_leaves_steps_down_without_signs_of_life_of_the_others() -> None:
    host = serving(Configuration((1, 2), next_replica=3))
    host.core.propose_membership(change(2))
    host.persist()
    host.match(2, 2)
    host.tick(700)
    assert host.role is not Role.LEADER


# --- the leader goes ------------------------------------------------------------------------------------------------


def test_a_leader_that_was_removed_hands_over_once_that_is_committed() -> None:
    cluster = Cluster.of_size(3)
    old = cluster.elect()
    old.core.propose_membership(change(*(voter for voter in (1, 2, 3) if voter != old.replica)))
    terms = old.term
    cluster.settle()
    (new,) = [host for host in cluster.leaders() if host is not old]
    assert new.term == terms + 1
    cluster.run(100)
    assert old.core.status().removed
    new.propose(b"x")
    cluster.settle()
    assert new.core.status().commit_index == new.core.status().last_index


def test_a_removed_leader_with_nobody_fit_to_take_over_steps_down() -> None:
    host = serving(Configuration((1, 2, 3), next_replica=4))
    host.core.propose_membership(change(2, 3))
    host.persist()
    for peer in (2, 3):
        host.match(peer, 2)
    host.persist()
    for peer in (2, 3):
        host.core.connection(peer, closed=True)
    host.match(2, 3)
    left = host.match(3, 3)
    assert host.role is not Role.LEADER
    assert host.core.status().removed
    # But it told the others what is committed, as far as they are known to hold it.
    assert [one.commit for one in of(Heartbeat, left)] == [3, 3]


def test_a_removed_leader_that_is_not_relieved_gives_up() -> None:
    host = serving(Configuration((1, 2, 3), next_replica=4))
    host.core.propose_membership(change(2, 3))
    host.persist()
    for index in (2, 3):
        for peer in (2, 3):
            host.match(peer, index)
        host.persist()
    assert [one.to for one in of(CampaignNow, host.sent)] == [2]
    assert host.role is Role.LEADER
    for _ in range(8):
        host.tick(50)
        host.match(2, 3)
        host.match(3, 3)
    assert host.role is not Role.LEADER
    assert host.core.status().removed


def test_a_single_voter_may_be_replaced() -> None:
    cluster = Cluster(Host(1, Configuration((1,))), Host(2, Configuration((1,))))
    one = cluster.elect()
    one.core.propose_membership(change(1, learners=(2,)))
    cluster.run(100)
    one.core.propose_membership(change(2))
    cluster.run(1000)
    assert [host.replica for host in cluster.leaders()] == [2]
    assert one.core.status().removed


# --- learners -------------------------------------------------------------------------------------------------------


def test_an_empty_newcomer_is_filled_and_promoted() -> None:
    cluster = Cluster.of_size(3)
    first = cluster.elect()
    first.propose(b"a", b"b")
    cluster.settle()
    cluster.hosts[65536] = Host(65536, THREE)
    first.core.propose_membership(change(1, 2, 3, learners=(65536,)))
    cluster.run(200)
    newcomer = cluster.hosts[65536]
    assert newcomer.core.status().applied_index == first.core.status().applied_index
    first.core.propose_membership(change(1, 2, 3, 65536))
    cluster.run(200)
    assert newcomer.core.configuration == Configuration((1, 2, 3, 65536), next_replica=65537)
    assert newcomer.core.status().commit_index == first.core.status().commit_index


def test_a_learner_never_campaigns_and_never_counts() -> None:
    host = Host(4, LEARNING)
    assert host.tick(5000) == []
    host = serving()
    host.propose(b"x")
    host.persist()
    host.match(4, 2)
    assert host.core.status().commit_index == 1


def test_a_learner_that_was_promoted_without_knowing_votes_when_it_is_asked() -> None:
    """Its log lags, the candidate's does not. If it refused, three voters of four, one of them dead, could be stuck
    (dissertation section 4.1: requests are taken without asking one's own configuration)."""
    host = Host(4, LEARNING)
    host.step(host.message(VoteRequest, sender=2, term=3, pre=False, last_index=9, last_term=2))
    (answer,) = of(VoteResponse, host.persist())
    assert answer.granted


# --- strangers and those who left -----------------------------------------------------------------------------------


def test_a_lagging_replica_follows_and_elects_members_that_it_does_not_know_yet() -> None:
    host = follower(1, replica=2)
    host.append(entry(2, 2), after=(1, 1), term=2, sender=7)
    assert host.core.status().leader == 7
    host = follower(1, replica=2)
    host.step(host.message(VoteRequest, sender=7, term=2, pre=False, last_index=9, last_term=1))
    (answer,) = of(VoteResponse, host.persist(), to=7)
    assert answer.granted


def test_the_closed_connection_of_an_unknown_leader_is_noticed() -> None:
    host = follower(1, replica=1)
    host.append(entry(2, 2), after=(1, 1), term=2, sender=7)
    host.persist()
    host.core.connection(7, closed=True)
    assert of(VoteRequest, host.drain())


def gone(host: Host) -> Host:
    """A follower of 1 whose committed configuration is one without 3, at index 2."""
    final = Configuration((1, 2, 4), next_replica=5)
    host.append(configuration_entry(1, 2, final), after=(1, 1), commit=2)
    host.persist()
    host.sent.clear()
    return host


def test_a_removed_replica_is_told_now_and_then_whatever_it_says() -> None:
    host = gone(follower(1, replica=2))
    asked = host.message(VoteRequest, sender=3, term=9, pre=False, last_index=9, last_term=8)
    told = Removed(sender=2, to=3, term=1, incarnation=1, index=2)
    assert host.step(asked) == [told]
    assert host.step(asked) == []
    assert host.term == 1
    host.tick(200)
    assert host.step(asked) == []
    host.heartbeat(sender=1)
    host.tick(100)
    assert of(Removed, host.step(host.message(Heartbeat, sender=3, commit=0, round=1))) == [told]
    assert host.core.dropped["from_removed"] == 4


def test_nobody_is_told_on_the_ground_of_an_uncommitted_configuration() -> None:
    host = follower(1, replica=2)
    host.append(configuration_entry(1, 2, Configuration((1, 2, 4), next_replica=5)), after=(1, 1))
    host.persist()
    # The leader that leaves leads until its removal is committed.
    left = host.append(entry(1, 3), after=(1, 2), sender=1)
    assert of(Removed, left) == []
    left = host.step(host.message(VoteRequest, sender=3, term=9, pre=True, last_index=9, last_term=8))
    assert of(VoteResponse, left)


def test_those_that_a_leader_removes_are_told_at_once() -> None:
    host = serving()
    host.core.propose_membership(change(1, 2, 3))
    host.persist()
    left = host.match(2, 2)
    assert [(one.to, one.index) for one in of(Removed, left)] == [(4, 2)]
    assert sorted(host.core.status().match) == [2, 3]


def test_a_removed_replica_is_served_until_its_removal_is_committed() -> None:
    host = serving()
    host.core.propose_membership(change(1, 2, 3))
    assert of(AppendRequest, host.drain(), to=4)
    assert 4 in host.core.status().match


def test_a_replica_that_is_told_stops_for_good() -> None:
    host = follower(1, replica=3)
    host.step(host.message(Removed, sender=1, index=7))
    status = host.core.status()
    assert status.removed
    assert (status.role, status.leader) == (Role.FOLLOWER, 0)
    assert host.tick(5000) == []
    assert host.heartbeat(sender=1, term=5) == []
    assert host.term == 1
    with pytest.raises(NotLeader):
        host.core.propose(b"x", 0)
    host.core.read(1)
    assert [one.refused for one in host.core.ready().reads] == [True]


def test_a_leader_that_is_told_stops_too() -> None:
    host = leader(1, replica=1)
    host.step(host.message(Removed, sender=3, term=9, index=7))
    assert host.core.status().removed
    assert host.term == 2  # nothing to follow


def test_old_news_of_a_removal_is_none() -> None:
    """Someone whose log ends before this replica was added can't know it."""
    host = follower(1, replica=4, configuration=THREE)
    host.append(configuration_entry(1, 2, LEARNING), after=(1, 1), commit=2)
    host.step(host.message(Removed, sender=2, index=1))
    assert not host.core.status().removed
    assert host.core.dropped["not_removed"] == 1


def test_a_replica_stops_when_its_own_log_says_so() -> None:
    host = follower(1, replica=3)
    without = Configuration((1, 2), next_replica=4)
    host.append(configuration_entry(1, 2, without), after=(1, 1))
    assert not host.core.status().removed  # it may be rolled back
    host.append(after=(1, 2), commit=2)
    assert host.core.status().removed
    host = follower(1, replica=3)
    host.step(offer(host, meta(9, 1, without)))
    assert host.core.status().removed


def test_a_replica_removed_in_an_earlier_life_stays_so() -> None:
    without = configuration_entry(1, 2, Configuration((1, 2), next_replica=4))
    host = Host(3, disk=Disk(HardState(1, 0, 2), [entry(1, 1), without]))
    assert host.core.status().removed
    assert of(VoteRequest, host.tick(5000)) == []


def test_a_replica_that_is_not_known_to_be_removed_asks_and_is_told() -> None:
    host = follower(1, replica=3)
    host.append(configuration_entry(1, 2, Configuration((1, 2), next_replica=4)), after=(1, 1))
    host.persist()
    host.sent.clear()
    host.tick(5000)
    assert {(one.to, one.pre) for one in of(VoteRequest, host.sent)} == {(1, True), (2, True)}
    assert host.term == 1
    host.step(host.message(Removed, sender=1, index=2))
    assert host.core.status().removed


def test_a_replica_that_is_not_a_member_yet_waits() -> None:
    host = Host(65536, THREE)
    assert host.tick(5000) == []
    assert not host.core.status().removed


def test_answers_of_a_replica_that_an_earlier_leader_removed_are_dropped() -> None:
    host = follower(1, replica=2, configuration=LEARNING)
    host.append(configuration_entry(1, 2, Configuration((1, 2, 3), next_replica=5)), after=(1, 1))
    host.persist()
    host.lead()
    host.match(4, 2)
    host.step(host.message(HeartbeatResponse, sender=4, round=1, match_index=2))
    assert host.core.dropped["not_served"] == 2
    assert 4 not in host.core.status().match


def test_a_member_of_the_past_answers_nothing_after_it_was_dropped() -> None:
    host = serving()
    host.core.propose_membership(change(1, 2, 3))
    host.persist()
    host.match(2, 2)
    host.step(host.message(AppendResponse, sender=4, rejected=False, match_index=2))
    assert host.core.dropped["from_removed"] == 1


def test_lives_of_strangers_are_forgotten_before_they_fill_the_memory() -> None:
    host = follower(1, replica=2)
    host.heartbeat(sender=1)
    for stranger in range(10, 10 + 3 * LIVES_MAX):
        host.step(host.message(VoteRequest, sender=stranger, pre=True, last_index=0, last_term=0, incarnation=3))
    assert len(host.core._lives) <= LIVES_MAX
    assert host.core._lives.latest(1) == 1
