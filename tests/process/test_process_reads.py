"""Reads that must be new, on real processes: without a quorum linearizable ones are refused and bounded ones say how
old they are (FAULTS row 3), and a leader that stood still serves none before it is confirmed again (row 17)."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import paramserver
from paramserver.lab import status
from paramserver.lab.cluster import Cluster, ServerOptions
from paramserver.v1 import paramserver_pb2 as pb
from paramserver.v1 import paramserver_pb2_grpc as services
from tests.process.raw_client import BLOCK_ELEMENTS, Client, block_of, detail, spec
from worker.errors import DeadlineExceeded

BLOCKS = 3
NEVER_BACK = ServerOptions(flags=("--segment-bytes", str(1 << 20), "--prefer-after-ms", "0"))
"""Leaders stay where an election put them; small segments are zeroed quickly."""
HOUR_MS = 3_600_000


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(3, folder=tmp_path, options=NEVER_BACK) as running:
        running.await_leaders(range(4))
        yield running


@pytest.fixture
def anna(cluster: Cluster) -> Iterator[Client]:
    with Client(cluster, "anna") as client:
        yield client.open_session()


def numbers(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(BLOCKS * BLOCK_ELEMENTS, dtype=np.float32)


def opened(client: Client) -> pb.ModelDescription:
    """One rank, a block a group."""
    model = client.create(spec("reads", blocks=BLOCKS, ranks=1))
    return client.initialise(model, numbers(0))


def step(client: Client, model: pb.ModelDescription, claim: Any, group: int, number: int) -> None:
    """Returns when the step of this group's block is acknowledged."""
    block = next(shard.first_block for shard in model.shards if shard.group == group)
    stream = client.ranked(model, group, 0, claim)
    stream.push(block, number, block_of(numbers(number), block))
    frame = stream.receive()
    assert (frame.header.status, frame.header.version) == (pb.APPLIED, number + 1)
    stream.cancel()


class Reader:
    """Pulls one group's block at one node, with any consistency."""

    def __init__(self, cluster: Cluster, client: Client, model: pb.ModelDescription, group: int) -> None:
        self._cluster, self._client, self._model, self._group = cluster, client, model, group

    def pull(self, node: int, *, timeout_s: float = 10.0, **how: Any) -> pb.BlockHeader:
        stub: Any = services.DataStub(self._client.channel(self._cluster.addresses[node]))
        request = pb.PullRequest(
            cluster=self._client.cluster_id,
            group=self._group,
            model=self._model.model,
            generation=self._model.generation,
            placement_epoch=self._model.placement_epoch,
            min_version=0,
            **how,
        )
        (frame,) = stub.Pull(request, timeout=timeout_s)
        return frame.header

    def refusal(self, node: int, **how: Any) -> tuple[grpc.StatusCode, str, pb.ErrorDetail]:
        with pytest.raises(grpc.RpcError) as caught:
            self.pull(node, **how)
        error: Any = caught.value
        return error.code(), error.details(), detail(error)

    def until_linearizable(self, node: int) -> pb.BlockHeader:
        """Refusals on the way must be those of a group without a quorum."""

        def confirmed() -> pb.BlockHeader | None:
            try:
                return self.pull(node, linearizable=True)
            except grpc.RpcError as error:
                call: Any = error
                assert call.code() is grpc.StatusCode.UNAVAILABLE, call.details()
                return None

        return self._cluster.wait_for(confirmed, f"a linearizable read at node {node}")


def test_every_replica_answers_reads_that_must_be_new(cluster: Cluster, anna: Client) -> None:
    model = opened(anna)
    claim = anna.claim_rank(model, 0)
    reader = Reader(cluster, anna, model, 1)
    for number in range(3):
        step(anna, model, claim, 1, number)
        for node in cluster.addresses:
            header = reader.until_linearizable(node)
            assert header.version == number + 1, "acknowledged before the call"
            assert header.age_ms < 5000
    header = reader.pull(2, bounded_ms=HOUR_MS)
    assert header.version <= 3
    for how, field in (
        ({"bounded_ms": 2**64 - 1}, "bounded_ms"),
        ({"bounded_ms": 5, "linearizable": True}, "bounded_ms"),
    ):
        code, _, told = reader.refusal(1, **how)
        assert (code, told.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)


