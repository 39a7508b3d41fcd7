"""Memory that nothing is written to is looked at, too (RULES D1)."""

from __future__ import annotations

import pytest

from paramserver.shard.scrubbing import BLOCKS_A_TURN, ELAPSED_MS_MAX, Finding, Scrubber, check_block
from paramserver.wire.spec import momentum
from tests.unit.shard.kit import MODEL, Lane, flip, machine_with, model_spec, opening_commands, same_bits
from tests.unit.shard.replicas import Replicas


@pytest.mark.parametrize("replica", [1, 2])
@pytest.mark.parametrize("part", ["weights", "version before", "slot"])
def test_a_flipped_bit_of_a_block_that_nobody_touches_is_found(replica: int, part: str) -> None:
    replicas = Replicas(optimizer=momentum(0.1, 0.9))
    for step in range(2):
        replicas.step(step)
    replicas.talk()
    shard = replicas[replica].machine.shards[MODEL]
    values = {
        "weights": shard.published[2].weights,
        "version before": shard.published[2].previous,
        "slot": shard.private[2].slots[0],
    }[part]
    assert values is not None
    flip(values)
    replicas.pass_time(1200)
    assert len(replicas[replica].distrusted) == 1
    assert "model 7 block 2 version 2" in replicas[replica].distrusted[0]
    others = [node for number, node in replicas.nodes.items() if number != replica]
    assert not any(node.distrusted or node.alarms for node in others)
    replicas.rebuild(replica, after=3)
    replicas.pass_time(2000)
    assert replicas[replica].distrusted == []
    assert same_bits(replicas[replica].weights(2), replicas[3].weights(2))


def test_a_sound_group_is_compared_while_it_rests() -> None:
    replicas = Replicas()
    replicas.step(0)
    replicas.talk()
    compared = replicas[1].leader.counters["digests_compared"]
    replicas.pass_time(3500)
    assert replicas[1].leader.counters["digests_compared"] >= compared + 2 * 3 * 3
    assert not any(node.alarms for node in replicas.nodes.values())


def scrubber(blocks: int, period_ms: int) -> tuple[Scrubber, Lane, list[Finding]]:
    spec = model_spec(blocks=blocks)
    machine = machine_with(opening_commands(spec))
    lane, found = Lane(at_once=False), list[Finding]()
    return Scrubber(lambda: machine.shards, lane, period_ms=period_ms, found=found.extend), lane, found


def test_each_block_has_its_turn_within_the_period_and_the_lane_is_left_in_between() -> None:
    scrub, lane, found = scrubber(blocks=50, period_ms=10_000)
    for now_ms in range(0, 10_001, 1000):
        scrub.tick(now_ms)
        while lane.waiting:
            before = len(found)
            lane.run_one()
            assert len(found) - before <= BLOCKS_A_TURN
            assert len(lane.waiting) <= 1
    assert [finding.key for finding in found] == [(MODEL, block, 0) for block in range(50)]
    assert all(finding.digest is not None and not finding.wrong for finding in found)


def test_a_long_pause_is_not_made_up_for() -> None:
    scrub, lane, found = scrubber(blocks=50, period_ms=100_000)
    scrub.tick(0)
    scrub.tick(10**9)
    lane.run_all()
    assert len(found) <= 50 * ELAPSED_MS_MAX // 100_000


def test_a_slow_lane_gets_no_more_than_one_job() -> None:
    scrub, lane, _ = scrubber(blocks=50, period_ms=1000)
    for now_ms in range(0, 5000, 100):
        scrub.tick(now_ms)
    assert len(lane.waiting) == 1


def test_nothing_is_there_to_look_at() -> None:
    machine = machine_with([])
    lane = Lane()
    scrub = Scrubber(lambda: machine.shards, lane, period_ms=10, found=lambda _: None)
    for now_ms in range(0, 100, 10):
        scrub.tick(now_ms)


def test_values_that_are_not_open_yet_have_nothing_to_compare() -> None:
    spec = model_spec(blocks=2)
    machine = machine_with(opening_commands(spec)[:2])
    shard = machine.shards[MODEL]
    assert [check_block(shard, index).digest for index in range(2)] == [None, None]
    weights = shard.published[0].weights
    assert weights is not None
    flip(weights)
    assert check_block(shard, 0).wrong
