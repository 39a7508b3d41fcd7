"""One heartbeat a pair of nodes; groups that sleep cost a hash; whatever matters wakes them (RULES C5)."""

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from consensus.core.interface import Heartbeat, HeartbeatResponse, NodeId, Role
from consensus.core.raft import RaftCore
from consensus.runtime import RuntimeOptions
from consensus.runtime.heartbeats import Heartbeats, hash_of
from consensus.runtime.interface import Committed
from consensus.runtime.options import default_raft
from consensus.transport.interface import (
    ROWS_MAX,
    AsleepRow,
    Channel,
    Envelope,
    NodeHeartbeat,
    NodeHeartbeatAnswer,
)
from tests.unit.runtime.cluster import Cluster, Node

IDLE = 3000
"""After so long idle groups sleep."""


def asleep(cluster: Cluster) -> bool:
    return all(handle.asleep is not None for handle in cluster.handles())


def put_to_sleep(cluster: Cluster) -> None:
    cluster.until(lambda: asleep(cluster), ms=10_000)
    cluster.run(200)


def counted_call(name: str, counts: Counter[str]) -> Any:
    was = getattr(RaftCore, name)

    def counted(self: RaftCore, *args: Any, **named: Any) -> Any:
        counts[name] += 1
        return was(self, *args, **named)

    return counted


