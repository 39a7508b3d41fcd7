"""Members come and go at run time: one outcome each, replicas by order only, tombstones for ever (RULES I1)."""

from typing import Any

import pytest

from consensus.core.interface import Configuration, Heartbeat, Home, MembershipChange, Role
from consensus.runtime.homes import PAST_MAX, STRANGERS_MAX, Homes
from consensus.runtime.interface import Committed, Outcome, ReadIndex, Refused, ReplicaCreated, ReplicaDeleted, Unknown
from consensus.storage.records import Kind
from consensus.transport.interface import Envelope
from tests.unit.runtime.cluster import Cluster, Journal, Listener, Node
from tests.unit.runtime.test_runtime_damage import rot, stop

LATER = 65536
"""The first id of a replica made later."""


def home(replica: int, node: int) -> Home:
    return Home(replica, node, bytes([node]) * 16, f"host-{node}:7000")


def learner_of(*voters: int, replica: int = LATER, node: int = 4) -> Configuration:
    return Configuration(voters, (replica,), homes=(home(replica, node),), next_replica=replica + 1)


def change(cluster: Cluster, voters: tuple[int, ...], learners: tuple[int, ...] = (), *homes: Home) -> list[Outcome]:
    outcomes: list[Outcome] = []
    cluster.leader().handle.propose_membership(MembershipChange(voters, learners, homes), outcomes.append)
    return outcomes


def with_a_learner() -> tuple[Cluster, Node]:
    """Three voters, and a learner on node 4 that caught up."""
    cluster = Cluster()
    cluster.commit(b"one", b"two")
    joined = cluster.join(4)
    created = cluster.create(4, LATER, learner_of(1, 2, 3))
    outcomes = change(cluster, (1, 2, 3), (LATER,), home(LATER, 4))
    cluster.run(300)
    assert created == [ReplicaCreated(1, LATER)]
    assert [type(outcome) for outcome in outcomes] == [Committed]
    return cluster, joined


# --- changes --------------------------------------------------------------------------------------------------------


def test_a_replica_made_later_is_filled_promoted_and_votes() -> None:
    cluster, joined = with_a_learner()
    assert joined.machine.commands == [b"one", b"two"]
    outcomes = change(cluster, (1, 2, LATER))
    assert outcomes == []
    cluster.run(300)
    (outcome,) = outcomes
    assert isinstance(outcome, Committed)
    for node in cluster.nodes.values():
        assert node.handle.status().configuration.voters == (1, 2, LATER)
    gone = cluster.nodes[3].handle
    assert "no member of group 1 any more" in gone.problem
    cluster.kill(1)
    cluster.commit(b"three")
    assert joined.machine.commands == [b"one", b"two", b"three"]


def test_a_learner_answers_reads_with_all_that_was_committed() -> None:
    cluster, joined = with_a_learner()
    cluster.commit(b"three")
    outcomes: list[Any] = []
    joined.handle.read_index(outcomes.append)
    cluster.run(300)
    (answer,) = outcomes
    assert isinstance(answer, ReadIndex)
    assert joined.machine.commands == [b"one", b"two", b"three"]


def test_the_owner_hears_of_every_configuration_and_when_it_is_committed() -> None:
    cluster, joined = with_a_learner()
    change(cluster, (1, 2, 3, LATER))
    cluster.run(300)
    told = [
        (shown.voters, shown.learners, bool(shown.outgoing), committed)
        for shown, committed in cluster.leader().configurations
    ]
    assert told == [
        ((1, 2, 3), (), False, True),
        ((1, 2, 3), (LATER,), False, False),
        ((1, 2, 3), (LATER,), False, True),
        ((1, 2, 3, LATER), (), True, False),
        ((1, 2, 3, LATER), (), False, False),
        ((1, 2, 3, LATER), (), False, True),
    ]
    assert joined.configurations[-1] == cluster.leader().configurations[-1]


def test_asking_again_does_no_harm() -> None:
    cluster, _ = with_a_learner()
    first = change(cluster, (1, 2, 3, LATER))
    again = change(cluster, (1, 2, 3, LATER))
    cluster.run(300)
    later = change(cluster, (1, 2, 3, LATER))
    cluster.run(100)
    assert first == again == later
    assert isinstance(first[0], Committed)


