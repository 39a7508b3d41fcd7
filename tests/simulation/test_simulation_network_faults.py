"""Faults of networks (FAULTS 12 to 15), one by one, and what they may cost."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from consensus.core.interface import NodeId, Role
from consensus.runtime.interface import ReadOutcome, Refused
from consensus.simulation.node import SimulatedNode
from consensus.simulation.plans import _draw_storm
from consensus.simulation.profile import Profile
from consensus.simulation.schedule import MS
from tests.simulation.single_fault import (
    ELECTION_MS,
    TIMEOUT_MS,
    Run,
    prepare,
)


def cut(run: Run, links: Sequence[tuple[NodeId, NodeId]], to_ms: int) -> None:
    run.cluster.network.cut(links)
    run.at(to_ms, lambda: run.cluster.network.heal(links))


def test_fault_12_a_leader_on_the_minority_side_steps_down_and_answers_no_read() -> None:
    run = prepare()
    answered: list[ReadOutcome] = []
    old: list[SimulatedNode] = []

    def part() -> None:
        leader = run.leader()
        old.append(leader)
        cut(
            run,
            [link for other in run.followers() for link in ((leader.node, other.node), (other.node, leader.node))],
            2400,
        )
        for at_ms in range(1010, 2390, 60):
            run.at(at_ms, lambda: leader.handles[1].read_index(answered.append))

    def stepped_down() -> None:
        status = run.status(old[0])
        assert status is not None
        assert status.role is not Role.LEADER

    run.at(1000, part)
    run.at(1000 + 2 * TIMEOUT_MS, stepped_down)
    run.run((1000, 2400))
    assert len(answered) >= 20
    assert {type(outcome) for outcome in answered} == {Refused}


LINKS_OF_THREE: dict[str, Callable[[int, int, int], list[tuple[int, int]]]] = {
    "leader and a follower can't see each other": lambda a, b, c: [(a, b), (b, a)],
    "two followers can't see each other": lambda a, b, c: [(b, c), (c, b)],
    "a follower is not heard": lambda a, b, c: [(b, a), (b, c)],
    "a follower hears nobody": lambda a, b, c: [(a, b), (c, b)],
    "the leader is not heard by one": lambda a, b, c: [(a, b)],
    "the leader does not hear one": lambda a, b, c: [(b, a)],
    "the leader is not heard": lambda a, b, c: [(a, b), (a, c)],
    "the leader hears nobody": lambda a, b, c: [(b, a), (c, a)],
}


@pytest.mark.parametrize("shape", LINKS_OF_THREE)
def test_fault_13_partial_partitions_cost_at_most_one_election_and_inflate_no_term(shape: str) -> None:
    run = prepare(load_ms=4000)
    terms: list[int] = []

    def part() -> None:
        terms.append(run.term())
        leader, (second, third) = run.leader(), run.followers()
        cut(run, LINKS_OF_THREE[shape](leader.node, second.node, third.node), 3000)

    run.at(1000, part)
    run.at(3900, lambda: terms.append(run.term()))
    run.run((1000, 3000))
    # One when it begins, and where the healed one comes back at most one more.
    assert len(run.elections(1000, 3000)) <= 1
    assert terms[1] - terms[0] <= 2
    assert run.acknowledged(1000 + ELECTION_MS, 3000) > 20


@pytest.mark.parametrize("seed", range(3))
def test_fault_14_links_clogged_one_by_one_change_leaders_a_bounded_number_of_times(seed: int) -> None:
    storm = _draw_storm(random.Random(seed), 1000, (1, 2, 3, 4, 5))
    end_ms = max(one.at_ms + one.for_ms for one in storm)
    run = prepare(storm, seed=seed, nodes=5, load_ms=end_ms + 800).run((1000, end_ms))
    assert len(run.elections(1000, end_ms)) <= 2 + (end_ms - 1000) // (2 * TIMEOUT_MS)
    assert run.elections(end_ms + ELECTION_MS) == []


@pytest.mark.parametrize("seed", range(2))
def test_fault_15_loss_duplication_and_seconds_of_delay_make_it_slower_and_never_wrong(seed: int) -> None:
    wild = Profile(
        ordered=False,
        delay_us=(25 * MS, 125 * MS),
        late_permille=20,
        late_us=(100 * MS, 5000 * MS),
        loss_permille=300,
        duplicate_permille=500,
        client_loss_permille=50,
    )
    run = prepare(seed=seed, profile=wild, load_ms=8000)
    run.run((3000, 8000))
    assert run.acknowledged(3000, 8000) > 5, "no livelock"
