"""Idle groups fall asleep, and wake whatever happens (RULES C5, HAZARDS 12, 17)."""

import pytest

from consensus.core.interface import AnyMessage, CampaignNow, Configuration, HardState, ReadRequest, Removed, Role
from consensus.core.raft import RaftConfig
from tests.unit.core.harness import (
    Cluster,
    Disk,
    Heartbeat,
    HeartbeatResponse,
    Host,
    VoteRequest,
    VoteResponse,
    configuration_entry,
    entry,
    follower,
    leader,
    of,
    only,
)

SLEEPY = RaftConfig(quiesce_after_ms=200)


def group(size: int = 3, configuration: Configuration | None = None) -> Cluster:
    configuration = configuration or Configuration(tuple(range(1, size + 1)))
    members = (*configuration.voters, *configuration.learners)
    cluster = Cluster(*(Host(member, configuration, config=SLEEPY, disk=Disk()) for member in members))
    cluster.elect()
    return cluster


def asleep(cluster: Cluster) -> set[int]:
    return {replica for replica, host in cluster.hosts.items() if host.core.status().quiesced}


def sleeping_follower() -> Host:
    """Replica 2 follows 1 in term 1 and holds three entries, all committed."""
    host = follower(1, 1, 1, term=1, config=SLEEPY)
    host.append(after=(1, 3), commit=3)
    host.heartbeat(commit=3, number=5, quiesce=True)
    host.persist()
    host.sent.clear()
    assert host.core.status().quiesced
    return host


def sleeping_leader() -> Host:
    host = leader(1, config=SLEEPY)
    for peer in (2, 3):
        host.match(peer, 2)
    host.persist()
    for _ in range(30):
        for beat in of(Heartbeat, host.tick(10)):
            host.answer_round(beat.to, beat.round, match=2)
    assert host.core.status().quiesced
    host.sent.clear()
    return host


# --- falling asleep -------------------------------------------------------------------------------------------------


def test_idle_group_falls_asleep_and_stays_so() -> None:
    cluster = group()
    sent: list[AnyMessage] = []
    assert asleep(cluster) == {1, 2, 3}
    for _ in range(1000):
        for host in cluster.up():
            host.core.tick(10)
            sent += host.drain()
    assert sent == []
    assert [host.replica for host in cluster.leaders()] == [1]


def test_group_sleeps_only_when_it_is_configured_to() -> None:
    cluster = Cluster.of_size(3)
    cluster.elect()
    cluster.run(2000)
    assert asleep(cluster) == set()


@pytest.mark.parametrize("lagging", [3, 4])
def test_group_does_not_sleep_while_a_member_lacks_something(lagging: int) -> None:
    """Learners are members: a leader asleep feeds nobody."""
    cluster = group(configuration=Configuration((1, 2, 3), (4,)))
    assert asleep(cluster) == {1, 2, 3, 4}
    cluster.down.add(lagging)
    cluster.leader().propose(b"a")
    cluster.run(2000)
    assert asleep(cluster) <= {lagging}
    cluster.down.clear()
    cluster.hosts[lagging].start()
    cluster.run(1500)
    assert asleep(cluster) == {1, 2, 3, 4}


def test_leader_sleeps_only_when_everybody_answered() -> None:
    host = leader(1, config=SLEEPY)
    for peer in (2, 3):
        host.match(peer, 2)
    host.persist()
    beats = of(Heartbeat, host.tick(400, step_ms=10), to=2)
    assert {beat.quiesce for beat in beats} == {False, True}
    assert not host.core.status().quiesced
    host.answer_round(2, beats[-1].round, match=2)
    host.tick(10)
    assert not host.core.status().quiesced
    host.answer_round(3, beats[-1].round, match=2)
    host.tick(10)
    assert host.core.status().quiesced


def test_follower_sleeps_only_on_what_it_holds() -> None:
    cases = {
        "shorter": (follower(1, 1, term=1), 3),
        "longer": (follower(1, 1, 1, 1, term=1), 3),
        "never compared": (follower(1, 1, 1, term=2), 3),
    }
    for name, (host, commit) in cases.items():
        host.heartbeat(commit=commit, quiesce=True)
        assert not host.core.status().quiesced, name
    lagging = follower(1, 1, term=1)
    lagging.append(entry(1, 3), after=(1, 2), commit=3)
    lagging.heartbeat(commit=3, quiesce=True)
    assert not lagging.core.status().quiesced  # not durable yet
    lagging.persist()
    lagging.heartbeat(commit=3, quiesce=True)
    assert lagging.core.status().quiesced