def test_what_cannot_be_is_refused_with_the_reason() -> None:
    cluster, joined = with_a_learner()
    outcomes: list[Outcome] = []
    follower = cluster.followers()[0]
    follower.handle.propose_membership(MembershipChange((1, 2)), outcomes.append)
    assert isinstance(outcomes[0], Refused)
    assert outcomes[0].leader == cluster.leader().handle.replica
    (refused,) = change(cluster, ())
    assert isinstance(refused, Refused)
    assert "at least one voter" in refused.reason
    assert not refused.busy
    (refused,) = change(cluster, (1, 2, 3, LATER + 9))
    assert isinstance(refused, Refused)
    assert "learner" in refused.reason
    cluster.kill(4)
    cluster.commit(b"x" * 2_000_000)
    (refused,) = change(cluster, (1, 2, 3, LATER))
    assert isinstance(refused, Refused)
    assert refused.busy
    assert refused.reason
    assert joined.machine.commands == [b"one", b"two"]


def test_the_leader_can_be_removed_and_says_so_when_it_is_done() -> None:
    cluster = Cluster()
    cluster.commit(b"one")
    leader = cluster.leader()
    rest = tuple(node for node in cluster.members if node != leader.handle.replica)
    outcomes = change(cluster, rest)
    cluster.run(500)
    assert [type(outcome) for outcome in outcomes] == [Committed]
    assert cluster.leader() is not leader
    cluster.run(1000)
    assert "no member of group 1 any more" in leader.handle.problem
    assert cluster.propose(b"x", at=leader)[0].__class__ is Refused
    cluster.commit(b"two")
    assert leader.machine.commands == [b"one"]


def test_a_change_whose_leader_is_cut_off_becomes_unknown_once() -> None:
    cluster = Cluster()
    leader = cluster.leader()
    for node in cluster.members:
        if node != leader.runtime.node:
            cluster.network.cut(leader.runtime.node, node)
    outcomes: list[Outcome] = []
    leader.handle.propose_membership(MembershipChange((1, 2)), outcomes.append)
    cluster.run(2000)
    assert [type(outcome) for outcome in outcomes] == [Unknown]
    cluster.network.heal()
    cluster.run(2000)
    assert len(outcomes) == 1
    # It was rolled back, and the owner was told.
    assert leader.handle.status().configuration.voters == (1, 2, 3)
    assert leader.configurations[-1][0].voters == (1, 2, 3)


def test_a_change_that_waits_gets_an_outcome_when_the_node_stops() -> None:
    cluster = Cluster()
    outcomes = change(cluster, (1, 2))
    cluster.leader().runtime.stop()
    assert [type(outcome) for outcome in outcomes] == [Unknown]


# --- replicas by order ----------------------------------------------------------------------------------------------


def test_a_creation_is_durable_before_its_replica_runs() -> None:
    cluster = Cluster()
    joined = cluster.join(4)
    joined.writer.held = True
    created = cluster.create(4, LATER, learner_of(1, 2, 3))
    cluster.run(100)
    assert created == []
    assert 1 not in joined.runtime.groups
    twice = cluster.create(4, LATER, learner_of(1, 2, 3))
    assert isinstance(twice[0], Refused)
    joined.writer.held = False
    cluster.run(100)
    assert created == [ReplicaCreated(1, LATER)]
    assert joined.runtime.groups[1].replica == LATER


def test_a_creation_is_found_by_the_next_life() -> None:
    cluster, _ = with_a_learner()
    cluster.crash(4)
    again = cluster.restart(4)
    assert again.handle.replica == LATER
    assert again.runtime.creations == {}
    cluster.commit(b"three")
    assert again.machine.commands == [b"one", b"two", b"three"]


def test_a_creation_that_was_recovered_is_not_made_again() -> None:
    cluster, _ = with_a_learner()
    cluster.crash(4)
    cluster._add_group = lambda node: None  # type: ignore[method-assign]
    again = cluster.restart(4)
    made = again.runtime.creations[1]
    assert made.replica == LATER
    assert isinstance(cluster.create(4, LATER + 1, learner_of(1, 2, 3, replica=LATER + 1))[0], Refused)
    # Whatever else is given, it goes on as it was made.
    handle = again.runtime.add_group(
        group=1,
        replica=4,
        configuration=Configuration((4,)),
        nodes={4: 4},
        machine=Journal(),
        listener=Listener(),
    )
    assert handle.replica == LATER


