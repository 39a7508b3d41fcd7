"""The `Catalogue` service: protobuf to the values of `catalogue.leader` and back."""

from __future__ import annotations

import asyncio
import hashlib

import grpc

from paramserver.catalogue import protos
from paramserver.catalogue.leader import CatalogueLeader
from paramserver.catalogue.leases import PIN_LIFE_MS
from paramserver.catalogue.machine import CatalogueMachine
from paramserver.catalogue.sessions import Caller
from paramserver.catalogue.state import Loaded, Model, Node
from paramserver.rpc.calls import Calls, Context
from paramserver.rpc.groups import Groups
from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire.errors import Reason, invalid, refuse_problems
from paramserver.wire.protos import valid_spec_from_proto, view_to_proto
from paramserver.wire.spec import NAME_CHARACTERS_MAX, ModelSpec, name_problems

SERVICE = "paramserver.v1.Catalogue"
SECRET_BYTES = (16, 64)
"""Least and most a client's secret may have."""
SPEC_BYTES_MAX = 1536 << 10
"""A serialized spec: tens of thousands of tensors; it must fit into a command of 2 MiB."""
SPEC_BYTES_LARGE = 32 << 10
"""Larger specs are read on a thread: thousands of tensors take tens of ms, and control is served here."""
LISTED_MAX = 100
"""Models in one answer."""
CLIENT_BYTES = 16
DIGEST_BYTES = 32


