"""`Members` and `Reshape` of the `Admin` service, at group 0's leader: protobuf to the values of
`catalogue.administration` and back.

Must not know: how anything is planned or carried out.
"""

from __future__ import annotations

import hashlib

from paramserver.catalogue import protos
from paramserver.catalogue.administration import (
    AddNode,
    CancelMove,
    DrainNode,
    MoveReplica,
    RemoveNode,
    ReplaceNode,
    TransferTo,
    Wish,
)
from paramserver.catalogue.leader import CatalogueLeader
from paramserver.catalogue.machine import CatalogueMachine
from paramserver.catalogue.pictures import GroupPicture
from paramserver.catalogue.sessions import Caller
from paramserver.config import split_address
from paramserver.rpc.calls import Context
from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire.errors import invalid

SECRET_BYTES = (16, 64)
ADDRESS_CHARACTERS_MAX = 255


class ReshapeService:
    def __init__(self, leader: CatalogueLeader, machine: CatalogueMachine) -> None:
        self._leader = leader
        self._machine = machine

    async def members(self, request: pb.MembersRequest, context: Context = None) -> pb.MembersDescription:
        await self._leader.confirmed()
        mover = self._leader.mover
        survey = await self._leader.survey()
        placement = self._machine.placement
        return pb.MembersDescription(
            directory=placement.directory,
            nodes=[protos.from_node(node) for _, node in sorted(placement.nodes.items())],
            up=sorted(survey.up),
            groups=[_group(picture) for _, picture in sorted(survey.groups.items())],
            moves=[
                pb.MoveDescription(
                    move=move.move,
                    group=move.group,
                    replica=move.replica,
                    to_node=move.to_node,
                    old_replica=move.old,
                    from_node=move.from_node,
                    stage=move.stage.name.lower(),
                    cancelled=move.cancelled,
                    why=move.why,
                    trouble=mover.trouble_of(move),
                )
                for move in placement.moves.values()
            ],
            leftovers=[
                pb.LeftoverDescription(
                    group=one.group, replica=one.replica, node=one.node, trouble=mover.trouble_of(one)
                )
                for one in placement.leftovers
            ],
            behind=mover.behind(),
        )

    async def reshape(self, request: pb.ReshapeRequest, context: Context = None) -> pb.ReshapeResponse:
        caller = Caller(request.session, request.sequence, b"")
        if not request.dry_run:
            if not SECRET_BYTES[0] <= len(request.secret) <= SECRET_BYTES[1]:
                raise invalid("secret", f"{SECRET_BYTES[0]} to {SECRET_BYTES[1]} bytes", f"{len(request.secret)} bytes")
            caller = Caller(request.session, request.sequence, hashlib.sha256(request.secret).digest())
        shaped = await self._leader.reshape(caller, wish_of(request), dry_run=request.dry_run)
        return pb.ReshapeResponse(steps=shaped.plan.steps, arithmetic=shaped.plan.arithmetic, moves=shaped.moves)


def wish_of(request: pb.ReshapeRequest) -> Wish:
    """Raises `Refusal` naming the field."""
    match request.WhichOneof("kind"):
        case "add":
            return AddNode(request.add.node, _address("add.address", request.add.address))
        case "remove":
            return RemoveNode(request.remove.node)
        case "replace":
            wanted = request.replace
            address = _address("replace.address", wanted.address) if wanted.address else ""
            if wanted.node == wanted.by and not address:
                raise invalid("replace.address", f"{wanted.by}=host:port where its new folder runs", "no address")
            return ReplaceNode(wanted.node, wanted.by, address)
        case "drain":
            return DrainNode(request.drain.node, request.drain.leaders_only, request.drain.undo)
        case "move":
            wanted_move = request.move
            if wanted_move.from_node == wanted_move.to_node:
                raise invalid("move.to_node", "another node than from_node", wanted_move.to_node)
            return MoveReplica(wanted_move.group, wanted_move.from_node, wanted_move.to_node)
        case "cancel":
            return CancelMove(request.cancel.group)
        case "transfer":
            return TransferTo(request.transfer.group, request.transfer.to_node)
        case _:
            raise invalid("kind", "one of add, remove, replace, drain, move, cancel, transfer", "none of them")


def _address(field: str, text: str) -> str:
    if len(text) > ADDRESS_CHARACTERS_MAX or split_address(text) is None:
        raise invalid(field, "host:port with a port from 1 to 65535", text)
    return text


def _group(picture: GroupPicture) -> pb.GroupDescription:
    configuration = picture.configuration
    joint = bool(configuration.outgoing)

    def role(replica: int) -> pb.MemberRole.ValueType:
        if replica in configuration.learners:
            return pb.LEARNER
        if replica not in configuration.voters:
            return pb.OUTGOING
        return pb.INCOMING if joint and replica not in configuration.outgoing else pb.VOTER

    return pb.GroupDescription(
        group=picture.group,
        members=[
            pb.GroupMember(
                replica=replica,
                node=picture.node_of(replica),
                role=role(replica),
                match_index=picture.match.get(replica, 0),
                node_uuid=picture.uuid_of(replica),
            )
            for replica in (*configuration.voters, *sorted(picture.members - set(configuration.voters)))
        ],
        leader_node=picture.leader_node,
        term=picture.term,
    )
