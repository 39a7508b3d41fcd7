"""Read indexes: which rounds confirm them, who may ask, and that everybody gets an answer."""

from collections import deque

import pytest

from consensus.core.interface import (
    AnyMessage,
    Configuration,
    MembershipChange,
    ReadRequest,
    ReadResponse,
    ReadResult,
    Role,
)
from consensus.core.raft import RaftConfig
from tests.unit.core.harness import AppendResponse, Cluster, Disk, Heartbeat, Host, follower, leader, of, only

LEARNING = Configuration((1, 2, 3), (4,))


def serving(host: Host | None = None, **rest) -> Host:
    """A leader whose no-op is committed."""
    host = host or leader(1, **rest)
    for peer in (2, 3):
        host.match(peer, host.core.status().last_index)
    host.persist()
    host.sent.clear()
    return host


def rounds(messages: list[AnyMessage]) -> list[int]:
    return [one.round for one in of(Heartbeat, messages, to=2)]


def ask(host: Host, token: int) -> list[AnyMessage]:
    host.core.read(token)
    return host.drain()


# --- at the leader --------------------------------------------------------------------------------------------------


def test_read_is_answered_with_the_commit_index_when_a_quorum_confirmed() -> None:
    host = serving()
    (number,) = rounds(ask(host, 7))
    assert host.reads == []
    host.answer_round(2, number)
    assert host.reads == [ReadResult(7, 2)]


def test_round_that_was_on_its_way_before_the_read_does_not_confirm_it() -> None:
    """HAZARDS 15: the leader slept between sending the round and reading its answers."""
    host = serving()
    (before,) = rounds(host.tick(50))
    (number,) = rounds(ask(host, 7))
    host.answer_round(2, before)
    host.answer_round(3, before)
    assert host.reads == []
    host.answer_round(3, number)
    assert [one.token for one in host.reads] == [7]


def test_reads_do_not_ride_on_old_confirmations() -> None:
    """HAZARDS 15."""
    host = serving()
    for number in rounds(host.tick(200)):
        host.answer_round(2, number)
        host.answer_round(3, number)
    ask(host, 1)
    assert host.reads == []


def test_answers_of_another_term_confirm_nothing() -> None:
    """HAZARDS 13: tokens are (term, round)."""
    host = serving()
    (number,) = rounds(ask(host, 1))
    host.answer_round(2, number, term=host.term - 1)
    assert host.reads == []


def test_number_that_a_reader_chose_again_gets_no_old_answer() -> None:
    """HAZARDS 13 (etcd 20418): the same token twice, and between them another leader was elected."""
    host = serving()
    (number,) = rounds(host.step(host.message(ReadRequest, sender=3, token=1)))
    host.answer_round(2, number)
    assert only(ReadResponse, host.sent).index == 2
    host.sent.clear()
    left = host.step(host.message(ReadRequest, sender=3, token=1))
    assert of(ReadResponse, left) == []
    assert of(ReadResponse, host.answer_round(2, number)) == []


def test_reads_share_a_round_and_wait_for_the_one_under_way() -> None:
    host = serving()
    host.core.read(1)
    host.core.read(2)
    (first,) = rounds(host.drain())
    assert rounds(ask(host, 3)) == []
    assert rounds(ask(host, 4)) == []
    (second,) = rounds(host.answer_round(2, first))
    assert [one.token for one in host.reads] == [1, 2]
    assert rounds(host.answer_round(3, second)) == []
    assert [one.token for one in host.reads] == [1, 2, 3, 4]


def test_lost_round_is_made_good_by_the_next_heartbeat() -> None:
    host = serving()
    ask(host, 1)
    ask(host, 2)
    (number,) = rounds(host.tick(50))
    host.answer_round(3, number)
    assert [one.token for one in host.reads] == [1, 2]


def test_read_waits_for_an_entry_of_the_own_term() -> None:
    """HAZARDS 14 (etcd 7331): a new leader does not know yet what is committed."""
    host = leader(1, 1, commit=0)
    for number in [*rounds(ask(host, 1)), *rounds(host.tick(100))]:
        host.answer_round(2, number)
        host.answer_round(3, number)
    assert (host.core.status().commit_index, host.reads) == (0, [])
    left = host.match(2, 3) + host.drain()
    assert host.core.status().commit_index == 3
    for number in rounds(left):
        host.answer_round(2, number)
    assert host.reads == [ReadResult(1, 3)]


