"""Bytes in open sums are bounded over all groups of a node, and no model waits for another's ranks (RULES S5)."""

from __future__ import annotations

import random

import pytest

from paramserver.shard.options import LeaderOptions
from paramserver.shard.window import SumWindow
from tests.unit.shard.kit import ELEMENTS, Log, Node, Rank, expected_weights, model_spec, opening_commands, same_bits

BLOCK = 4 * ELEMENTS


def leading(room: SumWindow, *, ranks: int = 2, blocks: int = 6) -> tuple[Node, list[Rank]]:
    spec = model_spec(ranks=ranks, blocks=blocks)
    log = Log()
    log.add(*opening_commands(spec))
    node = Node(log, options=LeaderOptions(window_blocks=blocks))
    node.leader.room = room
    node.lead()
    return node, [Rank(node, spec, rank) for rank in range(ranks)]


def test_a_rank_that_runs_ahead_takes_no_more_than_the_nodes_window() -> None:
    room = SumWindow(2 * BLOCK)
    node, (fast, slow) = leading(room)
    fast.push(0, *range(6))
    assert room.bytes == 2 * BLOCK
    assert fast.held
    assert len(fast.queue) == 3, "two are taken, one is held at its stream"
    slow.push(0, *range(6))
    node.settle()
    assert node.versions() == [1] * 6
    assert room.bytes == 0
    assert room.bytes_most == 3 * BLOCK, "the lowest block is always taken"


def test_a_group_that_waits_for_room_goes_on_when_another_gives_some() -> None:
    room = SumWindow(2 * BLOCK)
    one, (fast, slow) = leading(room)
    other, (left, right) = leading(room)
    fast.push(0, 0, 1)
    left.push(0, 0, 1)
    assert room.bytes == 3 * BLOCK, "two of the first, and the lowest of the second"
    assert left.held
    slow.push(0, 0, 1)
    assert not left.held, "it was told of the room"
    right.push(0, 0, 1)
    for node in (one, other):
        node.settle()
        assert node.versions()[:2] == [1, 1]
    assert room.bytes == 0


@pytest.mark.parametrize("ending", ["deposed", "view", "closed", "rejected"])
def test_room_comes_back_however_a_sum_ends(ending: str) -> None:
    room = SumWindow(8 * BLOCK)
    node, (rank, other) = leading(room)
    rank.push(0, 0, 1, 2)
    assert room.bytes == 3 * BLOCK
    if ending == "deposed":
        node.leader.deposed(2)
    elif ending == "rejected":
        other.push(0, 0, crc=1)
        assert room.bytes == 3 * BLOCK, "what was rejected takes none"
        node.leader.deposed(2)
    elif ending == "view":
        node.leader.restored(node.applied)
    else:
        rank.stream.close()
        assert room.bytes == 3 * BLOCK, "what was taken stays taken"
        node.leader.deposed(2)
    assert room.bytes == 0


def test_what_workers_sent_that_are_all_gone_leaves_the_room_to_others() -> None:
    """It stayed until the model's ranks were taken up again: jobs given up for good slowed down all others."""
    room = SumWindow(4 * BLOCK)
    node, ranks = leading(room, ranks=3)
    other, (left, right) = leading(room)
    for rank in ranks[:2]:
        rank.push(0, 0, 1)
    left.push(0, 0, 1, 2)
    assert left.held, "the lowest goes always"
    assert room.bytes == 5 * BLOCK
    ranks[0].stream.close()
    ranks[2].stream.close()
    assert room.bytes == 5 * BLOCK, "one of them is there, and waits"
    ranks[1].stream.close()
    assert not left.held
    assert room.bytes == 3 * BLOCK
    right.push(0, 0, 1, 2)
    for rank in (Rank(node, ranks[0].spec, number) for number in range(3)):
        rank.push(0, *range(6))
    for one in (node, other):
        one.settle()
    assert node.versions() == [1] * 6
    for block in range(6):
        assert same_bits(node.weights(block), expected_weights(ranks[0].spec, block, 1))
    assert room.bytes == 0


def test_a_sum_that_is_not_whole_after_all_is_let_go_too() -> None:
    room = SumWindow(100 * BLOCK)
    node, (rank, other) = leading(room)
    node.lane.at_once = False
    rank.push(0, 0)
    other.push(0, 0, crc=1)
    for one in (rank, other):
        one.stream.close()
    assert room.bytes == 2 * BLOCK, "it is whole"
    node.lane.run_all()
    assert room.bytes == 0


def test_a_sum_that_is_whole_is_proposed_although_everybody_is_gone() -> None:
    node, ranks = leading(SumWindow(100 * BLOCK))
    node.lane.at_once = False
    for rank in ranks:
        rank.push(0, 0)
        node.lane.run_one()
        rank.push(0, 1)
    for rank in ranks:
        rank.stream.close()
    node.lane.run_all()
    node.settle()
    assert node.versions()[:2] == [1, 1]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_window_everybody_gets_through(seed: int) -> None:
    """Groups with ranks in any turn, a window of less than a block up to enough for all: the bits of the plain run."""
    source = random.Random(seed)
    room = SumWindow(source.choice((1, BLOCK, 2 * BLOCK, 5 * BLOCK, 100 * BLOCK)))
    groups = [leading(room, ranks=source.choice((1, 2, 3)), blocks=4) for _ in range(3)]
    most = 0
    for step in range(2):
        turns = [(rank, block) for _, ranks in groups for rank in ranks for block in range(4)]
        order = sorted(range(len(turns)), key=lambda _: source.random())
        queues = {id(rank): [block for one, block in turns if one is rank] for rank, _ in turns}
        for place in order:
            rank, _ = turns[place]
            rank.push(step, queues[id(rank)].pop(0))
            most = max(most, room.bytes)
        for node, _ in groups:
            node.settle()
        for node, _ in groups:  # what one gave another took
            node.settle()
    lowest_of_all = sum(len(ranks) for _, ranks in groups) * BLOCK
    assert most <= room.bytes_max + lowest_of_all
    for node, ranks in groups:
        assert node.versions() == [2] * 4
        for block in range(4):
            assert same_bits(node.weights(block), expected_weights(ranks[0].spec, block, 2))
