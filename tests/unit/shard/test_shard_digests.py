"""Replicas compare digests on line (RULES D1)."""

from __future__ import annotations

import struct
from collections import Counter

import numpy as np

from paramserver.shard.digests import DigestExchange
from paramserver.shard.options import LeaderOptions
from paramserver.shard.results import Updated
from tests.unit.shard.kit import MODEL, Node, Rank, flip, machine_with, model_spec, opening_commands, started


def pair(**options: int) -> tuple[Node, Node, Rank]:
    node, spec = started(ranks=1, options=LeaderOptions(**options))
    follower = Node(node.log, 2, options=LeaderOptions(**options))
    return node, follower, Rank(node, spec)


def exchange(node: Node, follower: Node) -> None:
    while note := follower.leader.note():
        assert len(note) <= 4096
        node.leader.noted(2, note)


def test_equal_replicas_are_compared_and_nothing_is_said() -> None:
    node, follower, rank = pair()
    for step in range(3):
        rank.push(step, 0, 1, 2)
        node.settle()
        follower.apply()
        exchange(node, follower)
    assert node.leader.counters["digests_compared"] == 9
    assert node.leader.counters["digests_unequal"] == 0
    assert node.alarms == []


def test_one_flipped_bit_is_an_alarm_that_says_where() -> None:
    node, follower, rank = pair()
    rank.push(0, 0, 1, 2)
    node.settle()
    follower.apply()
    exchange(node, follower)
    flip(follower.weights(1))
    for step in (1, 2):
        rank.push(step, 0, 1, 2)
        node.settle()
        follower.apply()
        exchange(node, follower)
    assert node.leader.counters["digests_unequal"] == 2
    assert len(node.alarms) == 1, "the same replica and block is reported once"
    for part in ("group 1", "replica 2", "model 7 block 1 version 2", "equal last at version 1"):
        assert part in node.alarms[0]
    assert node.leader.alarms == node.alarms


def test_a_follower_may_be_ahead_of_the_leader() -> None:
    node, follower, rank = pair()
    rank.push(0, 0)
    node.log.commit()
    follower.apply()
    exchange(node, follower)
    before = node.leader.counters["digests_compared"]
    node.apply()
    assert node.leader.counters["digests_compared"] == before + 1


def test_notes_are_bounded_and_the_oldest_is_dropped() -> None:
    node, follower, rank = pair(digests_backlog=4, note_bytes_max=2 + 36 * 3)
    for step in range(3):
        rank.push(step, 0, 1, 2)
        node.settle()
    follower.apply()
    assert follower.leader.counters["digests_dropped"] == 5
    assert [len(follower.leader.note()) for _ in range(3)] == [2 + 36 * 3, 2 + 36, 0]


def test_a_note_can_be_anything() -> None:
    node, *_ = pair()
    random = np.random.default_rng(2)
    for note in (b"", b"D", b"D\x01x", b"D\x02", *(b"D\x01" + random.bytes(36 * 5) for _ in range(20))):
        node.leader.noted(2, note)
    assert node.leader.counters["notes_malformed"] == 3
    assert node.leader.counters["digests_missed"] == 100


def test_early_digests_are_bounded() -> None:
    node, follower, rank = pair(digests_backlog=2)
    rank.push(0, 0, 1, 2)
    node.log.commit()
    follower.apply()
    exchange(node, follower)
    node.apply()
    assert node.leader.counters["digests_compared"] <= 2


def test_what_is_remembered_is_bounded_also_where_everything_is_in_doubt() -> None:
    """Followers that say nothing, or the wrong thing, or what will be, fill no memory."""
    machine = machine_with(opening_commands(model_spec(blocks=40)))
    counts: Counter[str] = Counter()
    alarms: list[str] = []
    options = LeaderOptions(digests_backlog=8)
    exchange = DigestExchange(
        lambda: machine.shards,
        alarms.append,
        lambda name: counts.update([name]),
        options,
        replica=1,
        voters=lambda: (1, 2, 3),
    )
    shard = machine.shards[MODEL]
    for block, published in enumerate(shard.published):
        assert published.forms is not None
        digest = published.digests[-1][1]
        updated = Updated(
            model=MODEL,
            block=block,
            step=0,
            version=0,
            view=1,
            digest=digest,
            forms=published.forms,
        )
        exchange.applied(updated, leading=True)
        assert len(exchange._seen) <= 8
    for version in range(3):
        for block in range(40):
            exchange.noted(2, struct.pack("<2sQIQ16s", b"D\x01", MODEL, block, version, b"something else  "))
            assert len(exchange._seen) <= 8
            assert len(exchange._doubts) <= 8
    assert exchange.doubt
    assert counts["digests_dropped"]
    assert len(exchange.questions()) <= 4
