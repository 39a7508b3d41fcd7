"""Pulls of versions (RULES R1, FAULTS bad input 15)."""

from __future__ import annotations

from typing import Any

import pytest

from paramserver.shard.options import LeaderOptions
from paramserver.shard.reads import BlockRead, Value, Waiter
from paramserver.wire.checksum import crc32c
from paramserver.wire.errors import Reason, Refusal
from tests.unit.shard.kit import MODEL, PLACEMENT, Log, Node, Rank, create_command, model_spec, started


def want(**more: Any) -> BlockRead:
    fields: dict[str, Any] = {"model": MODEL, "generation": 1, "placement_epoch": PLACEMENT, "block": 0}
    return BlockRead(**(fields | more))


def never() -> None:
    raise AssertionError("woken for nothing")


def value(node: Node, **more: Any) -> Value:
    found = node.leader.read(want(**more), never)
    assert isinstance(found, Value)
    return found


def refusal(node: Node, **more: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        node.leader.read(want(**more), never)
    return caught.value


def test_an_exact_version_is_the_same_bits_on_every_replica() -> None:
    node, spec = started(ranks=1)
    for step in range(3):
        Rank(node, spec).push(step, 0, 1, 2)
        node.settle()
    follower = Node(node.log, 2)
    follower.apply()
    for version in (2, 3):
        here, there = value(node, version=version), value(follower, version=version)
        assert bytes(here.payload) == bytes(there.payload)
        assert here.version == there.version == version
        assert here.crc == there.crc == crc32c(here.payload)


def test_a_version_that_is_no_longer_kept_is_gone() -> None:
    node, spec = started(ranks=1)
    for step in range(3):
        Rank(node, spec).push(step, 0, 1, 2)
        node.settle()
    gone = refusal(node, version=1)
    assert (gone.reason, gone.version) == (Reason.GONE, 3)


def test_a_pull_waits_for_its_version_and_then_gets_exactly_that() -> None:
    node, spec = started(ranks=1)
    woken: list[str] = []
    for name, version in (("one", 1), ("two", 2)):
        assert isinstance(node.leader.read(want(version=version), lambda name=name: woken.append(name)), Waiter)
    Rank(node, spec).push(0, 0, 1, 2)
    node.settle()
    assert woken == ["one"]
    assert value(node, version=1).version == 1
    Rank(node, spec).push(1, 0, 1, 2)
    node.settle()
    assert woken == ["one", "two"]
    assert value(node, version=1).version == 1


def test_a_minimum_version_gets_what_is_committed() -> None:
    node, spec = started(ranks=1)
    Rank(node, spec).push(0, 0, 1, 2)
    node.settle()
    assert value(node, min_version=0).version == 1
    assert value(node, min_version=1).version == 1
    waiter = node.leader.read(want(min_version=2), never)
    assert isinstance(waiter, Waiter)
    waiter.cancel()


def test_waiters_are_bounded_and_make_room_when_cancelled() -> None:
    node, _ = started(options=LeaderOptions(waiters_max=2))
    waiters = [node.leader.read(want(version=10**9), never) for _ in range(2)]
    assert refusal(node, version=10**9).reason is Reason.BUSY
    assert refusal(node, version=10**9).retry_after_ms == LeaderOptions().retry_after_ms
    assert isinstance(waiters[0], Waiter)
    waiters[0].cancel()
    waiters[0].cancel()
    assert isinstance(node.leader.read(want(version=10**9), never), Waiter)
    assert refusal(node, version=10**9).code == "RESOURCE_EXHAUSTED"


def test_a_snapshot_wakes_everybody() -> None:
    node, _ = started()
    woken: list[int] = []
    node.leader.read(want(version=1), lambda: woken.append(1))
    node.leader.deposed(2)
    node.machine.restore(iter([memoryview(bytes(chunk)) for chunk in node.machine.snapshot()]))
    node.leader.restored(99)
    assert woken == [1]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"model": 99}, Reason.NOT_FOUND),
        ({"generation": 2}, Reason.NOT_FOUND),
        ({"block": 3}, Reason.NOT_FOUND),
        ({"placement_epoch": 4}, Reason.STALE_EPOCH),
        ({"placement_epoch": 6}, Reason.STALE_EPOCH),
    ],
)
def test_what_the_leader_does_not_have(fields: dict[str, int], reason: Reason) -> None:
    node, _ = started()
    assert refusal(node, version=0, **fields).reason is reason


def test_a_follower_that_is_behind_says_not_ready() -> None:
    node, _ = started()
    follower = Node(node.log, 2)
    assert refusal(follower, version=0).reason is Reason.NOT_READY
    follower.apply()
    assert refusal(follower, version=0, placement_epoch=6).reason is Reason.NOT_READY
    assert refusal(follower, version=0, placement_epoch=4).epoch == PLACEMENT


def test_a_model_without_values_is_not_open() -> None:
    log = Log()
    log.add(create_command(model_spec()))
    node = Node(log)
    node.lead()
    assert refusal(node, version=0).reason is Reason.NOT_OPEN


def test_exactly_one_kind_of_version_is_asked_for() -> None:
    node, _ = started()
    assert refusal(node).reason is Reason.INVALID
    assert refusal(node, version=1, min_version=1).reason is Reason.INVALID
