"""NodeRuntime drives cores, disks and lanes; every proposal gets one outcome; stalls and closed connections."""

import pytest

from consensus.core.interface import AppendRequest, Heartbeat, Role, VoteRequest
from consensus.runtime import NodeRuntime, RuntimeOptions
from consensus.runtime.interface import Committed, Refused, Unknown
from consensus.runtime.outbox import channel_of
from consensus.storage.checksum import crc32c
from consensus.storage.interface import Recovery
from consensus.transport.interface import Channel, Envelope
from tests.unit.runtime.cluster import Cluster, Journal, Listener


def test_three_nodes_elect_replicate_and_apply_everywhere() -> None:
    cluster = Cluster()
    leader = cluster.leader()
    outcomes = cluster.propose(b"one")
    cluster.run(100)
    assert [type(outcome) for outcome in outcomes] == [Committed]
    assert outcomes[0].result == 1
    assert all(node.machine.commands == [b"one"] for node in cluster.nodes.values())
    assert leader.listener.of("leading") == [("leading", leader.handle.leader()[2])]


def test_a_single_node_serves_alone() -> None:
    cluster = Cluster(nodes=1)
    outcomes = cluster.propose(b"alone")
    cluster.quiet()
    assert isinstance(outcomes[0], Committed)


def test_the_preferred_replica_leads_first() -> None:
    cluster = Cluster()
    assert cluster.leader().runtime.node == 1


def test_leading_is_told_once_the_no_op_is_applied_and_not_before() -> None:
    cluster = Cluster()
    for node in cluster.nodes.values():
        node.lanes.held.add("apply")
    cluster.until(lambda: any(n.handle.status().core.role is Role.LEADER for n in cluster.nodes.values()))
    cluster.run(200)
    assert all(node.listener.of("leading") == [] for node in cluster.nodes.values())
    for node in cluster.nodes.values():
        node.lanes.held.clear()
    leader = cluster.leader()
    assert len(leader.listener.of("leading")) == 1


def test_a_proposal_elsewhere_is_refused_with_the_leader() -> None:
    cluster = Cluster()
    leader = cluster.leader()
    follower = cluster.followers()[0]
    outcomes = cluster.propose(b"x", at=follower)
    assert outcomes == [Refused(leader.runtime.node, leader.handle.leader()[2])]


def test_proposals_at_the_bound_are_refused_as_busy() -> None:
    cluster = Cluster(options=RuntimeOptions(proposals_max=2))
    leader = cluster.leader()
    outcomes = [cluster.propose(b"x", at=leader) for _ in range(3)]
    assert [bool(outcome) for outcome in outcomes] == [False, False, True]
    assert outcomes[2][0] == Refused(leader.runtime.node, leader.handle.leader()[2], busy=True)
    cluster.run(100)
    assert all(len(outcome) == 1 for outcome in outcomes)


def test_a_state_machine_that_lags_holds_up_who_proposes_and_who_sends() -> None:
    """The log can't be released before its entries are applied, so it must not grow for ever before they are."""
    cluster = Cluster(options=RuntimeOptions(applying_bytes_max=20_000))
    leader, follower = cluster.leader(), cluster.followers()[0]
    follower.lanes.held.add("apply")
    for _ in range(100):
        cluster.propose(bytes(1000), at=leader)
        cluster.quiet()
    assert len(leader.machine.commands) == 100
    status = follower.handle.status().core
    assert status is not None
    assert status.last_index < 60
    assert follower.runtime.dropped["applying_too_much"] > 0
    follower.lanes.held.clear()
    cluster.run(1000)
    assert len(follower.machine.commands) == 100
    leader.lanes.held.add("apply")
    outcomes = []
    for _ in range(30):
        outcomes.append(cluster.propose(bytes(1000), at=leader))
        cluster.quiet()
    refused = [outcome[0] for outcome in outcomes if outcome]
    assert refused == [Refused(leader.runtime.node, leader.handle.leader()[2], busy=True)] * len(refused)
    assert 5 <= len(refused) <= 15
    leader.lanes.held.clear()
    cluster.run(100)
    cluster.commit(b"on")
    assert leader.machine.commands[-1] == b"on"


