"""Leases end by the clock of group 0's leader, and only while it leads (RULES I4, HAZARDS 12)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from paramserver.catalogue.commands import ExpireLease
from paramserver.catalogue.leases import LeaseClock, LeaseKey
from paramserver.catalogue.state import InitializationLease, Lease, Model, Shard
from paramserver.wire.protos import View
from paramserver.wire.spec import ModelSpec, Sgd, TensorSpec

SPEC = ModelSpec("m", (TensorSpec("w", (4,)),), Sgd(0.1), 2)
BARE = Model(
    model=1,
    generation=1,
    spec=SPEC,
    shards=(Shard(1, 0, 1),),
    placement_epoch=1,
    view=View(2, 0, (1, 0)),
    leases=(Lease(), Lease()),
)
HELD = {1: replace(BARE, leases=(Lease(1, 7, held=True), Lease()))}
INITIALISING = {1: replace(BARE, initialization=InitializationLease(epoch=3, session=7))}


@pytest.fixture
def clock() -> LeaseClock:
    return LeaseClock(1000)


def test_a_silent_lease_ends_a_whole_lease_after_leadership_began(clock: LeaseClock) -> None:
    clock.leading(HELD, 5000)
    assert clock.due(HELD, 5999) == []
    assert clock.due(HELD, 6000) == [ExpireLease(1, 0, 1)]


def test_a_renewal_counts_from_when_it_was_seen(clock: LeaseClock) -> None:
    clock.leading(HELD, 0)
    clock.renewed(LeaseKey(1, 0, 1), 900)
    assert clock.due(HELD, 1899) == []
    assert clock.ends_in_ms(LeaseKey(1, 0, 1), 1000) == 900
    assert clock.due(HELD, 1900) == [ExpireLease(1, 0, 1)]


def test_a_renewal_of_an_older_epoch_does_not_keep_the_new_one(clock: LeaseClock) -> None:
    later = {1: replace(BARE, leases=(Lease(2, 8, held=True), Lease()))}
    clock.leading(later, 0)
    clock.renewed(LeaseKey(1, 0, 1), 900)
    assert clock.due(later, 1000) == [ExpireLease(1, 0, 2)]


def test_a_lease_given_meanwhile_counts_from_when_it_is_first_seen(clock: LeaseClock) -> None:
    clock.leading({1: BARE}, 0)
    assert clock.due({1: BARE}, 5000) == []
    assert clock.due(HELD, 5200) == []
    assert clock.due(HELD, 6200) == [ExpireLease(1, 0, 1)]


def test_nothing_ends_without_leadership(clock: LeaseClock) -> None:
    assert clock.due(HELD, 10**9) == []
    clock.leading(HELD, 0)
    clock.deposed()
    clock.renewed(LeaseKey(1, 0, 1), 10)
    assert clock.due(HELD, 10**9) == []


def test_a_new_leader_gives_everybody_a_whole_lease(clock: LeaseClock) -> None:
    clock.leading(HELD, 0)
    clock.deposed()
    clock.leading(HELD, 990)
    assert clock.due(HELD, 1989) == []


def test_the_initialization_lease_ends_too_unless_the_model_is_open(clock: LeaseClock) -> None:
    clock.leading(INITIALISING, 0)
    assert clock.due(INITIALISING, 1000) == [ExpireLease(1, 0, 3, initialization=True)]
    assert clock.due({1: replace(INITIALISING[1], open=True)}, 1000) == []