def test_follower_does_not_sleep_while_it_reads_or_its_leader_is_not_connected() -> None:
    reading, cut = follower(1, term=1), follower(1, term=1)
    for host in (reading, cut):
        host.append(after=(1, 1), commit=1)
    reading.core.read(1)
    cut.core.connection(1, closed=True)
    for host in (reading, cut):
        host.heartbeat(commit=1, quiesce=True)
        assert not host.core.status().quiesced


# --- waking ---------------------------------------------------------------------------------------------------------


def test_proposal_wakes_everybody() -> None:
    cluster = group()
    cluster.leader().propose(b"a")
    cluster.settle()
    assert asleep(cluster) == set()
    assert {host.core.status().last_index for host in cluster.up()} == {2}
    cluster.run(500)
    assert asleep(cluster) == {1, 2, 3}


@pytest.mark.parametrize("reader", [1, 2])
def test_read_wakes_and_is_answered(reader: int) -> None:
    cluster = group()
    cluster.hosts[reader].core.read(1)
    cluster.settle()
    assert [(one.index, one.refused) for one in cluster.hosts[reader].reads] == [(1, False)]
    cluster.run(1000)
    assert asleep(cluster) == {1, 2, 3}


def test_transfer_wakes_and_is_carried_out() -> None:
    cluster = group()
    cluster.leader().core.transfer(3)
    cluster.settle()
    assert [host.replica for host in cluster.leaders()] == [3]


@pytest.mark.parametrize("what", ["wake", "closed", "read", "stall"])
def test_woken_leader_heartbeats_at_once(what: str) -> None:
    host = sleeping_leader()
    if what == "wake":
        host.core.wake()
    elif what == "closed":
        host.core.connection(3, closed=True)
    elif what == "read":
        host.step(host.message(ReadRequest, sender=3, token=1))
    else:
        host.core.storage(stalled=True)
    assert not host.core.status().quiesced
    beats = of(Heartbeat, host.drain() or host.sent)
    assert [(beat.to, beat.quiesce) for beat in beats][:2] == [(2, False), (3, False)]


def test_woken_follower_starts_a_fresh_timer() -> None:
    """A hundred groups are woken at once: none of them campaigns at once."""
    host = sleeping_follower()
    assert host.tick(10_000) == []
    host.core.wake()
    assert host.tick(300 + 150 - 10) == []
    assert of(VoteRequest, host.tick(20)) != []


def test_closed_connection_to_the_leader_wakes_and_hints() -> None:
    host = sleeping_follower()
    host.core.connection(3, closed=True)
    assert host.core.status().quiesced
    host.core.connection(1, closed=True)
    assert not host.core.status().quiesced
    assert of(VoteRequest, host.drain() + host.tick(50)) != []


@pytest.mark.parametrize("what", ["heartbeat", "entries", "commit", "vote", "pre-vote", "order", "restarted"])
def test_message_that_means_something_wakes_a_follower(what: str) -> None:
    host = sleeping_follower()
    if what == "heartbeat":
        host.heartbeat(commit=3, number=6)
    elif what == "entries":
        host.append(entry(1, 4), after=(1, 3))
    elif what == "commit":
        host.append(after=(1, 3), commit=4)
    elif what == "order":
        host.step(host.message(CampaignNow, sender=1, last_index=3))
    elif what == "restarted":
        host.heartbeat(commit=3, number=6, quiesce=True)
        host.step(host.message(Heartbeat, sender=1, incarnation=2, commit=0, round=1, quiesce=False))
    else:
        pre = what == "pre-vote"
        host.step(host.message(VoteRequest, sender=3, term=2, pre=pre, last_term=1, last_index=3))
    assert not host.core.status().quiesced


def test_what_was_on_its_way_before_does_not_wake() -> None:
    host = sleeping_follower()
    host.heartbeat(commit=2, number=4)
    host.append(entry(1, 3, b"1.3"), after=(1, 2), commit=3)
    host.heartbeat(commit=3, number=6, quiesce=True)
    assert host.core.status().quiesced
    first = sleeping_leader()
    first.answer_round(2, 1, match=2)
    first.match(3, 2)
    assert first.core.status().quiesced


