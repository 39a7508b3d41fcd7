"""Pulls over several replicas: whom they ask, and what a replica in trouble costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire.errors import Reason, Refusal
from paramserver.wire.frames import BlockFrame
from paramserver.wire.spec import sgd
from tests.unit.worker.fake import CLUSTER, FakeCluster, FakeNetwork
from tests.unit.worker.helpers import gradients, model_of, until
from worker import errors, pull
from worker.client import Client, connect
from worker.model import Model
from worker.replicas import SILENCE_FIRST_S
from worker.retry import RETRIES_AT_ONCE, RETRIES_PER_S

ELEMENTS = 60 * 1024
"""60 blocks of 4 KiB, 20 in each of three groups."""
PIECE_BLOCKS = 4


class Troubled(FakeNetwork):
    """Does with a pull what `does[node]` says."""

    def __init__(
        self, cluster: FakeCluster, does: dict[int, Callable[[list[BlockFrame]], Iterator[BlockFrame]]]
    ) -> None:
        super().__init__(cluster)
        self._does = does

    async def pull(self, address: str, request: Any, timeout_s: float) -> AsyncGenerator[BlockFrame, None]:
        node = next(node for node, known in self.cluster.addresses.items() if known == address)
        frames = super().pull(address, request, timeout_s)
        found = [frame async for frame in frames]
        for frame in self._does.get(node, iter)(found):
            yield frame


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull, "PIECE_BLOCKS_MAX", PIECE_BLOCKS)


def client_of(cluster: FakeCluster, does: dict[int, Any] | None = None, **options: Any) -> Client:
    network: Any = partial(Troubled, cluster, does if does is not None else {})
    return connect(list(cluster.addresses.values()), network=network, **{"timeout": 5.0, **options})


def large(client: Client, **options: Any) -> Model:
    values = {"w": np.arange(ELEMENTS, dtype=np.float32)}
    given = {"optimizer": sgd(0.5), "initial": values, "block_bytes": 4096, "rank": 0, **options}
    return client.model("large", {"w": (ELEMENTS,)}, **given)


def served(cluster: FakeCluster) -> Counter[int]:
    """Node -> blocks it was asked for."""
    counts: Counter[int] = Counter()
    for node, request in cluster.pulls:
        counts[node] += len(request.blocks)
    return counts


def check(model: Model, weights: Any) -> None:
    assert np.array_equal(weights["w"], np.arange(ELEMENTS, dtype=np.float32))
    assert weights.versions == (0,) * 60


@pytest.mark.parametrize("policy", ["least_outstanding", "round_robin"])
def test_a_pull_of_a_model_is_spread_over_all_replicas(policy: str) -> None:
    cluster = FakeCluster()
    with client_of(cluster, pull_policy=policy) as client:
        model = large(client)
        cluster.pulls.clear()
        check(model, model.pull())
        counts = served(cluster)
        assert sum(counts.values()) == 60, "nothing is asked for twice"
        assert set(counts) == {1, 2, 3}
        assert max(counts.values()) - min(counts.values()) <= 2 * PIECE_BLOCKS
        assert all(len(request.blocks) <= PIECE_BLOCKS for _, request in cluster.pulls)


def test_the_leader_policy_asks_leaders_only() -> None:
    cluster = FakeCluster()
    with client_of(cluster, pull_policy="leader") as client:
        model = large(client)
        until(lambda: len(client.leaders()) == 4)
        cluster.pulls.clear()
        check(model, model.pull())
        assert {(node, request.group) for node, request in cluster.pulls} == {(1, 1), (2, 2), (3, 3)}


def test_nearest_asks_its_own_zone_and_another_when_that_is_gone() -> None:
    cluster = FakeCluster()
    cluster.zones = {1: "east", 2: "west", 3: "east"}
    with client_of(cluster, pull_policy="nearest", zone="west") as client:
        model = large(client)
        until(lambda: client.zones == cluster.zones)
        cluster.pulls.clear()
        check(model, model.pull())
        assert set(served(cluster)) == {2}
        cluster.kill(2)
        cluster.pulls.clear()
        check(model, model.pull())
        assert set(served(cluster)) == {1, 3}
        until(lambda: client.zones == {1: "east", 3: "east"})


def test_a_label_that_makes_no_sense_is_none() -> None:
    cluster = FakeCluster()
    cluster.zones = {1: "a\nb", 2: "x" * 64, 3: "west"}
    with client_of(cluster) as client:
        until(lambda: client.zones)
        assert client.zones == {3: "west"}


def refuse(reason: Reason, **more: Any) -> Callable[[list[BlockFrame]], Iterator[BlockFrame]]:
    def does(frames: list[BlockFrame]) -> Iterator[BlockFrame]:
        raise Refusal(reason, "not here", **more)
        yield

    return does


def break_off(frames: list[BlockFrame]) -> Iterator[BlockFrame]:
    """One block, and then the connection breaks."""
    yield frames[0]
    raise Refusal(Reason.NOT_READY, "Socket closed", code="UNAVAILABLE")


def damage(frames: list[BlockFrame]) -> Iterator[BlockFrame]:
    for frame in frames:
        yield BlockFrame(
            block=frame.block,
            step=0,
            version=frame.version,
            status=frame.status,
            crc=frame.crc ^ 1,
            payload=frame.payload,
        )


def end_early(frames: list[BlockFrame]) -> Iterator[BlockFrame]:
    yield from frames[:2]


TROUBLES = {
    "it does not know the model yet": refuse(Reason.NOT_FOUND),
    "it is behind": refuse(Reason.NOT_READY),
    "it is full": refuse(Reason.BUSY, retry_after_ms=50),
    "it has passed the version": refuse(Reason.GONE),
    "it is being rebuilt": refuse(Reason.DAMAGED),
    "it does not get there in time": refuse(Reason.DEADLINE),
    "it dies under way": break_off,
    "its blocks are damaged": damage,
    "it ends early": end_early,
}


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("policy", ["least_outstanding", "round_robin", "leader"])
def test_a_replica_in_trouble_costs_a_retry_elsewhere(trouble: str, policy: str) -> None:
    cluster = FakeCluster()
    does: dict[int, Any] = {}
    with client_of(cluster, does, pull_policy=policy) as client:
        model = large(client)
        does.update({1: TROUBLES[trouble]})
        cluster.pulls.clear()
        check(model, model.pull())
        assert served(cluster)[1], "it was asked"
        assert sum(served(cluster).values()) <= 60 + served(cluster)[1], "others were asked for what it did not give"
        assert not model.why()


def test_after_its_failure_a_replica_is_left_alone_for_a_while() -> None:
    cluster = FakeCluster()
    does: dict[int, Any] = {}
    with client_of(cluster, does) as client:
        model = large(client)
        does.update({2: refuse(Reason.NOT_READY)})
        model.pull()
        cluster.pulls.clear()
        check(model, model.pull())
        assert 2 not in served(cluster)


def test_the_reason_told_is_that_of_a_replica_that_answers() -> None:
    cluster = FakeCluster()
    does: dict[int, Any] = {}
    with client_of(cluster, does) as client:
        model = large(client)
        does[2] = refuse(Reason.UNCONFIRMED)
        cluster.kill(1)
        cluster.kill(3)
        cluster.pulls.clear()
        with pytest.raises(errors.DeadlineExceeded, match="group 1: not here; group 2: not here; group 3: not here"):
            model.pull(timeout=0.3)
        assert set(served(cluster)) == {2}


def test_replicas_that_are_all_in_trouble_are_not_asked_faster_than_the_budget_allows() -> None:
    cluster = FakeCluster()
    does: dict[int, Any] = {}
    with client_of(cluster, does) as client:
        model = large(client)
        does.update(dict.fromkeys((1, 2, 3), refuse(Reason.NOT_READY)))
        cluster.pulls.clear()
        with pytest.raises(errors.DeadlineExceeded, match="not here"):
            model.pull(timeout=1.0)
        at_first = 3 * pull.PIECES_A_REPLICA * len(model.groups)
        assert at_first < len(cluster.pulls) <= at_first + RETRIES_AT_ONCE + RETRIES_PER_S + 10
        does.clear()
        check(model, model.pull())


def test_a_version_is_gone_only_when_no_replica_has_it() -> None:
    cluster = FakeCluster()
    does: dict[int, Any] = {1: refuse(Reason.GONE), 2: refuse(Reason.GONE)}
    with client_of(cluster, does) as client:
        model = large(client)
        check(model, model.pull(version=0))
        does[3] = refuse(Reason.GONE)
        with pytest.raises(errors.Gone):
            model.pull(version=0)
        cluster.kill(3)
        del does[3]
        with pytest.raises(errors.Gone):
            model.pull(version=0)


def test_a_silent_replica_is_left_for_another() -> None:
    import asyncio

    class Silent(Troubled):
        async def pull(self, address: str, request: Any, timeout_s: float) -> AsyncGenerator[BlockFrame, None]:
            if address == self.cluster.addresses[2]:
                self.cluster.pulls.append((2, request))
                await asyncio.Event().wait()
            async for frame in super().pull(address, request, timeout_s):
                yield frame

    cluster = FakeCluster()
    network: Any = lambda: Silent(cluster, {})  # noqa: E731
    with connect(list(cluster.addresses.values()), network=network, timeout=5.0) as client:
        model = large(client)
        cluster.pulls.clear()
        check(model, model.pull(timeout=4 * SILENCE_FIRST_S))
        assert served(cluster)[2]


def test_a_version_that_one_has_dropped_may_be_on_its_way_at_another() -> None:
    """Gone here and not there yet elsewhere: the rank that is a step behind goes on asking."""
    cluster = FakeCluster()
    behind = {"left": 40}

    def catches_up(frames: list[BlockFrame]) -> Iterator[BlockFrame]:
        if behind["left"]:
            behind["left"] -= 1
            raise Refusal(Reason.NOT_READY, "not here")
        yield from frames

    does: dict[int, Any] = {}
    with client_of(cluster, does) as client:
        model = large(client)
        does.update({1: refuse(Reason.GONE), 2: refuse(Reason.GONE), 3: catches_up})
        check(model, model.pull(version=0))
    assert behind["left"] == 0


@pytest.mark.parametrize("trouble", ["it dies under way", "it is full", "it ends early"])
def test_what_is_on_its_way_counts_until_it_is_there_or_will_not_come(trouble: str) -> None:
    cluster = FakeCluster()
    most: Counter[str] = Counter()
    with client_of(cluster, does := {}) as client:
        model = large(client)
        replicas = client._replicas

        def noted(frames: list[BlockFrame]) -> Iterator[BlockFrame]:
            for address in cluster.addresses.values():
                most[address] = max(most[address], replicas.outstanding(address))
            yield from frames

        does.update({1: noted, 2: TROUBLES[trouble], 3: noted})
        check(model, model.pull())
        assert most[cluster.addresses[1]] >= PIECE_BLOCKS * 4096, "one piece at least"
        assert [replicas.outstanding(address) for address in cluster.addresses.values()] == [0, 0, 0]


def test_servers_at_a_bound_are_left_alone_by_the_next_pull_too() -> None:
    cluster = FakeCluster()
    does: dict[int, Any] = dict.fromkeys((1, 2, 3), refuse(Reason.BUSY, retry_after_ms=60_000))
    with client_of(cluster) as client:
        model = large(client)
    with client_of(cluster, does) as client:
        model = client.model("large")
        for asked in (True, False):
            cluster.pulls.clear()
            with pytest.raises(errors.ParameterServerError):
                model.pull(timeout=0.1)
            assert bool(cluster.pulls) is asked


@pytest.mark.parametrize("most", [3, 6, 64])
def test_pieces_are_on_their_way_side_by_side_and_no_more_than_may_be(most: int, monkeypatch: Any) -> None:
    import asyncio

    monkeypatch.setattr(pull, "PIECES_MAX", most)
    now, seen = Counter[int](), Counter[int]()

    class Counting(Troubled):
        async def pull(self, address: str, request: Any, timeout_s: float) -> AsyncGenerator[BlockFrame, None]:
            now[0] += 1
            seen[0] = max(seen[0], now[0])
            try:
                await asyncio.sleep(0.005)
                async for frame in super().pull(address, request, timeout_s):
                    yield frame
            finally:
                now[0] -= 1

    cluster = FakeCluster()
    network: Any = lambda: Counting(cluster, {})  # noqa: E731
    with connect(list(cluster.addresses.values()), network=network, timeout=5.0) as client:
        model = large(client)
        seen.clear()
        check(model, model.pull())
    pieces = 60 // PIECE_BLOCKS
    assert seen[0] == min(most, pieces)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"version": 7}, "block 0 at version 7"), ({"block": 59}, "block 59, which was not asked for")],
)
def test_a_server_that_sends_something_else_is_noticed(wrong: dict[str, int], words: str) -> None:
    cluster = FakeCluster()
    does: dict[int, Any] = {}

    def sends(frames: list[BlockFrame]) -> Iterator[BlockFrame]:
        for frame in frames:
            yield replace(frame, **wrong) if frame.block == 0 else frame  # type: ignore[arg-type]

    with client_of(cluster, does) as client:
        model = large(client)
        does.update(dict.fromkeys((1, 2, 3), sends))
        with pytest.raises(errors.ProtocolError, match=words):
            model.pull(version=0)


def test_what_a_push_returns_stays_on_its_stream() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        cluster.pulls.clear()
        model.push_pull(gradients(0)).result()
        assert not cluster.pulls


def test_a_server_says_its_zone_in_the_description_and_in_its_announcements() -> None:
    from worker.membership import Cluster

    described = pb.ClusterDescription(cluster=CLUSTER, node=2, zone="west")
    for node in (1, 2):
        described.nodes.add(node=node, address=f"h:{node}")
    cluster = Cluster(CLUSTER, {}, {})
    assert cluster.learn(described)
    assert cluster.zones == {"h:2": "west"}
    cluster.stands("h:1", "east")
    described.nodes[0].address = "h:9"
    described.zone = ""
    assert cluster.learn(described)
    assert cluster.zones == {}, "another server at another address; and node 2 has none any more"