def test_without_a_majority_reads_refuse_or_say_how_old_they_are(cluster: Cluster, anna: Client) -> None:
    model = opened(anna)
    claim = anna.claim_rank(model, 0)
    group = 1
    step(anna, model, claim, group, 0)
    reader = Reader(cluster, anna, model, group)
    leader = cluster.leader_of(group)
    left = next(node for node in cluster.addresses if node != leader)
    with paramserver.connect(cluster.endpoints) as connected:
        seen = connected.model("reads")
        confirmed_s = time.monotonic()
        assert reader.until_linearizable(left).version == 1
        assert seen.pull(consistency=paramserver.LINEARIZABLE).versions[0] == 1
        for node in set(cluster.addresses) - {left}:
            cluster.kill(node)

        code, _, told = reader.refusal(left, linearizable=True)
        assert (code, told.reason) == (grpc.StatusCode.UNAVAILABLE, "UNCONFIRMED")
        assert "majority" in told.hint
        old = reader.pull(left, bounded_ms=HOUR_MS)
        assert old.version == 1
        assert 0 < old.age_ms <= (time.monotonic() - confirmed_s) * 1000 + 1000
        code, text, told = reader.refusal(left, bounded_ms=1)
        assert (code, told.reason, told.field) == (grpc.StatusCode.UNAVAILABLE, "UNCONFIRMED", "bounded_ms")
        assert "last confirmed" in text

        def refused_with_a_hint() -> str:
            identity = {"rank": 0, "lease_epoch": claim.lease_epoch, "view": claim.view.number}
            with pytest.raises(grpc.RpcError) as caught:
                anna.stream(model, group, node=left, **identity).receive()
            error: Any = caught.value
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            return detail(error).hint

        # Until it notices that its leader is gone, it sends writers there.
        assert "majority" in cluster.wait_for(lambda: refused_with_a_hint() or None, "a refusal with a hint")
        with pytest.raises(DeadlineExceeded, match=f"node {left} can't confirm"):
            seen.pull(consistency=paramserver.LINEARIZABLE, timeout=1.0)

        for node in set(cluster.addresses) - {left}:
            cluster.start_server(node)
        assert reader.until_linearizable(left).version == 1
        step(anna, model, claim, group, 1)
        assert reader.until_linearizable(left).version == 2
        assert seen.pull(consistency=paramserver.LINEARIZABLE).versions[0] == 2
        assert seen.pull(consistency=paramserver.bounded(HOUR_MS)).age_ms <= HOUR_MS


def test_a_leader_that_stood_still_serves_no_read_before_it_is_confirmed_again(cluster: Cluster, anna: Client) -> None:
    model = opened(anna)
    claim = anna.claim_rank(model, 0)
    group = 1
    step(anna, model, claim, group, 0)
    reader = Reader(cluster, anna, model, group)
    old = cluster.leader_of(group)
    others = [node for node in cluster.addresses if node != old]
    assert reader.until_linearizable(old).version == 1
    cluster.pause(old)
    cluster.wait_for(
        lambda: status.leader_of([cluster.status(node) for node in others], group), "another leader of the group"
    )
    step(anna, model, claim, group, 1)

    versions: list[int] = []

    def read(**how: Any) -> None:
        """It reaches the old leader while that stands still, or the moment it goes on."""
        try:
            versions.append(reader.pull(old, **how).version)
        except grpc.RpcError as error:
            call: Any = error
            assert call.code() is grpc.StatusCode.UNAVAILABLE

    def many(**how: Any) -> None:
        for _ in range(20):
            read(**how)

    bound_ms = 20
    time.sleep(2 * bound_ms / 1000)  # the second step was acknowledged longer ago than that when the calls begin
    callers = [threading.Thread(target=many, kwargs={"linearizable": True}) for _ in range(4)]
    callers += [threading.Thread(target=many, kwargs={"bounded_ms": bound_ms}) for _ in range(4)]
    for caller in callers:
        caller.start()
    cluster.resume(old)
    for caller in callers:
        caller.join(30)
        assert not caller.is_alive()
    versions.append(reader.until_linearizable(old).version)
    assert set(versions) == {2}, "a read missed what was acknowledged before it began"
