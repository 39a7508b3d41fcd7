"""Bad input row 17, at the border of a node: messages of groups that are not here, of strangers, from the wrong node;
heartbeats between nodes with rows of garbage and absurd counts. All counted, nothing followed, nothing made."""

import random
from typing import Any

import pytest

from consensus.core.interface import (
    CampaignNow,
    Heartbeat,
    HeartbeatResponse,
    Message,
    ReadRequest,
    RejoinRequest,
    Removed,
    VoteRequest,
)
from consensus.transport.interface import ROWS_MAX, AsleepRow, Envelope, NodeHeartbeat, NodeHeartbeatAnswer
from tests.unit.runtime.cluster import Cluster, Node

HUGE = 2**63


def beat(**changes: Any) -> Heartbeat:
    return Heartbeat(**{"sender": 1, "to": 2, "term": 1, "incarnation": 1, "commit": 0, "round": 1, **changes})


def echo(**changes: Any) -> HeartbeatResponse:
    return HeartbeatResponse(
        **{"sender": 1, "to": 2, "term": 1, "incarnation": 1, "round": 1, "match_index": 0, **changes}
    )


def asleep() -> tuple[Cluster, Node]:
    """A cluster of two groups that sleep, and node 2."""
    cluster = Cluster(groups=2)
    cluster.until(lambda: all(handle.asleep for handle in cluster.handles()), ms=10_000)
    return cluster, cluster.nodes[2]


def picture(node: Node) -> list[Any]:
    found = []
    for handle in node.runtime.groups.values():
        status = handle.status().core
        assert status is not None
        found.append((status.role, status.term, status.leader, status.vote, status.commit_index, status.last_index))
    return found


def counted(node: Node) -> dict[str, int]:
    """Messages dropped, by the node and by its groups' cores."""
    counts = dict(node.runtime.dropped)
    for handle in node.runtime.groups.values():
        for reason, count in handle.status().dropped.items():
            counts[reason] = counts.get(reason, 0) + count
    return counts


def deliver(node: Node, source: int, *envelopes: Envelope) -> dict[str, int]:
    """What was dropped meanwhile. No group may have changed, and none may have been made."""
    before, groups, counts = picture(node), set(node.runtime.groups), counted(node)
    node.runtime.received(source, envelopes)
    assert picture(node) == before
    assert set(node.runtime.groups) == groups
    return {
        reason: count - counts.get(reason, 0)
        for reason, count in counted(node).items()
        if count != counts.get(reason, 0)
    }


