"""Pulls at one node of one's choice, with the generated stubs alone: what the public client never lets one ask.

Owns the model's description as group 0's leader tells it, asked again when a replica says that it is outdated. Must not
know: what the answers should be.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from paramserver.lab.status import CHANNEL_OPTIONS
from paramserver.v1 import paramserver_pb2 as pb
from paramserver.v1 import paramserver_pb2_grpc as services
from paramserver.wire.checksum import crc32c

DESCRIBE_S = 30.0
ASK_S = 2.0
PAUSE_S = 0.05
OPTIONS = (
    *CHANNEL_OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
)


class Failed(Exception):
    """`code`: gRPC's, by name."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


class Nodes:
    """Channels to nodes, kept open; addresses may change."""

    def __init__(self, addresses: Mapping[int, str]) -> None:
        self.addresses = dict(addresses)
        self._channels: dict[str, grpc.Channel] = {}

    def channel(self, node: int) -> grpc.Channel:
        address = self.addresses[node]
        if address not in self._channels:
            self._channels[address] = grpc.insecure_channel(address, options=OPTIONS)
        return self._channels[address]

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()


class Model:
    """A model by name, as group 0's leader describes it; asks until somebody answers, up to `DESCRIBE_S`."""

    def __init__(self, nodes: Nodes, name: str) -> None:
        self.nodes = nodes
        self.name = name
        self.cluster = b""
        self.described: Any = None
        self.describe()

    def describe(self) -> None:
        deadline = time.monotonic() + DESCRIBE_S
        said = "nobody was asked"
        while time.monotonic() < deadline:
            for node in tuple(self.nodes.addresses):
                stub: Any = services.CatalogueStub(self.nodes.channel(node))
                try:
                    self.cluster = stub.DescribeCluster(pb.DescribeClusterRequest(), timeout=ASK_S).cluster
                    self.described = stub.DescribeModel(pb.DescribeModelRequest(name=self.name), timeout=ASK_S)
                except grpc.RpcError as error:
                    said = str(_failed(error))
                else:
                    return
            time.sleep(PAUSE_S)
        raise Failed("DEADLINE_EXCEEDED", f"nobody described model {self.name!r} within {DESCRIBE_S:g} s: {said}")

    @property
    def groups(self) -> tuple[int, ...]:
        return tuple(shard.group for shard in self.described.shards if shard.blocks)

    def pull(self, node: int, group: int, timeout_s: float, **how: Any) -> dict[int, tuple[int, npt.NDArray[Any]]]:
        """Block -> (version, weights) of the group there. Raises Failed."""
        described = self.described
        request = pb.PullRequest(
            cluster=self.cluster,
            group=group,
            model=described.model,
            generation=described.generation,
            placement_epoch=described.placement_epoch,
            **how,
        )
        stub: Any = services.DataStub(self.nodes.channel(node))
        found = {}
        try:
            for frame in stub.Pull(request, timeout=timeout_s):
                payload = bytes(frame.payload)
                if crc32c(payload) != frame.header.crc:
                    raise Failed("DATA_LOSS", f"block {frame.header.block} of node {node}: its checksum does not match")
                found[frame.header.block] = (int(frame.header.version), np.frombuffer(payload, "<f4"))
        except grpc.RpcError as error:
            raise _failed(error) from None
        return found


def _failed(error: grpc.RpcError) -> Failed:
    if isinstance(error, grpc.Call):
        return Failed(error.code().name, error.details() or "")
    return Failed("UNKNOWN", str(error))