def test_a_command_that_fits_no_frame_is_refused() -> None:
    cluster = Cluster(options=RuntimeOptions(proposal_bytes_max=10))
    leader = cluster.leader()
    assert cluster.propose(bytes(11), at=leader) == [Refused(0, leader.handle.leader()[2])]
    assert leader.runtime.dropped["proposal_too_long"] == 1


def test_very_many_tiny_commands_travel_in_bounded_requests() -> None:
    cluster = Cluster()
    leader = cluster.leader()
    with leader.runtime.input():
        for _ in range(10_000):
            cluster.propose(b"", at=leader)
    cluster.run(100)
    assert all(len(node.machine.commands) == 10_000 for node in cluster.nodes.values())


def test_proposals_of_a_leader_that_lost_its_quorum_become_unknown_once() -> None:
    cluster = Cluster()
    leader = cluster.leader()
    for node in cluster.members:
        if node != leader.runtime.node:
            cluster.network.cut(leader.runtime.node, node)
    outcomes = [cluster.propose(b"lost?", at=leader) for _ in range(5)]
    cluster.run(2000)
    assert all(len(outcome) == 1 and isinstance(outcome[0], Unknown) for outcome in outcomes)
    assert leader.listener.of("deposed")
    cluster.network.heal()
    cluster.run(2000)
    assert all(len(outcome) == 1 for outcome in outcomes)
    states = {tuple(node.machine.commands) for node in cluster.nodes.values()}
    assert len(states) == 1


def test_stopping_gives_what_waits_an_unknown_outcome_and_ignores_late_reports() -> None:
    cluster = Cluster()
    leader = cluster.leader()
    outcomes = cluster.propose(b"x", at=leader)
    leader.runtime.stop()
    assert [type(outcome) for outcome in outcomes] == [Unknown]
    assert cluster.propose(b"y", at=leader) == [Refused(0, 0)]
    leader.writer.work()
    leader.lanes.work()
    assert len(outcomes) == 1


def test_committed_entries_are_applied_in_one_job() -> None:
    cluster = Cluster()
    leader = cluster.leader()
    cluster.quiet()
    leader.lanes.held.add("apply")
    with leader.runtime.input():
        for number in range(50):
            cluster.propose(b"%d" % number, at=leader)
    cluster.quiet()
    assert len(leader.lanes.queues["apply"]) == 1
    leader.lanes.held.clear()
    cluster.quiet()
    assert len(leader.listener.of("applied")[-1][1]) == 50


def test_what_one_input_causes_travels_in_one_send_a_peer() -> None:
    cluster = Cluster()
    leader = cluster.leader()
    sent = []
    leader.runtime._transport.send = lambda node, channel, envelopes: sent.append((node, channel, len(envelopes)))
    with leader.runtime.input():
        for _ in range(10):
            cluster.propose(b"x", at=leader)
    others = [node for node in cluster.members if node != leader.runtime.node]
    assert sorted(node for node, channel, _ in sent) == others
    assert {channel for _, channel, _ in sent} == {Channel.BULK}


def test_messages_leave_while_the_disk_still_writes_and_answers_do_not() -> None:
    cluster = Cluster()
    leader = cluster.leader()
    for node in cluster.nodes.values():
        node.writer.held = True
    outcomes = cluster.propose(b"x", at=leader)
    before = cluster.network.delivered
    cluster.quiet()
    assert cluster.network.delivered > before
    assert outcomes == []
    # The entry is durable on both followers, not on the leader: a majority, so it is committed, but not applied here.
    for node in cluster.followers():
        node.writer.held = False
    cluster.quiet()
    assert leader.handle.status().core.commit_index == leader.handle.status().core.last_index
    assert outcomes == []
    leader.writer.held = False
    cluster.quiet()
    assert isinstance(outcomes[0], Committed)