def test_restarted_member_wakes_the_leader() -> None:
    host = sleeping_leader()
    host.step(host.message(HeartbeatResponse, sender=2, incarnation=2, round=1, match_index=0))
    assert not host.core.status().quiesced


# --- leadership that nobody confirms --------------------------------------------------------------------------------


def test_quiesced_leader_asked_for_a_vote_protects_itself_only_once_confirmed() -> None:
    """HAZARDS 17 (etcd 6441): its clock stood still, so it believed in itself for ever."""
    host = sleeping_leader()
    ask = host.message(VoteRequest, sender=3, term=host.term + 1, pre=True, last_term=2, last_index=2)
    left = host.step(ask)
    (number,) = [beat.round for beat in of(Heartbeat, left, to=2)]
    # The heartbeat leaves before the grant: a candidate that hears it follows again.
    assert isinstance(left[0], Heartbeat)
    assert only(VoteResponse, left).granted
    host.answer_round(2, number, match=2)
    assert not only(VoteResponse, host.step(ask)).granted
    term = host.term
    host.step(host.message(VoteRequest, sender=3, term=term + 1, pre=False, last_term=2, last_index=2))
    assert (host.role, host.term) == (Role.LEADER, term)


def test_quiesced_leader_gives_way_to_a_candidate() -> None:
    """HAZARDS 17."""
    host = sleeping_leader()
    host.step(host.message(VoteRequest, sender=3, term=host.term + 1, pre=False, last_term=2, last_index=2))
    assert host.role is Role.FOLLOWER
    assert only(VoteResponse, host.persist()).granted


def test_sleeping_group_whose_leader_died_elects_another() -> None:
    cluster = group()
    cluster.down.add(1)
    cluster.run(1000)
    assert cluster.leaders() == []
    for replica in (2, 3):
        cluster.hosts[replica].core.wake()  # the host noticed
    cluster.run(1000)
    assert len(cluster.leaders()) == 1


def test_one_restarted_member_is_enough_to_wake_the_group() -> None:
    cluster = group()
    cluster.hosts[3].start()
    cluster.run(3000)
    assert [host.replica for host in cluster.leaders()] == [1]
    assert asleep(cluster) == {1, 2, 3}


def test_sleeping_leader_that_lost_its_quorum_steps_down_once_woken() -> None:
    """HAZARDS 12: check-quorum begins anew, with nothing left from before it slept."""
    host = sleeping_leader()
    host.core.connection(2, closed=True)
    host.tick(310)
    assert host.role is Role.FOLLOWER
    sent = host.tick(2000)
    assert of(Heartbeat, sent) == []


def test_bridge_is_free_of_a_leader_without_a_quorum() -> None:
    """HAZARDS 12 (openraft 2080): 1 reaches only 2, whom all others reach."""
    cluster = Cluster.of_size(5)
    cluster.elect()
    for other in (3, 4, 5):
        cluster.blocked |= {(1, other), (other, 1)}
    cluster.run(3000)
    assert {host.replica for host in cluster.leaders()} & {2, 3, 4, 5}
    assert cluster.hosts[1].role is not Role.LEADER


def test_leader_whom_nobody_answers_stops_renewing() -> None:
    """HAZARDS 12: its heartbeats arrive, the answers don't; the others are free within two timeouts."""
    cluster = Cluster.of_size(3)
    cluster.elect()
    cluster.blocked = {(2, 1), (3, 1)}
    cluster.run(1500)
    assert cluster.hosts[1].role is not Role.LEADER
    assert [host.replica for host in cluster.leaders()] == [2]


def test_replica_that_left_is_told_by_sleepers_as_often_as_it_asks() -> None:
    """No time passes here, so an answer that was lost would have been the last one."""
    without_4 = Configuration((1, 2, 3), next_replica=5)
    entries = [entry(1, 1), configuration_entry(1, 2, without_4)]
    host = Host(2, Configuration((1, 2, 3, 4)), config=SLEEPY, disk=Disk(HardState(1, 0, 2), entries))
    host.append(after=(1, 2), commit=2)
    host.heartbeat(commit=2, number=5, quiesce=True)
    host.persist()
    for _ in range(3):
        left = host.step(host.message(VoteRequest, sender=4, term=2, pre=True, last_index=2, last_term=1))
        assert only(Removed, left).to == 4
        assert host.core.status().quiesced
