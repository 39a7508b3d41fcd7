"""Commands of group 0's log: their bytes, and the values they decode to.

A command is the bytes 0x20 0x01 (kind: catalogue; format version 1) and a serialized `CatalogueCommand`. Invariant:
`decode` raises `BadCommand` for anything else, and never allocates more than a small multiple of what it was given.
Protobuf stops here: the machine sees the frozen values below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from google.protobuf.message import DecodeError

from consensus.core.interface import Payload
from paramserver.catalogue import protos
from paramserver.catalogue.placement import (
    LeftoverDeleted,
    MoveAdvanced,
    MoveEnded,
    NodeRemoved,
    PlacementCommand,
    Reshape,
    Stage,
)
from paramserver.catalogue.sharding import Rule
from paramserver.catalogue.state import Loaded, Node, PinStage, RateStage, SessionId
from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire.errors import Refusal
from paramserver.wire.protos import spec_from_proto, spec_to_proto
from paramserver.wire.spec import ModelSpec

PREFIX = b"\x20\x01"
COMMAND_BYTES_MAX = 2 << 20
"""A serialized command; the largest is a model's spec."""


class BadCommand(ValueError):
    """The bytes are no command of this format."""


@dataclass(frozen=True, slots=True)
class OpenSession:
    client: bytes
    secret_digest: bytes
    name: str


@dataclass(frozen=True, slots=True)
class RegisterNode:
    node: Node


@dataclass(frozen=True, slots=True)
class CreateModel:
    """`rule`: how its blocks are placed. Older logs hold commands without one, and keep what was made of them."""

    spec: ModelSpec
    rule: Rule = Rule.BY_BYTES


@dataclass(frozen=True, slots=True)
class LoadModel:
    """A new generation of the model of that name, or its first, to be filled from a checkpoint."""

    spec: ModelSpec
    loaded: Loaded
    rule: Rule = Rule.BY_BYTES


@dataclass(frozen=True, slots=True)
class DeleteModel:
    """`force`: although workers hold ranks of it. `loading`: a load that is given up, if it is not open by now."""

    model: int
    generation: int
    force: bool = False
    loading: bool = False


@dataclass(frozen=True, slots=True)
class ShardDeleted:
    """The driver's report: the group has let go of the model."""

    model: int
    group: int


@dataclass(frozen=True, slots=True)
class ShardCreated:
    """The driver's report: the group has its shard of the model."""

    model: int
    generation: int
    group: int


@dataclass(frozen=True, slots=True)
class ClaimInitialization:
    model: int
    generation: int


@dataclass(frozen=True, slots=True)
class ModelOpened:
    """Every data group said that it holds values of `epoch` in all blocks: the decision to open (RULES M3)."""

    model: int
    generation: int
    epoch: int


@dataclass(frozen=True, slots=True)
class ClaimRank:
    model: int
    generation: int
    rank: int


@dataclass(frozen=True, slots=True)
class ReleaseRank:
    model: int
    rank: int
    lease_epoch: int


@dataclass(frozen=True, slots=True)
class ExpireLease:
    """Proposed by group 0's leader by its own clock; refused if the epoch moved on (RULES I4)."""

    model: int
    rank: int
    lease_epoch: int
    initialization: bool = False


@dataclass(frozen=True, slots=True)
class ChangeRate:
    """A wish: the learning rate from `step` on, or from a later one if training goes past it meanwhile (RULES S11)."""

    model: int
    generation: int
    learning_rate: float
    step: int


@dataclass(frozen=True, slots=True)
class RateAdvanced:
    """The driver's report on the change under way: it is raised to `step`, or all groups hold there, or have it."""

    model: int
    generation: int
    number: int
    step: int
    stage: RateStage


@dataclass(frozen=True, slots=True)
class PinModel:
    """A wish: version `step` of every block, or of a later step if training goes past it meanwhile (RULES R4)."""

    model: int
    generation: int
    step: int


@dataclass(frozen=True, slots=True)
class PinAdvanced:
    """Of the driver: the pin is raised to `step`, or all groups have it; of the leader's clock: it ended (I4)."""

    model: int
    generation: int
    number: int
    step: int
    stage: PinStage


