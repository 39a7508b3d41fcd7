"""A client made of nothing but the generated stubs: what any gRPC client could do, without our worker library."""

from __future__ import annotations

import hashlib
import os
import queue
import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np

from paramserver.lab.cluster import Cluster
from paramserver.v1 import paramserver_pb2 as pb
from paramserver.v1 import paramserver_pb2_grpc as services
from paramserver.wire.checksum import crc32c

BLOCK_BYTES = 4096
BLOCK_ELEMENTS = BLOCK_BYTES // 4
TIMEOUT_S = 10.0


def spec(name: str = "digits", *, blocks: int = 6, ranks: int = 2, rate: float = 0.5, **fields: Any) -> pb.ModelSpec:
    return pb.ModelSpec(
        name=name,
        tensors=[pb.TensorSpec(name="w", shape=[blocks * BLOCK_ELEMENTS], dtype=pb.FLOAT32)],
        optimizer=pb.OptimizerSpec(sgd=pb.Sgd(learning_rate=rate)),
        ranks=ranks,
        block_bytes=BLOCK_BYTES,
        **fields,
    )


def detail(error: grpc.RpcError) -> pb.ErrorDetail:
    """What the trailing metadata says."""
    assert isinstance(error, grpc.Call)
    metadata = dict(error.trailing_metadata() or ())
    return pb.ErrorDetail.FromString(metadata["paramserver-error-bin"])


class Stream:
    """One push stream: `send` frames, `receive` replies in order."""

    def __init__(self, method: Any, hello: pb.PushHello) -> None:
        self._frames: queue.SimpleQueue[pb.PushFrame | None] = queue.SimpleQueue()
        self.send(pb.PushFrame(header=pb.PushHeader(hello=hello)))
        self._call = method(iter(self._frames.get, None), timeout=TIMEOUT_S)

    def send(self, frame: pb.PushFrame) -> None:
        self._frames.put(frame)

    def push(
        self, block: int, step: int, values: np.ndarray, *, crc: int | None = None, kind: int = pb.GRADIENT
    ) -> None:
        payload = values.astype("<f4").tobytes()
        header = pb.PushHeader(
            block=block,
            step=step,
            kind=kind,
            codec=pb.FP32,
            crc=crc32c(payload) if crc is None else crc,
            want_weights=True,
        )
        self.send(pb.PushFrame(header=header, payload=payload))

    def receive(self) -> pb.BlockFrame:
        return next(self._call)

    def finish(self) -> list[pb.BlockFrame]:
        """Half-close, and what still came."""
        self._frames.put(None)
        return list(self._call)

    def cancel(self) -> None:
        self._frames.put(None)
        self._call.cancel()


