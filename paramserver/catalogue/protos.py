"""The catalogue's values as protobuf messages, and back. Nothing else of the catalogue sees these messages but
snapshots."""

from __future__ import annotations

from collections.abc import Iterable

from consensus.core.configuration import decode_configuration, encode_configuration
from consensus.core.interface import GroupId
from paramserver.catalogue.placement import Leftover, Members, Move, Placement, Reshape, Stage, WantedMove
from paramserver.catalogue.state import Lease, Model, Node, NodeState, Shard
from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire.protos import shared_spec_proto, view_to_proto

_STATES = {
    NodeState.ACTIVE: pb.NODE_ACTIVE,
    NodeState.NO_LEADERS: pb.NODE_NO_LEADERS,
    NodeState.DRAINING: pb.NODE_DRAINING,
    NodeState.REMOVED: pb.NODE_REMOVED,
}


def from_node(node: Node) -> pb.NodeDescription:
    return pb.NodeDescription(
        node=node.node,
        address=node.address,
        node_uuid=node.node_uuid,
        state=_STATES[node.state],
        then_remove=node.then_remove,
    )


def to_node(message: pb.NodeDescription) -> Node:
    """Raises `ValueError` for a state that this build does not know."""
    state = NodeState(message.state) if message.state else NodeState.ACTIVE
    return Node(message.node, message.address, message.node_uuid, state, message.then_remove)


def from_members(group: GroupId, members: Members) -> pb.GroupMembers:
    configuration = encode_configuration(members.configuration)
    return pb.GroupMembers(group=group, index=members.index, configuration=configuration)


def to_members(message: pb.GroupMembers) -> tuple[GroupId, Members]:
    """Raises `ValueError`."""
    return message.group, Members(message.index, decode_configuration(message.configuration))


def from_reshape(reshape: Reshape) -> pb.ReshapeCommand:
    return pb.ReshapeCommand(
        why=reshape.why,
        nodes=[from_node(node) for node in reshape.nodes],
        moves=[
            pb.WantedMove(
                group=one.group,
                to_node=one.to_node,
                old_replica=one.old,
                from_node=one.from_node,
                from_uuid=one.from_uuid,
                replica_min=one.replica_min,
            )
            for one in reshape.moves
        ],
        cancel=reshape.cancel,
    )


def to_reshape(message: pb.ReshapeCommand) -> Reshape:
    return Reshape(
        why=message.why,
        nodes=tuple(to_node(node) for node in message.nodes),
        moves=tuple(
            WantedMove(one.group, one.to_node, one.old_replica, one.from_node, one.from_uuid, one.replica_min)
            for one in message.moves
        ),
        cancel=tuple(message.cancel),
    )


def from_move(move: Move) -> pb.MoveRecord:
    return pb.MoveRecord(
        move=move.move,
        group=move.group,
        replica=move.replica,
        to_node=move.to_node,
        to_uuid=move.to_uuid,
        to_address=move.to_address,
        old_replica=move.old,
        from_node=move.from_node,
        from_uuid=move.from_uuid,
        stage=move.stage,
        cancelled=move.cancelled,
        why=move.why,
    )


def to_move(message: pb.MoveRecord) -> Move:
    return Move(
        move=message.move,
        group=message.group,
        replica=message.replica,
        to_node=message.to_node,
        to_uuid=message.to_uuid,
        to_address=message.to_address,
        old=message.old_replica,
        from_node=message.from_node,
        from_uuid=message.from_uuid,
        stage=Stage(message.stage),
        cancelled=message.cancelled,
        why=message.why,
    )


def from_leftover(leftover: Leftover) -> pb.LeftoverRecord:
    return pb.LeftoverRecord(
        group=leftover.group, replica=leftover.replica, node=leftover.node, node_uuid=leftover.node_uuid
    )


def to_leftover(message: pb.LeftoverRecord) -> Leftover:
    return Leftover(message.group, message.replica, message.node, message.node_uuid)


def from_directory(placement: Placement) -> pb.Directory:
    """What every node is told. Not whole: what it needs to reach others and to say where groups are."""
    return pb.Directory(
        version=placement.directory,
        nodes=[from_node(node) for node in placement.nodes.values()],
        groups=[from_members(group, members) for group, members in placement.groups.items()],
    )


def from_shard(shard: Shard) -> pb.Shard:
    return pb.Shard(group=shard.group, first_block=shard.first_block, blocks=shard.blocks)


def to_shards(messages: Iterable[pb.Shard]) -> tuple[Shard, ...]:
    return tuple(Shard(one.group, one.first_block, one.blocks) for one in messages)


def from_lease(rank: int, lease: Lease) -> pb.RankState:
    return pb.RankState(rank=rank, lease_epoch=lease.epoch, held=lease.held, session=lease.session)


def to_leases(messages: Iterable[pb.RankState]) -> tuple[Lease, ...]:
    return tuple(Lease(one.lease_epoch, one.session, one.held) for one in messages)


def from_rates(rates: Iterable[tuple[int, float]]) -> list[pb.RateFrom]:
    return [pb.RateFrom(step=step, learning_rate=rate) for step, rate in rates]


def to_rates(messages: Iterable[pb.RateFrom]) -> tuple[tuple[int, float], ...]:
    return tuple((one.step, one.learning_rate) for one in messages)


def from_model(model: Model) -> pb.ModelDescription:
    return pb.ModelDescription(
        model=model.model,
        generation=model.generation,
        spec=shared_spec_proto(model.spec),
        shards=[from_shard(shard) for shard in model.shards],
        placement_epoch=model.placement_epoch,
        view=view_to_proto(model.view),
        open=model.open,
        initialization_epoch=model.initialization.epoch,
        ranks=[from_lease(rank, lease) for rank, lease in enumerate(model.leases)],
        rates=[
            pb.RateRecord(number=one.number, step=one.step, learning_rate=one.learning_rate, stage=int(one.stage))
            for one in model.rates
        ],
    )
