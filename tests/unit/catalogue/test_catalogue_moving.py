"""Replicas carried from node to node: each step once, whatever crashed before, and by whichever leader."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from paramserver.catalogue import moving, planning
from paramserver.catalogue.placement import FIRST_REPLICA, Reshape, WantedMove
from paramserver.catalogue.state import NodeState
from paramserver.wire.errors import Reason, Refusal
from tests.unit.catalogue.shape import FakeCluster, uuid

STEPS_MAX = 20_000


class Crash(Exception):
    """The leader of group 0 dies here."""


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "POLL_MS", 0)
    monkeypatch.setattr(moving, "BACK_OFF_MS", (0,))


async def drive(cluster: FakeCluster, done: Callable[[], bool] | None = None) -> int:
    """Leaders of group 0, one after the other, until nothing is left to do; how many there were."""
    over = done or cluster.quiet
    lives = 0
    while True:
        lives += 1
        crashed = asyncio.Event()
        real = cluster.before

        def event(what: str, real: Callable[[str], None] = real, crashed: asyncio.Event = crashed) -> None:
            if crashed.is_set():
                raise asyncio.CancelledError  # a dead leader does nothing more
            try:
                real(what)
            except Crash:
                crashed.set()
                raise asyncio.CancelledError from None

        cluster.before = event
        mover = cluster.mover()
        mover.poke()
        for _ in range(STEPS_MAX):
            if crashed.is_set() or over():
                break
            await asyncio.sleep(0)
        else:
            raise AssertionError(f"not done: {cluster.placement.moves}, {mover.troubles()}")
        mover.end()
        await asyncio.sleep(0)
        cluster.before = real
        if not crashed.is_set():
            return lives


def moved(cluster: FakeCluster, group: int = 1, from_node: int = 3, to_node: int = 4) -> None:
    cluster.reshape(Reshape("test", (cluster.start(to_node),)))
    wanted = WantedMove(group, to_node, from_node, from_node, uuid(from_node), cluster.picture(group).next_replica)
    assert cluster.reshape(Reshape("test", (), (wanted,))).ok


def test_a_move_adds_a_learner_then_swaps_voters_then_deletes_the_old_replica() -> None:
    cluster = FakeCluster()
    moved(cluster)
    asyncio.run(drive(cluster))
    learner, swapped = cluster.groups[1].log
    assert (learner.voters, learner.learners) == ((1, 2, 3), (FIRST_REPLICA,))
    assert (swapped.voters, swapped.learners) == ((1, 2, FIRST_REPLICA), ())
    assert (uuid(3), 1, 3) in cluster.tombstones
    assert cluster.nodes_of(1) == {1, 2, 4}
    cluster.check()


def test_every_crash_of_the_driver_is_resumed_by_the_next_leader() -> None:
    """Fail the n-th thing that is done, for n = 1, 2, 3 ... until no fault fires."""
    for number in range(1, 1000):
        cluster = FakeCluster()
        moved(cluster)
        count = 0

        def fail(what: str, number: int = number) -> None:
            nonlocal count
            count += 1
            if count == number:
                raise Crash

        cluster.before = fail
        asyncio.run(drive(cluster))
        assert cluster.nodes_of(1) == {1, 2, 4}, number
        assert len(cluster.groups[1].log) == 2, f"crash {number}: {cluster.groups[1].log}"
        assert (uuid(3), 1, 3) in cluster.tombstones
        cluster.check()
        if count < number:
            assert number > 12
            return
    raise AssertionError("faults never ended")


def test_a_target_that_is_down_is_waited_for() -> None:
    cluster = FakeCluster()
    moved(cluster)
    cluster.down.add(4)

    async def story() -> None:
        asks = 0

        def asked(what: str) -> None:
            nonlocal asks
            asks += what == "create"
            if asks == 3:
                cluster.down.discard(4)

        cluster.before = asked
        await drive(cluster)

    asyncio.run(story())
    assert cluster.nodes_of(1) == {1, 2, 4}


def test_a_learner_that_lags_is_not_promoted_and_the_trouble_says_how_far_it_is() -> None:
    cluster = FakeCluster()
    moved(cluster)
    cluster.slow.add(4)

    async def story() -> None:
        mover = cluster.mover()
        mover.poke()
        for _ in range(STEPS_MAX):
            if any("holds 0 of 100" in line for line in mover.troubles()):
                break
            await asyncio.sleep(0)
        else:
            raise AssertionError(mover.troubles())
        assert cluster.nodes_of(1) == {1, 2, 3}
        cluster.groups[1].match[FIRST_REPLICA] = 100
        mover.end()
        await drive(cluster)

    asyncio.run(story())
    assert cluster.nodes_of(1) == {1, 2, 4}


def test_a_cancelled_move_takes_the_learner_out_and_deletes_it() -> None:
    cluster = FakeCluster()
    moved(cluster)
    cluster.slow.add(4)

    async def story() -> None:
        await drive(cluster, lambda: bool(cluster.groups[1].configuration.learners))
        assert cluster.reshape(Reshape("test", cancel=(1,))).ok
        await drive(cluster)

    asyncio.run(story())
    assert cluster.nodes_of(1) == {1, 2, 3}
    assert (uuid(4), 1, FIRST_REPLICA) in cluster.tombstones
    assert not cluster.groups[1].configuration.learners
    cluster.check()


def test_the_leader_hands_over_before_it_is_taken_out() -> None:
    cluster = FakeCluster()
    moved(cluster, group=3)  # node 3 leads group 3
    leaders: list[int] = []
    cluster.before = lambda what: leaders.append(cluster.groups[3].leader) if what == "changed" else None
    asyncio.run(drive(cluster))
    assert leaders[-1] in (1, 2)
    assert 3 not in cluster.groups[3].configuration.voters


def test_a_dead_node_is_replaced_by_another_and_removed() -> None:
    cluster = FakeCluster()
    fourth = cluster.start(4)
    cluster.reshape(Reshape("add", (fourth,)))
    cluster.down.add(3)

    async def story() -> None:
        survey = await cluster.survey(cluster.machine.nodes.values(), cluster.machine.groups)
        plan = planning.replace_node(cluster.placement, survey, 3, fourth)
        assert plan.reshape is not None
        assert cluster.reshape(plan.reshape).ok
        await drive(cluster, lambda: cluster.placement.nodes[3].state is NodeState.REMOVED)

    asyncio.run(story())
    assert all(cluster.nodes_of(group) == {1, 2, 4} for group in cluster.groups)
    assert not cluster.placement.leftovers, "a folder that never comes back holds nothing to delete"
    cluster.check()


def test_a_wiped_node_comes_back_under_its_number_with_new_replicas() -> None:
    cluster = FakeCluster()
    wiped = cluster.start(3, life=1)

    async def story() -> None:
        survey = await cluster.survey(cluster.machine.nodes.values(), cluster.machine.groups)
        assert survey.up == {1, 2}
        plan = planning.replace_node(cluster.placement, survey, 3, wiped)
        assert plan.reshape is not None
        assert cluster.reshape(plan.reshape).ok
        await drive(cluster)

    asyncio.run(story())
    for group in cluster.groups:
        assert cluster.nodes_of(group) == {1, 2, 3}
        assert 3 not in cluster.groups[group].configuration.voters, "the old replica's id never comes back"
    cluster.check()


def test_every_node_is_told_of_a_change() -> None:
    cluster = FakeCluster()
    cluster.reshape(Reshape("add", (cluster.start(4),)))

    async def story() -> None:
        await drive(cluster, lambda: len(cluster.told) == 4)

    asyncio.run(story())
    assert set(cluster.told.values()) == {cluster.placement.directory}


@pytest.mark.parametrize("seed", range(30))
def test_random_drains_and_replacements_through_crashes_end_whole(seed: int) -> None:
    source = random.Random(seed)
    cluster = FakeCluster(source.choice((3, 4, 5)))
    first = len(cluster.folders)
    lives: dict[int, int] = {}
    crashes = 0

    def event(what: str) -> None:
        nonlocal crashes
        if crashes < 40 and source.random() < 0.05:
            crashes += 1
            raise Crash

    async def story() -> None:
        for number in range(6):
            cluster.before = event
            survey = await cluster.survey(cluster.machine.nodes.values(), cluster.machine.groups)
            node = source.choice(sorted(survey.up))
            wish = source.choice(("add", "drain", "replace", "wipe"))
            try:
                if wish == "add":
                    plan = planning.Plan(Reshape("add", (cluster.start(first + 1 + number),)))
                elif wish == "drain":
                    plan = planning.drain(cluster.placement, survey, node)
                elif wish == "replace":
                    fresh = cluster.start(first + 1 + number)
                    cluster.down.add(node)
                    survey = await cluster.survey(cluster.machine.nodes.values(), cluster.machine.groups)
                    plan = planning.replace_node(cluster.placement, survey, node, fresh)
                else:
                    lives[node] = lives.get(node, 0) + 1
                    fresh = cluster.start(node, lives[node])
                    survey = await cluster.survey(cluster.machine.nodes.values(), cluster.machine.groups)
                    plan = planning.replace_node(cluster.placement, survey, node, fresh)
            except Refusal as refusal:
                if refusal.reason not in (Reason.QUORUM, Reason.CONFLICT):
                    raise
                cluster.down.clear()
                if wish == "wipe":
                    return  # its folder is gone, and nobody can give it another: the others hold what there is
                continue
            if plan.reshape is not None:
                answer = cluster.reshape(plan.reshape)
                assert answer.ok or answer.reason == Reason.CONFLICT, answer
            await drive(cluster)
            cluster.check()

    asyncio.run(story())
