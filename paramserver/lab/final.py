"""The state of a model at the end of a run, from every replica: versions, digests and the weights themselves.

Owns reading it over the wire (any replica serves a pull of an exact version, RULES R1). Invariant: nothing is taken
from one replica on behalf of another. Must not know: how a run was made, or what is expected of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc

from paramserver.lab import status
from paramserver.lab.cluster import CATALOGUE_GROUP, Cluster
from paramserver.lab.errors import DeadlinePassed, LabError
from paramserver.v1 import paramserver_pb2, paramserver_pb2_grpc

PULL_TIMEOUT_S = 10.0
SETTLE_TIMEOUT_S = 30.0
"""How long replicas get to apply what was committed when the last worker ended."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One node's copy of one block. `weights` are the bytes of its fp32 values."""

    version: int
    digest: str
    weights: bytes


@dataclass(frozen=True, slots=True)
class BlockKey:
    group: int
    block: int


@dataclass(frozen=True, slots=True)
class FinalState:
    """`blocks`: block -> node -> its copy. `replicas` is how many each block should have."""

    model: int
    generation: int
    parameters: int
    blocks: Mapping[BlockKey, Mapping[int, Replica]]
    counters: Mapping[int, Mapping[str, int]]

    @property
    def versions(self) -> set[int]:
        return {copy.version for copies in self.blocks.values() for copy in copies.values()}


def read_final(cluster: Cluster, model_name: str, version: int) -> FinalState:
    """All replicas' blocks. Waits until each has applied `version`; one that does not is taken as it is, so that the
    verdict can name it."""
    try:
        cluster.wait_for(
            lambda: _settled(cluster, model_name, version), f"version {version} on all replicas", SETTLE_TIMEOUT_S, 0.05
        )
    except DeadlinePassed:
        pass  # the verdict shows it as lost or unequal
    answers = cluster.statuses(blocks=True)
    model = find_model(answers, model_name)
    placement_epoch = _placement_epoch(cluster, model.model)
    states = status.block_states(answers, model.model)
    blocks: dict[BlockKey, dict[int, Replica]] = {}
    for node in status.reached(answers):
        wanted: dict[int, list[tuple[int, status.BlockSnapshot]]] = {}
        for (group, block), copies in states.items():
            if node.node in copies:
                wanted.setdefault(group, []).append((block, copies[node.node]))
        for group, some in wanted.items():
            weights = _pull(node, model, placement_epoch, group, dict(some))
            for block, state in some:
                blocks.setdefault(BlockKey(group, block), {})[node.node] = Replica(
                    state.version, state.digest, weights.get(block, b"")
                )
    return FinalState(
        model=model.model,
        generation=model.generation,
        parameters=model.parameters,
        blocks={
            key: dict(sorted(blocks[key].items())) for key in sorted(blocks, key=lambda key: (key.group, key.block))
        },
        counters={node.node: node.counters for node in status.reached(answers)},
    )


def find_model(answers: tuple[status.Answer, ...], name: str) -> status.ModelSnapshot:
    for node in status.reached(answers):
        for model in node.models:
            if model.name == name:
                return model
    raise LabError(f"no server knows a model {name!r}", "did the workers create it? see their logs")


def _settled(cluster: Cluster, model_name: str, version: int) -> bool:
    """Every node that hosts a group of the model holds all of the group's blocks, at that version at least. A replica
    that was just started holds none until it has applied its log."""
    answers = cluster.statuses(blocks=True)
    nodes = status.reached(answers)
    model = next((model for node in nodes for model in node.models if model.name == model_name), None)
    if model is None or len(nodes) < len(cluster.servers):
        return False
    states = status.block_states(answers, model.model)
    for shard in model.shards:
        hosts = [node.node for node in nodes if node.group(shard.group) is not None]
        for block in range(shard.first_block, shard.first_block + shard.blocks):
            copies = states.get((shard.group, block), {})
            if any(node not in copies or copies[node].version < version for node in hosts):
                return False
    return True


def _pull(
    node: status.NodeSnapshot,
    model: status.ModelSnapshot,
    placement_epoch: int,
    group: int,
    states: Mapping[int, status.BlockSnapshot],
) -> dict[int, bytes]:
    """Weights of this node's own copies, block by block at the version it says it has."""
    found: dict[int, bytes] = {}
    with status.open_channel(node.address) as channel:
        data: Any = paramserver_pb2_grpc.DataStub(channel)
        try:
            for version in sorted({state.version for state in states.values()}):
                request = paramserver_pb2.PullRequest(
                    cluster=bytes.fromhex(node.cluster),
                    group=group,
                    model=model.model,
                    generation=model.generation,
                    placement_epoch=placement_epoch,
                    blocks=sorted(block for block, state in states.items() if state.version == version),
                    version=version,
                )
                for frame in data.Pull(request, timeout=PULL_TIMEOUT_S):
                    found[frame.header.block] = bytes(frame.payload)
        except grpc.RpcError as error:
            details = error.details() if isinstance(error, grpc.Call) else str(error)
            raise LabError(f"node {node.node} did not serve its blocks of group {group}: {details}") from None
    return found


def _placement_epoch(cluster: Cluster, model: int) -> int:
    """As group 0's leader says: every pull has to name it."""
    address = cluster.addresses[cluster.leader_of(CATALOGUE_GROUP)]
    with status.open_channel(address) as channel:
        catalogue: Any = paramserver_pb2_grpc.CatalogueStub(channel)
        try:
            request = paramserver_pb2.DescribeModelRequest(model=model)
            return int(catalogue.DescribeModel(request, timeout=PULL_TIMEOUT_S).placement_epoch)
        except grpc.RpcError as error:
            details = error.details() if isinstance(error, grpc.Call) else str(error)
            raise LabError(f"{address} did not describe the model: {details}") from None