KINDS: dict[type[Message], dict[str, Any]] = {
    Heartbeat: {"commit": 0, "round": 9},
    CampaignNow: {"last_index": 1},
    ReadRequest: {"token": 1},
    Removed: {"index": 1},
    RejoinRequest: {},
    VoteRequest: {"pre": True, "last_index": 1, "last_term": 1},
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_messages_for_groups_that_are_not_here_make_none(kind: type[Message]) -> None:
    _, node = asleep()
    message: Any = kind(sender=1, to=2, term=9, incarnation=1, **KINDS[kind])
    assert deliver(node, 1, Envelope(77, message), Envelope(2**32 - 1, message)) == {"unknown_group": 2}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("source", [3, 9])
def test_a_member_that_speaks_from_another_node_is_not_heard(kind: type[Message], source: int) -> None:
    _, node = asleep()
    message: Any = kind(sender=1, to=2, term=9, incarnation=1, **KINDS[kind])
    assert deliver(node, source, Envelope(1, message)) == {"replica_not_on_node": 1}


def test_members_of_the_past_are_not_followed() -> None:
    """Ids below the next one that are no members are those of removed replicas, or of nobody."""
    _, node = asleep()
    node.runtime.groups[1]._homes.follow(node.runtime.groups[1].status().configuration)
    dropped = deliver(node, 9, Envelope(1, beat(sender=0)), Envelope(1, beat(sender=2)))
    assert sum(dropped.values()) == 2


GARBAGE = [
    NodeHeartbeat(incarnation=1, rows=(Envelope(77, beat()), Envelope(1, beat(sender=3)), Envelope(1, beat(to=9)))),
    NodeHeartbeat(incarnation=1, rows=(Envelope(1, beat(term=0)), Envelope(2, beat(term=HUGE)))),
    NodeHeartbeat(incarnation=1, rows=(Envelope(1, beat(commit=HUGE)), Envelope(1, beat(incarnation=HUGE)))),
    NodeHeartbeatAnswer(incarnation=1, rows=(Envelope(77, echo()), Envelope(1, echo(sender=3)))),
    NodeHeartbeatAnswer(incarnation=1, rows=(Envelope(1, echo(match_index=HUGE)), Envelope(1, echo(term=0)))),
]


@pytest.mark.parametrize("message", GARBAGE, ids=lambda message: f"{type(message).__name__} {len(message.rows)}")
def test_rows_of_garbage_are_counted_one_by_one(message: NodeHeartbeat | NodeHeartbeatAnswer) -> None:
    _, node = asleep()
    assert sum(deliver(node, 1, Envelope(0, message)).values()) == len(message.rows)


@pytest.mark.parametrize(
    "message",
    [
        NodeHeartbeat(incarnation=1, asleep=2**32 - 1, asleep_hash=2**64 - 1),
        NodeHeartbeat(incarnation=1, asleep=0, asleep_hash=7),
        NodeHeartbeat(incarnation=1, listed=True),
        NodeHeartbeat(
            incarnation=1,
            asleep=5,
            listed=True,
            asleep_rows=tuple(AsleepRow(group, 1, 2, HUGE, HUGE) for group in range(ROWS_MAX)),
        ),
        NodeHeartbeat(incarnation=1, listed=True, asleep_rows=(AsleepRow(1, 1, 2, 1, 1),) * ROWS_MAX),
        NodeHeartbeatAnswer(incarnation=1, differs=True),
        NodeHeartbeatAnswer(incarnation=1, differing=tuple(range(ROWS_MAX))),
        NodeHeartbeatAnswer(incarnation=1, differing=(2**32 - 1,) * ROWS_MAX),
    ],
    ids=["many", "a hash of none", "an empty list", "a long list", "one many times", "differs", "names", "no name"],
)
@pytest.mark.parametrize("source", [1, 3, 99], ids=["leader", "follower", "stranger"])
def test_what_is_said_of_groups_asleep_at_most_wakes_them(message: Any, source: int) -> None:
    """An election costs more: nobody campaigns for it, and a leader that is there goes on."""
    cluster, node = asleep()
    deliver(node, source, Envelope(0, message))
    cluster.run(1000)
    assert [handle.leader()[2] for handle in node.runtime.groups.values()] == [1, 1]
    cluster.commit(b"on")
    assert all(other.machine.commands == [b"on"] for other in cluster.nodes.values())
    cluster.until(lambda: all(handle.asleep for handle in cluster.handles()), ms=10_000)


def test_pairs_inside_rows_are_no_messages_of_groups() -> None:
    _, node = asleep()
    inner = Envelope(1, NodeHeartbeat(incarnation=1, sender=1, to=2, term=1))
    assert deliver(node, 1, Envelope(0, NodeHeartbeat(incarnation=1, rows=(inner,)))) == {"not_for_a_group": 1}


@pytest.mark.parametrize("seed", range(4))
def test_noise_between_nodes_never_crashes(seed: int) -> None:
    draw = random.Random(seed)

    def number() -> int:
        return draw.choice([0, 1, 2, 3, 4, 2**31, HUGE - 1, HUGE, 2**64 - 1, draw.randrange(8)])

    def noise() -> NodeHeartbeat | NodeHeartbeatAnswer:
        fields = {"sender": number(), "to": number(), "term": draw.choice([0, 1, 1, 1, 2]), "incarnation": 1}
        group = draw.choice([0, 1, 1, 2, 3])
        if draw.random() < 0.5:
            rows = tuple(Envelope(group, beat(**fields, round=number())) for _ in range(draw.randrange(4)))
            listed = tuple(
                AsleepRow(draw.randrange(4), number(), number(), number(), number()) for _ in range(draw.randrange(4))
            )
            return NodeHeartbeat(
                incarnation=draw.choice([1, 1, number()]),
                rows=rows,
                asleep=number(),
                asleep_hash=number(),
                listed=draw.random() < 0.5,
                asleep_rows=listed,
            )
        answers = tuple(
            Envelope(group, echo(**fields, match_index=number()), b"note") for _ in range(draw.randrange(4))
        )
        return NodeHeartbeatAnswer(
            incarnation=draw.choice([1, 1, number()]),
            rows=answers,
            differs=draw.random() < 0.5,
            differing=tuple(draw.randrange(5) for _ in range(draw.randrange(4))),
        )

    cluster, node = asleep()
    for _ in range(300):
        node.runtime.received(draw.choice([1, 3, 9]), [Envelope(number() % 2**32, noise())])
        if draw.random() < 0.3:
            cluster.tick()
    cluster.run(3000)
    cluster.commit(b"still here")
    assert all(other.machine.commands == [b"still here"] for other in cluster.nodes.values())