@contextmanager
def counting(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Counts ticks of cores and what is sent, by kind."""
    counts: Counter[str] = Counter()
    send = cluster.network.send

    def counted_send(sender: NodeId, node: NodeId, channel: Channel, envelopes: Any) -> None:
        counts["sends"] += 1
        for envelope in envelopes:
            counts[type(envelope.message).__name__] += 1
        send(sender, node, channel, envelopes)

    for name in ("tick", "status", "has_ready"):
        monkeypatch.setattr(RaftCore, name, counted_call(name, counts))
    monkeypatch.setattr(cluster.network, "send", counted_send)
    yield counts
    monkeypatch.undo()


# --- what it costs --------------------------------------------------------------------------------------------------


def test_a_hundred_idle_groups_cost_a_hash_a_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(groups=100)
    put_to_sleep(cluster)
    with counting(cluster, monkeypatch) as counts:
        cluster.run(10_000)
    # Leaders are spread over all three nodes: six directions, a beat and its answer every 100 ms.
    assert counts == {"sends": 1200, "NodeHeartbeat": 600, "NodeHeartbeatAnswer": 600}
    assert asleep(cluster)


def test_groups_that_are_awake_share_their_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without sleep: the same number of messages for a hundred groups as for three."""
    counted = []
    for groups in (3, 60):
        cluster = Cluster(groups=groups, options=RuntimeOptions(raft=replace(default_raft(), quiesce_after_ms=0)))
        cluster.until(lambda cluster=cluster: all(handle.leader()[0] for handle in cluster.handles()))
        cluster.run(500)
        with counting(cluster, monkeypatch) as counts:
            cluster.run(1000)
        counted.append({name: counts[name] for name in ("sends", "Heartbeat", "NodeHeartbeat", "NodeHeartbeatAnswer")})
    assert counted[0] == counted[1] == {"sends": 240, "Heartbeat": 0, "NodeHeartbeat": 120, "NodeHeartbeatAnswer": 120}


def test_groups_asleep_change_nothing_for_a_long_time() -> None:
    cluster = Cluster(groups=7)
    put_to_sleep(cluster)
    before = [handle.leader() for handle in cluster.handles()]
    cluster.run(30_000)
    assert asleep(cluster)
    assert [handle.leader() for handle in cluster.handles()] == before
    assert all(node.runtime.heartbeats.woken == 0 for node in cluster.nodes.values())


# --- what wakes -----------------------------------------------------------------------------------------------------


def test_a_proposal_wakes_its_group_and_no_other() -> None:
    cluster = Cluster(groups=4)
    put_to_sleep(cluster)
    leader = cluster.leader()
    outcomes = cluster.propose(b"hello", at=leader)
    cluster.run(20)  # followers hear of the commit at a tick
    assert isinstance(outcomes[0], Committed)
    groups = {handle.group for handle in cluster.handles() if handle.asleep is None}
    assert groups == {1}
    assert all(node.machine.commands == [b"hello"] for node in cluster.nodes.values())
    put_to_sleep(cluster)


def leads(node: Node, group: int) -> bool:
    core = node.runtime.groups[group].status().core
    return core is not None and core.role is Role.LEADER


def test_a_dead_leader_of_groups_asleep_is_replaced_at_once() -> None:
    cluster = Cluster(groups=6)
    put_to_sleep(cluster)
    victim = cluster.leader().runtime.node
    led = {group for group in range(1, 7) if leads(cluster.nodes[victim], group)}
    cluster.kill(victim)
    taken = cluster.until(
        lambda: all(any(leads(node, group) for node in cluster.nodes.values()) for group in led), ms=1000
    )
    assert taken <= 200


@pytest.mark.parametrize("cut", ["leader", "follower"])
def test_a_silent_node_wakes_the_groups_it_concerns(cut: str) -> None:
    """Nothing closed: only the beats stay away."""
    cluster = Cluster()
    put_to_sleep(cluster)
    leader = cluster.leader()
    silent = leader if cut == "leader" else cluster.followers()[0]
    for node in cluster.members:
        if node != silent.runtime.node:
            cluster.network.cut(node, silent.runtime.node)
    others = [node for node in cluster.nodes.values() if node is not silent]
    cluster.until(lambda: all(node.handle.asleep is None for node in others if cut == "leader" or node is leader), 500)
    if cut == "leader":
        cluster.until(lambda: any(node.handle.ready_to_serve for node in others), ms=1500)
        # The old one hears from nobody, and stops saying that it leads (HAZARDS 12).
        cluster.until(lambda: not leads(leader, 1), ms=1500)
    else:
        assert cluster.leader() is leader
    cluster.network.heal()
    put_to_sleep(cluster)


def test_a_new_life_of_a_node_wakes_what_slept_with_it() -> None:
    cluster = Cluster(groups=3)
    put_to_sleep(cluster)
    victim = cluster.leader().runtime.node
    # So quick, and so quiet, that nobody sees a connection close.
    del cluster.nodes[victim]
    cluster.disks[victim].kill()
    cluster.start(victim)
    cluster.until(lambda: len({handle.leader() for handle in cluster.handles() if handle.group == 1}) == 1, ms=2000)
    cluster.commit(b"after")
    assert all(node.machine.commands == [b"after"] for node in cluster.nodes.values())
    put_to_sleep(cluster)


def test_a_group_that_is_awake_on_one_side_only_is_found_by_its_hash() -> None:
    """A follower woke by itself (here: because its owner said so) and would campaign; the leader sleeps on."""
    cluster = Cluster(groups=5)
    put_to_sleep(cluster)
    follower = cluster.followers()[0]
    before = follower.handle.leader()
    with follower.runtime.input():
        follower.handle.wake()
    cluster.run(350)
    assert follower.handle.leader() == before
    put_to_sleep(cluster)
    assert follower.handle.leader() == before
    woken = Counter({node.runtime.node: node.runtime.heartbeats.woken for node in cluster.nodes.values()})
    assert sum(woken.values()) == 1


def test_a_leader_that_woke_and_whose_beats_are_lost_is_found_by_its_hash() -> None:
    cluster = Cluster()
    put_to_sleep(cluster)
    leader = cluster.leader()
    for node in cluster.followers():
        cluster.network.cut(leader.runtime.node, node.runtime.node)
    with leader.runtime.input():
        leader.handle.wake()
    cluster.network.heal()
    cluster.run(200)
    assert all(node.handle.asleep is None for node in cluster.nodes.values())
    put_to_sleep(cluster)


def test_a_process_that_slept_does_not_wake_what_still_hears() -> None:
    cluster = Cluster(groups=4)
    put_to_sleep(cluster)
    sleeper = cluster.nodes.pop(2)
    cluster.network.held.add((2, Channel.CONTROL))
    cluster.run(180)
    # It goes on; the beats that came meanwhile are read before time counts (RULES C1).
    cluster.nodes[2] = sleeper
    sleeper.runtime.tick()
    cluster.network.release()
    cluster.run(1000)
    assert sleeper.runtime.stalls == 1
    assert asleep(cluster)
    assert all(node.runtime.heartbeats.woken == 0 for node in cluster.nodes.values())


# --- the parts ------------------------------------------------------------------------------------------------------


class Rig:
    """Heartbeats of one node, without groups."""

    def __init__(self) -> None:
        self.woken: list[int] = []
        self.parts = Heartbeats(
            incarnation=1, beat_ms=50, asleep_beat_ms=100, silence_ms=300, wake=lambda group: self.woken.append(group)
        )

    def leave(self, node: NodeId, *envelopes: Envelope) -> list[Envelope]:
        out = self.parts.packed(node, envelopes)
        self.parts.sent()
        return out

    def beat(self, node: NodeId, *envelopes: Envelope) -> NodeHeartbeat:
        assert self.parts.tick(50, owed_ms=0)
        (first, *_) = self.leave(node, *envelopes)
        assert isinstance(first.message, NodeHeartbeat)
        return first.message


def heartbeat(group: int) -> Envelope:
    return Envelope(group, Heartbeat(sender=1, to=2, term=3, incarnation=1, commit=0, round=1))


def row(group: int, commit: int = 9) -> AsleepRow:
    return AsleepRow(group, 1, 2, 3, commit)


def test_hashes_are_of_content_not_of_order() -> None:
    rows = [row(group) for group in range(20)]
    shuffled = list(rows)
    random.Random(1).shuffle(shuffled)
    assert hash_of(rows) == hash_of(shuffled) != hash_of(rows[1:])
    assert hash_of([row(1, 9)]) != hash_of([row(1, 10)])
    assert hash_of([]) == 0


def test_between_beats_a_heartbeat_leaves_by_itself() -> None:
    rig = Rig()
    assert not rig.parts.tick(10, owed_ms=0)
    assert rig.leave(2, heartbeat(1)) == [heartbeat(1)]


def test_a_group_in_the_rows_is_not_in_the_hash_on_either_side() -> None:
    """A leader says "sleep" in its rows and sleeps itself a beat later."""
    leader, follower = Rig(), Rig()
    leader.parts.sleeps(2, row(1), led=True)
    for group in (1, 2):
        follower.parts.sleeps(1, row(group), led=False)
    beat = leader.beat(2, heartbeat(2))
    assert (beat.asleep, beat.asleep_hash) == (1, hash_of([row(1)]))
    follower.parts.heard(1, beat)
    (answer,) = follower.leave(1)
    assert answer.message == NodeHeartbeatAnswer(incarnation=1)
    leader.parts.sleeps(2, row(2), led=True)
    follower.parts.heard(1, leader.beat(2))
    assert follower.leave(1)[0].message == NodeHeartbeatAnswer(incarnation=1)
    assert leader.woken == follower.woken == []


def test_a_difference_is_asked_for_listed_and_named() -> None:
    leader, follower = Rig(), Rig()
    for group in (1, 2, 3):
        leader.parts.sleeps(2, row(group), led=True)
    for differs in (row(1), row(2, commit=8), row(4)):
        follower.parts.sleeps(1, differs, led=False)
    follower.parts.heard(1, leader.beat(2))
    asked = follower.leave(1)[0].message
    assert isinstance(asked, NodeHeartbeatAnswer)
    assert (asked.differs, asked.differing) == (True, ())
    leader.parts.answered(2, asked)
    assert leader.woken == []
    listed = leader.beat(2)
    assert listed.asleep_rows == (row(1), row(2), row(3))
    follower.parts.heard(1, listed)
    named = follower.leave(1)[0].message
    assert isinstance(named, NodeHeartbeatAnswer)
    assert (named.differs, named.differing) == (False, (2, 3))
    assert follower.woken == [2, 4]
    leader.parts.answered(2, named)
    assert leader.woken == [2, 3]
    assert not leader.beat(2).listed


def test_who_leads_nothing_any_more_needs_no_list() -> None:
    follower = Rig()
    follower.parts.sleeps(1, row(1), led=False)
    follower.parts.heard(1, NodeHeartbeat(incarnation=1, rows=(heartbeat(7),)))
    assert follower.woken == [1]


def test_answers_of_groups_become_rows_only_when_a_beat_was_heard() -> None:
    rig = Rig()
    echo = Envelope(1, HeartbeatResponse(sender=2, to=1, term=3, incarnation=1, round=1, match_index=0), b"note")
    assert rig.leave(1, echo) == [echo]
    rig.parts.heard(1, NodeHeartbeat(incarnation=1))
    assert rig.leave(1, echo) == [Envelope(0, NodeHeartbeatAnswer(incarnation=1, rows=(echo,)))]


def test_more_rows_than_fit_leave_one_by_one() -> None:
    rig = Rig()
    assert rig.parts.tick(50, owed_ms=0)
    first, *rest = rig.leave(2, *(heartbeat(group) for group in range(ROWS_MAX + 3)))
    assert isinstance(first.message, NodeHeartbeat)
    assert len(first.message.rows) == ROWS_MAX
    assert rest == [heartbeat(group) for group in range(ROWS_MAX, ROWS_MAX + 3)]


def test_silence_is_measured_only_while_something_sleeps() -> None:
    rig = Rig()
    for _ in range(20):
        rig.parts.tick(50, owed_ms=0)
    rig.parts.sleeps(2, row(1), led=True)
    for _ in range(5):
        rig.parts.tick(50, owed_ms=0)
    assert rig.woken == []
    rig.parts.tick(50, owed_ms=0)
    assert rig.woken == [1]


def test_names_of_groups_that_are_not_led_here_wake_nobody() -> None:
    rig = Rig()
    rig.parts.sleeps(2, row(1), led=True)
    rig.parts.answered(2, NodeHeartbeatAnswer(incarnation=1, differing=tuple(range(2, 4000))))
    assert rig.woken == []
