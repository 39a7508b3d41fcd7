"""What nodes say of themselves, asked over the wire like anybody else would ask.

Owns the snapshots (frozen values; protobuf stops here) and the questions put to a whole cluster. Invariant: a node
that does not answer is an `Unreachable` with a reason, never an exception. Must not know: processes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import grpc

from paramserver.v1 import paramserver_pb2, paramserver_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator

ASK_TIMEOUT_S = 2.0
ASK_AT_ONCE_MAX = 16
"""Nodes asked at the same time."""

LEADER = "leader"
ROLES = {
    paramserver_pb2.MEMBER_ROLE_UNSPECIFIED: "voter",
    paramserver_pb2.VOTER: "voter",
    paramserver_pb2.LEARNER: "learner",
    paramserver_pb2.OUTGOING: "outgoing",
    paramserver_pb2.INCOMING: "incoming",
}

CHANNEL_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # a channel of its own: no back-off inherited from an earlier question
    ("grpc.max_receive_message_length", 64 << 20),
)


@dataclass(frozen=True, slots=True)
class BlockSnapshot:
    model: int
    block: int
    version: int
    digest: str


@dataclass(frozen=True, slots=True)
class MemberSnapshot:
    replica: int
    node: int
    role: str
    match_index: int


@dataclass(frozen=True, slots=True)
class LoadSnapshot:
    """What a replica did for clients since its process began, and lately, a second: blocks taken from push streams and
    sent to pulls, and bytes of values as they travel."""

    pushes: int = 0
    pushed_bytes: int = 0
    returned_bytes: int = 0
    pulls: int = 0
    pulled_bytes: int = 0
    pushes_per_s: float = 0.0
    pushed_bytes_per_s: float = 0.0
    returned_bytes_per_s: float = 0.0
    pulls_per_s: float = 0.0
    pulled_bytes_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class GroupSnapshot:
    """One replica's view of its group. `problem` says why it does not run; empty when well."""

    group: int
    replica: int
    role: str
    term: int
    leader_node: int
    commit_index: int
    applied_index: int
    last_index: int
    snapshot_index: int
    flushed_index: int
    problem: str
    state_bytes: int
    blocks: tuple[BlockSnapshot, ...] = ()
    first_index: int = 0
    members: tuple[MemberSnapshot, ...] = ()
    """Of the configuration in force there."""
    configuration_index: int = 0
    joint: bool = False
    next_replica: int = 0
    transferee: int = 0
    quiesced: bool = False
    forgetful: bool = False
    storage_stalled: bool = False
    removed: bool = False
    distrusted: str = ""
    """Why its state is wrong and is rebuilt."""
    block_count: int = 0
    weight_bytes: int = 0
    """One version of them, as fp32."""
    load: LoadSnapshot = LoadSnapshot()

    @property
    def leads(self) -> bool:
        return self.role.lower() == LEADER


@dataclass(frozen=True, slots=True)
class RankSnapshot:
    rank: int
    lease_epoch: int
    held: bool
    session: int


@dataclass(frozen=True, slots=True)
class ShardSnapshot:
    group: int
    first_block: int
    blocks: int


@dataclass(frozen=True, slots=True)
class ModelSnapshot:
    model: int
    generation: int
    name: str
    open: bool
    parameters: int
    view: int
    ranks: tuple[RankSnapshot, ...]
    shards: tuple[ShardSnapshot, ...]


@dataclass(frozen=True, slots=True)
class NodeSnapshot:
    node: int
    address: str
    cluster: str
    node_uuid: str
    incarnation: int
    version: str
    durability: str
    groups: tuple[GroupSnapshot, ...]
    models: tuple[ModelSnapshot, ...]
    alarms: tuple[str, ...]
    counters: Mapping[str, int] = field(default_factory=dict)
    gauges: Mapping[str, float] = field(default_factory=dict)
    state: str = "serving"
    disk_full: bool = False
    zone: str = ""

    def group(self, group: int) -> GroupSnapshot | None:
        return next((one for one in self.groups if one.group == group), None)


@dataclass(frozen=True, slots=True)
class Unreachable:
    """A node that gave no answer. `node` is 0 when it is known by its address only."""

    address: str
    cause: str
    node: int = 0


Answer = NodeSnapshot | Unreachable


@contextlib.contextmanager
def open_channel(address: str) -> Iterator[grpc.Channel]:
    channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
    try:
        yield channel
    finally:
        channel.close()


def ask(address: str, *, blocks: bool = False, timeout_s: float = ASK_TIMEOUT_S) -> Answer:
    """One node's answer. Errors of the network become `Unreachable`."""
    with open_channel(address) as channel:
        stub: Any = paramserver_pb2_grpc.AdminStub(channel)
        try:
            return _node(stub.Status(paramserver_pb2.StatusRequest(blocks=blocks), timeout=timeout_s))
        except grpc.RpcError as error:
            return Unreachable(address=address, cause=cause_of(error))


def ask_all(addresses: Sequence[str], *, blocks: bool = False, timeout_s: float = ASK_TIMEOUT_S) -> tuple[Answer, ...]:
    """Every node at once, in the order given: one that is silent costs one timeout, not one for each."""
    if not addresses:
        return ()
    with ThreadPoolExecutor(min(len(addresses), ASK_AT_ONCE_MAX), "status") as pool:
        return tuple(pool.map(lambda address: ask(address, blocks=blocks, timeout_s=timeout_s), addresses))


def everybody(addresses: Sequence[str], *, timeout_s: float = ASK_TIMEOUT_S) -> list[str]:
    """The addresses given, and those of all other nodes that one of them knows."""
    found = list(addresses)
    for address in addresses:
        described = _described(address, timeout_s)
        if described is not None:
            found += [one.address for one in described.nodes if one.state != paramserver_pb2.NODE_REMOVED]
            break
    return list(dict.fromkeys(found))


