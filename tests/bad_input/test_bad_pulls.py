"""Pulls and epochs that can't be (FAULTS, bad input 9, 14, 15): each gets the status and the field, nothing waits for
ever, and what waits is bounded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from paramserver.lab.cluster import Cluster, ServerOptions
from paramserver.rpc import pull as pull_module
from paramserver.rpc.calls import UNARY_BYTES_MAX
from paramserver.rpc.limits import Limits
from paramserver.rpc.pull import Puller
from paramserver.shard.reads import BlockRead
from paramserver.v1 import paramserver_pb2 as pb
from paramserver.v1 import paramserver_pb2_grpc as services
from paramserver.wire.errors import Reason, Refusal
from tests.process.raw_client import BLOCK_ELEMENTS, Client, detail, spec
from tests.unit.rpc.test_rpc_reads import World
from tests.unit.shard.kit import MODEL, PLACEMENT, started

BLOCKS = 4
PULLS_MAX = 3
TEN_YEARS_S = 10 * 365 * 86_400.0
Code = grpc.StatusCode


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    options = ServerOptions(flags=("--segment-bytes", str(1 << 20), "--pulls-max", str(PULLS_MAX)))
    with Cluster(1, folder=tmp_path_factory.mktemp("bad-pulls"), options=options) as running:
        running.await_leaders(range(2))
        yield running


@pytest.fixture(scope="module")
def anna(cluster: Cluster) -> Iterator[Client]:
    with Client(cluster, "anna") as client:
        yield client.open_session()


@pytest.fixture(scope="module")
def model(anna: Client) -> pb.ModelDescription:
    created = anna.create(spec("model", blocks=BLOCKS, ranks=1))
    return anna.initialise(created, np.zeros(BLOCKS * BLOCK_ELEMENTS, np.float32))


@pytest.fixture
def data(cluster: Cluster) -> Iterator[Any]:
    with grpc.insecure_channel(cluster.addresses[1]) as channel:
        yield services.DataStub(channel)


@pytest.fixture(autouse=True)
def still_up(cluster: Cluster) -> Iterator[None]:
    yield
    assert cluster.servers[1].running
    assert "Traceback" not in cluster.servers[1].output()


def wanted(anna: Client, model: pb.ModelDescription, **fields: Any) -> pb.PullRequest:
    usual = {
        "cluster": anna.cluster_id,
        "group": 1,
        "model": model.model,
        "generation": model.generation,
        "placement_epoch": model.placement_epoch,
        "version": 0,
    }
    return pb.PullRequest(**{**usual, **fields})


def refused(call: Callable[[], Any]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value


def counter(cluster: Cluster, name: str) -> int:
    return dict(cluster.status(1).counters).get(name, 0)  # type: ignore[union-attr]


# --- 9


@pytest.mark.parametrize("count", [Limits().pull_blocks_max + 1, 1_000_000])
def test_a_million_tiny_keys_in_one_pull(
    cluster: Cluster, anna: Client, model: pb.ModelDescription, data: Any, count: int
) -> None:
    before = counter(cluster, "refused_invalid")
    error = refused(lambda: list(data.Pull(wanted(anna, model, blocks=range(count)), timeout=10)))
    assert error.code() is Code.INVALID_ARGUMENT
    assert (detail(error).field, detail(error).expected) == ("blocks", f"at most {Limits().pull_blocks_max}")
    assert counter(cluster, "refused_invalid") == before + 1


def test_as_many_keys_as_may_be_are_read(anna: Client, model: pb.ModelDescription, data: Any) -> None:
    """Refused for what they name, not for how many they are."""
    request = wanted(anna, model, blocks=range(Limits().pull_blocks_max))
    assert refused(lambda: list(data.Pull(request, timeout=10))).code() is Code.NOT_FOUND


def test_a_million_tiny_keys_anywhere_else_are_not_even_parsed(cluster: Cluster, anna: Client) -> None:
    many = spec("many")
    del many.tensors[:]
    many.tensors.extend([pb.TensorSpec(name="t")] * 600_000)
    error = refused(lambda: anna.create(many))
    assert many.ByteSize() > UNARY_BYTES_MAX
    assert (error.code(), detail(error).field) == (Code.RESOURCE_EXHAUSTED, "request")
    assert detail(error).expected == f"at most {UNARY_BYTES_MAX} bytes"


# --- 14


@pytest.mark.parametrize("epoch", [0, 2, 2**61])
def test_a_placement_epoch_from_the_past_or_the_future(
    anna: Client, model: pb.ModelDescription, data: Any, epoch: int
) -> None:
    pulled = refused(lambda: list(data.Pull(wanted(anna, model, placement_epoch=epoch), timeout=5)))
    pushed = refused(anna.stream(model, 1, placement_epoch=epoch).receive)
    for error in (pulled, pushed):
        assert error.code() is Code.FAILED_PRECONDITION
        assert (detail(error).reason, detail(error).field) == ("STALE_EPOCH", "placement_epoch")
        assert detail(error).epoch == model.placement_epoch, "the current one"
        assert (detail(error).expected, detail(error).received) == (str(model.placement_epoch), str(epoch))


def test_a_follower_waits_for_a_placement_it_may_be_behind_and_then_names_its_own() -> None:
    node, _ = started()

    def read(epoch: int) -> Refusal:
        want = BlockRead(model=MODEL, generation=1, placement_epoch=epoch, block=0, version=0)
        with pytest.raises(Refusal) as caught:
            node.leader._reads.read(want, lambda: None, certain=False)
        return caught.value

    assert read(PLACEMENT - 1).reason is Reason.STALE_EPOCH
    assert read(PLACEMENT + 1).reason is Reason.NOT_READY

    async def pulled() -> None:
        world = World()
        world.replica.read = lambda want, wake: (_ for _ in ()).throw(read(PLACEMENT + 1))  # type: ignore[method-assign]
        refusal = await world.refusal(time_left_s=0.1)
        assert (refusal.reason, refusal.code) == (Reason.STALE_EPOCH, "FAILED_PRECONDITION")
        assert (refusal.epoch, refusal.received) == (PLACEMENT, str(PLACEMENT + 1))

    asyncio.run(pulled())


# --- 15


@pytest.mark.parametrize("deadline_s", [None, TEN_YEARS_S])
def test_without_a_deadline_or_with_one_of_ten_years_the_servers_own_cap_ends_a_pull(
    monkeypatch: pytest.MonkeyPatch, deadline_s: float | None
) -> None:
    monkeypatch.setattr(pull_module, "SERVER_DEADLINE_MS", 50)

    async def pulled() -> None:
        world = World()
        refusal = await world.refusal(version=6, time_left_s=deadline_s)
        assert (refusal.reason, refusal.code) == (Reason.DEADLINE, "DEADLINE_EXCEEDED")
        assert world.puller.pulls == 0

    asyncio.run(asyncio.wait_for(pulled(), 5))


def test_pulls_that_wait_are_bounded_and_make_room_when_they_end(
    cluster: Cluster, anna: Client, model: pb.ModelDescription, data: Any
) -> None:
    """A version that never comes, no deadline: so many wait, one more is refused with a time to retry, others go on."""
    never = wanted(anna, model, version=10**9)
    waiting = [data.Pull(never) for _ in range(PULLS_MAX)]
    cluster.wait_for(lambda: cluster.status(1).gauges["pulls"] == PULLS_MAX, "the pulls to wait")  # type: ignore[union-attr]
    error = refused(lambda: list(data.Pull(never, timeout=5)))
    assert (error.code(), detail(error).reason) == (Code.RESOURCE_EXHAUSTED, "BUSY")
    assert detail(error).retry_after_ms > 0
    for call in waiting:
        call.cancel()
    cluster.wait_for(lambda: cluster.status(1).gauges["pulls"] == 0, "room")  # type: ignore[union-attr]
    assert len(list(data.Pull(wanted(anna, model), timeout=5))) == BLOCKS


def test_a_version_that_never_comes_ends_at_the_deadline(anna: Client, model: pb.ModelDescription, data: Any) -> None:
    begin = time.monotonic()
    error = refused(lambda: list(data.Pull(wanted(anna, model, version=10**9), timeout=0.3)))
    assert error.code() is Code.DEADLINE_EXCEEDED
    assert time.monotonic() - begin < 5


def test_a_puller_without_room_says_so_at_once() -> None:
    async def pulled() -> None:
        world = World()
        world.puller = Puller(world.groups, world.puller._leaders, world.freshness, Limits(pulls_max=1))
        first = asyncio.create_task(world.frame(version=6))
        await asyncio.sleep(0)
        refusal = await world.refusal(version=6)
        assert (refusal.reason, refusal.retry_after_ms) == (Reason.BUSY, Limits().retry_after_ms)
        first.cancel()

    asyncio.run(pulled())
