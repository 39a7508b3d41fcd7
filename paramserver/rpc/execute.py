"""Commits small commands in data groups, wherever their leaders are: the way from group 0's leader into them.

Invariants: only the small, idempotent commands (create, open, set view, hold, set rate, pin, delete) go this way, never
values; an attempt has a deadline; what comes back was committed and applied by the group's leader. Must not know: why a
command is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from consensus.core.interface import GroupId, NodeId
from consensus.runtime.interface import Committed, Refused
from paramserver.catalogue import drive
from paramserver.rpc.calls import Calls, Context
from paramserver.rpc.groups import Groups, propose
from paramserver.shard import commands, results
from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire.errors import ERROR_METADATA_KEY, Reason, Refusal, disk_full, invalid

SERVICE = "paramserver.v1.Internal"
EXECUTE = f"/{SERVICE}/Execute"
ATTEMPT_TIMEOUT_MS = 2_000
"""For one node's answer; then the next candidate is asked."""
COMMAND_BYTES_MAX = 2 << 20
REDIRECTS_MAX = 8
"""Nodes asked for one command before the caller backs off."""
CHANNELS_MAX = 256
CHANNEL_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)


def encode(command: drive.ShardCommand) -> bytes:
    match command:
        case drive.CreateShard(model, shard):
            return commands.encode_create(
                commands.CreateShard(
                    model=model.model,
                    generation=model.generation,
                    spec=model.spec,
                    first_block=shard.first_block,
                    blocks=shard.blocks,
                    placement_epoch=model.placement_epoch,
                    loaded=None if model.loaded is None else commands.Loaded(model.loaded.step, model.loaded.rates),
                )
            )
        case drive.DeleteShard(model_id, generation, settled):
            return commands.encode_delete(commands.DeleteShard(model=model_id, generation=generation, settled=settled))
        case drive.OpenShard(model_id, generation, epoch, check_only):
            return commands.encode_open(
                commands.OpenShard(model=model_id, generation=generation, epoch=epoch, check_only=check_only)
            )
        case drive.SetView(model_id, generation, view):
            return commands.encode_set_view(commands.SetView(model=model_id, generation=generation, view=view))
        case drive.HoldShard(model_id, generation, number, step, check_only):
            return commands.encode_hold(
                commands.HoldShard(
                    model=model_id, generation=generation, number=number, step=step, check_only=check_only
                )
            )
        case drive.PinShard(model_id, generation, number, step):
            return commands.encode_pin(
                commands.PinShard(model=model_id, generation=generation, number=number, step=step)
            )
        case drive.UnpinShard(model_id, generation, number):
            return commands.encode_pin(commands.UnpinShard(model=model_id, generation=generation, number=number))
        case drive.SetRate(model_id, generation, change):
            return commands.encode_set_rate(
                commands.SetRate(
                    model=model_id,
                    generation=generation,
                    number=change.number,
                    step=change.step,
                    learning_rate=change.learning_rate,
                )
            )


Order: TypeAlias = Callable[[pb.OrderRequest, Context], Awaitable[pb.OrderResponse]]


class Channels:
    """One to each address that was asked for; at the bound the one unused for longest is closed. `dial`: addresses that
    are reached at another one (`NodeConfig.dial`)."""

    def __init__(self, dial: Mapping[str, str] | None = None) -> None:
        self._dial = dial or {}
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def to(self, address: str) -> grpc.aio.Channel:
        channel = self._channels.pop(address, None)
        if channel is None:
            channel = grpc.aio.insecure_channel(self._dial.get(address, address), options=CHANNEL_OPTIONS)
            if len(self._channels) >= CHANNELS_MAX:
                task = asyncio.create_task(self._channels.pop(next(iter(self._channels))).close(grace=None))
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
        self._channels[address] = channel
        return channel

    async def close(self) -> None:
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()