@pytest.mark.parametrize(
    ("replica", "configuration", "words"),
    [
        (LATER, Configuration((1, 2, LATER)), "no node is known"),
        (LATER, Configuration((1, 2, LATER), homes=(home(LATER, 4),)), "can't begin as a voter"),
        (LATER, learner_of(1, 2, 3, node=3), "lives on node 3"),
        (LATER, Configuration(()), "no voters"),
        (LATER, Configuration((1, 2), (LATER, LATER + 1), homes=(home(LATER, 4),)), "no node is known"),
    ],
)
def test_replicas_that_can_not_be_made(replica: int, configuration: Configuration, words: str) -> None:
    cluster = Cluster()
    cluster.join(4)
    (refused,) = cluster.create(4, replica, configuration)
    assert isinstance(refused, Refused)
    assert words in refused.reason


def test_a_group_that_is_here_is_not_made_again() -> None:
    cluster = Cluster()
    listener = Listener()
    outcomes: list[Any] = []
    cluster.nodes[1].runtime.create_replica(
        group=1,
        replica=LATER,
        configuration=learner_of(1, 2, 3, node=1),
        machine=Journal(),
        listener=listener,
        done=outcomes.append,
    )
    assert "there already" in outcomes[0].reason


def delete(node: Node, replica: int) -> list[Any]:
    outcomes: list[Any] = []
    node.runtime.delete_replica(1, replica, outcomes.append)
    return outcomes


def test_a_deleted_replica_leaves_a_tombstone_and_nothing_else() -> None:
    cluster, joined = with_a_learner()
    joined.handle.want_snapshot()
    cluster.run(100)
    assert [name for name in joined.snapshots._filesystem.listdir("snapshots/group-1") if "snapshot" in name]
    change(cluster, (1, 2, 3))
    cluster.run(200)
    outcomes = delete(joined, LATER)
    again_outcomes = delete(joined, LATER)
    assert outcomes == again_outcomes == []
    cluster.run(100)
    assert outcomes == again_outcomes == [ReplicaDeleted(1, LATER)]
    assert joined.snapshots._filesystem.listdir("snapshots/group-1") == []
    assert 1 not in joined.runtime.groups
    assert delete(joined, LATER) == [ReplicaDeleted(1, LATER)]
    assert isinstance(cluster.create(4, LATER, learner_of(1, 2, 3))[0], Refused)
    cluster.crash(4)
    again = cluster.restart(4)
    assert again.runtime.deleted(1, LATER)
    assert again.runtime.creations == {}
    (refused,) = cluster.create(4, LATER, learner_of(1, 2, 3))
    assert isinstance(refused, Refused)
    assert "never comes back" in refused.reason
    with pytest.raises(ValueError, match="never comes back"):
        again.runtime.add_group(
            group=1,
            replica=LATER,
            configuration=learner_of(1, 2, 3),
            nodes={},
            machine=Journal(),
            listener=Listener(),
        )


def test_a_deleted_member_of_the_bootstrap_comes_back_under_a_new_id_only() -> None:
    cluster = Cluster()
    cluster.commit(b"one")
    victim = cluster.followers()[0]
    number = victim.runtime.node
    rest = tuple(node for node in cluster.members if node != number)
    change(cluster, rest)
    cluster.run(500)
    outcomes = delete(victim, number)
    cluster.run(50)
    assert outcomes == [ReplicaDeleted(1, number)]
    created = cluster.create(number, LATER, learner_of(*rest, node=number))
    change(cluster, rest, (LATER,), home(LATER, number))
    cluster.run(300)
    assert created == [ReplicaCreated(1, LATER)]
    assert victim.machine.commands == [b"one"]
    promoted = change(cluster, (*rest, LATER))
    cluster.run(500)
    assert [type(outcome) for outcome in promoted] == [Committed]


def test_what_a_deleted_replica_still_had_under_way_comes_to_nothing() -> None:
    cluster = Cluster()
    leader = cluster.leader()
    leader.lanes.held.add("apply")
    outcomes = cluster.propose(b"x", at=leader)
    reads: list[Any] = []
    leader.handle.read_index(reads.append)
    deleted = delete(leader, leader.handle.replica)
    assert [type(outcome) for outcome in outcomes] == [Unknown]
    assert [type(outcome) for outcome in reads] == [Refused]
    cluster.run(50)
    leader.lanes.held.clear()
    cluster.run(50)
    assert deleted == [ReplicaDeleted(1, leader.handle.replica)]
    assert leader.handle.status().snapshots_written == 0