def test_one_voter_answers_at_once_but_not_before_its_no_op_is_durable() -> None:
    host = Host(1, Configuration((1,)))
    host.tick(300)
    host.persist_one()
    assert host.role is Role.LEADER
    ask(host, 1)
    assert host.reads == []
    host.persist()
    assert host.reads == [ReadResult(1, 1)]
    ask(host, 2)
    assert host.reads[1:] == [ReadResult(2, 1)]


def test_joint_configuration_needs_both_majorities() -> None:
    host = Host(1, Configuration((1, 4, 5), learners=(2, 3))).lead()
    (number,) = rounds(host.tick(50))
    for peer in (2, 3, 4, 5):
        host.answer_round(peer, number, match=1)
    host.persist()
    host.core.propose_membership(MembershipChange((1, 2, 3)))
    host.persist()
    (number,) = rounds(ask(host, 1))
    host.answer_round(2, number)
    host.answer_round(3, number)
    assert host.reads == []
    host.answer_round(5, number)
    assert [one.token for one in host.reads] == [1]


def test_learners_and_forgetful_replicas_confirm_nothing() -> None:
    host = Host(1, LEARNING).lead()
    serving(host)
    host.step(host.message(AppendResponse, sender=2, rejected=False, match_index=0, forgetful=True))
    (number,) = rounds(ask(host, 1))
    host.answer_round(4, number)
    assert host.reads == []
    host.answer_round(3, number)
    assert [one.token for one in host.reads] == [1]


def test_age_counts_from_when_the_round_was_sent() -> None:
    """RULES R3."""
    host = serving()
    (number,) = rounds(ask(host, 1))
    host.tick(30)
    host.answer_round(2, number)
    assert host.reads == [ReadResult(1, 2, age_ms=30)]


# --- ends -----------------------------------------------------------------------------------------------------------


def test_reads_are_refused_when_leadership_is_lost() -> None:
    host = serving()
    ask(host, 1)
    ask(host, 2)
    host.heartbeat(sender=2, term=host.term + 1)
    assert host.reads == [ReadResult(1, refused=True), ReadResult(2, refused=True)]


def test_reads_are_refused_while_leadership_is_handed_over() -> None:
    """HAZARDS 14 (openraft 1747): those that wait, and new ones, even when a quorum confirms."""
    host = serving()
    (number,) = rounds(ask(host, 1))
    host.core.transfer(2)
    ask(host, 2)
    host.step(host.message(ReadRequest, sender=3, token=5))
    for beat in [number, *rounds(host.tick(50))]:
        host.answer_round(2, beat)
        host.answer_round(3, beat)
    assert [(one.token, one.refused) for one in host.reads] == [(1, True), (2, True)]
    assert only(ReadResponse, host.sent, to=3).refused


def test_unconfirmed_reads_are_refused_when_no_quorum_answers() -> None:
    host = serving()
    ask(host, 1)
    for _ in range(60):
        host.tick(10)
    assert host.role is Role.FOLLOWER
    assert host.reads == [ReadResult(1, refused=True)]


def test_reads_wait_for_a_quorum_that_answers_later_than_an_election_timeout() -> None:
    """It hears the leader and answers, only long after: seed 700034, a leader whose links were clogged, which nobody
    had a reason to depose, and which refused every read."""
    host = serving()
    late: deque[int] = deque(rounds(ask(host, 1)))
    for _ in range(10):
        late.extend(rounds(host.tick(50)))
    while late:
        host.tick(50)
        host.answer_round(2, late.popleft())
    assert host.reads == [ReadResult(1, 2, age_ms=550)]


def test_a_read_that_nothing_comes_of_is_refused_in_the_end() -> None:
    """Answers to older rounds keep the leader in its place."""
    host = serving()
    (lost,) = rounds(ask(host, 1))
    for _ in range(299):
        host.tick(10)
        host.answer_round(2, lost - 1)
    assert (host.role, host.reads) == (Role.LEADER, [])
    host.tick(10)
    assert host.reads == [ReadResult(1, refused=True)]