class InternalService:
    """Answers other nodes of the cluster."""

    def __init__(self, groups: Groups, cluster: bytes, orders: Order | None = None) -> None:
        """Without `orders` it takes none."""
        self._groups = groups
        self._cluster = cluster
        self._orders = orders

    def handlers(self, calls: Calls) -> grpc.GenericRpcHandler:
        methods = {"Execute": calls.unary(pb.ExecuteRequest, self._execute)}
        if self._orders is not None:
            methods["Order"] = calls.unary(pb.OrderRequest, self._orders)
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def _execute(self, request: pb.ExecuteRequest, context: Context) -> pb.ExecuteResponse:
        if request.cluster != self._cluster:
            raise Refusal(Reason.WRONG_CLUSTER, "the request is for another cluster", field="cluster")
        return pb.ExecuteResponse(result=await self.commit(request.group, request.command))

    async def commit(self, group: GroupId, command: bytes) -> bytes:
        """A serialized `ShardResult`."""
        if len(command) > COMMAND_BYTES_MAX:
            raise invalid("command", f"at most {COMMAND_BYTES_MAX} bytes", len(command), reason=Reason.TOO_LARGE)
        if command[:2] != bytes((commands.OTHER, commands.FORMAT)):
            raise invalid("command", "a small command of format 1", command[:2])
        hosted = self._groups.hosted.get(group)
        if hosted is None or group == 0:
            raise self._groups.elsewhere(group)
        outcome = await propose(hosted.handle, command)
        match outcome:
            case Committed():
                return results.encode_result(outcome.result)
            case Refused(busy=True):
                raise Refusal(
                    Reason.BUSY,
                    f"group {group} takes no commands now: {outcome.reason or 'too many wait'}",
                    retry_after_ms=50,
                )
            case Refused(full=True):
                raise disk_full(group)
            case Refused():
                raise self._groups.elsewhere(group)
            case _:
                raise Refusal(Reason.NOT_READY, f"group {group}'s leader changed before the outcome was known")


class Executor:
    """`catalogue.drive.Execute`. Keeps one channel a node, `close` closes them."""

    def __init__(
        self, groups: Groups, local: InternalService, cluster: bytes, dial: Mapping[str, str] | None = None
    ) -> None:
        self._groups = groups
        self._local = local
        self._cluster = cluster
        self._channels = Channels(dial)

    async def __call__(self, group: GroupId, command: drive.ShardCommand) -> drive.ShardReply:
        raw = encode(command)
        waiting = self._groups.candidates(group)
        asked: set[NodeId] = set()
        last = Refusal(Reason.NOT_READY, f"no node of group {group} answers")
        while waiting and len(asked) < REDIRECTS_MAX:
            node = waiting.pop(0)
            if node in asked:
                continue
            asked.add(node)
            try:
                return await self._ask(node, group, raw)
            except Refusal as refusal:
                last = refusal
                leader = self._groups.node_at(refusal.leader_address)
                if leader:
                    self._groups.announced(group, refusal.term, leader)
                    waiting.insert(0, leader)
        raise last

    async def close(self) -> None:
        await self._channels.close()

    async def _ask(self, node: NodeId, group: GroupId, raw: bytes) -> drive.ShardReply:
        if node == self._groups.node:
            try:
                async with asyncio.timeout(ATTEMPT_TIMEOUT_MS / 1000):
                    return _reply(await self._local.commit(group, raw))
            except TimeoutError:
                raise Refusal(Reason.NOT_READY, f"group {group} did not commit in time") from None
        request = pb.ExecuteRequest(cluster=self._cluster, group=group, command=raw)
        return _reply((await self._remote(node, request, ATTEMPT_TIMEOUT_MS / 1000)).result)

    async def _remote(self, node: NodeId, request: pb.ExecuteRequest, timeout_s: float) -> pb.ExecuteResponse:
        """Another node's answer. Raises `Refusal`."""
        address = self._groups.addresses.get(node, "")
        if not address:
            raise Refusal(Reason.NOT_READY, f"no address is known of node {node}")
        call = self._channels.to(address).unary_unary(
            EXECUTE, request_serializer=_serialize, response_deserializer=pb.ExecuteResponse.FromString
        )
        try:
            response: pb.ExecuteResponse = await call(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise refusal_of(error) from None
        return response


def _serialize(message: pb.ExecuteRequest) -> bytes:
    return message.SerializeToString()


def _reply(raw: bytes) -> drive.ShardReply:
    try:
        result = pb.ShardResult.FromString(raw)
    except DecodeError:
        raise Refusal(Reason.INTERNAL, "a data group's answer can't be read") from None
    return drive.ShardReply(
        ok=result.ok,
        reason=result.reason,
        message=result.message,
        lowest_version=result.lowest_version,
        view=result.view,
        highest_version=result.highest_version,
    )


def refusal_of(error: grpc.aio.AioRpcError) -> Refusal:
    """What another node said, or that it did not answer."""
    detail = next((value for key, value in error.trailing_metadata() or () if key == ERROR_METADATA_KEY), None)
    raw = detail if isinstance(detail, bytes) else None
    return Refusal.from_detail(error.code().name, error.details() or "", raw)
