"""Planned transfers through the runtime, and leaders that go where the configuration prefers them (RULES C6)."""

import itertools

import pytest

from consensus.runtime import RuntimeOptions
from consensus.runtime.interface import Committed, Refused, TransferOutcome, Transferred
from tests.unit.runtime.cluster import Cluster, Journal, Listener, Node

NEVER = RuntimeOptions(prefer_after_ms=0)


def transfer(node: Node, to: int) -> list[TransferOutcome]:
    outcomes: list[TransferOutcome] = []
    node.handle.transfer(to, outcomes.append)
    return outcomes


def led_by(cluster: Cluster) -> int:
    return cluster.leader().runtime.node


# --- planned transfers ----------------------------------------------------------------------------------------------


def test_transfer_is_carried_out_and_told() -> None:
    cluster = Cluster(options=NEVER)
    first = cluster.leader()
    outcomes = transfer(first, 3)
    cluster.quiet()
    assert outcomes == [Transferred(3, first.handle.leader()[2])]
    assert led_by(cluster) == 3
    assert first.listener.of("handing over") == [("handing over", 3), ("handing over", 0)]


def test_transfer_waits_for_its_owner_to_drain() -> None:
    cluster = Cluster(options=NEVER)
    first = cluster.leader()
    first.listener.is_drained = False
    outcomes = transfer(first, 2)
    cluster.run(50)
    assert (outcomes, led_by(cluster)) == ([], 1)
    late = cluster.propose(b"taken before", at=first)
    first.listener.is_drained = True
    cluster.run(20)
    assert isinstance(late[0], Committed)
    assert led_by(cluster) == 2


def test_transfer_waits_only_so_long() -> None:
    cluster = Cluster(options=NEVER)
    first = cluster.leader()
    first.listener.is_drained = False
    outcomes = transfer(first, 2)
    cluster.run(110)
    assert isinstance(outcomes[0], Transferred)


def test_leadership_lost_while_draining_gives_an_outcome() -> None:
    cluster = Cluster(options=NEVER)
    first = cluster.leader()
    first.listener.is_drained = False
    outcomes = transfer(first, 2)
    for member in (2, 3):
        cluster.kill(member)
    cluster.run(2000)
    assert [type(outcome) for outcome in outcomes] == [Refused]
    assert first.listener.of("handing over")[-1] == ("handing over", 0)


def test_target_that_goes_away_while_draining_is_told_of() -> None:
    cluster = Cluster(options=NEVER)
    first = cluster.leader()
    first.listener.is_drained = False
    outcomes = transfer(first, 2)
    cluster.kill(2)
    cluster.run(500)
    assert [type(outcome) for outcome in outcomes] == [Refused]
    assert first.handle.ready_to_serve
    assert first.listener.of("handing over")[-1] == ("handing over", 0)
    assert isinstance(cluster.propose(b"on", at=first), list)
    cluster.commit(b"on")


@pytest.mark.parametrize(("to", "reason"), [(9, "no member"), (2, "not connected")])
def test_impossible_transfer_is_refused_at_once(to: int, reason: str) -> None:
    cluster = Cluster(options=NEVER)
    first = cluster.leader()
    cluster.kill(2)
    cluster.tick()
    (outcome,) = transfer(first, to)
    assert isinstance(outcome, Refused)
    assert reason in outcome.reason
    assert first.listener.of("handing over") == []


# --- the preferred leader -------------------------------------------------------------------------------------------


def displaced(options: RuntimeOptions) -> Cluster:
    """Node 1, the preferred one, was away; another leads."""
    cluster = Cluster(options=options)
    cluster.leader()
    cluster.kill(1)
    cluster.run(1500)
    assert led_by(cluster) != 1
    cluster.restart(1)
    return cluster


def test_leader_hands_over_to_the_preferred_one_when_that_has_been_well_for_a_while() -> None:
    cluster = displaced(RuntimeOptions(prefer_after_ms=2000))
    cluster.run(1500)
    assert led_by(cluster) != 1
    cluster.run(1000)
    assert led_by(cluster) == 1