def test_a_replica_that_was_never_made_is_entombed_beside_another() -> None:
    """Its move was given up, and the next one was quicker than group 0's order to delete it (simulated seed 552191)."""
    cluster, joined = with_a_learner()
    outcomes = delete(joined, LATER + 7)
    cluster.commit(b"three")
    assert outcomes == [ReplicaDeleted(1, LATER + 7)]
    for _ in range(2):
        assert joined.runtime.groups[1].replica == LATER
        assert joined.runtime.deleted(1, LATER + 7)
        assert not joined.runtime.deleted(1, LATER)
        assert joined.machine.commands == [b"one", b"two", b"three"]
        cluster.crash(4)
        joined = cluster.restart(4)
        cluster.run(500)


def test_a_replica_in_the_log_is_not_deleted_under_the_name_of_another() -> None:
    """Nobody has taken it over yet."""
    cluster, joined = with_a_learner()
    cluster.crash(4)
    add, cluster._add_group = cluster._add_group, lambda node: None  # type: ignore[method-assign]
    joined = cluster.restart(4)
    deleted = delete(joined, 4)
    cluster.quiet()
    assert deleted == [ReplicaDeleted(1, 4)]
    cluster._add_group = add  # type: ignore[method-assign]
    assert joined.runtime.creations[1].replica == LATER
    cluster.crash(4)
    assert cluster.restart(4).handle.status().core is not None


def test_a_log_whose_replica_damage_hides_is_buried_under_both_names() -> None:
    """Or group 0's order to delete it is refused for ever (simulated seed 300881)."""
    cluster, joined = with_a_learner()
    stop(cluster, 4)
    rot(cluster, 4, Kind.CREATE)
    joined = cluster.restart(4)
    assert 1 not in joined.runtime.creations
    assert delete(joined, LATER) == []
    cluster.quiet()
    cluster.crash(4)
    joined = cluster.restart(4)
    assert joined.runtime.deleted(1, LATER)
    assert joined.runtime.deleted(1, 4), "the bootstrap's replica would begin again without a log"
    assert cluster.create(4, LATER + 1, learner_of(1, 2, 3)) == []
    cluster.quiet()
    assert 1 in joined.runtime.groups


def test_stopping_answers_deletions_that_wait() -> None:
    cluster = Cluster()
    node = cluster.nodes[1]
    node.writer.held = True
    outcomes = delete(node, 1)
    node.runtime.stop()
    assert [type(outcome) for outcome in outcomes] == [Refused]


def test_stopping_answers_creations_that_wait() -> None:
    cluster = Cluster()
    node = cluster.join(4)
    node.writer.held = True
    outcomes = cluster.create(4, LATER, learner_of(1, 2, 3))
    node.runtime.stop()
    assert [type(outcome) for outcome in outcomes] == [Refused]
    node.writer.held = False
    cluster.quiet()
    assert [type(outcome) for outcome in outcomes] == [Refused]


def test_a_replica_is_not_made_before_the_files_of_the_one_before_are_gone() -> None:
    """They go by group: those that the new one receives would go with them."""
    cluster, joined = with_a_learner()
    change(cluster, (1, 2, 3))
    cluster.run(200)
    joined.lanes.held.add("apply")
    deleted = delete(joined, LATER)
    cluster.run(20)
    later = learner_of(1, 2, 3, replica=LATER + 1)
    (refused,) = cluster.create(4, LATER + 1, later)
    assert isinstance(refused, Refused)
    assert refused.busy
    joined.lanes.held.clear()
    cluster.run(20)
    assert deleted == [ReplicaDeleted(1, LATER)]
    created = cluster.create(4, LATER + 1, later)
    cluster.run(20)
    assert created == [ReplicaCreated(1, LATER + 1)]


def test_who_asks_again_when_a_replica_stops_is_answered_too() -> None:
    cluster = Cluster()
    leader = cluster.leader()
    leader.lanes.held.add("apply")
    outcomes: list[Any] = []

    def propose_again(outcome: Any) -> None:
        outcomes.append(outcome)
        if len(outcomes) == 1:
            leader.handle.propose(b"", 0, propose_again)
            leader.handle.read_index(outcomes.append)
            leader.handle.transfer(cluster.members[-1], outcomes.append)
            leader.handle.propose_membership(MembershipChange((1, 2)), outcomes.append)

    leader.handle.propose(b"", 0, propose_again)
    leader.runtime.stop()
    assert [type(outcome) for outcome in outcomes] == [Unknown, Refused, Refused, Refused, Refused]