def _described(address: str, timeout_s: float) -> paramserver_pb2.ClusterDescription | None:
    with open_channel(address) as channel:
        stub: Any = paramserver_pb2_grpc.CatalogueStub(channel)
        try:
            found: paramserver_pb2.ClusterDescription = stub.DescribeCluster(
                paramserver_pb2.DescribeClusterRequest(), timeout=timeout_s
            )
        except grpc.RpcError:
            return None
        return found


def named(answers: Sequence[Answer], *, timeout_s: float = ASK_TIMEOUT_S) -> tuple[Answer, ...]:
    """The same, with the numbers of nodes that gave no answer, as far as one that did knows their addresses."""
    nodes = reached(answers)
    if not nodes or len(nodes) == len(answers):
        return tuple(answers)
    described = _described(nodes[0].address, timeout_s)
    if described is None:
        return tuple(answers)
    numbers = {one.address: one.node for one in described.nodes}
    return tuple(
        replace(answer, node=numbers.get(answer.address, 0)) if isinstance(answer, Unreachable) else answer
        for answer in answers
    )


def reached(answers: Iterable[Answer]) -> tuple[NodeSnapshot, ...]:
    return tuple(answer for answer in answers if isinstance(answer, NodeSnapshot))


def leader_of(answers: Iterable[Answer], group: int) -> NodeSnapshot | None:
    """The node that says it leads `group`, in the highest term any of them leads in: a deposed leader that has not
    heard of it yet is outvoted."""
    leaders = []
    for node in reached(answers):
        state = node.group(group)
        if state is not None and state.leads:
            leaders.append((state.term, node))
    return max(leaders, key=lambda pair: pair[0])[1] if leaders else None


def leaders(answers: Sequence[Answer]) -> dict[int, int]:
    """Group -> node, for every group somebody leads."""
    groups = sorted({state.group for node in reached(answers) for state in node.groups})
    found = ((group, leader_of(answers, group)) for group in groups)
    return {group: node.node for group, node in found if node is not None}


def block_states(answers: Iterable[Answer], model: int) -> dict[tuple[int, int], dict[int, BlockSnapshot]]:
    """(group, block) -> node -> that replica's state of the block."""
    states: dict[tuple[int, int], dict[int, BlockSnapshot]] = {}
    for node in reached(answers):
        for group in node.groups:
            for block in group.blocks:
                if block.model == model:
                    states.setdefault((group.group, block.block), {})[node.node] = block
    return states


def cause_of(error: grpc.RpcError) -> str:
    """One line a person can use, of what gRPC says at length."""
    code = error.code() if isinstance(error, grpc.Call) else None
    details = (error.details() or "") if isinstance(error, grpc.Call) else str(error)
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return "no answer in time"
    if code == grpc.StatusCode.UNAVAILABLE:
        if "Connection refused" in details:
            return "connection refused: no server listens there"
        if "DNS" in details or "resolution" in details:
            return "no such host"
    first = details.splitlines()[0] if details else "no details"
    return f"{code.name if code is not None else 'error'}: {first}"


def _node(message: paramserver_pb2.NodeStatus) -> NodeSnapshot:
    return NodeSnapshot(
        node=message.node,
        address=message.address,
        cluster=message.cluster.hex(),
        node_uuid=message.node_uuid.hex(),
        incarnation=message.incarnation,
        version=message.version,
        durability=message.durability,
        groups=tuple(sorted((_group(group) for group in message.groups), key=lambda group: group.group)),
        models=tuple(_model(model) for model in message.models),
        alarms=tuple(message.alarms),
        counters=dict(message.counters),
        gauges=dict(message.gauges),
        state=message.state or "serving",
        disk_full=message.disk_full,
        zone=message.zone,
    )


def _group(message: paramserver_pb2.GroupState) -> GroupSnapshot:
    return GroupSnapshot(
        group=message.group,
        replica=message.replica,
        role=message.role,
        term=message.term,
        leader_node=message.leader_node,
        commit_index=message.commit_index,
        applied_index=message.applied_index,
        last_index=message.last_index,
        snapshot_index=message.snapshot_index,
        flushed_index=message.flushed_index,
        problem=message.problem,
        state_bytes=message.state_bytes,
        blocks=tuple(
            BlockSnapshot(model=block.model, block=block.block, version=block.version, digest=block.digest)
            for block in message.blocks
        ),
        first_index=message.first_index,
        members=tuple(
            MemberSnapshot(one.replica, one.node, ROLES.get(one.role, "unknown"), one.match_index)
            for one in message.members
        ),
        configuration_index=message.configuration_index,
        joint=message.joint,
        next_replica=message.next_replica,
        transferee=message.transferee,
        quiesced=message.quiesced,
        forgetful=message.forgetful,
        storage_stalled=message.storage_stalled,
        distrusted=message.distrusted,
        removed=message.removed,
        block_count=message.block_count,
        weight_bytes=message.weight_bytes,
        load=LoadSnapshot(**{field.name: getattr(message.load, field.name) for field in fields(LoadSnapshot)}),
    )


def _model(message: paramserver_pb2.ModelState) -> ModelSnapshot:
    return ModelSnapshot(
        model=message.model,
        generation=message.generation,
        name=message.name,
        open=message.open,
        parameters=message.parameters,
        view=message.view,
        ranks=tuple(RankSnapshot(one.rank, one.lease_epoch, one.held, one.session) for one in message.ranks),
        shards=tuple(ShardSnapshot(one.group, one.first_block, one.blocks) for one in message.shards),
    )
