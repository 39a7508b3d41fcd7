"""The `Admin` service: what this node says of itself.

Invariant: an answer is put together from published values on the event loop and bounded by BLOCKS_MAX, so that asking
never holds up control. Must not know: how any of it is decided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc

from consensus.core.configuration import encode_configuration, next_replica_of
from consensus.core.interface import Status
from paramserver.catalogue.machine import CatalogueMachine
from paramserver.catalogue.protos import from_lease, from_shard
from paramserver.catalogue.state import Model
from paramserver.observe.load import Load
from paramserver.rpc.calls import Calls, Context
from paramserver.rpc.groups import Groups, Hosted, home_of
from paramserver.rpc.reshape import ReshapeService
from paramserver.shard.machine import ShardMachine
from paramserver.v1 import paramserver_pb2 as pb

SERVICE = "paramserver.v1.Admin"
BLOCKS_MAX = 20_000
"""Blocks told in one answer; an alarm says that there are more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who answers; fixed for this life."""

    node: int
    address: str
    cluster: bytes
    node_uuid: bytes
    incarnation: int
    version: str
    durability: str
    zone: str = ""


class AdminService:
    def __init__(
        self,
        *,
        identity: Identity,
        groups: Groups,
        catalogue: CatalogueMachine | None,
        alarms: Callable[[], Iterable[str]],
        counters: Callable[[], Mapping[str, int]],
        gauges: Callable[[], Mapping[str, float]],
        state: Callable[[], str] = lambda: "serving",
        disk_full: Callable[[], bool] = lambda: False,
        reshape: ReshapeService | None = None,
        load: Load | None = None,
    ) -> None:
        self._identity = identity
        self._groups = groups
        self._catalogue = catalogue
        self._alarms = alarms
        self._counters = counters
        self._gauges = gauges
        self._state = state
        self._disk_full = disk_full
        self._reshape = reshape
        self._load = load or Load()

    def handlers(self, calls: Calls) -> grpc.GenericRpcHandler:
        methods = {"Status": calls.unary(pb.StatusRequest, self.status)}
        if self._reshape is not None:
            methods["Members"] = calls.unary(pb.MembersRequest, self._reshape.members)
            methods["Reshape"] = calls.unary(pb.ReshapeRequest, self._reshape.reshape)
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def status(self, request: pb.StatusRequest, context: Context = None) -> pb.NodeStatus:
        alarms = list(self._alarms())
        left = BLOCKS_MAX if request.blocks else 0
        groups = []
        for group in sorted(self._groups.hosted):
            state = self._group(self._groups.hosted[group], left)
            if not request.brief:
                self._tell_load(state, self._groups.hosted[group])
            left -= len(state.blocks)
            groups.append(state)
        if request.blocks and left == 0:
            alarms.append(f"not all blocks are told: the answer holds {BLOCKS_MAX}, its bound")
        me = self._identity
        models = self._catalogue.models.values() if self._catalogue is not None and not request.brief else ()
        return pb.NodeStatus(
            node=me.node,
            address=me.address,
            cluster=me.cluster,
            node_uuid=me.node_uuid,
            incarnation=me.incarnation,
            version=me.version,
            durability=me.durability,
            groups=groups,
            models=[_model(model) for model in models],
            alarms=alarms,
            counters={} if request.brief else self._counters(),
            gauges={} if request.brief else self._gauges(),
            state=self._state(),
            disk_full=self._disk_full(),
            directory=self._groups.directory,
            zone=me.zone,
        )

    def _tell_load(self, state: pb.GroupState, hosted: Hosted) -> None:
        """What the replica holds, and what it does for clients."""
        if not isinstance(hosted.machine, ShardMachine):
            return
        for shard in hosted.machine.shards.values():
            state.block_count += shard.info.create.blocks
            state.weight_bytes += shard.weight_bytes()
        load, rates = self._load.of(hosted.group), self._load.rates(hosted.group)
        state.load.CopyFrom(
            pb.GroupLoad(
                pushes=load.pushes,
                pushed_bytes=load.pushed_bytes,
                returned_bytes=load.returned_bytes,
                pulls=load.pulls,
                pulled_bytes=load.pulled_bytes,
                pushes_per_s=rates.pushes,
                pushed_bytes_per_s=rates.pushed_bytes,
                returned_bytes_per_s=rates.returned_bytes,
                pulls_per_s=rates.pulls,
                pulled_bytes_per_s=rates.pulled_bytes,
            )
        )

    def _group(self, hosted: Hosted, blocks_max: int) -> pb.GroupState:
        status: Any = hosted.handle.status()
        state = pb.GroupState(group=hosted.group, replica=hosted.replica, role="stopped", problem=status.problem)
        state.state_bytes = hosted.machine.size_bytes()
        state.distrusted = status.distrusted
        core = status.core
        if core is not None:
            _, leader_node, _ = hosted.handle.leader()
            state.role = core.role.name.lower()
            state.term = core.term
            state.leader_node = leader_node
            state.commit_index = core.commit_index
            state.applied_index = core.applied_index
            state.last_index = core.last_index
            state.snapshot_index = core.snapshot_index
            state.flushed_index = core.flushed_index
            _tell_more(state, core)
        if blocks_max and isinstance(hosted.machine, ShardMachine):
            state.blocks.extend(_blocks(hosted.machine, blocks_max))
        return state


def _tell_more(state: pb.GroupState, core: Status) -> None:
    """Members, marks, and what is under way."""
    state.first_index = core.first_index
    state.last_term = core.last_term
    state.leader_replica = core.leader
    state.serving = core.ready_to_serve
    state.transferee = core.transferee
    state.quiesced = core.quiesced
    state.forgetful = core.forgetful
    state.storage_stalled = core.storage_stalled
    state.removed = core.removed
    configuration = core.configuration
    if configuration is None:
        return
    state.configuration_index = core.configuration_index
    state.joint = bool(configuration.outgoing)
    state.next_replica = next_replica_of(configuration)
    state.configuration = encode_configuration(configuration)
    incoming = set(configuration.voters) - set(configuration.outgoing) if configuration.outgoing else set()
    roles = {voter: pb.INCOMING if voter in incoming else pb.VOTER for voter in configuration.voters}
    roles.update(dict.fromkeys(set(configuration.outgoing) - set(configuration.voters), pb.OUTGOING))
    roles.update(dict.fromkeys(configuration.learners, pb.LEARNER))
    uuids = {home.replica: home.uuid for home in configuration.homes}
    for replica, role in roles.items():
        state.members.add(
            replica=replica,
            node=home_of(configuration, replica),
            role=role,
            match_index=core.last_index if replica == state.replica else core.match.get(replica, 0),
            node_uuid=uuids.get(replica, b""),
        )
    if state.replica in configuration.learners and state.role == "follower":
        state.role = "learner"


def _blocks(machine: ShardMachine, blocks_max: int) -> Iterable[pb.BlockState]:
    for model, shard in machine.shards.items():
        first = shard.info.create.first_block
        for index, block in enumerate(shard.published):
            if blocks_max == 0:
                return
            blocks_max -= 1
            digest = block.digest_of(block.version)
            yield pb.BlockState(
                model=model, block=first + index, version=block.version, digest=digest.hex() if digest else ""
            )


def _model(model: Model) -> pb.ModelState:
    return pb.ModelState(
        model=model.model,
        generation=model.generation,
        name=model.spec.name,
        open=model.open,
        parameters=model.spec.parameters,
        ranks=[from_lease(rank, lease) for rank, lease in enumerate(model.leases)],
        view=model.view.number,
        shards=[from_shard(shard) for shard in model.shards],
    )