@dataclass(frozen=True, slots=True)
class ReleasePin:
    model: int
    generation: int
    number: int


ClientCommand: TypeAlias = (
    CreateModel
    | LoadModel
    | DeleteModel
    | ClaimInitialization
    | ModelOpened
    | ClaimRank
    | ReleaseRank
    | Reshape
    | ChangeRate
    | PinModel
    | ReleasePin
)
"""Deduplicated by (session, sequence)."""
Command: TypeAlias = (
    ClientCommand
    | OpenSession
    | RegisterNode
    | ShardCreated
    | ShardDeleted
    | ExpireLease
    | RateAdvanced
    | PinAdvanced
    | PlacementCommand
)
"""Without a session: idempotent by itself."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """`session` 0: from a server, not from a client."""

    command: Command
    session: SessionId = 0
    sequence: int = 0
    secret_digest: bytes = b""


def encode(envelope: Envelope) -> bytes:
    message = pb.CatalogueCommand(
        session=envelope.session, sequence=envelope.sequence, secret_digest=envelope.secret_digest
    )
    match envelope.command:
        case OpenSession(client, secret_digest, name):
            message.open_session.CopyFrom(pb.OpenSessionRequest(client=client, secret_digest=secret_digest, name=name))
        case RegisterNode(node):
            message.register_node.CopyFrom(
                pb.RegisterNode(node=node.node, address=node.address, node_uuid=node.node_uuid)
            )
        case CreateModel(spec, rule):
            message.create_model.CopyFrom(spec_to_proto(spec))
            message.placement_rule = int(rule)
        case LoadModel(spec, loaded, rule):
            rates = protos.from_rates(loaded.rates)
            message.load_model.CopyFrom(pb.LoadModelWish(spec=spec_to_proto(spec), step=loaded.step, rates=rates))
            message.placement_rule = int(rule)
        case DeleteModel(model, generation, force, loading):
            message.delete_model.CopyFrom(
                pb.DeleteModelWish(model=model, generation=generation, force=force, loading=loading)
            )
        case ShardDeleted(model, group):
            message.shard_deleted.CopyFrom(pb.ShardDeleted(model=model, group=group))
        case ShardCreated(model, generation, group):
            message.shard_created.CopyFrom(pb.ShardCreated(model=model, generation=generation, group=group))
        case ClaimInitialization(model, generation):
            message.claim_initialization.CopyFrom(pb.ClaimInitializationRequest(model=model, generation=generation))
        case ModelOpened(model, generation, epoch):
            message.model_opened.CopyFrom(pb.ModelOpened(model=model, generation=generation, epoch=epoch))
        case ClaimRank(model, generation, rank):
            message.claim_rank.CopyFrom(pb.ClaimRankRequest(model=model, generation=generation, rank=rank))
        case ReleaseRank(model, rank, lease_epoch):
            message.release_rank.CopyFrom(pb.ReleaseRankRequest(model=model, rank=rank, lease_epoch=lease_epoch))
        case ExpireLease(model, rank, lease_epoch, initialization):
            message.expire_lease.CopyFrom(
                pb.ExpireLease(model=model, rank=rank, lease_epoch=lease_epoch, initialization=initialization)
            )
        case ChangeRate(model, generation, rate, step):
            message.change_rate.CopyFrom(
                pb.ChangeRate(model=model, generation=generation, learning_rate=rate, step=step)
            )
        case RateAdvanced(model, generation, number, step, stage):
            message.rate_advanced.CopyFrom(
                pb.RateAdvanced(model=model, generation=generation, number=number, step=step, stage=int(stage))
            )
        case PinModel(model, generation, step):
            message.pin.CopyFrom(pb.PinWish(model=model, generation=generation, step=step))
        case PinAdvanced(model, generation, number, step, stage):
            message.pin_advanced.CopyFrom(
                pb.PinAdvanced(model=model, generation=generation, number=number, step=step, stage=int(stage))
            )
        case ReleasePin(model, generation, number):
            message.release_pin.CopyFrom(pb.ReleasePinWish(model=model, generation=generation, number=number))
        case Reshape() as reshape:
            message.reshape.CopyFrom(protos.from_reshape(reshape))
        case MoveAdvanced(move, stage):
            message.move_advanced.CopyFrom(pb.MoveAdvanced(move=move, stage=stage))
        case MoveEnded(move, group, members, done):
            message.move_ended.CopyFrom(pb.MoveEnded(move=move, members=protos.from_members(group, members), done=done))
        case LeftoverDeleted(group, replica):
            message.leftover_deleted.CopyFrom(pb.LeftoverDeleted(group=group, replica=replica))
        case NodeRemoved(number, uuid):
            message.node_removed.CopyFrom(pb.NodeRemoved(node=number, node_uuid=uuid))
    return PREFIX + message.SerializeToString(deterministic=True)


def decode(payload: Payload) -> Envelope:
    raw = bytes(payload)
    if raw[: len(PREFIX)] != PREFIX or len(raw) > COMMAND_BYTES_MAX:
        raise BadCommand("not a catalogue command of format 1")
    try:
        message = pb.CatalogueCommand.FromString(raw[len(PREFIX) :])
        return Envelope(_command(message), message.session, message.sequence, message.secret_digest)
    except BadCommand:
        raise
    except (DecodeError, Refusal, ValueError, KeyError, TypeError, OverflowError) as error:
        raise BadCommand(str(error)) from None


def _command(message: pb.CatalogueCommand) -> Command:
    match message.WhichOneof("kind"):
        case "open_session":
            opened = message.open_session
            return OpenSession(opened.client, opened.secret_digest, opened.name)
        case "register_node":
            node = message.register_node
            return RegisterNode(Node(node.node, node.address, node.node_uuid))
        case "create_model":
            return CreateModel(spec_from_proto(message.create_model), Rule(message.placement_rule))
        case "load_model":
            wish = message.load_model
            loaded = Loaded(wish.step, protos.to_rates(wish.rates))
            return LoadModel(spec_from_proto(wish.spec), loaded, Rule(message.placement_rule))
        case "delete_model":
            unwanted = message.delete_model
            return DeleteModel(unwanted.model, unwanted.generation, unwanted.force, unwanted.loading)
        case "shard_deleted":
            return ShardDeleted(message.shard_deleted.model, message.shard_deleted.group)
        case "shard_created":
            created = message.shard_created
            return ShardCreated(created.model, created.generation, created.group)
        case "claim_initialization":
            claimed = message.claim_initialization
            return ClaimInitialization(claimed.model, claimed.generation)
        case "model_opened":
            model = message.model_opened
            return ModelOpened(model.model, model.generation, model.epoch)
        case "claim_rank":
            rank = message.claim_rank
            return ClaimRank(rank.model, rank.generation, rank.rank)
        case "release_rank":
            released = message.release_rank
            return ReleaseRank(released.model, released.rank, released.lease_epoch)
        case "expire_lease":
            lease = message.expire_lease
            return ExpireLease(lease.model, lease.rank, lease.lease_epoch, lease.initialization)
        case "change_rate":
            change = message.change_rate
            return ChangeRate(change.model, change.generation, change.learning_rate, change.step)
        case "rate_advanced":
            moved = message.rate_advanced
            return RateAdvanced(moved.model, moved.generation, moved.number, moved.step, RateStage(moved.stage))
        case "pin":
            return PinModel(message.pin.model, message.pin.generation, message.pin.step)
        case "pin_advanced":
            pin = message.pin_advanced
            return PinAdvanced(pin.model, pin.generation, pin.number, pin.step, PinStage(pin.stage))
        case "release_pin":
            freed = message.release_pin
            return ReleasePin(freed.model, freed.generation, freed.number)
        case "reshape":
            return protos.to_reshape(message.reshape)
        case "move_advanced":
            return MoveAdvanced(message.move_advanced.move, Stage(message.move_advanced.stage))
        case "move_ended":
            ended = message.move_ended
            group, members = protos.to_members(ended.members)
            return MoveEnded(ended.move, group, members, ended.done)
        case "leftover_deleted":
            return LeftoverDeleted(message.leftover_deleted.group, message.leftover_deleted.replica)
        case "node_removed":
            return NodeRemoved(message.node_removed.node, message.node_removed.node_uuid)
        case _:
            raise BadCommand("an unknown kind of command")