class CatalogueService:
    """`known`: members with their uuids, as far as this node knows them."""

    def __init__(
        self,
        *,
        leader: CatalogueLeader,
        machine: CatalogueMachine | None,
        groups: Groups,
        cluster: bytes,
        zone: str = "",
    ) -> None:
        self._leader = leader
        self._machine = machine
        self._groups = groups
        self._cluster = cluster
        self._zone = zone

    def handlers(self, calls: Calls) -> grpc.GenericRpcHandler:
        methods = {
            "DescribeCluster": calls.unary(pb.DescribeClusterRequest, self._describe_cluster),
            "OpenSession": calls.unary(pb.OpenSessionRequest, self._open_session),
            "CreateModel": calls.unary(pb.CreateModelRequest, self._create_model),
            "DescribeModel": calls.unary(pb.DescribeModelRequest, self._describe_model),
            "ClaimInitialization": calls.unary(pb.ClaimInitializationRequest, self._claim_initialization),
            "OpenModel": calls.unary(pb.OpenModelRequest, self._open_model),
            "ClaimRank": calls.unary(pb.ClaimRankRequest, self._claim_rank),
            "RenewLease": calls.unary(pb.RenewLeaseRequest, self._renew_lease),
            "PinModel": calls.unary(pb.PinModelRequest, self._pin_model),
            "ReleasePin": calls.unary(pb.ReleasePinRequest, self._release_pin),
            "DeleteModel": calls.unary(pb.DeleteModelRequest, self._delete_model),
            "LoadModel": calls.unary(pb.LoadModelRequest, self._load_model),
            "ListModels": calls.unary(pb.ListModelsRequest, self._list_models),
            "SetLearningRate": calls.unary(pb.SetLearningRateRequest, self._set_learning_rate),
            "ReleaseRank": calls.unary(pb.ReleaseRankRequest, self._release_rank),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def _describe_cluster(self, _: pb.DescribeClusterRequest, context: Context) -> pb.ClusterDescription:
        """Answered by any node, from what it knows."""
        registered = dict(self._groups.nodes)
        if self._machine is not None:
            registered.update(self._machine.nodes)
        nodes = [
            registered.get(node, Node(node, address, b"")) for node, address in sorted(self._groups.addresses.items())
        ]
        groups = []
        for group in sorted(self._groups.layout):
            leader, term = self._groups.leader(group)
            members = [pb.GroupMember(replica=replica, node=node) for replica, node in self._groups.places(group)]
            groups.append(pb.GroupDescription(group=group, members=members, leader_node=leader, term=term))
        return pb.ClusterDescription(
            cluster=self._cluster,
            node=self._groups.node,
            nodes=[protos.from_node(node) for node in nodes],
            groups=groups,
            directory=self._groups.directory,
            zone=self._zone,
        )

    async def _open_session(self, request: pb.OpenSessionRequest, context: Context) -> pb.OpenSessionResponse:
        _length("client", request.client, CLIENT_BYTES, CLIENT_BYTES)
        _length("secret_digest", request.secret_digest, DIGEST_BYTES, DIGEST_BYTES)
        if request.name:
            refuse_problems(name_problems("name", request.name))
        session = await self._leader.open_session(request.client, request.secret_digest, request.name)
        return pb.OpenSessionResponse(session=session)

    async def _create_model(self, request: pb.CreateModelRequest, context: Context) -> pb.ModelDescription:
        caller = _caller(request.session, request.sequence, request.secret)
        return protos.from_model(await self._leader.lifecycle.create_model(caller, await _spec(request.spec)))

    async def _load_model(self, request: pb.LoadModelRequest, context: Context) -> pb.LoadModelResponse:
        caller = _caller(request.session, request.sequence, request.secret)
        loaded = Loaded(request.step, protos.to_rates(request.rates))
        model = await self._leader.lifecycle.load_model(caller, await _spec(request.spec), loaded)
        return pb.LoadModelResponse(
            model=protos.from_model(model), epoch=model.initialization.epoch, lease_ms=self._leader.lease_ms
        )

    async def _delete_model(self, request: pb.DeleteModelRequest, context: Context) -> pb.DeleteModelResponse:
        caller = _caller(request.session, request.sequence, request.secret)
        await self._leader.lifecycle.delete_model(
            caller, request.model, request.generation, force=request.force, loading=request.loading
        )
        return pb.DeleteModelResponse()

    async def _describe_model(self, request: pb.DescribeModelRequest, context: Context) -> pb.ModelDescription:
        if not request.name and not request.model:
            raise invalid("name", "a model's name or id", "neither")
        if len(request.name) > NAME_CHARACTERS_MAX:
            raise invalid("name", f"at most {NAME_CHARACTERS_MAX} characters", f"{len(request.name)} characters")
        await self._leader.confirmed()
        return protos.from_model(self._leader.describe(name=request.name, model=request.model))

    async def _claim_initialization(
        self, request: pb.ClaimInitializationRequest, context: Context
    ) -> pb.ClaimInitializationResponse:
        caller = _caller(request.session, request.sequence, request.secret)
        claim = await self._leader.lifecycle.claim_initialization(caller, request.model, request.generation)
        return pb.ClaimInitializationResponse(
            granted=claim.granted,
            epoch=claim.epoch,
            open=claim.open,
            holder=claim.holder,
            lease_ends_ms=claim.lease_ends_ms,
        )

    async def _open_model(self, request: pb.OpenModelRequest, context: Context) -> pb.ModelDescription:
        caller = _caller(request.session, request.sequence, request.secret)
        model = await self._leader.lifecycle.open_model(caller, request.model, request.generation, request.epoch)
        return protos.from_model(model)

    async def _claim_rank(self, request: pb.ClaimRankRequest, context: Context) -> pb.ClaimRankResponse:
        caller = _caller(request.session, request.sequence, request.secret)
        claim = await self._leader.claim_rank(caller, request.model, request.generation, request.rank)
        return pb.ClaimRankResponse(
            lease_epoch=claim.lease_epoch,
            view=view_to_proto(claim.view),
            lowest_version=claim.lowest_version,
            lease_ms=claim.lease_ms,
        )

    async def _renew_lease(self, request: pb.RenewLeaseRequest, context: Context) -> pb.RenewLeaseResponse:
        caller = _caller(request.session, 0, request.secret)
        view = self._leader.renew(
            caller, request.model, request.rank, request.lease_epoch, request.initialization_epoch, request.pin
        )
        return pb.RenewLeaseResponse(lease_ms=self._leader.lease_ms, view=view_to_proto(view))

    async def _release_rank(self, request: pb.ReleaseRankRequest, context: Context) -> pb.ReleaseRankResponse:
        caller = _caller(request.session, request.sequence, request.secret)
        await self._leader.release(caller, request.model, request.rank, request.lease_epoch)
        return pb.ReleaseRankResponse()

    async def _set_learning_rate(
        self, request: pb.SetLearningRateRequest, context: Context
    ) -> pb.SetLearningRateResponse:
        caller = _caller(request.session, request.sequence, request.secret)
        wanted = request.from_step if request.HasField("from_step") else None
        step = await self._leader.changes.set_learning_rate(
            caller, request.model, request.generation, request.learning_rate, wanted
        )
        return pb.SetLearningRateResponse(from_step=step)

    async def _pin_model(self, request: pb.PinModelRequest, context: Context) -> pb.PinModelResponse:
        caller = _caller(request.session, request.sequence, request.secret)
        step = request.step if request.HasField("step") else None
        pin = await self._leader.changes.pin(caller, request.model, request.generation, step)
        return pb.PinModelResponse(pin=pin.number, step=pin.step, lease_ms=self._leader.lease_ms, life_ms=PIN_LIFE_MS)

    async def _release_pin(self, request: pb.ReleasePinRequest, context: Context) -> pb.ReleasePinResponse:
        caller = _caller(request.session, request.sequence, request.secret)
        await self._leader.changes.release_pin(caller, request.model, request.generation, request.pin)
        return pb.ReleasePinResponse()

    async def _list_models(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        if len(request.after) > NAME_CHARACTERS_MAX:
            raise invalid("after", f"at most {NAME_CHARACTERS_MAX} characters", f"{len(request.after)} characters")
        later = [model for model in await self._leader.models() if model.spec.name > request.after]
        return pb.ListModelsResponse(
            models=[_summary(model) for model in later[:LISTED_MAX]], more=len(later) > LISTED_MAX
        )


def _summary(model: Model) -> pb.ModelSummary:
    return pb.ModelSummary(
        model=model.model,
        generation=model.generation,
        name=model.spec.name,
        parameters=model.spec.parameters,
        open=model.open,
        ranks=model.spec.ranks,
        ranks_held=sum(lease.held for lease in model.leases),
        optimizer=str(model.spec.optimizer),
    )


async def _spec(message: pb.ModelSpec) -> ModelSpec:
    size = message.ByteSize()
    if size > SPEC_BYTES_MAX:
        raise invalid("spec", f"at most {SPEC_BYTES_MAX} bytes", f"{size} bytes", reason=Reason.TOO_LARGE)
    if size > SPEC_BYTES_LARGE:
        return await asyncio.to_thread(valid_spec_from_proto, message)
    return valid_spec_from_proto(message)


def _caller(session: int, sequence: int, secret: bytes) -> Caller:
    _length("secret", secret, *SECRET_BYTES)
    return Caller(session, sequence, hashlib.sha256(secret).digest())


def _length(field: str, value: bytes, least: int, most: int) -> None:
    if not least <= len(value) <= most:
        expected = f"{least} bytes" if least == most else f"{least} to {most} bytes"
        raise invalid(field, expected, f"{len(value)} bytes")