def test_a_killed_leader_is_replaced_through_the_hint_long_before_the_timeout() -> None:
    cluster = Cluster()
    leader = cluster.leader()
    cluster.commit(b"before")
    cluster.kill(leader.runtime.node)
    took_ms = cluster.until(lambda: any(node.handle.ready_to_serve for node in cluster.nodes.values()))
    assert took_ms <= 100
    outcomes = cluster.propose(b"after")
    cluster.run(100)
    assert isinstance(outcomes[0], Committed)
    cluster.restart(leader.runtime.node)
    cluster.run(500)
    assert {tuple(node.machine.commands) for node in cluster.nodes.values()} == {(b"before", b"after")}


def test_a_restarted_node_applies_its_log_again_once() -> None:
    cluster = Cluster()
    cluster.commit(*(b"%d" % number for number in range(20)))
    for node in list(cluster.nodes):
        cluster.crash(node)
    for node in cluster.members:
        cluster.start(node)
    cluster.leader()
    cluster.run(200)
    wanted = [b"%d" % number for number in range(20)]
    assert all(node.machine.commands == wanted for node in cluster.nodes.values())


# --- stalls (RULES C1) ----------------------------------------------------------------------------------------------


def test_after_a_stall_the_inbox_is_read_before_anybody_campaigns() -> None:
    cluster = Cluster()
    leader = cluster.leader()
    term = leader.handle.leader()[2]
    sleeper = cluster.followers()[0]
    # The sleeper's process stops; the others go on, and what they send it waits.
    del cluster.nodes[sleeper.runtime.node]
    cluster.network.held |= {(sleeper.runtime.node, channel) for channel in Channel}
    cluster.run(5000)
    cluster.nodes[sleeper.runtime.node] = sleeper
    sleeper.runtime.tick()
    assert sleeper.runtime.stalls == 1
    assert sleeper.handle.status().core.role is Role.FOLLOWER
    cluster.network.release()
    cluster.quiet()
    cluster.run(1000)
    assert leader.handle.ready_to_serve
    assert leader.handle.leader()[2] == term


def test_a_stall_counts_as_one_timeout_when_nothing_was_heard() -> None:
    cluster = Cluster()
    leader = cluster.leader()
    sleeper = cluster.followers()[0]
    for node in list(cluster.nodes):
        if cluster.nodes[node] is not sleeper:
            cluster.network.cut(node, sleeper.runtime.node)
    cluster.clock.now += 60_000
    sleeper.runtime.tick()
    assert sleeper.handle.status().core.role is Role.FOLLOWER
    cluster.clock.now += 10
    sleeper.runtime.tick()
    # One timeout, not sixty seconds: the replica in second place waits 150 ms and its spread longer.
    assert sleeper.handle.status().core.role is Role.FOLLOWER
    for _ in range(31):
        cluster.clock.now += 10
        sleeper.runtime.tick()
    assert sleeper.handle.status().core.role is Role.PRE_CANDIDATE
    assert leader.handle.status().core.role is Role.LEADER


def test_time_goes_on_even_if_every_tick_comes_late() -> None:
    cluster = Cluster()
    cluster.until(lambda: True)
    for _ in range(20):
        cluster.tick(ms=200)
    assert any(node.handle.status().core.term > 0 for node in cluster.nodes.values())


# --- strangers (FAULTS, bad input 17) -------------------------------------------------------------------------------


def test_messages_for_other_groups_or_from_replicas_of_other_nodes_are_counted_and_dropped() -> None:
    cluster = Cluster()
    follower = cluster.followers()[0]
    term = follower.handle.leader()[2]
    beat = Heartbeat(sender=1, to=follower.runtime.node, term=term + 1, incarnation=1, commit=0, round=1)
    follower.runtime.received(1, [Envelope(99, beat)])
    follower.runtime.received(7, [Envelope(1, beat)])
    follower.runtime.received(3 if follower.runtime.node == 2 else 2, [Envelope(1, beat)])
    assert follower.runtime.dropped["unknown_group"] == 1
    assert follower.runtime.dropped["replica_not_on_node"] == 2
    assert follower.handle.leader()[2] == term