class Client:
    """Asks each node in turn until one answers as group 0's leader."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster = cluster
        self._channels: dict[str, grpc.Channel] = {}
        self.name = name
        self.client = os.urandom(16)
        self.secret = os.urandom(32)
        self.sequence = 0
        self.session = 0
        self.cluster_id = self.call("DescribeCluster", pb.DescribeClusterRequest()).cluster

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        for channel in self._channels.values():
            channel.close()

    def channel(self, address: str) -> grpc.Channel:
        if address not in self._channels:
            options = (("grpc.max_reconnect_backoff_ms", 100), ("grpc.initial_reconnect_backoff_ms", 50))
            self._channels[address] = grpc.insecure_channel(address, options=options)
        return self._channels[address]

    # --- catalogue

    def call(self, method: str, request: Any) -> Any:
        """Sent again until a leader answers; other refusals are raised."""
        deadline = time.monotonic() + TIMEOUT_S
        addresses = list(self._cluster.addresses.values())
        while True:
            for address in tuple(addresses):
                try:
                    stub: Any = services.CatalogueStub(self.channel(address))
                    return getattr(stub, method)(request, timeout=TIMEOUT_S)
                except grpc.RpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline:
                        raise
            time.sleep(0.02)

    def open_session(self) -> Client:
        digest = hashlib.sha256(self.secret).digest()
        request = pb.OpenSessionRequest(client=self.client, secret_digest=digest, name=self.name)
        self.session = self.call("OpenSession", request).session
        return self

    def command(self, method: str, kind: Any, **fields: Any) -> Any:
        self.sequence += 1
        request = kind(session=self.session, sequence=self.sequence, secret=self.secret, **fields)
        return self.call(method, request)

    def create(self, wanted: pb.ModelSpec) -> pb.ModelDescription:
        return self.command("CreateModel", pb.CreateModelRequest, spec=wanted)

    def claim_rank(self, model: pb.ModelDescription, rank: int) -> pb.ClaimRankResponse:
        identity = {"model": model.model, "generation": model.generation}
        return self.command("ClaimRank", pb.ClaimRankRequest, **identity, rank=rank)

    def initialise(self, model: pb.ModelDescription, weights: np.ndarray) -> pb.ModelDescription:
        """Claim the initialization lease, send all values, open."""
        identity = {"model": model.model, "generation": model.generation}
        claim = self.command("ClaimInitialization", pb.ClaimInitializationRequest, **identity)
        assert claim.granted
        for shard in model.shards:
            stream = self.stream(model, shard.group, initialization_epoch=claim.epoch, method="Initialize")
            assert stream.receive().header.status == pb.STREAM_OPEN
            for block in range(shard.first_block, shard.first_block + shard.blocks):
                stream.push(block, 0, block_of(weights, block), kind=pb.INITIAL)
            stored = stream.finish()
            assert [frame.header.status for frame in stored] == [pb.STORED] * shard.blocks
        return self.command("OpenModel", pb.OpenModelRequest, **identity, epoch=claim.epoch)

    # --- data

    def stream(
        self, opened: pb.ModelDescription, at_group: int, *, method: str = "PushPull", node: int = 0, **fields: Any
    ) -> Stream:
        """At the group's leader, or at `node`. `fields` are the hello's."""
        usual = {
            "cluster": self.cluster_id,
            "group": at_group,
            "model": opened.model,
            "generation": opened.generation,
            "placement_epoch": opened.placement_epoch,
            "protocol": 1,
        }
        hello = pb.PushHello(**{**usual, **fields})
        node = node or self._cluster.leader_of(at_group)
        stub: Any = services.DataStub(self.channel(self._cluster.addresses[node]))
        return Stream(getattr(stub, method), hello)

    def ranked(self, model: pb.ModelDescription, group: int, rank: int, claim: pb.ClaimRankResponse) -> Stream:
        stream = self.stream(model, group, rank=rank, lease_epoch=claim.lease_epoch, view=claim.view.number)
        assert stream.receive().header.status == pb.STREAM_OPEN
        return stream

    def pull(self, model: pb.ModelDescription, *, node: int, timeout_s: float = TIMEOUT_S, **want: int) -> np.ndarray:
        """All blocks of the model that the node has, in block order."""
        stub: Any = services.DataStub(self.channel(self._cluster.addresses[node]))
        parts = {}
        for shard in model.shards:
            request = pb.PullRequest(
                cluster=self.cluster_id,
                group=shard.group,
                model=model.model,
                generation=model.generation,
                placement_epoch=model.placement_epoch,
                **want,
            )
            for frame in stub.Pull(request, timeout=timeout_s):
                assert crc32c(frame.payload) == frame.header.crc
                parts[frame.header.block] = np.frombuffer(frame.payload, "<f4")
        return np.concatenate([parts[block] for block in sorted(parts)])


def block_of(values: np.ndarray, block: int) -> np.ndarray:
    return values[block * BLOCK_ELEMENTS : (block + 1) * BLOCK_ELEMENTS]


def blocks_of(model: pb.ModelDescription) -> Iterator[tuple[int, int]]:
    """(group, block), in block order."""
    for shard in model.shards:
        for block in range(shard.first_block, shard.first_block + shard.blocks):
            yield shard.group, block