def test_a_replica_made_while_the_disk_stands_still_knows_it() -> None:
    cluster = Cluster()
    node = cluster.followers()[0]
    node.writer.held = True
    leader = cluster.leader()
    cluster.propose(b"waits for the disk", at=leader)
    cluster.until(lambda: node.handle.status().core.storage_stalled)
    handle = node.runtime.add_group(
        group=9,
        replica=node.runtime.node,
        configuration=cluster.configuration,
        nodes={member: member for member in cluster.members},
        machine=Journal(),
        listener=Listener(),
    )
    cluster.tick()
    core = handle.status().core
    assert core is not None
    assert core.storage_stalled


# --- where replicas live --------------------------------------------------------------------------------------------


def beat(sender: int, to: int, term: int = 9) -> Envelope:
    return Envelope(1, Heartbeat(sender=sender, to=to, term=term, incarnation=1, commit=0, round=1))


def test_a_leader_that_this_log_does_not_know_yet_is_answered_where_it_speaks_from() -> None:
    cluster = Cluster()
    cluster.run(500)
    node = cluster.followers()[0]
    sent: list[tuple[int, Any]] = []
    node.runtime._transport.send = lambda to, channel, envelopes: sent.extend(  # type: ignore[method-assign]
        (to, envelope.message) for envelope in envelopes
    )
    node.runtime.received(7, [beat(LATER, node.handle.replica)])
    node.writer.work()
    assert [(to, type(message).__name__) for to, message in sent if message.to == LATER] == [(7, "HeartbeatResponse")]
    assert node.handle.leader()[:2] == (LATER, 7)


def test_a_replica_speaks_from_its_own_node_only() -> None:
    cluster, joined = with_a_learner()
    node = cluster.nodes[2]
    for sender, at in ((1, 3), (LATER, 1), (3, 9)):
        before = node.runtime.dropped["replica_not_on_node"]
        node.runtime.received(at, [beat(sender, 2)])
        assert node.runtime.dropped["replica_not_on_node"] == before + 1
    assert joined.handle.nodes[LATER] == 4


def test_homes_are_bounded_and_the_configuration_decides() -> None:
    homes = Homes({1: 5}, Configuration((1, 2)))
    assert (homes.node_of(1), homes.node_of(2), homes.node_of(3)) == (5, 2, 0)
    for stranger in range(LATER, LATER + 2 * STRANGERS_MAX):
        assert homes.heard(stranger, 9)
    assert homes.node_of(LATER) == 0
    last = LATER + 2 * STRANGERS_MAX - 1
    assert homes.node_of(last) == 9
    homes.follow(Configuration((1, 2, last), homes=(home(last, 8),)))
    assert homes.node_of(last) == 8
    assert not homes.heard(last, 9)
    for replica in range(LATER + 1000, LATER + 1000 + 2 * PAST_MAX):
        homes.follow(Configuration((1, 2, replica), homes=(home(replica, 8),)))
    assert len(homes.known) <= PAST_MAX + 4
    assert homes.node_of(1) == 5


# --- the disk -------------------------------------------------------------------------------------------------------


def test_a_leader_whose_disk_stands_still_hands_over() -> None:
    cluster = Cluster()
    leader = cluster.leader()
    leader.writer.held = True
    cluster.propose(b"x", at=leader)
    cluster.until(lambda: any(n.handle.ready_to_serve for n in cluster.nodes.values() if n is not leader), ms=1500)
    status = leader.handle.status().core
    assert status is not None
    assert status.storage_stalled
    assert status.role is not Role.LEADER
    leader.writer.held = False
    cluster.run(100)
    status = leader.handle.status().core
    assert status is not None
    assert not status.storage_stalled


def test_the_owner_hears_of_a_hand_over_that_a_stalled_disk_began() -> None:
    """And of its end: what it holds back would never go on otherwise (`test_simulation_diverging.py`, seed 2)."""
    cluster = Cluster()
    leader = cluster.leader()
    for node in cluster.nodes.values():
        node.writer.held = True
    cluster.propose(b"x", at=leader)
    cluster.until(lambda: bool(leader.listener.of("handing over")), ms=1500)
    ((_, to),) = leader.listener.of("handing over")
    assert to in {node.runtime.node for node in cluster.followers()}
    leader.writer.held = False
    # The others' disks still stand, so nobody takes over, and it is given up.
    cluster.until(lambda: leader.listener.of("handing over")[-1] == ("handing over", 0), ms=1500)
    status = leader.handle.status().core
    assert status is not None
    assert status.role is Role.LEADER