@pytest.mark.parametrize("change", [{"term": 2**64 - 1}, {"to": 9}, {"sender": 8}])
def test_impossible_messages_change_nothing(change: dict[str, int]) -> None:
    cluster = Cluster()
    follower = cluster.followers()[0]
    before = follower.handle.status().core
    values = {"sender": 1, "to": follower.runtime.node, "term": before.term + 1, "incarnation": 1} | change
    message = VoteRequest(**values, pre=False, last_index=2**40, last_term=before.term)
    for node in (1, 2, 3):
        follower.runtime.received(node, [Envelope(1, message)])
    assert follower.handle.status().core == before


# --- notes, connections, listeners ----------------------------------------------------------------------------------


def test_notes_reach_the_leader_with_the_answers() -> None:
    cluster = Cluster()
    leader = cluster.leader()
    for node in cluster.followers():
        node.listener.own_note = b"digest of %d" % node.runtime.node
    cluster.run(100)
    assert set(leader.listener.notes) == {
        (node.runtime.node, b"digest of %d" % node.runtime.node) for node in cluster.followers()
    }


def test_a_note_that_is_too_long_is_not_sent_and_counted() -> None:
    cluster = Cluster()
    leader = cluster.leader()
    follower = cluster.followers()[0]
    follower.listener.own_note = bytes(5000)
    cluster.run(100)
    assert follower.runtime.dropped["note_too_long"] > 0
    assert leader.listener.notes == []


def test_an_exception_of_a_listener_is_fatal() -> None:
    cluster = Cluster(nodes=1)
    node = cluster.nodes[1]
    seen: list[BaseException] = []
    node.runtime.input().fatal = seen.append

    def broken(term: int) -> None:
        raise KeyError("a bug")

    node.listener.leading = broken  # type: ignore[method-assign]
    with pytest.raises(KeyError):
        cluster.run(2000)
    assert len(seen) == 1


def test_a_damaged_group_does_not_run_and_says_why() -> None:
    cluster = Cluster(nodes=1)
    recovery = Recovery(incarnation=1, groups={}, damage="segment 7: record at 4096 does not verify")
    node = cluster.nodes[1]
    runtime = NodeRuntime(
        node=1,
        recovery=recovery,
        writer=node.writer,
        snapshots=node.snapshots,
        lanes=node.lanes,
        transport=cluster.network.transport(1),
        clock=cluster.clock,
        random=lambda group: cluster.random,
    )
    handle = runtime.add_group(
        group=5, replica=1, configuration=cluster.configuration, nodes={1: 1}, machine=Journal(), listener=Listener()
    )
    runtime.start()
    assert handle.status().core is None
    assert handle.problem == "segment 7: record at 4096 does not verify"
    outcomes: list[object] = []
    handle.propose(b"x", crc32c(b"x"), outcomes.append)
    assert outcomes == [Refused(0, 0)]


def test_all_options_are_checked_at_once() -> None:
    problems = RuntimeOptions(tick_ms=0, transfers_max=-1).validate()
    assert [problem.split()[0] for problem in problems] == ["tick_ms", "transfers_max"]
    assert RuntimeOptions(stall_ms=5).validate()
    assert RuntimeOptions().validate() == []


def test_only_what_carries_payload_is_bulk() -> None:
    assert channel_of(Heartbeat(sender=1, to=2, term=1, incarnation=1, commit=0, round=0)) is Channel.CONTROL
    # Empty ones too: append requests stay in order.
    request = AppendRequest(sender=1, to=2, term=1, incarnation=1, previous_index=0, previous_term=0, commit=0)
    assert channel_of(request) is Channel.BULK