def test_reads_beyond_the_bound_are_refused_one_by_one() -> None:
    """HAZARDS 28."""
    host = serving(config=RaftConfig(reads_max=3))
    host.step(host.message(ReadRequest, sender=3, token=9))
    for token in range(1, 6):
        host.core.read(token)
    left = host.step(host.message(ReadRequest, sender=2, token=8))
    assert [one.token for one in host.reads] == [3, 4, 5]
    assert all(one.refused for one in host.reads)
    assert [(one.to, one.refused) for one in of(ReadResponse, left)] == [(2, True)]


# --- through other replicas -----------------------------------------------------------------------------------------


def test_follower_asks_its_leader() -> None:
    host = follower(1, term=1)
    host.heartbeat()
    asked = only(ReadRequest, ask(host, 7))
    assert (asked.to, asked.term) == (1, 1)
    host.step(host.message(ReadResponse, sender=1, token=asked.token, index=5, age_ms=3))
    assert host.reads == [ReadResult(7, 5, 3)]
    host.step(host.message(ReadResponse, sender=1, token=asked.token, index=9))
    assert len(host.reads) == 1


def test_a_forwarded_read_names_no_term_that_is_not_durable() -> None:
    """A stalled disk, then a power cut: a replica spoke in term 4 and came back in term 3 (simulator, seed 5034)."""
    host = follower(1, term=1)
    host.heartbeat(term=4)
    assert of(ReadRequest, ask(host, 7)) == []
    assert only(ReadRequest, of(ReadRequest, host.persist())).term == host.disk.hard_state.term == 4


def test_replica_without_a_leader_refuses_at_once() -> None:
    host = follower(1)
    assert ask(host, 7) == []
    assert host.reads == [ReadResult(7, refused=True)]


def test_forwarded_numbers_never_come_again_in_a_later_life() -> None:
    """HAZARDS 13: an answer to the life before, long on its way."""
    host = follower(1, term=1)
    host.heartbeat()
    before = only(ReadRequest, ask(host, 1))
    host.start()
    host.heartbeat()
    after = only(ReadRequest, ask(host, 1))
    assert before.token != after.token
    host.step(host.message(ReadResponse, sender=1, token=before.token, index=1))
    assert host.reads == []


def test_who_does_not_lead_refuses_forwarded_reads() -> None:
    host = follower(1, term=2)
    host.heartbeat()
    assert only(ReadResponse, host.step(host.message(ReadRequest, sender=3, token=1))).refused


def test_reads_of_an_earlier_term_are_refused_with_the_present_one() -> None:
    host = serving()
    answer = only(ReadResponse, host.step(host.message(ReadRequest, sender=3, token=1, term=1)))
    assert (answer.refused, answer.term) == (True, host.term)


@pytest.mark.parametrize("end", ["timeout", "new leader", "closed", "campaign"])
def test_forwarded_reads_end(end: str) -> None:
    host = follower(1, term=1)
    host.heartbeat()
    ask(host, 7)
    if end == "timeout":
        for _ in range(300):
            host.tick(10)
            host.heartbeat()
    elif end == "new leader":
        host.heartbeat(sender=3, term=2)
    elif end == "closed":
        host.core.connection(1, closed=True)
        host.drain()
    else:
        host.tick(1000)
    assert host.reads == [ReadResult(7, refused=True)]


@pytest.mark.parametrize("reader", [1, 2, 4])
def test_everybody_reads_what_was_committed_before(reader: int) -> None:
    cluster = Cluster(*(Host(replica, LEARNING, disk=Disk()) for replica in (1, 2, 3, 4)))
    cluster.elect()
    cluster.leader().propose(b"a")
    cluster.settle()
    host = cluster.hosts[reader]
    host.core.read(5)
    cluster.settle()
    assert host.reads == [ReadResult(5, 2)]


def test_deposed_leader_answers_no_read() -> None:
    cluster = Cluster.of_size(3)
    first = cluster.elect()
    cluster.cut(first.replica)
    first.core.read(1)
    cluster.run(1500)
    cluster.leader().propose(b"new")
    cluster.settle()
    first.core.read(2)
    cluster.heal()
    cluster.run(500)
    assert {(one.token, one.refused) for one in first.reads} == {(1, True), (2, True)}
