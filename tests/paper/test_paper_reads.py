"""One test a rule of linearizable reads: section 6.4 of "Consensus: Bridging Theory and Practice" (Ongaro, 2014).
There are no lease reads (6.4.1): they contradict the closed-connection hint (RULES R2)."""

from consensus.core.interface import ReadRequest, ReadResponse, ReadResult, Role
from tests.unit.core.harness import Cluster, Heartbeat, Host, follower, leader, of, only


def serving() -> Host:
    host = leader(1)
    for peer in (2, 3):
        host.match(peer, 2)
    host.persist()
    host.sent.clear()
    return host


def round_of(host: Host) -> int:
    return max(one.round for one in of(Heartbeat, host.drain() or host.sent, to=2))


def test_6_4_reads_bypass_the_log() -> None:
    """ "It is possible to bypass the Raft log for read-only queries and still preserve linearizability." """
    host = serving()
    host.core.read(1)
    host.answer_round(2, round_of(host))
    assert (host.reads, host.writing, host.core.status().last_index) == ([ReadResult(1, 2)], [], 2)


def test_6_4_step_1_the_leader_waits_until_an_entry_of_its_term_is_committed() -> None:
    """ "If the leader has not yet marked an entry from its current term committed, it waits until it has done so." """
    host = leader(1)
    host.core.read(1)
    for beat in of(Heartbeat, host.tick(200), to=2):
        host.answer_round(2, beat.round)
    assert host.reads == []
    host.match(2, 2)
    host.answer_round(2, round_of(host))
    assert host.reads == [ReadResult(1, 2)]


def test_6_4_step_2_the_read_index_is_the_commit_index_of_then() -> None:
    """ "The leader saves its current commit index in a local variable readIndex. This will be used as a lower bound for
    the version of the state that the query operates against." """
    host = serving()
    host.core.read(1)
    number = round_of(host)
    host.propose(b"later")
    host.match(2, 3)
    host.match(3, 3)
    assert host.core.status().commit_index == 3
    host.answer_round(2, number)
    assert host.reads == [ReadResult(1, 2)]


def test_6_4_step_3_the_leader_makes_sure_it_has_not_been_superseded() -> None:
    """ "It issues a new round of heartbeats and waits for their acknowledgments from a majority of the cluster. Once
    these acknowledgments are received, the leader knows that there could not have existed a leader for a greater term
    at the moment it sent the heartbeats." """
    cluster = Cluster.of_size(3)
    first = cluster.elect()
    cluster.cut(1)
    cluster.run(250)
    assert first.role is Role.LEADER  # it has not noticed yet
    first.core.read(1)
    cluster.settle()
    assert first.reads == []
    cluster.run(500)
    assert first.reads == [ReadResult(1, refused=True)]


def test_6_4_step_3_heartbeats_of_before_do_not_count() -> None:
    """ "A new round of heartbeats": one that was sent before the read says nothing of the time after it."""
    host = serving()
    before = max(one.round for one in of(Heartbeat, host.tick(50), to=2))
    host.core.read(1)
    host.drain()
    host.answer_round(2, before)
    host.answer_round(3, before)
    assert host.reads == []


def test_6_4_step_4_the_host_waits_until_it_has_applied_that_far() -> None:
    """ "The leader waits for its state machine to advance at least as far as the readIndex." The core names the index;
    the runtime waits."""
    host = serving()
    host.propose(b"x")
    host.match(2, 3)
    host.match(3, 3)
    host.core.read(1)
    host.answer_round(2, round_of(host))
    assert host.reads == [ReadResult(1, 3)]
    assert host.core.status().applied_index == 2  # its own disk is late


def test_6_4_queries_share_a_round() -> None:
    """ "To further improve efficiency, the leader can amortize the cost of confirming its leadership: it can use a
    single round of heartbeats for any number of read-only queries that it has accumulated." """
    host = serving()
    for token in range(1, 101):
        host.core.read(token)
    (beat,) = of(Heartbeat, host.drain(), to=2)
    host.answer_round(3, beat.round)
    assert len(host.reads) == 100


def test_6_4_followers_help_offload() -> None:
    """ "Followers could also help offload the processing of read-only queries ... the follower can issue a request to
    the leader that just asks for a current readIndex (the leader would execute steps 1–3 above)." """
    reader, host = follower(1, term=2, replica=3), serving()
    reader.heartbeat(sender=1)
    reader.core.read(9)
    host.step(only(ReadRequest, reader.drain()))
    left = host.answer_round(2, round_of(host))
    reader.step(only(ReadResponse, left))
    assert reader.reads == [ReadResult(9, 2)]


def test_6_4_followers_without_a_leader_hear_so() -> None:
    host = follower(1)
    host.core.read(1)
    host.drain()
    assert host.reads == [ReadResult(1, refused=True)]
