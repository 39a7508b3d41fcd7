"""The catalogue's values as protobuf messages, and back. Nothing else of the catalogue sees these messages but
snapshots."""

from __future__ import annotations

from collections.abc import Iterable

from paramserver.catalogue.state import Lease, Model, Node, Shard
from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire.protos import spec_to_proto, view_to_proto


def from_node(node: Node) -> pb.NodeDescription:
    return pb.NodeDescription(node=node.node, address=node.address, node_uuid=node.node_uuid)


def to_node(message: pb.NodeDescription) -> Node:
    return Node(message.node, message.address, message.node_uuid)


def from_shard(shard: Shard) -> pb.Shard:
    return pb.Shard(group=shard.group, first_block=shard.first_block, blocks=shard.blocks)


def to_shards(messages: Iterable[pb.Shard]) -> tuple[Shard, ...]:
    return tuple(Shard(one.group, one.first_block, one.blocks) for one in messages)


def from_lease(rank: int, lease: Lease) -> pb.RankState:
    return pb.RankState(rank=rank, lease_epoch=lease.epoch, held=lease.held, session=lease.session)


def to_leases(messages: Iterable[pb.RankState]) -> tuple[Lease, ...]:
    return tuple(Lease(one.lease_epoch, one.session, one.held) for one in messages)


def from_model(model: Model) -> pb.ModelDescription:
    return pb.ModelDescription(
        model=model.model,
        generation=model.generation,
        spec=spec_to_proto(model.spec),
        shards=[from_shard(shard) for shard in model.shards],
        placement_epoch=model.placement_epoch,
        view=view_to_proto(model.view),
        open=model.open,
        initialization_epoch=model.initialization.epoch,
        ranks=[from_lease(rank, lease) for rank, lease in enumerate(model.leases)],
    )