def test_no_preference_no_transfer() -> None:
    cluster = displaced(NEVER)
    cluster.run(10_000)
    assert led_by(cluster) != 1


def test_leadership_does_not_return_to_a_node_that_is_to_lead_nothing() -> None:
    cluster = displaced(RuntimeOptions(prefer_after_ms=500))
    for node in cluster.nodes.values():
        node.runtime.avoid([1])
    cluster.run(5000)
    assert led_by(cluster) != 1
    for node in cluster.nodes.values():
        node.runtime.avoid([])
    cluster.run(1500)
    assert led_by(cluster) == 1


def test_node_that_is_to_lead_nothing_hands_over_to_the_first_that_may() -> None:
    cluster = Cluster(options=RuntimeOptions(prefer_after_ms=500))
    assert led_by(cluster) == 1
    for node in cluster.nodes.values():
        node.runtime.avoid([1, 2])
    cluster.run(1500)
    assert led_by(cluster) == 3
    for node in cluster.nodes.values():
        node.runtime.avoid([1, 2, 3])
    cluster.run(3000)
    assert led_by(cluster) == 3, "where nobody is wanted, who leads goes on"


def test_preferred_one_that_comes_and_goes_has_to_be_well_anew() -> None:
    cluster = displaced(RuntimeOptions(prefer_after_ms=2000))
    for _ in range(3):
        cluster.run(1500)
        cluster.kill(1)
        cluster.run(100)
        cluster.restart(1)
    assert led_by(cluster) != 1
    cluster.run(2500)
    assert led_by(cluster) == 1


def test_failed_try_is_followed_by_a_longer_pause() -> None:
    """The preferred one's disk stands still: it answers, and does not take over."""
    cluster = displaced(RuntimeOptions(prefer_after_ms=1000))
    cluster.run(500)
    leader = cluster.leader()
    cluster.nodes[1].handle.storage(stalled=True)
    tries = []
    for now in range(0, 12_000, 10):
        cluster.tick()
        if leader.handle.status().core.transferee and (not tries or now - tries[-1] > 600):
            tries.append(now)
    assert led_by(cluster) == leader.runtime.node
    assert 3 <= len(tries) <= 4
    pauses = [after - before for before, after in itertools.pairwise(tries)]
    assert pauses == sorted(pauses)
    assert pauses[1] > 1.5 * pauses[0]


def test_groups_are_handed_over_one_at_a_time() -> None:
    cluster = Cluster(options=RuntimeOptions(prefer_after_ms=1000, drain_ms=300))
    cluster.leader()
    more = add_groups(cluster, 4)
    cluster.kill(1)
    cluster.run(2000)
    cluster.restart(1)
    add_groups(cluster, 4, only=1)
    for node in cluster.nodes.values():
        node.listener.is_drained = False
        for listener in more[node.runtime.node]:
            listener.is_drained = False
    at_once = 0
    for _ in range(1200):
        cluster.tick()
        for node in cluster.nodes.values():
            draining = [one for one in node.runtime.groups.values() if one._orders.handover.draining]
            at_once = max(at_once, len(draining))
    assert at_once == 1
    leaders = {group.leader()[0] for group in cluster.nodes[2].runtime.groups.values()}
    assert leaders == {1}


def add_groups(cluster: Cluster, count: int, only: int = 0) -> dict[int, list[Listener]]:
    listeners: dict[int, list[Listener]] = {}
    for member, node in cluster.nodes.items():
        if only in (0, member):
            for group in range(2, 2 + count):
                listeners.setdefault(member, []).append(Listener())
                node.runtime.add_group(
                    group=group,
                    replica=member,
                    configuration=cluster.configuration,
                    nodes={one: one for one in cluster.members},
                    machine=Journal(),
                    listener=listeners[member][-1],
                )
    return listeners
